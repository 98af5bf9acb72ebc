"""DDIM, the sampler of teachers: fifty guided steps, or fewer."""

from collections.abc import Iterator, Sequence
from itertools import zip_longest

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from turbo.card import Spacing
from turbo.diffusion.schedule import NUM_TIMESTEPS, NoiseSchedule, step_noises
from turbo.types import Denoiser, Latents, Level, SamplerStep, Schedule, Timesteps


def ddim_timesteps(num_steps: int, *, spacing: Spacing = "leading") -> Int[Tensor, " steps"]:
    """Choose the timesteps to visit, from high to low.

    Args:
        spacing: "leading" is that of the published teachers (981, 961, ... 1 for 50 steps);
            "trailing" starts at the last timestep (999, 979, ... 19), where the latents are nearly
            pure noise, as at sampling; this matters most in few steps.

    Source: Common Diffusion Noise Schedules and Sample Steps Are Flawed, arXiv:2305.08891, table 2.
    """
    if not 1 <= num_steps <= NUM_TIMESTEPS:
        raise ValueError(f"Expected num_steps between 1 and {NUM_TIMESTEPS}, got {num_steps}.")
    if spacing == "leading":
        return torch.arange(num_steps).flip(0) * (NUM_TIMESTEPS // num_steps) + 1
    ends = torch.arange(num_steps, 0, -1, dtype=torch.float64) * NUM_TIMESTEPS / num_steps
    return ends.round().long() - 1


def signal_scales(num_timesteps: int = NUM_TIMESTEPS) -> Float[Tensor, " T"]:
    """Return the factor by which VideoCrafter2's training scaled latents before adding noise.

    That teacher learned from `alpha * scale * clean + sigma * noise`, so its estimate of the clean
    latents is `scale` times too small: 1 at timestep 0, falling to 0.7 at 399, then constant. Its
    own sampler corrects for this. Students were distilled without the scale and must not.

    Source: the released VideoCrafter2 sampler (`use_scale`).
    """
    falling = torch.linspace(1.0, 0.7, 400, dtype=torch.float32)
    return torch.cat([falling, torch.full((num_timesteps,), 0.7, dtype=torch.float32)])[
        :num_timesteps
    ]


@torch.inference_mode()
def sample_ddim(
    denoiser: Denoiser,
    schedule: Schedule,
    noise: Latents,
    timesteps: Int[Tensor, " steps"],
    *,
    eta: float = 0.0,
    generators: Sequence[torch.Generator] = (),
    step_noise: Sequence[Tensor] | None = None,  # each B C F h w
    scales: Float[Tensor, " T"] | None = None,
) -> Iterator[SamplerStep]:
    """Yield every step; the latents of the last one, at timestep 0, are the sample.

    z_next = alpha_next z0 + sqrt(1 - alpha_next² - s²) epsilon + s n, where z0 and epsilon are the
    estimates at z, n is fresh noise, and s is `eta` times the standard deviation of DDPM.

    Args:
        denoiser: usually `guidance.bind_guided(...)`.
        noise: where to start: standard normal at the first timestep.
        timesteps: falling, from `ddim_timesteps`.
        eta: 0 follows the ODE; 1 adds as much noise as DDPM would (VideoCrafter2's own setting).
        generators: one per video; they draw the fresh noise of every step if eta > 0.
        step_noise: that noise, in place of draws.
        scales: `signal_scales`, for a teacher that was trained on scaled latents.

    Source: DDIM, arXiv:2010.02502, Eq. 12 and 16.
    """
    if eta and not isinstance(schedule, NoiseSchedule):
        raise ValueError(f"Expected eta 0 for a flow-matching model, got {eta}.")
    latents, draws = noise, step_noises(noise, generators, step_noise)
    for t, t_next in zip_longest(timesteps, timesteps[1:], fillvalue=torch.tensor(0)):
        start, end = (step.to(noise.device).expand(len(noise)) for step in (t, t_next))
        clean, direction = schedule.split(latents, denoiser(latents, start), start)
        scaled = clean
        if scales is not None:  # estimated at the scale of `start`, needed at that of `end`
            before, after = (rearrange(scales[step], "B -> B 1 1 1 1") for step in (start, end))
            clean = clean / before
            scaled = clean * after
        if eta == 0:
            latents = schedule.ddim_step(scaled, direction, end)
        else:
            assert isinstance(schedule, NoiseSchedule)
            fresh, kept = _noise_shares(schedule, start, end, eta)
            alpha, _ = schedule.levels(end)
            latents = alpha * scaled + kept * direction + fresh * next(draws)
        yield SamplerStep(clean, latents)


def _noise_shares(
    schedule: NoiseSchedule, start: Timesteps, end: Timesteps, eta: float
) -> tuple[Level, Level]:
    """Return how much noise at `end` is newly drawn, and how much is kept as predicted."""
    before, after = (
        rearrange(schedule.alphas_cumprod[step], "B -> B 1 1 1 1") for step in (start, end)
    )
    fresh = eta * ((1 - after) / (1 - before) * (1 - before / after)).sqrt()
    return fresh, (1 - after - fresh**2).sqrt()
