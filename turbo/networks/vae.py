"""The image VAE, applied to the frames of a video: between pixels and latents."""

import torch
from diffusers import AutoencoderKL
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from turbo.types import VAE, Frames, Latents, checked


def _scaling(vae: VAE) -> tuple[float, float]:
    return vae.config.shift_factor or 0.0, vae.config.scaling_factor


def quicken_on_cpu(vae: AutoencoderKL) -> AutoencoderKL:
    """Store the weights in channels-last order, in place: the fastest for convolutions on a CPU.

    Decoded frames differ in the last bits.
    """
    return nn.Module.to(vae, memory_format=torch.channels_last)


@checked
def encode_frames(
    vae: VAE,
    frames: Frames,
    generator: torch.Generator | None = None,
    *,
    chunk: int = 8,
) -> Latents:
    """Encode frames to latents of unit variance, `chunk` frames at a time.

    Args:
        generator: samples the posterior, as the published training does; None takes its mode.

    Latents have the dtype of the frames, whatever that of the VAE.
    """
    shift, scale = _scaling(vae)
    images = rearrange(2 * frames - 1, "B F C H W -> (B F) C H W").to(vae.dtype)
    posteriors = (vae.encode(part).latent_dist for part in images.split(chunk))
    latents = torch.cat(
        [p.mode() if generator is None else p.sample(generator) for p in posteriors]
    ).to(frames.dtype)
    return rearrange((latents - shift) * scale, "(B F) C h w -> B C F h w", B=len(frames))


@checked
def decode_latents(
    vae: VAE, latents: Latents, *, chunk: int = 8, clamp: bool = True, recompute: bool = False
) -> Frames:
    """Decode latents to frames in [0, 1], `chunk` frames at a time; differentiable.

    Frames have the dtype of the latents, whatever that of the VAE.

    Args:
        clamp: cut values off at 0 and 1, where a saturated pixel then passes no gradient. False
            returns what the decoder computed, which may leave that range.
        recompute: decode frame by frame, and again in the backward pass, which then needs the
            activations of one frame instead of all (1.7 GiB each at 320 x 512, in bfloat16).
    """
    shift, scale = _scaling(vae)
    images = rearrange(latents / scale + shift, "B C F h w -> (B F) C h w").to(vae.dtype)

    def decode(part: Tensor) -> Tensor:
        return vae.decode(part).sample

    if recompute:
        parts = [checkpoint(decode, part, use_reentrant=False) for part in images.split(1)]
    else:
        parts = [decode(part) for part in images.split(chunk)]
    decoded = torch.cat(parts)
    frames = rearrange(decoded, "(B F) C H W -> B F C H W", B=len(latents)).to(latents.dtype)
    frames = frames / 2 + 0.5
    return frames.clamp(0, 1) if clamp else frames
