"""The noise schedule: how much signal and how much noise a latent holds at each timestep."""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from turbo.card import PredictionType
from turbo.types import Latents, Timesteps

Level = Float[Tensor, "B 1 1 1 1"]


@dataclass(frozen=True)
class NoiseSchedule:
    """Noisy latents are `alpha * clean + sigma * noise`, alpha² + sigma² = 1.

    `prediction_type` says what the network of this schedule outputs: the noise ("epsilon", both
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
        num_timesteps: int = 1000,
    ) -> "NoiseSchedule":
        """Build the schedule of Stable Diffusion and of both published teachers.

        Betas are linear in their square root; float32 throughout, to match diffusers bit for bit.

        Source: Latent Diffusion, arXiv:2112.10752; defaults as in VideoCrafter2 and ModelScopeT2V.
        """
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, num_timesteps) ** 2
        return cls(torch.cumprod(1 - betas, dim=0), prediction_type)

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def to(self, device: torch.device | str) -> "NoiseSchedule":
        return type(self)(self.alphas_cumprod.to(device), self.prediction_type)

    def levels(self, timesteps: Timesteps) -> tuple[Level, Level]:
        """Return alpha and sigma, shaped to broadcast over `Latents`."""
        alpha_squared = rearrange(self.alphas_cumprod[timesteps], "B -> B 1 1 1 1")
        return alpha_squared.sqrt(), (1 - alpha_squared).sqrt()

    def add_noise(self, clean: Latents, noise: Latents, timesteps: Timesteps) -> Latents:
        """Diffuse clean latents to `timesteps`."""
        alpha, sigma = self.levels(timesteps)
        return alpha * clean + sigma * noise

    def remove_noise(self, noisy: Latents, noise: Latents, timesteps: Timesteps) -> Latents:
        """Return the clean latents that `noise` would have turned into `noisy`."""
        alpha, sigma = self.levels(timesteps)
        return (noisy - sigma * noise) / alpha

    def velocity(self, clean: Latents, noise: Latents, timesteps: Timesteps) -> Latents:
        """Return what a v-prediction network is trained to output.

        Source: Progressive Distillation, arXiv:2202.00512, appendix D.
        """
        alpha, sigma = self.levels(timesteps)
        return alpha * noise - sigma * clean

    def split(
        self, noisy: Latents, output: Latents, timesteps: Timesteps
    ) -> tuple[Latents, Latents]:
        """Read a network's output as its estimate of (clean, noise)."""
        if self.prediction_type == "epsilon":
            return self.remove_noise(noisy, output, timesteps), output
        alpha, sigma = self.levels(timesteps)
        return alpha * noisy - sigma * output, sigma * noisy + alpha * output

    def ddim_step(self, clean: Latents, noise: Latents, end: Timesteps) -> Latents:
        """Land at `end` along the probability-flow ODE, from the estimates at the start.

        Deterministic (eta = 0). Guidance is applied to the estimates before this call.

        Source: DDIM, arXiv:2010.02502, Eq. 12 with sigma = 0.
        """
        return self.add_noise(clean, noise, end)
