"""The contract of a reward, as a check that everybody can run on their own."""

import torch
from torch import Tensor, nn

from turbo.types import Frames, Reward

PROMPTS = ("a red cat", "a boat on a lake")


def check_reward(
    reward: Reward,
    num_frames: int,
    height: int = 64,
    width: int = 64,
    *,
    low: float = -float("inf"),
    high: float = float("inf"),
    tolerance: float = 1e-4,
    device: torch.device | str = "cpu",
) -> None:
    """Check a reward on random videos: all that a distillation relies on.

    A reward returns one finite score per video, within its range. The same frames have the same
    score, whatever other videos are in the batch. The gradient is finite and reaches every frame.
    The frames are not changed, and no weight requires a gradient.

    Args:
        num_frames: how many frames of a video it scores.
        height, width: of the frames, in pixels.
        low, high: range of the score.
        tolerance: how much a score may depend on the size of the batch, by rounding.

    Raises:
        ValueError: it breaks the contract; the message says how.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(2, num_frames, 3, height, width, generator=generator).to(device)
    prompts = list(PROMPTS)
    if isinstance(reward, nn.Module) and any(p.requires_grad for p in reward.parameters()):
        raise ValueError("A weight of the reward requires a gradient. Call requires_grad_(False).")
    frames = drawn.clone().requires_grad_(True)
    try:
        scores = reward(frames, prompts)
    except RuntimeError as failure:
        raise ValueError(
            f"The reward cannot score frames that require a gradient: {failure}. Do not change "
            "them in place."
        ) from failure
    _check_scores(scores, low, high)
    with torch.no_grad():
        copy = drawn.clone()
        again = reward(copy, prompts)
        alone = torch.cat([reward(drawn[[row]].clone(), [prompts[row]]) for row in (0, 1)])
    if not torch.equal(copy, drawn):
        raise ValueError("The reward changed the frames that it scored. Work on a copy.")
    if not torch.allclose(scores.detach(), again, rtol=0, atol=tolerance):
        raise ValueError(
            "The same frames have two scores. Switch dropout and random crops off in the reward."
        )
    if not torch.allclose(again, alone, rtol=0, atol=tolerance):
        raise ValueError(
            f"The scores in a batch are {again.tolist()}, and {alone.tolist()} one by one: each "
            "video must be scored by itself, against its own prompt."
        )
    for row in range(len(prompts)):
        _check_gradient(reward, drawn, prompts, row)


def _check_scores(scores: Tensor, low: float, high: float) -> None:
    if not isinstance(scores, Tensor) or tuple(scores.shape) != (len(PROMPTS),):
        shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(
            f"The reward returns {shape} for two videos. It must return a tensor of shape (2,)."
        )
    if not scores.isfinite().all() or scores.min() < low or scores.max() > high:
        raise ValueError(
            f"The scores are {scores.tolist()}. They must be finite, between {low:g} and {high:g}."
        )
    if not scores.requires_grad:
        raise ValueError(
            "The scores have no gradient. Leave out detach, no_grad and integer conversions."
        )


def _check_gradient(reward: Reward, drawn: Frames, prompts: list[str], row: int) -> None:
    """Check the gradient of one video's score: finite, in all of its frames, and in no other's."""
    frames = drawn.clone().requires_grad_(True)
    try:
        (gradient,) = torch.autograd.grad(reward(frames, prompts)[row], frames, allow_unused=True)
    except RuntimeError as failure:
        raise ValueError(f"The score cannot be differentiated: {failure}.") from failure
    if gradient is None or not gradient.isfinite().all():
        raise ValueError("The gradient of the frames is missing, infinite or not a number.")
    reached = gradient.flatten(2).abs().sum(dim=2) > 0
    if not reached[row].all():
        missed = (~reached[row]).nonzero().flatten().tolist()
        raise ValueError(f"The gradient does not reach the frames {missed}.")
    if reached[1 - row].any():
        raise ValueError("The score of a video depends on another video of the batch.")
