"""Few-step sampling: jump to the clean estimate, add less noise, jump again."""

from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest

import torch
from jaxtyping import Int
from torch import Tensor

from turbo.diffusion.schedule import NoiseSchedule
from turbo.types import Latents, Timesteps


def few_step_timesteps(
    num_steps: int, origin_steps: int, num_timesteps: int = 1000
) -> Int[Tensor, " steps"]:
    """Choose the timesteps to visit: every so many points of the distillation grid, from the top.

    The last one may lie well above 0 (279 for 4 of 50): the estimate there is already the sample.
    diffusers' `LCMScheduler` spaces its default timesteps differently.

    Args:
        origin_steps: size of the grid the student was distilled on: 50 in T2V-Turbo, 200 in v2.

    Source: the released T2V-Turbo scheduler.
    """
    if not 1 <= num_steps <= origin_steps:
        raise ValueError(
            f"Expected num_steps between 1 and {origin_steps}, got {num_steps}. "
            "A student cannot visit more timesteps than it was distilled on."
        )
    stride = num_timesteps // origin_steps
    grid = torch.arange(1, origin_steps + 1) * stride - 1
    return grid.flip(0)[:: origin_steps // num_steps][:num_steps]


def draw_noise(like: Latents, generators: Sequence[torch.Generator]) -> Latents:
    """Draw standard normal latents, each video from its own generator.

    Drawn on the generators' device (the CPU in the pipeline) and then moved, so that a seed means
    the same video on every device and in every batch.
    """
    if len(generators) != len(like):
        raise ValueError(
            f"Expected {len(like)} generators, got {len(generators)}. Give each video its own."
        )
    draws = [torch.randn(like.shape[1:], generator=g, device=g.device) for g in generators]
    return torch.stack([draw.to(like) for draw in draws])


@torch.inference_mode()
def sample_latents(
    consistency_fn: Callable[[Latents, Timesteps], Latents],  # (noisy, timesteps) -> clean
    schedule: NoiseSchedule,
    noise: Latents,
    timesteps: Int[Tensor, " steps"],
    generators: Sequence[torch.Generator],
) -> Iterator[Latents]:
    """Yield the clean estimate after every step; the last one is the sample.

    Source: Consistency Models, arXiv:2303.01469, Algorithm 1.
    """
    noisy = noise
    for t, t_next in zip_longest(timesteps, timesteps[1:]):
        clean = consistency_fn(noisy, t.expand(len(noise)))
        yield clean
        if t_next is not None:
            fresh = draw_noise(noise, generators)
            noisy = schedule.add_noise(clean, fresh, t_next.expand(len(noise)))
