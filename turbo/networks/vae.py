"""The image VAE, applied to the frames of a video: between pixels and latents."""

import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from turbo.types import VAE, Frames, Latents, checked

Moments = Float[Tensor, "B D F h w"]  # of a posterior: C means, then C log variances (D = 2 C)


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
    moments = encode_moments(vae, frames, chunk=chunk)
    return sample_posterior(vae, moments, generator, chunk=chunk).to(frames.dtype)


@checked
def encode_moments(vae: VAE, frames: Frames, *, chunk: int = 8) -> Moments:
    """Encode frames to means and log variances of their posteriors, in the dtype of the VAE."""
    images = rearrange(2 * frames - 1, "B F C H W -> (B F) C H W").to(vae.dtype)
    moments = torch.cat([vae.encode(part).latent_dist.parameters for part in images.split(chunk)])
    return rearrange(moments, "(B F) D h w -> B D F h w", B=len(frames))


@checked
def sample_posterior(
    vae: VAE, moments: Moments, generator: torch.Generator | None = None, *, chunk: int = 8
) -> Latents:
    """Return latents of unit variance, in float32 at least, drawn in the order of `encode_frames`.

    Args:
        generator: None takes the mode.
    """
    shift, scale = _scaling(vae)
    parts = rearrange(moments, "B D F h w -> (B F) D h w").split(chunk)
    posteriors = [DiagonalGaussianDistribution(part) for part in parts]
    latents = torch.cat(
        [p.mode() if generator is None else p.sample(generator) for p in posteriors]
    ).to(torch.promote_types(moments.dtype, torch.float32))
    return rearrange((latents - shift) * scale, "(B F) C h w -> B C F h w", B=len(moments))


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
