"""The noise schedule: how much signal and how much noise a latent holds at each timestep."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from turbo.card import ModelCard, PredictionType
from turbo.types import Latents, Level, NetworkTime, Schedule, Timesteps, checked

NUM_TIMESTEPS = 1000  # of every published teacher


class _Mixture:
    """What schedules share: noisy latents are `alpha * clean + sigma * noise`."""

    def levels(self, timesteps: Timesteps) -> tuple[Level, Level]:
        raise NotImplementedError

    @checked
    def add_noise(self, clean: Latents, noise: Latents, timesteps: Timesteps) -> Latents:
        """Diffuse clean latents to `timesteps`."""
        alpha, sigma = self.levels(timesteps)
        return alpha * clean + sigma * noise

    @checked
    def remove_noise(self, noisy: Latents, noise: Latents, timesteps: Timesteps) -> Latents:
        """Return the clean latents, given the noise that was added to them."""
        alpha, sigma = self.levels(timesteps)
        return (noisy - sigma * noise) / alpha

    @checked
    def ddim_step(self, clean: Latents, noise: Latents, end: Timesteps) -> Latents:
        """Step along the probability-flow ODE to `end`, from the estimates at the start.

        Deterministic (eta = 0). Guidance is applied to the estimates before this call. In a
        `FlowSchedule` this is Euler's step.

        Source: DDIM, arXiv:2010.02502, Eq. 12 with sigma = 0.
        """
        return self.add_noise(clean, noise, end)


@dataclass(frozen=True)
class NoiseSchedule(_Mixture):
    """Noisy latents are `alpha * clean + sigma * noise`, where alpha² + sigma² = 1.

    `prediction_type` is what the network of this schedule outputs: the noise ("epsilon", both
    published teachers) or the velocity `alpha * noise - sigma * clean` ("v_prediction", shapes).
    """

    alphas_cumprod: Float[Tensor, " T"]  # alpha² per timestep, falling
    prediction_type: PredictionType = "epsilon"

    @classmethod
    def scaled_linear(
        cls,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        *,
        prediction_type: PredictionType = "epsilon",
        num_timesteps: int = NUM_TIMESTEPS,
    ) -> "NoiseSchedule":
        """Build the schedule of Stable Diffusion and of both published teachers.

        beta_t is the square of a number that rises linearly from sqrt(beta_start) to
        sqrt(beta_end), and alpha_t² = prod_{s <= t} (1 - beta_s). In float32, as in diffusers.

        Source: Latent Diffusion, arXiv:2112.10752; defaults of VideoCrafter2 and ModelScopeT2V.
        """
        roots = torch.linspace(beta_start**0.5, beta_end**0.5, num_timesteps, dtype=torch.float32)
        betas = roots**2
        return cls(torch.cumprod(1 - betas, dim=0), prediction_type)

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def to(self, device: torch.device | str) -> "NoiseSchedule":
        return type(self)(self.alphas_cumprod.to(device), self.prediction_type)

    def network_time(self, timesteps: Timesteps) -> NetworkTime:
        """Return the timesteps themselves."""
        return timesteps

    @checked
    def levels(self, timesteps: Timesteps) -> tuple[Level, Level]:
        """Return alpha and sigma, shaped to broadcast over `Latents`."""
        alpha_squared = rearrange(self.alphas_cumprod[timesteps], "B -> B 1 1 1 1")
        return alpha_squared.sqrt(), (1 - alpha_squared).sqrt()

    @checked
    def target(self, clean: Latents, noise: Latents, timesteps: Timesteps) -> Latents:
        """Return what a network of this schedule is trained to output.

        Source of the velocity: Progressive Distillation, arXiv:2202.00512, appendix D.
        """
        if self.prediction_type == "epsilon":
            return noise
        alpha, sigma = self.levels(timesteps)
        return alpha * noise - sigma * clean

    @checked
    def split(
        self, noisy: Latents, output: Latents, timesteps: Timesteps
    ) -> tuple[Latents, Latents]:
        """Convert a network's raw output to its estimates of the clean latents and the noise."""
        if self.prediction_type == "epsilon":
            return self.remove_noise(noisy, output, timesteps), output
        # The velocity v turns (clean, noise) by an angle whose cosine is alpha: the inverse turn.
        alpha, sigma = self.levels(timesteps)
        return alpha * noisy - sigma * output, sigma * noisy + alpha * output


@dataclass(frozen=True)
class FlowSchedule(_Mixture):
    """Noisy latents are `(1 - sigma) * clean + sigma * noise`; the network outputs a velocity.

    The velocity is `noise - clean`, the direction of the straight line from a video to its noise.
    The network receives 1000 sigma.

    Source: Flow Matching, arXiv:2210.02747; Rectified Flow, arXiv:2209.03003.
    """

    sigmas: Float[Tensor, " T"]  # per timestep, rising; 0 at timestep 0

    @classmethod
    def shifted(cls, shift: float, *, dtype: torch.dtype = torch.float32) -> "FlowSchedule":
        """Build sigma_t = shift u / (1 + (shift - 1) u) with u = t / T, T = 1000.

        Args:
            shift: above 1 spends more timesteps at high noise; larger videos need more.

        Source: Stable Diffusion 3, arXiv:2403.03206, Eq. 23.
        """
        if shift <= 0:
            raise ValueError(f"Expected a shift above 0, got {shift}. 1 leaves the times as is.")
        times = torch.arange(NUM_TIMESTEPS, dtype=torch.float64) / NUM_TIMESTEPS
        return cls((shift * times / (1 + (shift - 1) * times)).to(dtype))

    def __len__(self) -> int:
        return len(self.sigmas)

    def to(self, device: torch.device | str) -> "FlowSchedule":
        return type(self)(self.sigmas.to(device))

    @checked
    def network_time(self, timesteps: Timesteps) -> NetworkTime:
        """Return 1000 sigma, which need not be whole."""
        return 1000 * self.sigmas[timesteps]

    @checked
    def levels(self, timesteps: Timesteps) -> tuple[Level, Level]:
        """Return 1 - sigma and sigma, shaped to broadcast over `Latents`."""
        sigma = rearrange(self.sigmas[timesteps], "B -> B 1 1 1 1")
        return 1 - sigma, sigma

    @checked
    def target(self, clean: Latents, noise: Latents, timesteps: Timesteps) -> Latents:
        """Return the training target, noise - clean, the same at every timestep."""
        return noise - clean

    @checked
    def split(
        self, noisy: Latents, output: Latents, timesteps: Timesteps
    ) -> tuple[Latents, Latents]:
        """Convert a velocity to estimates of the clean latents and the noise: follow its line."""
        alpha, sigma = self.levels(timesteps)
        return noisy - sigma * output, noisy + alpha * output


def schedule_of(card: ModelCard) -> Schedule:
    """Return the schedule that a model was trained on, or of the noise levels that it visits."""
    if card.sigmas:
        return FlowSchedule(torch.tensor([0.0, *reversed(card.sigmas)]))
    if card.flow_shift is not None:
        return FlowSchedule.shifted(card.flow_shift)
    return NoiseSchedule.scaled_linear(beta_end=card.beta_end, prediction_type=card.prediction_type)


def draw_noise(like: Latents, generators: Sequence[torch.Generator]) -> Latents:
    """Draw standard normal latents, each video from its own generator.

    They are drawn on the generators' device (the CPU in the pipeline) and then moved, so that a
    seed makes the same video on every device and in every batch.
    """
    if len(generators) != len(like):
        raise ValueError(
            f"Expected {len(like)} generators, got {len(generators)}. Give each video its own."
        )
    draws = [
        torch.randn(like.shape[1:], generator=g, device=g.device, dtype=torch.float32)
        for g in generators
    ]
    return torch.stack([draw.to(like) for draw in draws])


def step_noises(
    like: Latents, generators: Sequence[torch.Generator], given: Sequence[Tensor] | None
) -> Iterator[Latents]:
    """Yield the fresh noise of each step: what is given, or else draws from the generators."""
    while given is None:
        yield draw_noise(like, generators)
    for noise in given:
        if noise.shape != like.shape:
            raise ValueError(
                f"Expected step noise of shape {tuple(like.shape)}, got {tuple(noise.shape)}."
            )
        yield noise.to(like)
    raise ValueError(f"Expected step noise for every step, got it for {len(given)}. Add the rest.")
