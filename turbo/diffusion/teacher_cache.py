"""What a teacher said, once for all: how T2V-Turbo-v2 affords motion guidance.

The motion score of one video takes a hundred calls of the teacher and more. So the teacher is asked
before the training (`record_teacher`); a training step reads the record (`follow_record`) and draws
nothing but the guidance scale.

Source: T2V-Turbo-v2, arXiv:2410.05677, section 4, and its released code.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from turbo.diffusion.distillation import DistillationBatch, Hop, SolverGrid
from turbo.diffusion.guidance import guide
from turbo.diffusion.motion import guide_motion, motion_score, own_example
from turbo.diffusion.schedule import NoiseSchedule
from turbo.networks.unet import Conditioning, VideoUNet
from turbo.types import Latents, PerVideo, PromptEmbeds, Timesteps


@dataclass(frozen=True, kw_only=True)
class TeacherRecord:
    """What a teacher said of noisy videos; of the draws, only the guidance is left to training."""

    noisy: Latents  # at `start`
    cond: Latents  # its raw output for the prompt
    uncond: Latents  # and for the empty prompt
    motion_score: Latents  # gradient of the motion energy; zeros where it was not asked for
    start: Timesteps
    end: Timesteps
    prompt_embeds: PromptEmbeds
    fps: Int[Tensor, " B"] | None = None


def record_teacher(
    teacher: VideoUNet,
    schedule: NoiseSchedule,
    batch: DistillationBatch,
    grid: SolverGrid,
    *,
    motion: bool,
) -> TeacherRecord:
    """Ask the teacher everything that training on the batch will need.

    Args:
        grid: the one the batch was drawn on.
        motion: whether to find how the motion of each video should change, too. That takes a walk
            of up to `grid.num_steps` calls, and one backward pass.
    """
    noisy = schedule.add_noise(batch.clean, batch.noise, batch.start)
    told = Conditioning(fps=batch.fps)
    with torch.no_grad():
        uncond = teacher(noisy, batch.start, batch.uncond_embeds, told)
    if motion:
        prompt_embeds, fps = batch.prompt_embeds, batch.fps
        example = own_example(
            teacher, schedule, batch.clean, batch.start, grid.timesteps, prompt_embeds, fps
        )
        scored = motion_score(
            teacher, noisy, example, batch.start, prompt_embeds, prompt_embeds, fps
        )
        cond, score = scored.output, scored.score
    else:
        with torch.no_grad():
            cond = teacher(noisy, batch.start, batch.prompt_embeds, told)
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


@torch.no_grad()
def follow_record(
    record: TeacherRecord,
    guidance_scale: PerVideo,
    schedule: NoiseSchedule,
    motion_strength: PerVideo | None = None,
) -> Hop:
    """Take the step that the recorded teacher would take at this guidance.

    Motion guidance bends the direction of the step and leaves the clean estimate alone.

    Args:
        guidance_scale: w in the LCM convention; drawn anew whenever a record is used.
        motion_strength: m, from `motion.motion_strength`, 0 for a video without motion score; None
            trains a network that is not told m.
    """
    output = guide(record.cond, record.uncond, guidance_scale + 1)
    clean, noise = schedule.split(record.noisy, output, record.start)
    if motion_strength is not None:
        noise = guide_motion(noise, record.motion_score, motion_strength, schedule, record.start)
    return Hop(
        noisy=record.noisy,
        landed=schedule.ddim_step(clean, noise, record.end),
        start=record.start,
        end=record.end,
        guidance_scale=guidance_scale,
        prompt_embeds=record.prompt_embeds,
        fps=record.fps,
        motion_strength=motion_strength,
    )
