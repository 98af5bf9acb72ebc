"""Guidance: how hard a video is pulled towards its prompt, for teachers and for students.

Two conventions, which differ by one. A teacher is guided by combining two predictions with the
scale s of Imagen, `uncond + s (cond - uncond)`. A student was trained to be told the scale w of
Latent Consistency Models, `cond + w (cond - uncond)`, so that s = w + 1; it needs one prediction.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import log

import torch
from einops import rearrange
from jaxtyping import Int
from torch import Tensor

from turbo.networks.unet import Conditioning, VideoUNet
from turbo.types import Embedding, Latents, PerVideo, PromptEmbeds, Timesteps

Denoiser = Callable[[Latents, Timesteps], Latents]  # (noisy, timesteps) -> raw network output


def embed_guidance_scale(scale: PerVideo, size: int = 256) -> Embedding:
    """Embed the guidance scale w as sines, then cosines, of falling frequency.

    Always in float32: in bfloat16 the phases, which run into the thousands, would be noise.

    Args:
        scale: w in the LCM convention; trained on [5, 15].
        size: even.

    Source: Latent Consistency Models, arXiv:2310.04378; the layout is that of diffusers' LCM.
    """
    if size % 2:
        raise ValueError(f"Expected an even embedding size, got {size}. The published one is 256.")
    ranks = torch.arange(size // 2, dtype=torch.float32, device=scale.device)
    frequencies = torch.exp(ranks * -(log(10_000) / (size // 2 - 1)))
    phases = 1000 * scale.float()[:, None] * frequencies  # B D/2
    return torch.cat([phases.sin(), phases.cos()], dim=1)


def guide(cond: Latents, uncond: Latents, scale: PerVideo | float) -> Latents:
    """Combine two predictions, noise or velocity alike, by classifier-free guidance.

    Args:
        scale: s in the Imagen convention; 1 is the conditional prediction itself.

    Source: Classifier-Free Guidance, arXiv:2207.12598, as in Imagen, arXiv:2205.11487, Eq. 7.
    """
    if isinstance(scale, Tensor):
        scale = rearrange(scale, "B -> B 1 1 1 1")
    return uncond + scale * (cond - uncond)


@dataclass(frozen=True)
class GuidedUNet:
    """A teacher with prompt, empty prompt and scale bound: two network calls a prediction."""

    unet: VideoUNet
    prompt_embeds: PromptEmbeds
    uncond_embeds: PromptEmbeds
    scale: PerVideo  # s in the Imagen convention
    conditioning: Conditioning

    def __call__(self, noisy: Latents, timesteps: Timesteps) -> Latents:
        cond = self.unet(noisy, timesteps, self.prompt_embeds, self.conditioning)
        uncond = self.unet(noisy, timesteps, self.uncond_embeds, self.conditioning)
        return guide(cond, uncond, self.scale)


def bind_guided_unet(
    unet: VideoUNet,
    prompt_embeds: PromptEmbeds,
    uncond_embeds: PromptEmbeds,
    scale: PerVideo,
    fps: Int[Tensor, " B"] | None = None,
) -> GuidedUNet:
    """Bind a teacher to its prompts; the same fps goes to both predictions.

    Args:
        uncond_embeds: the encoding of the empty prompt, one per video.
        scale: s in the Imagen convention.
    """
    return GuidedUNet(unet, prompt_embeds, uncond_embeds, scale, Conditioning(fps=fps))
