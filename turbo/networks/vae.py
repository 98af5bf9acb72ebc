"""Between pixels and latents: the image VAE of the video UNet, and Wan's causal VAE.

The image VAE encodes every frame by itself. The causal VAE encodes 4 k + 1 frames to k + 1 latent
frames: the first frame alone, then four at a time, and each depends on all before it.
"""

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL, AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from turbo.types import VAE, Frames, Latents, checked

# Of a posterior: C means, then C log variances (D = 2 C); F counts latent frames.
Moments = Float[Tensor, "B D F h w"]


def _scaling(vae: VAE) -> tuple[float, float]:
    return vae.config.shift_factor or 0.0, vae.config.scaling_factor


def latent_shape(vae: VAE, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Return the shape of the latents of a video of this size: C, F, h, w."""
    config = vae.config
    if isinstance(vae, AutoencoderKLWan):
        shrink = config.scale_factor_spatial
        return config.z_dim, latent_index(vae, frames - 1) + 1, height // shrink, width // shrink
    shrink = 2 ** (len(config.block_out_channels) - 1)
    return config.latent_channels, frames, height // shrink, width // shrink


def latent_index(vae: VAE, frame: int) -> int:
    """Return which latent frame holds a frame."""
    if not isinstance(vae, AutoencoderKLWan):
        return frame
    return -(-frame // vae.config.scale_factor_temporal)


def first_frame(vae: VAE, latent: int) -> int:
    """Return the first frame of a latent frame; past the last one, the number of frames."""
    if not isinstance(vae, AutoencoderKLWan):
        return latent
    return max(0, vae.config.scale_factor_temporal * (latent - 1) + 1)


def quicken_on_cpu(vae: VAE) -> VAE:
    """Store an image VAE's weights in channels-last order, in place: fastest on a CPU.

    Decoded frames differ in the last bits.
    """
    if not isinstance(vae, AutoencoderKL):
        return vae
    return nn.Module.to(vae, memory_format=torch.channels_last)


@checked
def encode_frames(
    vae: VAE, frames: Frames, generator: torch.Generator | None = None, *, chunk: int = 8
) -> Latents:
    """Encode frames to latents of unit variance, `chunk` frames at a time.

    Args:
        generator: samples the posterior, as the published training does; None takes its mode.

    Latents have the dtype of the frames, whatever that of the VAE.

    Raises:
        ValueError: a causal VAE cannot encode this number of frames.
    """
    moments = encode_moments(vae, frames, chunk=chunk)
    return sample_posterior(vae, moments, generator, chunk=chunk).to(frames.dtype)


@checked
def encode_moments(vae: VAE, frames: Frames, *, chunk: int = 8) -> Moments:
    """Encode frames to means and log variances of their posteriors, in the dtype of the VAE.

    Raises:
        ValueError: a causal VAE cannot encode this number of frames.
    """
    if isinstance(vae, AutoencoderKLWan):
        return _encode_causal(vae, frames)
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
    if isinstance(vae, AutoencoderKLWan):
        latents = _sample(moments.split(1), generator)
        mean, std = _statistics(vae, latents)
        return (latents - mean) / std
    shift, scale = _scaling(vae)
    latents = _sample(rearrange(moments, "B D F h w -> (B F) D h w").split(chunk), generator)
    return rearrange((latents - shift) * scale, "(B F) C h w -> B C F h w", B=len(moments))


def _sample(moments: Sequence[Tensor], generator: torch.Generator | None) -> Tensor:
    posteriors = [DiagonalGaussianDistribution(part) for part in moments]
    latents = [p.mode() if generator is None else p.sample(generator) for p in posteriors]
    return torch.cat(latents).to(torch.promote_types(moments[0].dtype, torch.float32))


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
            A causal VAE: latent frame by latent frame, as it always does.
    """
    if isinstance(vae, AutoencoderKLWan):
        return decode_window(vae, latents, 0, clamp=clamp, recompute=recompute)
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
    return _to_unit_range(frames, clamp=clamp)


def _to_unit_range(frames: Tensor, *, clamp: bool) -> Frames:
    frames = frames / 2 + 0.5
    return frames.clamp(0, 1) if clamp else frames


@checked
def decode_chosen(
    vae: VAE, latents: Latents, choices: Sequence[Int[Tensor, "B _"]], *, recompute: bool = False
) -> list[Frames]:
    """Decode the frames at each choice of indices, video by video.

    The image VAE decodes a frame once, however many choices have it. The causal VAE decodes for
    each choice from the first frame to the last one chosen. Only the latents from the first chosen
    frame on get a gradient: the history before them is decoded without.

    Args:
        recompute: as for `decode_latents`.
    """
    if isinstance(vae, AutoencoderKLWan):
        return [_decode_windows(vae, latents, chosen, recompute=recompute) for chosen in choices]
    count = latents.shape[2]
    firsts = count * torch.arange(len(latents), device=latents.device)[:, None]
    rows, places = (torch.cat([*choices], dim=1) + firsts).unique(return_inverse=True)
    images = rearrange(latents, "B C F h w -> (B F) C h w")[rows]
    decoded = decode_latents(vae, rearrange(images, "N C h w -> 1 C N h w"), recompute=recompute)
    return [decoded[0][own] for own in places.split([c.shape[1] for c in choices], dim=1)]


def _decode_windows(
    vae: AutoencoderKLWan, latents: Latents, chosen: Int[Tensor, "B M"], *, recompute: bool
) -> Frames:
    videos = []
    for video, own in zip(latents.split(1), chosen, strict=True):
        first, last = (latent_index(vae, int(end)) for end in (own.min(), own.max()))
        window = decode_window(vae, video[:, :, : last + 1], first, recompute=recompute)
        videos.append(window[:, own - first_frame(vae, first)])
    return torch.cat(videos)


def _statistics(vae: AutoencoderKLWan, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the latents, per channel."""
    if vae.config.patch_size is not None:
        raise ValueError("Expected the VAE of Wan2.1, got one with patches, as in Wan2.2.")
    values = (vae.config.latents_mean, vae.config.latents_std)
    mean, std = (rearrange(like.new_tensor(value), "C -> C 1 1 1") for value in values)
    return mean, std


def _encode_causal(vae: AutoencoderKLWan, frames: Frames) -> Moments:
    stride, count = vae.config.scale_factor_temporal, frames.shape[1]
    if count % stride != 1:
        raise ValueError(
            f"Expected a multiple of {stride} frames and one more, got {count}. "
            f"Give it {count // stride * stride + 1}."
        )
    images = rearrange(2 * frames - 1, "B F C H W -> B C F H W").to(vae.dtype)
    return torch.cat([vae.encode(video).latent_dist.parameters for video in images.split(1)])


def decode_window(
    vae: AutoencoderKLWan,
    latents: Latents,
    first: int,
    *,
    clamp: bool = True,
    recompute: bool = False,
) -> Frames:
    """Decode causally; return the frames of the latent frames from `first` on.

    Frames equal those of a decoding of all. Latents before `first` get no gradient: what the
    decoder remembers of them counts as constant, so memory holds activations of the window alone.

    Args:
        clamp, recompute: as for `decode_latents`.
    """
    mean, std = _statistics(vae, latents)
    hidden = vae.post_quant_conv((latents * std + mean).to(vae.dtype))

    def decode(
        latent: Float[Tensor, "B C 1 h w"], is_first: bool, *memory: Tensor | str | None
    ) -> tuple[Tensor, list[Tensor | str | None]]:
        kept = list(memory)  # what every causal convolution has seen before; the decoder updates it
        frames = vae.decoder(latent, feat_cache=kept, feat_idx=[0], first_chunk=is_first)
        return frames, kept

    layers = sum(isinstance(module, WanCausalConv3d) for module in vae.decoder.modules())
    memory: list[Tensor | str | None] = [None] * layers
    window = []
    for index, latent in enumerate(hidden.split(1, dim=2)):
        with torch.set_grad_enabled(torch.is_grad_enabled() and index >= first):
            if recompute and torch.is_grad_enabled():
                frames, memory = checkpoint(
                    decode, latent, index == 0, *memory, use_reentrant=False
                )
            else:
                frames, memory = decode(latent, index == 0, *memory)
        if index >= first:
            window.append(frames)
    decoded = rearrange(torch.cat(window, dim=2), "B C F H W -> B F C H W").to(latents.dtype)
    return _to_unit_range(decoded, clamp=clamp)
