"""The shapes VAE: each frame of 32 x 32 pixels to 8 x 8 latents of 8 channels."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from einops import rearrange
from torch import Tensor
from torch.nn.functional import l1_loss, mse_loss

from training.loop import FitConfig, Slot, StepStats, fit
from training.shapes.world.scenes import draw_example

CHANNELS = 8
CONFIG = FitConfig(
    steps=1500, learning_rate=2.5e-3, warmup=100, decay=0.6, ema=0.99, checkpoint_every=250, seed=1
)
BATCH = 32  # frames per process
KL_WEIGHT = 2e-4  # of the divergence in nats per pixel channel; keeps the latents smooth


def build_vae() -> AutoencoderKL:
    """Return an untrained VAE."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 64),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=8,
        sample_size=32,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


def draw_pixels(rng: np.random.Generator, count: int) -> Tensor:
    """Draw single frames of `count` clips, (count, 3, 32, 32) in [-1, 1]."""
    frames = []
    for _ in range(count):
        clip, _ = draw_example(rng)
        frames.append(clip[rng.integers(len(clip))])
    return rearrange(torch.from_numpy(np.stack(frames)), "B H W C -> B C H W") / 127.5 - 1


def train_vae(vae: AutoencoderKL, folder: Path) -> Iterator[StepStats]:
    """Train in place; yield statistics after every step.

    The loss is L1 + 2 L2 of the reconstruction + KL_WEIGHT KL per pixel channel.
    """

    def draw_loss(slot: Slot) -> Tensor:
        pixels = draw_pixels(np.random.default_rng(slot.generator.initial_seed()), BATCH)
        pixels = pixels.to(vae.device)
        posterior = vae.encode(pixels).latent_dist
        kl = posterior.kl().mean() / pixels[0].numel()
        decoded = vae.decode(posterior.sample(slot.generator)).sample
        return l1_loss(decoded, pixels) + 2 * mse_loss(decoded, pixels) + KL_WEIGHT * kl

    yield from fit(vae, draw_loss, CONFIG, folder)
    _normalise_latents(vae)


@torch.no_grad()
def _normalise_latents(vae: AutoencoderKL) -> None:
    """Set shift and scale so that the latents have zero mean and unit variance."""
    pixels = draw_pixels(np.random.default_rng(7), 512).to(vae.device)
    means = vae.encode(pixels).latent_dist.mode()
    vae.register_to_config(shift_factor=means.mean().item(), scaling_factor=1 / means.std().item())
