"""Consistency distillation: the student learns to jump to where the guided teacher would go.

Pure functions of one batch, for noise- and velocity-predicting networks alike. With rewards, reuse
`ConsistencyLoss.clean`: it is the student's video, with its graph.

T2V-Turbo asks its teacher in every step (`consistency_loss`). T2V-Turbo-v2 asks it once for all and
trains on what was recorded (`turbo/diffusion/teacher_cache.py`, then `hop_loss`).
"""

import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from turbo.diffusion.consistency import ConsistencyFunction, bind_consistency_function
from turbo.diffusion.guidance import bind_guided_unet
from turbo.diffusion.schedule import NoiseSchedule
from turbo.networks.unet import VideoUNet
from turbo.types import Latents, PerVideo, PromptEmbeds, Timesteps


@dataclass(frozen=True)
class SolverGrid:
    """The timesteps a teacher step starts from: `stride` - 1, 2 `stride` - 1, ... the last one."""

    num_steps: int = 50  # T2V-Turbo; 200 in v2
    num_timesteps: int = 1000

    def __post_init__(self) -> None:
        if not 1 <= self.num_steps <= self.num_timesteps:
            raise ValueError(
                f"Expected num_steps between 1 and {self.num_timesteps}, got {self.num_steps}."
            )

    @property
    def stride(self) -> int:
        return self.num_timesteps // self.num_steps

    @property
    def timesteps(self) -> Int[Tensor, " steps"]:
        """All of them, rising."""
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


@dataclass(frozen=True, kw_only=True)
class DistillationBatch:
    """Videos with everything that was drawn for them, so that a loss is a function of it."""

    clean: Latents
    noise: Latents
    start: Timesteps
    end: Timesteps
    guidance_scale: PerVideo  # w in the LCM convention
    prompt_embeds: PromptEmbeds
    uncond_embeds: PromptEmbeds  # encoding of the empty prompt, one per video
    fps: Int[Tensor, " B"] | None = None


def draw_batch(
    clean: Latents,
    prompt_embeds: PromptEmbeds,
    uncond_embeds: PromptEmbeds,
    guidance_scale: PerVideo,
    *,
    grid: SolverGrid,
    generator: torch.Generator,
    fps: Int[Tensor, " B"] | None = None,
) -> DistillationBatch:
    """Draw timesteps and noise for encoded videos, on `generator`'s device first.

    Args:
        guidance_scale: w, drawn by the recipe (`draw_guidance` is the paper's).
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


@torch.no_grad()
def teacher_step(
    teacher: VideoUNet, schedule: NoiseSchedule, noisy: Latents, batch: DistillationBatch
) -> Latents:
    """Take the guided teacher's DDIM step from `batch.start` to `batch.end`.

    Source: Latent Consistency Models, arXiv:2310.04378, Eq. 13, the augmented PF-ODE.
    """
    guided = bind_guided_unet(
        teacher, batch.prompt_embeds, batch.uncond_embeds, batch.guidance_scale + 1, batch.fps
    )
    clean, noise = schedule.split(noisy, guided(noisy, batch.start), batch.start)
    return schedule.ddim_step(clean, noise, batch.end)


@dataclass(frozen=True)
class ConsistencyLoss:
    """One evaluation of the loss, with its two sides for rewards, weights and logs."""

    value: Float[Tensor, ""]  # mean over all elements
    clean: Latents  # the student's one-jump estimate, with gradient
    target: Latents  # what it should have been, without


@dataclass(frozen=True, kw_only=True)
class Hop:
    """A step of the guided teacher, with all that both sides of the loss are told about it."""

    noisy: Latents  # at `start`
    landed: Latents  # at `end`
    start: Timesteps
    end: Timesteps
    guidance_scale: PerVideo  # w in the LCM convention
    prompt_embeds: PromptEmbeds
    fps: Int[Tensor, " B"] | None = None
    motion_strength: PerVideo | None = None  # m; None for networks that are not told it


def hop_loss(
    student: VideoUNet,
    target: VideoUNet,
    hop: Hop,
    schedule: NoiseSchedule,
    *,
    kappa: float = 1e-3,
) -> ConsistencyLoss:
    """Compare the student's jump from where the teacher started with the target's from its landing.

    Source: Latent Consistency Models, arXiv:2310.04378, Eq. 14.
    """
    clean = _bind(student, hop, schedule)(hop.noisy, hop.start)
    with torch.no_grad():
        goal = _bind(target, hop, schedule)(hop.landed, hop.end)
    return ConsistencyLoss(pseudo_huber(clean - goal, kappa).mean(), clean, goal)


def _bind(network: VideoUNet, hop: Hop, schedule: NoiseSchedule) -> ConsistencyFunction:
    """Bind a network to what it is told; at both ends of the hop that is the same."""
    strength = hop.motion_strength
    return bind_consistency_function(
        network,
        schedule,
        hop.prompt_embeds,
        hop.guidance_scale,
        hop.fps,
        motion_at=None if strength is None else lambda timesteps: strength,
    )


def consistency_loss(
    student: VideoUNet,
    target: VideoUNet,
    teacher: VideoUNet,
    batch: DistillationBatch,
    schedule: NoiseSchedule,
    *,
    kappa: float = 1e-3,
) -> ConsistencyLoss:
    """Let the teacher take its step, then compare the two jumps: T2V-Turbo's training step.

    Args:
        target: the student itself (its weights without gradient, as in the published code) or an
            exponential moving average of it (as in the paper; see `update_ema`).
        teacher: frozen and in eval mode; guided by w + 1 in the Imagen convention.

    Source: T2V-Turbo, arXiv:2405.18750, Eq. 5; Latent Consistency Models, arXiv:2310.04378, Eq. 14.
    """
    noisy = schedule.add_noise(batch.clean, batch.noise, batch.start)
    hop = Hop(
        noisy=noisy,
        landed=teacher_step(teacher, schedule, noisy, batch),
        start=batch.start,
        end=batch.end,
        guidance_scale=batch.guidance_scale,
        prompt_embeds=batch.prompt_embeds,
        fps=batch.fps,
    )
    return hop_loss(student, target, hop, schedule, kappa=kappa)


def student_of(teacher: VideoUNet, guidance_size: int = 256, *, share: bool = False) -> VideoUNet:
    """Copy a teacher into a network that also takes the guidance scale.

    The new projection starts at zero, so the student starts as its teacher for every scale. (The
    published code leaves it random and frozen, so that its LoRA files alone do not fix a network.)

    Args:
        share: take the teacher's own tensors, for whoever needs no teacher beside the student:
            half the memory, and what changes the one changes the other.
    """
    config = {name: value for name, value in teacher.config.items() if not name.startswith("_")}
    with torch.device("meta"):
        student = VideoUNet(**{**config, "time_cond_proj_dim": guidance_size})
    weights = teacher.state_dict() if share else copy.deepcopy(teacher.state_dict())
    name, width = "time_embedding.cond_proj.weight", student.config.block_out_channels[0]
    weights[name] = teacher.conv_in.weight.new_zeros(width, guidance_size)
    student.load_state_dict(weights, assign=True)
    return student.train(teacher.training)


@torch.no_grad()
def update_ema(average: nn.Module, student: nn.Module, decay: float) -> None:
    """Move `average` towards `student` in place: decay of the old, 1 - decay of the new."""
    for kept, new in zip(average.parameters(), student.parameters(), strict=True):
        kept.lerp_(new.to(kept), 1 - decay)
