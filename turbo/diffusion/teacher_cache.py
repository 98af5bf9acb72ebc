"""Teacher outputs computed before training: what makes motion guidance affordable in T2V-Turbo-v2.

The motion score of one video takes a hundred or more calls of the teacher. They are made once
(`record_teacher`); a training step reads the record (`step_from_record`) and draws only the
guidance scale.

Source: T2V-Turbo-v2, arXiv:2410.05677, section 4, and its released code.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from turbo.diffusion.distillation import DistillationBatch, SolverGrid, SolverStep
from turbo.diffusion.guidance import guide
from turbo.diffusion.motion import MOTION_LAYERS, guide_motion, invert_to, motion_score
from turbo.networks.unet import VideoUNet
from turbo.types import (
    Conditioning,
    FrameRate,
    Latents,
    PerVideo,
    PromptEmbeds,
    Schedule,
    Timesteps,
    checked,
)


@dataclass(frozen=True, kw_only=True)
class TeacherRecord:
    """A teacher's outputs for a batch of noisy videos; only the guidance scale is still to draw."""

    noisy: Latents  # at `start`
    cond: Latents  # its raw output for the prompt
    uncond: Latents  # and for the empty prompt
    motion_score: Latents  # gradient of the motion energy; zeros if not computed
    start: Timesteps
    end: Timesteps
    prompt_embeds: PromptEmbeds
    fps: FrameRate | None = None


def record_teacher(
    teacher: VideoUNet,
    schedule: Schedule,
    batch: DistillationBatch,
    grid: SolverGrid,
    *,
    motion: bool,
    layers: Sequence[str] = MOTION_LAYERS,
) -> TeacherRecord:
    """Compute everything that training on the batch needs from the teacher.

    Args:
        grid: the one the batch was drawn on.
        motion: whether to compute the motion score too, which takes an inversion of up to
            `grid.num_steps` calls, and one backward pass.
        layers: temporal attentions to guide, as for `motion.capture_attention`.
    """
    noisy = schedule.add_noise(batch.clean, batch.noise, batch.start)
    conditioning, told = Conditioning(fps=batch.fps), schedule.told(batch.start)
    with torch.no_grad():
        uncond = teacher(noisy, told, batch.uncond_embeds, conditioning)
    if motion:
        prompt_embeds, fps = batch.prompt_embeds, batch.fps
        example = invert_to(
            batch.start, teacher, schedule, batch.clean, grid.timesteps, prompt_embeds, fps
        )
        scored = motion_score(
            teacher, noisy, example, batch.start, prompt_embeds, prompt_embeds, fps, layers
        )
        cond, score = scored.output, scored.score
    else:
        with torch.no_grad():
            cond = teacher(noisy, told, batch.prompt_embeds, conditioning)
        score = torch.zeros_like(noisy)
    return TeacherRecord(
        noisy=noisy,
        cond=cond,
        uncond=uncond,
        motion_score=score,
        start=batch.start,
        end=batch.end,
        prompt_embeds=batch.prompt_embeds,
        fps=batch.fps,
    )


@checked
@torch.no_grad()
def step_from_record(
    record: TeacherRecord,
    guidance_scale: PerVideo,
    schedule: Schedule,
    motion_strength: PerVideo | None = None,
) -> SolverStep:
    """Take the step that the recorded teacher would take at this guidance scale.

    Motion guidance changes the direction of the step, not the clean estimate.

    Args:
        guidance_scale: w in the LCM convention; drawn anew at every use of a record.
        motion_strength: m, from `motion.motion_strength`, 0 for a video without motion score; None
            trains a network that does not take m.
    """
    output = guide(record.cond, record.uncond, guidance_scale + 1)
    clean, noise = schedule.split(record.noisy, output, record.start)
    if motion_strength is not None:
        noise = guide_motion(noise, record.motion_score, motion_strength, schedule, record.start)
    return SolverStep(
        noisy=record.noisy,
        stepped=schedule.ddim_step(clean, noise, record.end),
        start=record.start,
        end=record.end,
        guidance_scale=guidance_scale,
        prompt_embeds=record.prompt_embeds,
        fps=record.fps,
        motion_strength=motion_strength,
    )
