"""The inputs of a distillation: a batch of encoded videos, and its settings."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from training.loop import FitConfig
from turbo.diffusion.consistency import TIMESTEP_SCALING
from turbo.diffusion.distillation import Distance, SolverGrid, pseudo_huber
from turbo.diffusion.motion import PERCENTAGE, STRENGTH, motion_strength
from turbo.diffusion.teacher_cache import TeacherRecord
from turbo.types import Energy, FrameRate, Latents, PerVideo, PromptEmbeds, Schedule, Timesteps

# turbo/diffusion/distillation.py, continuous.py, matching.py
Method = Literal["discrete", "continuous", "matching"]


def has_own_target(target_ema: float, target_dropout: bool) -> bool:
    """Return whether the target has tensors of its own, in place of the student's."""
    return target_ema > 0 or not target_dropout


@dataclass(frozen=True)
class EncodedBatch:
    """A batch of encoded training videos with their prompts."""

    latents: Latents
    reward_prompts: list[str | None]  # what rewards score a video against; None is not scored
    prompt_embeds: PromptEmbeds
    uncond_embeds: PromptEmbeds  # encoding of the empty prompt, one per video
    fps: FrameRate | None = None  # for networks that take it
    guided: Bool[Tensor, " B"] | None = None  # videos whose motion may be guided; None: all


@dataclass(frozen=True)
class PromptBatch:
    """A batch of prompts without videos: the student's own sampler makes them (on-policy)."""

    latent_shape: tuple[int, int, int, int]  # of one video
    timesteps: Int[Tensor, " steps"]  # of the student's sampler, falling
    reward_prompts: list[str | None]  # as for `EncodedBatch`
    prompt_embeds: PromptEmbeds
    uncond_embeds: PromptEmbeds
    fps: FrameRate | None = None


@dataclass(frozen=True)
class RecordedBatch:
    """A batch of training videos for which the teacher's outputs were recorded."""

    record: TeacherRecord
    reward_prompts: list[str | None]  # as for `EncodedBatch`
    guided: Bool[Tensor, " B"] | None = None  # as for `EncodedBatch`


@dataclass(frozen=True, kw_only=True)
class MotionGuidance:
    """Motion guidance of T2V-Turbo-v2: the teacher's step follows the training video's motion."""

    strength: float = STRENGTH
    percentage: float = PERCENTAGE  # the noisiest share of the timesteps
    energy: Energy  # whose gradient the step follows

    def strength_at(
        self, timesteps: Timesteps, num_timesteps: int, guided: Bool[Tensor, " B"] | None = None
    ) -> PerVideo:
        """Return m at the start of each video's step; 0 for videos that are not `guided`."""
        strength = motion_strength(
            timesteps, self.strength, self.percentage, num_timesteps=num_timesteps
        )
        return strength if guided is None else strength * guided


@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """Settings of one distillation."""

    fit: FitConfig
    schedule: Schedule  # the teacher's
    grid: SolverGrid
    draw_guidance: Callable[[int, torch.Generator], PerVideo]  # (batch size, generator) -> w
    method: Method = "discrete"
    tangent_warmup: int = 0  # steps over which a continuous method takes in the student's change
    target_ema: float  # decay of the target's weights; 0: those of the student, as last updated
    target_dropout: bool = True  # as in the published code, whose target is the student itself
    distance: Distance = pseudo_huber  # of student and target
    timestep_scaling: float = TIMESTEP_SCALING  # of the boundary at timestep 0
    motion: MotionGuidance | None = None
    split_rewards: bool = False  # one reward per micro-batch, in turn; else all
    recompute: bool = False  # activations of student and VAE in the backward pass: less memory
    shard: bool = False  # divide what is trained over the processes (FSDP2)
    rate_factor: Callable[[str], float] = lambda name: 1.0  # of a parameter's learning rate
    fake_rate: float = 1.0  # the same for the fake, with method matching
    fake_warmup: int = 0  # steps in which the fake alone learns
    scales: Float[Tensor, " T"] | None = None  # of a teacher that was trained on weakened latents
