"""Teacher outputs computed before training: what makes motion guidance affordable in T2V-Turbo-v2.

The motion score of one video takes a hundred or more calls of the teacher. They are made once
(`record_teacher`); a training step reads the record (`step_from_record`) and draws only the
guidance scale.

Source: T2V-Turbo-v2, arXiv:2410.05677, section 4, and its released code.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from turbo.diffusion.distillation import DistillationBatch, SolverStep
from turbo.diffusion.guidance import guide
from turbo.diffusion.motion import guide_motion
from turbo.networks.unet import VideoUNet
from turbo.types import (
    Conditioning,
    Energy,
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
    score: Latents  # gradient of the energy; zeros if not computed
    start: Timesteps
    end: Timesteps
    prompt_embeds: PromptEmbeds
    fps: FrameRate | None = None


def record_teacher(
    teacher: VideoUNet,
    schedule: Schedule,
    batch: DistillationBatch,
    energy: Energy | None = None,
    guided: Bool[Tensor, " B"] | None = None,
) -> TeacherRecord:
    """Compute everything that training on the batch needs from the teacher.

    Args:
        energy: what guidance will lower, such as `MotionEnergy`; None: nothing.
        guided: the videos that need its gradient; None: all. It costs an inversion of up to
            `grid.num_steps` calls a video, and one backward pass.
    """
    noisy = batch.add_noise(schedule)
    cond, score = torch.empty_like(noisy), torch.zeros_like(noisy)
    if guided is None:
        guided = torch.ones_like(batch.start, dtype=torch.bool)
    if energy is None:
        guided = torch.zeros_like(guided)
    fps = batch.fps

    def ask(rows: Tensor, embeds: Tensor) -> Tensor:
        conditioning = Conditioning(fps=None if fps is None else fps[rows])
        return teacher(
            noisy[rows], schedule.network_time(batch.start[rows]), embeds[rows], conditioning
        )

    with torch.no_grad():
        uncond = ask(torch.ones_like(guided), batch.uncond_embeds)
        if not guided.all():
            cond[~guided] = ask(~guided, batch.prompt_embeds)
    if energy is not None and guided.any():
        scored = energy(
            noisy[guided],
            batch.clean[guided],
            batch.start[guided],
            batch.prompt_embeds[guided],
            None if fps is None else fps[guided],
        )
        cond[guided], score[guided] = scored.output, scored.score
    return TeacherRecord(
        noisy=noisy,
        cond=cond,
        uncond=uncond,
        score=score,
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
        motion_strength: m, from `motion.motion_strength`, 0 for a video without score; None
            trains a network that does not take m.
    """
    output = guide(record.cond, record.uncond, guidance_scale + 1)
    clean, noise = schedule.split(record.noisy, output, record.start)
    if motion_strength is not None:
        noise = guide_motion(noise, record.score, motion_strength, schedule, record.start)
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
