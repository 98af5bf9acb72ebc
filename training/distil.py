"""Consistency distillation with reward feedback, of any teacher that `turbo` can load.

The losses are in `turbo.diffusion.distillation`, the rewards in `turbo.rewards`. This module adds
the training step around them. `training.shapes.models.student` shows how it is called.

Source: T2V-Turbo, arXiv:2405.18750, Algorithm 1.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import nn

from training.loop import FitConfig, StepStats, fit
from turbo.diffusion.distillation import SolverGrid, consistency_loss, draw_batch, update_ema
from turbo.diffusion.schedule import NoiseSchedule
from turbo.networks.unet import VideoUNet
from turbo.rewards import WeightedReward, mix_rewards
from turbo.types import Latents, PerVideo, PromptEmbeds


@dataclass(frozen=True)
class EncodedBatch:
    """A batch of encoded training videos with their prompts."""

    latents: Latents
    prompts: list[str]  # for the rewards
    prompt_embeds: PromptEmbeds
    uncond_embeds: PromptEmbeds  # encoding of the empty prompt, one per video


@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """Settings of one distillation."""

    fit: FitConfig
    schedule: NoiseSchedule  # the teacher's
    grid: SolverGrid
    draw_guidance: Callable[[int, torch.Generator], PerVideo]  # (batch size, generator) -> w
    target_ema: float  # decay of the target network's weights


def distil(
    teacher: VideoUNet,
    student: VideoUNet,
    draw_encoded: Callable[[torch.Generator], EncodedBatch],
    checkpoint: Path,
    config: DistillationConfig,
    *,
    rewards: Sequence[WeightedReward],
    vae: AutoencoderKL,
) -> Iterator[StepStats]:
    """Train the parameters of `student` that require gradients; yield statistics after every step.

    The target is an exponential moving average of the student, as in the paper. The published code
    takes the student itself; with the shapes models that collapsed (training/LOG.md).

    Args:
        student: made from the teacher by `student_of`, usually with `add_lora`.
        draw_encoded: draws a batch of training videos, encoded.
        rewards: of the student's estimates of clean latents, decoded by `vae`. Without
            rewards this is plain consistency distillation.
    """
    teacher.eval().requires_grad_(False)
    target = deepcopy(student).requires_grad_(False)
    networks = nn.ModuleDict({"student": student, "target": target})  # one checkpoint for both

    def draw_loss(generator: torch.Generator) -> torch.Tensor:
        update_ema(target, student, config.target_ema)
        encoded = draw_encoded(generator)
        batch = draw_batch(
            encoded.latents,
            encoded.prompt_embeds,
            encoded.uncond_embeds,
            config.draw_guidance(len(encoded.latents), generator),
            grid=config.grid,
            generator=generator,
        )
        consistency = consistency_loss(student, target, teacher, batch, config.schedule)
        reward = mix_rewards(consistency.clean, encoded.prompts, vae, rewards, generator)
        return consistency.value + reward.loss

    yield from fit(networks, draw_loss, config.fit, checkpoint)
