"""The shapes teachers: a `VideoUNet` and a `WanNetwork`, each trained on frames, then on clips."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from training.loop import FitConfig, Slot, StepStats, fit
from training.shapes.models.text import WIDTH
from training.shapes.models.vae import CHANNELS
from training.shapes.world.encoded_clips import EncodedClips
from turbo.diffusion.schedule import schedule_of
from turbo.models.registry import find_card
from turbo.networks.families import Network
from turbo.networks.unet import VideoUNet
from turbo.networks.wan import WanNetwork
from turbo.types import Schedule

CAPTION_DROPOUT = 0.1  # share of samples trained without a prompt, for classifier-free guidance
SPRITE_WEIGHT = 4.0  # loss weight of latents that show the sprite, which is small


@dataclass(frozen=True)
class Phase:
    """One run of a teacher's curriculum."""

    name: str  # of its folder of checkpoints
    fit: FitConfig
    batch: int  # clips per process
    stride: int = 1  # trains on every `stride`-th frame
    frames: int | None = None  # adjacent ones that are cut from each clip; None: the whole clip


@dataclass(frozen=True)
class Recipe:
    """How a teacher is trained, and the size of its students."""

    schedule: Schedule
    prefix: str  # of the folders of its runs and weights
    build: Callable[[], Network]
    curriculum: tuple[Phase, ...]
    polish: Phase  # from the exported weights
    students: tuple[str, ...]  # names in `student.STUDENTS`
    rank: int  # of the students' adapters: a quarter of the network's width


def build_unet(**changes: object) -> VideoUNet:
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


def build_flow() -> WanNetwork:
    """Return an untrained transformer of Wan's architecture, of 1.6 million parameters.

    A patch covers two frames, which halves the tokens, and the rotary positions are those of 8 x 4
    x 4 patches. Every residual branch starts with a gate of 1 instead of one near 0. Together they
    halve the time to the same loss (training/LOG.md).
    """
    network = WanNetwork(
        patch_size=(2, 2, 2),
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=WIDTH,
        freq_dim=64,
        ffn_dim=384,
        num_layers=6,
        rope_max_seq_len=64,
        rope_theta=10.0,
    )
    nn.init.zeros_(network.proj_out.weight)
    for block in network.blocks:  # shift, scale, gate of attention; shift, scale, gate of the rest
        nn.init.ones_(block.scale_shift_table[:, 2::3])
    return network


def train_phase(
    network: Network,
    schedule: Schedule,
    phase: Phase,
    clips: EncodedClips,
    captions: Tensor,
    folder: Path,
) -> Iterator[StepStats]:
    """Train in place; yield statistics after every step. Single frames leave temporal layers as is.

    Args:
        captions: text embeddings (1 + captions, L, D); entry 0 is the empty prompt.
    """
    for name, weight in network.named_parameters():
        weight.requires_grad_(phase.frames != 1 or not is_temporal(name))

    def draw_loss(slot: Slot) -> Tensor:
        rows = torch.randint(len(clips), (phase.batch,), generator=slot.generator)
        clean, sprite = cut_frames(clips, rows, phase, slot.generator)
        prompts = captions[clips.caption[rows] + 1]
        return denoising_loss(
            network, schedule, clean.float(), sprite, prompts, slot.generator, captions[0]
        )

    yield from fit(network, draw_loss, phase.fit, folder)


def cut_frames(
    clips: EncodedClips, rows: Tensor, phase: Phase, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return latents (B, C, F, h, w) and sprite masks (B, F, h, w) of the frames of a phase."""
    if phase.frames is None:
        first = int(torch.randint(phase.stride, (1,), generator=generator))
        return clips.latents[rows, :, first :: phase.stride], clips.sprite[
            rows, first :: phase.stride
        ]
    count = clips.latents.shape[2] - phase.frames + 1
    starts = torch.randint(count, (len(rows),), generator=generator)
    frames = starts[:, None] + torch.arange(phase.frames)
    latents = rearrange(clips.latents[rows[:, None], :, frames], "B F C h w -> B C F h w")
    return latents, clips.sprite[rows[:, None], frames]


def denoising_loss(
    network: Network,
    schedule: Schedule,
    clean: Tensor,
    sprite: Tensor,
    prompts: Tensor,
    generator: torch.Generator,
    no_prompt: Tensor,
) -> Tensor:
    """Return the weighted squared error of the predicted velocity v, that of the schedule.

        loss = sum(weight (v_predicted - v)^2) / sum(weight)

    Timesteps are stratified over the batch, which halves the variance of the gradient.

    Args:
        clean: latents (B, C, F, h, w).
        sprite: whether a latent shows the sprite (B, F, h, w).
        prompts: text embeddings (B, L, D).
        no_prompt: embedding of the empty prompt (L, D), which replaces some of them.
    """
    batch, schedule = len(clean), schedule.to(clean.device)
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
    velocity = schedule.target(clean, noise, timesteps)
    error = mse_loss(
        network(noisy, schedule.network_time(timesteps), prompts), velocity, reduction="none"
    )
    weight = 1 + (SPRITE_WEIGHT - 1) * sprite.float()
    return (reduce(error, "B C F h w -> B F h w", "mean") * weight).sum() / weight.sum()


# The phases of both teachers: appearance, then motion at half the cost, then whole clips.
UNET_FRAMES = FitConfig(
    steps=1200, learning_rate=2e-3, warmup=100, decay=0.1, ema=0.995, checkpoint_every=200, seed=3
)
UNET_HALF_RATE = FitConfig(
    steps=2400, learning_rate=1.2e-3, warmup=200, decay=0.05, ema=0.998,
    checkpoint_every=200, seed=4,
)  # fmt: skip
UNET_WHOLE = FitConfig(
    steps=1500, learning_rate=1e-3, warmup=50, decay=0.6, ema=0.998, checkpoint_every=100, seed=5
)
UNET_POLISH = FitConfig(
    steps=2400, learning_rate=6e-4, warmup=100, decay=0.7, ema=0.999, checkpoint_every=100, seed=7
)
FLOW_PAIRS = FitConfig(
    steps=1200, learning_rate=3e-3, warmup=100, decay=0.1, ema=0.995, checkpoint_every=200, seed=43
)
FLOW_HALF_RATE = FitConfig(
    steps=3000, learning_rate=2.5e-3, warmup=100, decay=0.05, ema=0.998,
    checkpoint_every=200, seed=44,
)  # fmt: skip
FLOW_WHOLE = FitConfig(
    steps=5500, learning_rate=2e-3, warmup=50, decay=0.7, ema=0.999, checkpoint_every=100, seed=45
)
UNET = Recipe(
    schedule=schedule_of(find_card("shapes-teacher")),
    prefix="",
    build=build_unet,
    curriculum=(
        Phase("frames", UNET_FRAMES, batch=128, frames=1),
        Phase("half_rate", UNET_HALF_RATE, batch=16, stride=2),
        Phase("teacher", UNET_WHOLE, batch=16),
    ),
    polish=Phase("polish", UNET_POLISH, batch=16),
    students=("vcm", "vcm-image", "vcm-video", "turbo"),
    rank=16,
)
FLOW = Recipe(
    schedule=schedule_of(find_card("shapes-flow-teacher")),
    prefix="flow-",
    build=build_flow,
    curriculum=(
        Phase("frames", FLOW_PAIRS, batch=64, frames=2),
        Phase("half_rate", FLOW_HALF_RATE, batch=16, stride=2),
        Phase("teacher", FLOW_WHOLE, batch=16),
    ),
    polish=replace(UNET.polish, fit=replace(UNET_POLISH, checkpoint_every=50, seed=47)),
    students=("vcm", "turbo"),
    rank=32,
)
RECIPES = {"unet": UNET, "flow": FLOW}
