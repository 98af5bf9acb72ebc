"""Between pixels and latents: the image VAE, applied frame by frame."""

import torch
from diffusers import AutoencoderKL
from einops import rearrange
from torch import nn

from turbo.types import Frames, Latents


def _scaling(vae: AutoencoderKL) -> tuple[float, float]:
    return vae.config.shift_factor or 0.0, vae.config.scaling_factor


def quicken_on_cpu(vae: AutoencoderKL) -> AutoencoderKL:
    """Have the VAE keep the channels of a pixel together, in place, as a CPU convolves best.

    What it decodes differs in the last bits.
    """
    return nn.Module.to(vae, memory_format=torch.channels_last)


def encode_frames(
    vae: AutoencoderKL,
    frames: Frames,
    generator: torch.Generator | None = None,
    *,
    chunk: int = 8,
) -> Latents:
    """Encode frames to latents of unit variance, `chunk` frames at a time.

    Args:
        generator: draws from the posterior, as the published training does; None takes its mode.
    """
    shift, scale = _scaling(vae)
    images = rearrange(2 * frames - 1, "B F C H W -> (B F) C H W")
    posteriors = (vae.encode(part).latent_dist for part in images.split(chunk))
    latents = torch.cat(
        [p.mode() if generator is None else p.sample(generator) for p in posteriors]
    )
    return rearrange((latents - shift) * scale, "(B F) C h w -> B C F h w", B=len(frames))


def decode_latents(vae: AutoencoderKL, latents: Latents, *, chunk: int = 8) -> Frames:
    """Decode latents to frames in [0, 1], `chunk` frames at a time; differentiable.

    The clamp is hard: a saturated pixel passes no gradient. Frames are in the latents' precision,
    whatever that of the VAE.
    """
    shift, scale = _scaling(vae)
    images = rearrange(latents / scale + shift, "B C F h w -> (B F) C h w").to(vae.dtype)
    decoded = torch.cat([vae.decode(part).sample for part in images.split(chunk)])
    frames = rearrange(decoded, "(B F) C H W -> B F C H W", B=len(latents)).to(latents.dtype)
    return (frames / 2 + 0.5).clamp(0, 1)
