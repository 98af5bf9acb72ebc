"""Consistency distillation: a student learns one value along each step of the guided teacher.

Pure functions of one batch, for noise- and velocity-predicting networks alike. Rewards reuse
`DistillationLoss.clean`, the student's video with its graph.

T2V-Turbo calls its teacher in every training step (`consistency_loss`). T2V-Turbo-v2 calls it once,
before training, and reads the record (`turbo/diffusion/teacher_cache.py`, then `solver_step_loss`).
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from turbo.diffusion.consistency import (
    TIMESTEP_SCALING,
    bind_consistency_function,
    sample_consistency,
)
from turbo.diffusion.guidance import bind_guided
from turbo.diffusion.schedule import NUM_TIMESTEPS
from turbo.networks.families import Network
from turbo.types import (
    ConsistencyFunction,
    Denoiser,
    FrameRate,
    Latents,
    PerVideo,
    PromptEmbeds,
    Schedule,
    Timesteps,
    VideoNetwork,
    checked,
)

Distance = Callable[[Tensor], Tensor]  # of an error, element by element


@dataclass(frozen=True)
class SolverGrid:
    """The timesteps at which a teacher's step may start: `stride` - 1, 2 `stride` - 1, ..."""

    num_steps: int = 50  # T2V-Turbo; 200 in v2
    num_timesteps: int = NUM_TIMESTEPS

    def __post_init__(self) -> None:
        if not 1 <= self.num_steps <= self.num_timesteps:
            raise ValueError(
                f"The grid must have from 1 to {self.num_timesteps} steps, not {self.num_steps}."
            )
        if self.num_timesteps % self.num_steps:  # else the grid would end below the last timestep
            raise ValueError(
                f"{self.num_steps} steps do not divide {self.num_timesteps} timesteps evenly. "
                "The papers use 50 and 200."
            )

    @property
    def stride(self) -> int:
        return self.num_timesteps // self.num_steps

    @property
    def timesteps(self) -> Int[Tensor, " steps"]:
        """Return all of them, from low to high."""
        return torch.arange(1, self.num_steps + 1) * self.stride - 1

    def interval(self, index: Int[Tensor, " B"]) -> tuple[Timesteps, Timesteps]:
        """Return start and end of the grid's steps; the first step ends at timestep 0."""
        start = (index + 1) * self.stride - 1
        return start, (start - self.stride).clamp(min=0)

    def draw(self, batch_size: int, generator: torch.Generator) -> tuple[Timesteps, Timesteps]:
        """Draw start and end uniformly from the grid."""
        device = generator.device
        return self.interval(
            torch.randint(self.num_steps, (batch_size,), generator=generator, device=device)
        )


def draw_guidance(
    batch_size: int, generator: torch.Generator, low: float = 5.0, high: float = 15.0
) -> PerVideo:
    """Draw the guidance scale w (LCM convention) uniformly.

    Source: T2V-Turbo, arXiv:2405.18750, section 4.
    """
    draw = torch.rand(batch_size, generator=generator, device=generator.device)
    return low + (high - low) * draw


@checked
@dataclass(frozen=True, kw_only=True)
class SolverInput:
    """What the guided teacher's step depends on, besides the noisy videos."""

    start: Timesteps
    end: Timesteps
    guidance_scale: PerVideo  # w in the LCM convention
    prompt_embeds: PromptEmbeds
    uncond_embeds: PromptEmbeds  # encoding of the empty prompt, one per video
    fps: FrameRate | None = None


@checked
@dataclass(frozen=True, kw_only=True)
class SolverStep:
    """One step of the guided teacher, with the inputs that both sides of the loss share."""

    noisy: Latents  # at `start`
    stepped: Latents  # at `end`
    start: Timesteps
    end: Timesteps
    guidance_scale: PerVideo  # w in the LCM convention
    prompt_embeds: PromptEmbeds
    fps: FrameRate | None = None
    motion_strength: PerVideo | None = None  # m; None for networks that do not take it


@checked
@dataclass(frozen=True, kw_only=True)
class DistillationBatch(SolverInput):
    """Videos with everything drawn for them, so that the loss is a function of the batch."""

    clean: Latents
    noise: Latents

    def add_noise(self, schedule: Schedule) -> Latents:
        """Return the noisy videos, at `start`."""
        return schedule.add_noise(self.clean, self.noise, self.start)


@checked
def draw_batch(
    clean: Latents,
    prompt_embeds: PromptEmbeds,
    uncond_embeds: PromptEmbeds,
    guidance_scale: PerVideo,
    *,
    grid: SolverGrid,
    generator: torch.Generator,
    fps: FrameRate | None = None,
) -> DistillationBatch:
    """Draw timesteps and noise for encoded videos, on `generator`'s device first.

    Args:
        guidance_scale: w, drawn by the recipe; `draw_guidance` is the paper's draw.
    """
    device = clean.device
    start, end = grid.draw(len(clean), generator)
    noise = torch.randn(clean.shape, generator=generator, device=generator.device)
    return DistillationBatch(
        clean=clean,
        noise=noise.to(clean),
        start=start.to(device),
        end=end.to(device),
        guidance_scale=guidance_scale.to(device),
        prompt_embeds=prompt_embeds,
        uncond_embeds=uncond_embeds,
        fps=fps,
    )


def pseudo_huber(error: Float[Tensor, "..."], kappa: float = 1e-3) -> Float[Tensor, "..."]:
    """Return sqrt(error² + kappa²) - kappa, element by element: quadratic near 0, then linear.

    Source: Improved Consistency Training, arXiv:2310.14189, Eq. 8; kappa of T2V-Turbo's code.
    """
    return (error.float() ** 2 + kappa**2).sqrt() - kappa


def squared(error: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return error², element by element: the published code's other choice, "l2"."""
    return error.float() ** 2


@checked
@torch.no_grad()
def roll_out(
    student: Network,
    schedule: Schedule,
    noises: Sequence[Latents],
    batch: SolverInput,
    timesteps: Int[Tensor, " steps"],
    *,
    timestep_scaling: float = TIMESTEP_SCALING,
) -> Latents:
    """Run the student's own sampler from noise down to `batch.start`.

    Returns the noisy latents that the student receives there at inference, computed without dropout
    and without gradient. On-policy training starts here, so that
    the student learns from its own mistakes, and no training video is needed.

    Args:
        noises: the initial noise, then the fresh noise of each step.
        timesteps: of the sampler, falling, down to `batch.start`; one for each noise.

    Source: the idea of generalised knowledge distillation, arXiv:2306.13649, for a sampler.
    """
    consistency_fn = bind_student(student, schedule, batch, timestep_scaling)
    latents, training = noises[0], student.training
    student.eval()
    sampler = sample_consistency(
        consistency_fn, schedule, latents, timesteps, step_noise=noises[1:]
    )
    for state in islice(sampler, len(timesteps) - 1):
        latents = state.latents
    student.train(training)
    return latents.clone()  # the sampler's own tensors cannot take part in a gradient


def bind_student(
    student: VideoNetwork,
    schedule: Schedule,
    batch: SolverInput | SolverStep,
    timestep_scaling: float,
) -> ConsistencyFunction:
    """Bind a student, or its target, to a batch."""
    strength = batch.motion_strength if isinstance(batch, SolverStep) else None
    return bind_consistency_function(
        student,
        schedule,
        batch.prompt_embeds,
        batch.guidance_scale,
        batch.fps,
        motion_at=None if strength is None else lambda timesteps: strength,
        timestep_scaling=timestep_scaling,
    )


def bind_teacher(teacher: VideoNetwork, schedule: Schedule, batch: SolverInput) -> Denoiser:
    """Bind a teacher to a batch, guided by w + 1 in the Imagen convention, in one call."""
    return bind_guided(
        teacher,
        schedule,
        batch.prompt_embeds,
        batch.uncond_embeds,
        batch.guidance_scale + 1,
        batch.fps,
        one_call=True,
    )


@checked
@torch.no_grad()
def teacher_step(
    teacher: VideoNetwork, schedule: Schedule, noisy: Latents, batch: SolverInput
) -> Latents:
    """Take the guided teacher's DDIM step from `batch.start` to `batch.end`.

    Source: Latent Consistency Models, arXiv:2310.04378, Eq. 13, the augmented PF-ODE.
    """
    output = bind_teacher(teacher, schedule, batch)(noisy, batch.start)
    clean, noise = schedule.split(noisy, output, batch.start)
    return schedule.ddim_step(clean, noise, batch.end)


@dataclass(frozen=True)
class DistillationLoss:
    """One evaluation of a loss, and the two estimates that it compares."""

    value: Float[Tensor, ""]  # mean over all elements
    clean: Latents  # the student's estimate in one step, with gradient, which rewards score
    target: Latents  # the estimate it is compared with, without gradient


def solver_step_loss(
    student: VideoNetwork,
    target: VideoNetwork,
    step: SolverStep,
    schedule: Schedule,
    *,
    distance: Distance = pseudo_huber,
    timestep_scaling: float = TIMESTEP_SCALING,
) -> DistillationLoss:
    """Return the mean distance of f_student(z_start, start) and f_target(z_end, end).

    Source: Latent Consistency Models, arXiv:2310.04378, Eq. 14.
    """
    clean = bind_student(student, schedule, step, timestep_scaling)(step.noisy, step.start)
    with torch.no_grad():
        goal = bind_student(target, schedule, step, timestep_scaling)(step.stepped, step.end)
    return DistillationLoss(distance(clean - goal).mean(), clean, goal)


def consistency_loss(
    student: VideoNetwork,
    target: VideoNetwork,
    teacher: VideoNetwork,
    noisy: Latents,
    batch: SolverInput,
    schedule: Schedule,
    *,
    distance: Distance = pseudo_huber,
    timestep_scaling: float = TIMESTEP_SCALING,
) -> DistillationLoss:
    """Take the teacher's step, then compare student and target at its ends: T2V-Turbo's loss.

    Args:
        target: the student itself (its weights without gradient, as in the published code) or an
            exponential moving average of it (as in the paper; see `update_ema`).
        teacher: frozen and in eval mode; guided by w + 1 in the Imagen convention.
        noisy: videos at `batch.start`: `DistillationBatch.add_noise`, or the student's own.

    Source: T2V-Turbo, arXiv:2405.18750, Eq. 5; Latent Consistency Models, arXiv:2310.04378, Eq. 14.
    """
    step = SolverStep(
        noisy=noisy,
        stepped=teacher_step(teacher, schedule, noisy, batch),
        start=batch.start,
        end=batch.end,
        guidance_scale=batch.guidance_scale,
        prompt_embeds=batch.prompt_embeds,
        fps=batch.fps,
    )
    return solver_step_loss(
        student, target, step, schedule, distance=distance, timestep_scaling=timestep_scaling
    )


AnyNetwork = TypeVar("AnyNetwork", bound=Network)


def student_of(
    teacher: AnyNetwork, guidance_size: int = 256, *, share: bool = False, motion: bool = False
) -> AnyNetwork:
    """Copy a teacher into a network that also takes the guidance scale.

    The student starts as its teacher at every scale: its new layers are those of the network's
    `guidance_layers`. (The published code leaves the projection of the guidance scale random and
    frozen, so its LoRA files alone do not define a network.)

    Args:
        share: use the teacher's own tensors, for a student of which only new tensors are trained
            (`add_lora`): one copy of the weights for both. A change to a shared tensor changes
            both networks. Move the teacher to its device and precision first.
        motion: also take T2V-Turbo-v2's motion strength.
    """
    config = {name: value for name, value in teacher.config.items() if not name.startswith("_")}
    added, layers = teacher.guidance_layers(guidance_size, motion=motion)
    with torch.device("meta"):
        student = type(teacher)(**{**config, **added})
    weights = teacher.state_dict() if share else copy.deepcopy(teacher.state_dict())
    student.load_state_dict({**weights, **layers}, assign=True)
    for name, buffer in teacher.named_buffers():  # those that no file holds, such as frequencies
        module, _, leaf = name.rpartition(".")
        setattr(student.get_submodule(module), leaf, buffer)
    return student.train(teacher.training)


def frozen_shared_copy(student: AnyNetwork) -> AnyNetwork:
    """Copy a student for use as its target: trained parameters are copied, frozen ones shared."""
    frozen = {id(p): p for p in student.parameters() if not p.requires_grad}
    return copy.deepcopy(student, frozen).requires_grad_(False)


@torch.no_grad()
def update_ema(average: nn.Module, student: nn.Module, decay: float) -> None:
    """Set `average` to decay * average + (1 - decay) * student, in place."""
    for kept, new in zip(average.parameters(), student.parameters(), strict=True):
        if kept is not new:
            kept.lerp_(new.to(kept), 1 - decay)
