"""Mixed reward feedback: what the rewards say of the student's one-jump estimate.

Source: T2V-Turbo, arXiv:2405.18750, section 4 (Eq. 6-9).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float, Int
from torch import Tensor

from turbo.networks.vae import decode_latents
from turbo.types import Frames, Latents, PerVideo

RewardModel = Callable[[Frames, list[str]], PerVideo]  # differentiable in the frames


@dataclass(frozen=True, kw_only=True)
class Feedback:
    """Which rewards count, how much, and how many decoded frames each sees."""

    image: RewardModel | None = None
    video: RewardModel | None = None
    image_weight: float = 1.0  # beta_img
    video_weight: float = 2.0  # beta_vid
    image_frames: int = 6  # M, drawn without replacement
    video_frames: int = 8  # evenly spaced, from a random phase


@dataclass(frozen=True)
class Rewards:
    """What a batch earned; zero where a reward is absent."""

    image: PerVideo
    video: PerVideo
    loss: Float[Tensor, ""]  # - beta_img mean(image) - beta_vid mean(video)


def reward_clean(
    clean: Latents,
    prompts: list[str],
    vae: AutoencoderKL,
    feedback: Feedback,
    generator: torch.Generator,
) -> Rewards:
    """Decode some frames of the estimates, with their graph, and score them.

    Args:
        clean: `ConsistencyLoss.clean`, with gradient.
    """
    image = video = clean.new_zeros(len(clean))
    if feedback.image is not None:
        frames = draw_frames(clean.shape[2], feedback.image_frames, generator)
        image = score_frames(clean, frames, prompts, vae, feedback.image)
    if feedback.video is not None:
        frames = stride_frames(clean.shape[2], feedback.video_frames, generator)
        video = score_frames(clean, frames, prompts, vae, feedback.video)
    loss = -feedback.image_weight * image.mean() - feedback.video_weight * video.mean()
    return Rewards(image, video, loss)


def score_frames(
    clean: Latents,
    frames: Int[Tensor, " M"],
    prompts: list[str],
    vae: AutoencoderKL,
    reward: RewardModel,
) -> PerVideo:
    """Decode the frames at these places of every video, and score them."""
    return reward(decode_latents(vae, clean[:, :, frames.to(clean.device)]), prompts)


def draw_frames(available: int, count: int, generator: torch.Generator) -> Int[Tensor, " M"]:
    """Draw distinct frames.

    Raises:
        ValueError: more frames asked for than there are.
    """
    _check_count(count, available)
    return torch.randperm(available, generator=generator, device=generator.device)[:count]


def stride_frames(available: int, count: int, generator: torch.Generator) -> Int[Tensor, " M"]:
    """Return evenly spaced frames from a random phase: 8 of 16 are the even or the odd ones.

    Raises:
        ValueError: more frames asked for than there are.
    """
    _check_count(count, available)
    stride = available // count
    phase = torch.randint(stride, (1,), generator=generator, device=generator.device)
    return phase + stride * torch.arange(count, device=generator.device)


def _check_count(count: int, available: int) -> None:
    if not 1 <= count <= available:
        raise ValueError(f"Expected between 1 and {available} reward frames, got {count}.")
