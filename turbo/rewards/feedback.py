"""Mixed reward feedback: the student's estimates of clean latents, scored by several rewards.

Source: T2V-Turbo, arXiv:2405.18750, section 4 (Eq. 6-9).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from turbo.networks.vae import decode_chosen, first_frame
from turbo.types import VAE, Frames, Latents, PerVideo, Reward

# (available frames, frames to select, generator) -> their indices
SelectFrames = Callable[[int, int, torch.Generator], Int[Tensor, " M"]]


def draw_frames(available: int, count: int, generator: torch.Generator) -> Int[Tensor, " M"]:
    """Draw distinct frames at random, as the papers do for image rewards.

    Raises:
        ValueError: fewer frames are available.
    """
    _check_count(count, available)
    return torch.randperm(available, generator=generator, device=generator.device)[:count]


def stride_frames(available: int, count: int, generator: torch.Generator) -> Int[Tensor, " M"]:
    """Return evenly spaced frames from a random phase, as the papers do for video rewards.

    8 of 16 frames are the even ones or the odd ones.

    Raises:
        ValueError: fewer frames are available.
    """
    _check_count(count, available)
    stride = available // count
    phase = torch.randint(stride, (1,), generator=generator, device=generator.device)
    return phase + stride * torch.arange(count, device=generator.device)


def _check_count(count: int, available: int) -> None:
    if not 1 <= count <= available:
        raise ValueError(
            f"A reward cannot score {count} frames of a window of {available}. Set from 1 to "
            f"{available}."
        )


@dataclass(frozen=True)
class Window:
    """Consecutive frames of a video, among which a reward selects.

    A causal VAE decodes every frame up to the last one selected, but a gradient takes memory only
    from the first one selected on. A window therefore bounds the memory. At the start of the video
    it also bounds the time, because there is no history to decode.
    """

    frames: int
    at_start: bool = False  # else at a place drawn for each video

    def draw(self, available: int, generator: torch.Generator) -> int:
        """Return its first frame.

        Raises:
            ValueError: the video is shorter.
        """
        _check_count(self.frames, available)
        if self.at_start:
            return 0
        places = available - self.frames + 1
        return int(torch.randint(places, (), generator=generator, device=generator.device))


@dataclass(frozen=True, kw_only=True)
class WeightedReward:
    """One term of the reward mixture."""

    name: str  # key of its scores
    model: Reward  # its parameters are frozen
    weight: float  # beta in the paper
    frames: int  # how many decoded frames of each video it scores
    select: SelectFrames = draw_frames
    random_crop: bool = False  # it sees a square of each video, drawn by `draw_squares`
    window: Window | None = None  # consecutive frames to select from; None: all


@dataclass(frozen=True)
class MixedReward:
    """The scores of a batch by reward name, and their contribution to the training loss."""

    scores: dict[str, PerVideo]
    loss: Float[Tensor, ""]  # - sum of weight x mean score over the rewards


def mix_rewards(
    clean: Latents,
    prompts: list[str],
    vae: VAE,
    rewards: Iterable[WeightedReward],
    generator: torch.Generator,
    *,
    recompute: bool = False,
) -> MixedReward:
    """Decode some frames of the estimates, with gradient, and score them by every reward.

    A frame that several rewards score is decoded only once, except by a causal VAE. Without
    rewards the loss is 0. Through a causal VAE the gradient reaches the latents from the first
    selected frame on, see `decode_chosen`.

    Args:
        clean: `DistillationLoss.clean`, with gradient.
        generator: selects the frames of each video.
        recompute: as for `decode_latents`.
    """
    rewards, available = [*rewards], first_frame(vae, clean.shape[2])
    choices = [
        torch.stack([_select(reward, available, generator) for _ in prompts]).to(clean.device)
        for reward in rewards
    ]
    decoded = decode_chosen(vae, clean, choices, recompute=recompute) if rewards else []
    scores, loss = {}, clean.new_zeros(())
    for reward, frames in zip(rewards, decoded, strict=True):
        seen = draw_squares(frames, generator) if reward.random_crop else frames
        score = reward.model(seen, prompts)
        scores[reward.name] = score
        loss = loss - reward.weight * score.mean()
    return MixedReward(scores, loss)


def _select(
    reward: WeightedReward, available: int, generator: torch.Generator
) -> Int[Tensor, " M"]:
    """Return the frames of one video that a reward scores."""
    if reward.window is None:
        return reward.select(available, reward.frames, generator)
    first = reward.window.draw(available, generator)
    return first + reward.select(reward.window.frames, reward.frames, generator)


def draw_squares(frames: Frames, generator: torch.Generator) -> Float[Tensor, "B F 3 S S"]:
    """Cut the largest square out of each video, at a place drawn for it, the same in all frames.

    Video rewards would take the middle: at 320 x 512 they never see 37 % of the width, where a
    student is free to do anything. The published code draws the place after it resizes.
    """
    size = min(frames.shape[-2:])
    squares = []
    for video in frames:
        top, left = (
            int(torch.randint(side - size + 1, (), generator=generator, device=generator.device))
            for side in video.shape[-2:]
        )
        squares.append(video[..., top : top + size, left : left + size])
    return torch.stack(squares)


def recompute_blocks(reward: Reward) -> None:
    """Let every block of a reward compute its activations again in the backward pass, in place.

    Blocks are the children of the outermost lists of modules. The memory for activations is then
    that of one block, and of the inputs of all.
    """
    if not isinstance(reward, nn.Module):
        return
    lists = [name for name, module in reward.named_modules() if isinstance(module, nn.ModuleList)]
    for name in lists:
        if any(name.startswith(f"{other}.") for other in lists):
            continue
        for block in reward.get_submodule(name).children():
            # Nothing is drawn in it: `check_reward` refuses random rewards.
            block.forward = partial(
                checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False
            )
