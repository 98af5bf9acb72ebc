"""The shapes teacher: a small `VideoUNet`, trained on single frames, then on clips."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from training.loop import FitConfig, Slot, StepStats, fit
from training.shapes.models.text import WIDTH
from training.shapes.models.vae import CHANNELS
from training.shapes.world.encoded_clips import EncodedClips
from turbo.diffusion.schedule import NoiseSchedule
from turbo.models.registry import find_card
from turbo.networks.unet import VideoUNet

CARD = find_card("shapes-teacher")
SCHEDULE = NoiseSchedule.scaled_linear(beta_end=CARD.beta_end, prediction_type=CARD.prediction_type)
FRAMES_CONFIG = FitConfig(  # single frames: appearance
    steps=1200, learning_rate=2e-3, warmup=100, decay=0.1, ema=0.995, checkpoint_every=200, seed=3
)
HALF_RATE_CONFIG = FitConfig(  # every other frame: motion, at half the cost
    steps=2400,
    learning_rate=1.2e-3,
    warmup=200,
    decay=0.05,
    ema=0.998,
    checkpoint_every=200,
    seed=4,
)
CLIPS_CONFIG = FitConfig(  # whole clips
    steps=1500, learning_rate=1e-3, warmup=50, decay=0.6, ema=0.998, checkpoint_every=100, seed=5
)
POLISH_CONFIG = FitConfig(  # whole clips again, from the exported weights
    steps=2400, learning_rate=6e-4, warmup=100, decay=0.7, ema=0.999, checkpoint_every=100, seed=7
)
FRAMES_BATCH, CLIPS_BATCH = 128, 16  # per process
CAPTION_DROPOUT = 0.1  # share of samples trained without a prompt, for classifier-free guidance
SPRITE_WEIGHT = 4.0  # loss weight of latents that show the sprite, which is small


def build_teacher(**changes: object) -> VideoUNet:
    """Return an untrained UNet whose temporal layers start as the identity (zero output)."""
    config = dict(
        sample_size=8,
        patch_size=2,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        down_block_types=("CrossAttnDownBlock3D",),
        up_block_types=("CrossAttnUpBlock3D",),
        block_out_channels=(64,),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=WIDTH,
        attention_head_dim=8,
        temporal_dropout=0.0,
    )
    unet = VideoUNet(**(config | changes))
    for name, weight in unet.named_parameters():
        if is_temporal(name) and ".proj_out." in f".{name}":
            nn.init.zeros_(weight)
    return unet


def is_temporal(name: str) -> bool:
    """Return whether a parameter belongs to a layer that mixes frames."""
    return name.startswith("transformer_in") or ".temp_" in name


def train_frames(
    unet: VideoUNet, clips: EncodedClips, captions: Tensor, folder: Path
) -> Iterator[StepStats]:
    """Train all layers but the temporal ones, on single frames.

    Args:
        captions: text embeddings (1 + captions, L, D); entry 0 is the empty prompt.
    """
    for name, weight in unet.named_parameters():
        weight.requires_grad_(not is_temporal(name))

    def draw_loss(slot: Slot) -> Tensor:
        rows = torch.randint(len(clips), (FRAMES_BATCH,), generator=slot.generator)
        frames = torch.randint(clips.latents.shape[2], (FRAMES_BATCH,), generator=slot.generator)
        clean = rearrange(clips.latents[rows, :, frames].float(), "B C h w -> B C 1 h w")
        sprite = rearrange(clips.sprite[rows, frames], "B h w -> B 1 h w")
        prompts = captions[clips.caption[rows] + 1]
        return denoising_loss(unet, clean, sprite, prompts, slot.generator, captions[0])

    yield from fit(unet, draw_loss, FRAMES_CONFIG, folder)


def train_clips(
    unet: VideoUNet,
    clips: EncodedClips,
    captions: Tensor,
    folder: Path,
    config: FitConfig = CLIPS_CONFIG,
    stride: int = 1,
) -> Iterator[StepStats]:
    """Train all layers on every `stride`-th frame; other arguments as in `train_frames`."""
    unet.requires_grad_(True)

    def draw_loss(slot: Slot) -> Tensor:
        rows = torch.randint(len(clips), (CLIPS_BATCH,), generator=slot.generator)
        prompts = captions[clips.caption[rows] + 1]
        phase = int(torch.randint(stride, (1,), generator=slot.generator))
        clean = clips.latents[rows, :, phase::stride].float()
        sprite = clips.sprite[rows, phase::stride]
        return denoising_loss(unet, clean, sprite, prompts, slot.generator, captions[0])

    yield from fit(unet, draw_loss, config, folder)


def denoising_loss(
    unet: VideoUNet,
    clean: Tensor,
    sprite: Tensor,
    prompts: Tensor,
    generator: torch.Generator,
    no_prompt: Tensor,
) -> Tensor:
    """Return the weighted squared error of the predicted velocity v.

        loss = sum(weight (v_predicted - v)^2) / sum(weight),  v = alpha noise - sigma clean

    Timesteps are stratified over the batch, which halves the variance of the gradient.

    Args:
        clean: latents (B, C, F, h, w).
        sprite: whether a latent shows the sprite (B, F, h, w).
        prompts: text embeddings (B, L, D).
        no_prompt: embedding of the empty prompt (L, D), which replaces some of them.
    """
    batch, schedule = len(clean), SCHEDULE.to(clean.device)
    dropped = (torch.rand(batch, generator=generator) < CAPTION_DROPOUT).to(clean.device)
    prompts = torch.where(rearrange(dropped, "B -> B 1 1"), no_prompt, prompts)
    strata = torch.arange(batch) + torch.rand(batch, generator=generator)
    timesteps = (strata / batch * len(schedule)).long().clamp(max=len(schedule) - 1)
    timesteps = timesteps.to(clean.device)
    source = generator
    if clean.device.type != "cpu":  # drawing a large batch on the CPU takes longer than the step
        source = torch.Generator(clean.device).manual_seed(generator.initial_seed())
    noise = torch.randn(clean.shape, generator=source, device=clean.device)

    noisy = schedule.add_noise(clean, noise, timesteps)
    velocity = schedule.velocity(clean, noise, timesteps)
    error = mse_loss(unet(noisy, timesteps, prompts), velocity, reduction="none")
    weight = 1 + (SPRITE_WEIGHT - 1) * sprite.float()
    return (reduce(error, "B C F h w -> B F h w", "mean") * weight).sum() / weight.sum()


CURRICULUM = (
    ("frames", FRAMES_CONFIG, train_frames),
    ("half_rate", HALF_RATE_CONFIG, partial(train_clips, config=HALF_RATE_CONFIG, stride=2)),
    ("teacher", CLIPS_CONFIG, train_clips),
)
