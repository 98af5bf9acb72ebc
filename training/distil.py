"""Consistency distillation with reward feedback, of any teacher that `turbo` can load.

The losses are in `turbo.diffusion.distillation`, the rewards in `turbo.rewards`. This module is the
training step around them; `training.__main__` runs it by a configuration file.

Source: T2V-Turbo, arXiv:2405.18750, Algorithm 1; T2V-Turbo-v2, arXiv:2410.05677, Algorithm 2.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor

from training.loop import FitConfig, Slot, StepStats, fit
from turbo.diffusion.distillation import (
    ConsistencyLoss,
    DistillationBatch,
    SolverGrid,
    consistency_loss,
    draw_batch,
    frozen_shared_copy,
    solver_step_loss,
    update_ema,
)
from turbo.diffusion.motion import MOTION_LAYERS, PERCENTAGE, STRENGTH, motion_strength
from turbo.diffusion.schedule import NoiseSchedule
from turbo.diffusion.teacher_cache import record_teacher, step_from_record
from turbo.networks.unet import VideoUNet
from turbo.rewards import WeightedReward, mix_rewards
from turbo.types import FrameRate, Latents, PerVideo, PromptEmbeds


@dataclass(frozen=True)
class EncodedBatch:
    """A batch of encoded training videos with their prompts."""

    latents: Latents
    reward_prompts: list[str | None]  # what rewards score a video against; None is not scored
    prompt_embeds: PromptEmbeds
    uncond_embeds: PromptEmbeds  # encoding of the empty prompt, one per video
    fps: FrameRate | None = None  # for networks that take it


@dataclass(frozen=True, kw_only=True)
class MotionGuidance:
    """T2V-Turbo-v2's: the teacher's step follows the motion of the training video."""

    strength: float = STRENGTH
    percentage: float = PERCENTAGE  # the noisiest share of the timesteps
    layers: tuple[str, ...] = MOTION_LAYERS


@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """Settings of one distillation."""

    fit: FitConfig
    schedule: NoiseSchedule  # the teacher's
    grid: SolverGrid
    draw_guidance: Callable[[int, torch.Generator], PerVideo]  # (batch size, generator) -> w
    target_ema: float  # decay of the target's weights; 0: those of the student, as last updated
    target_dropout: bool = True  # as in the published code, whose target is the student itself
    kappa: float = 1e-3  # of the pseudo-Huber distance
    motion: MotionGuidance | None = None
    recompute: bool = False  # activations of student and VAE in the backward pass: less memory
    rate_factor: Callable[[str], float] = lambda name: 1.0  # of a parameter's learning rate


def distil(
    teacher: VideoUNet,
    student: VideoUNet,
    draw_encoded: Callable[[Slot], EncodedBatch],
    folder: Path,
    config: DistillationConfig,
    *,
    rewards: Sequence[WeightedReward],
    vae: AutoencoderKL,
    accelerator: Accelerator | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[StepStats]:
    """Train the parameters of `student` that require gradients; yield statistics after every step.

    The target is an exponential moving average of the student, as in the paper. The published code
    takes the student itself; with the shapes models that collapsed (training/LOG.md).

    Args:
        student: made from the teacher by `student_of`, usually with `share` and `add_lora`.
        draw_encoded: draws a micro-batch of training videos, encoded.
        folder: of the checkpoints.
        rewards: of the student's estimates of clean latents, decoded by `vae`. Without
            rewards this is plain consistency distillation.
        accelerator, should_stop: as for `fit`.
    """
    teacher.eval().requires_grad_(False)
    target = frozen_shared_copy(student).train(config.target_dropout)
    if config.recompute:
        student.enable_gradient_checkpointing()
        teacher.enable_gradient_checkpointing()  # for the gradient of the motion energy

    def draw_loss(slot: Slot) -> Float[Tensor, ""]:
        if slot.is_first:
            update_ema(target, student, config.target_ema)
        encoded = draw_encoded(slot)
        batch = draw_batch(  # z_0, its noise, t_{n+k} and t_n, w
            encoded.latents,
            encoded.prompt_embeds,
            encoded.uncond_embeds,
            config.draw_guidance(len(encoded.latents), slot.generator),
            grid=config.grid,
            generator=slot.generator,
            fps=encoded.fps,
        )
        consistency = compare(student, target, teacher, batch, config)
        scored = [row for row, prompt in enumerate(encoded.reward_prompts) if prompt is not None]
        reward = mix_rewards(
            consistency.clean[scored],
            [prompt for prompt in encoded.reward_prompts if prompt is not None],
            vae,
            rewards if scored else (),
            slot.generator,
            recompute=config.recompute,
        )
        return consistency.value + len(scored) / len(batch.clean) * reward.loss

    trained = {name for name, weight in student.named_parameters() if weight.requires_grad}
    yield from fit(
        student,
        draw_loss,
        config.fit,
        folder,
        accelerator=accelerator,
        rate_factor=config.rate_factor,
        companions={name: w for name, w in target.named_parameters() if name in trained},
        should_stop=should_stop,
    )


def compare(
    student: VideoUNet,
    target: VideoUNet,
    teacher: VideoUNet,
    batch: DistillationBatch,
    config: DistillationConfig,
) -> ConsistencyLoss:
    """Take the teacher's guided step, and compare student and target at its two ends."""
    if config.motion is None:
        return consistency_loss(
            student, target, teacher, batch, config.schedule, kappa=config.kappa
        )
    guidance = config.motion
    strength = motion_strength(
        batch.start, guidance.strength, guidance.percentage, num_timesteps=len(config.schedule)
    )
    record = record_teacher(
        teacher,
        config.schedule,
        batch,
        config.grid,
        motion=bool(strength.any()),
        layers=guidance.layers,
    )
    step = step_from_record(record, batch.guidance_scale, config.schedule, strength)
    return solver_step_loss(student, target, step, config.schedule, kappa=config.kappa)
