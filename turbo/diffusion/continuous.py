"""Continuous-time consistency distillation of a flow-matching teacher: no solver, no grid.

Where the discrete loss compares the student at the two ends of a teacher's step, this one takes the
derivative of the student along the teacher's path, by forward-mode differentiation.

Source: sCM, arXiv:2410.11081; rCM, arXiv:2510.08431, which trains Wan in this way. Here in the time
of flow matching, and without sCM's learned weight of each timestep.
"""

import warnings

import torch
from einops import rearrange
from torch.nn.attention import SDPBackend, sdpa_kernel

from turbo.diffusion.consistency import condition_student
from turbo.diffusion.distillation import DistillationLoss, SolverInput, bind_teacher
from turbo.diffusion.schedule import FlowSchedule
from turbo.types import Latents, Schedule, Timesteps, VideoNetwork, checked

FLOOR = 0.1  # added to the size of a tangent before division, as in sCM


@checked
@torch.no_grad()
def velocity_along(
    network: VideoNetwork,
    schedule: FlowSchedule,
    noisy: Latents,
    timesteps: Timesteps,
    direction: Latents,
    batch: SolverInput,
) -> tuple[Latents, Latents]:
    """Return a student's velocity v, and dv / dsigma along a path of this direction dz / dsigma.

    A Jacobian-vector product. Attention is computed by its formula: torch's fast kernels have no
    forward-mode derivative.
    """
    time = schedule.network_time(timesteps)
    condition = condition_student(network, batch.guidance_scale, batch.fps)

    def velocity(at: Latents, time: torch.Tensor) -> Latents:
        return network(at, time, batch.prompt_embeds, condition)

    tangents = (direction, torch.full_like(time, 1000.0))  # time = 1000 sigma
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, when it loads derivatives
        result = torch.func.jvp(velocity, (noisy, time), tangents)
    return result[0], result[1]


@checked
def continuous_loss(
    student: VideoNetwork,
    target: VideoNetwork,
    teacher: VideoNetwork,
    noisy: Latents,
    batch: SolverInput,
    schedule: Schedule,
    *,
    share: float = 1.0,
) -> DistillationLoss:
    """Push the student's clean estimate f = z - sigma v to be constant along the teacher's path.

        df / dsigma = v_teacher - v - sigma dv / dsigma
        loss = mean (v - (v + g / (rms(g) + 0.1)))^2 / 2,  g = (1 - sigma) df / dsigma

    The inner v and g are of `target` and without gradient.

    Args:
        target: the student itself, or a copy with its weights.
        noisy: at `batch.start`; `batch.end` is not used.
        share: of the derivative dv / dsigma, which sCM lets grow from 0 to 1. At 0 the student
            learns the guided teacher's velocity.

    Raises:
        ValueError: the teacher has a noise schedule.
    """
    if not isinstance(schedule, FlowSchedule):
        raise ValueError(
            "Expected a flow-matching teacher for the continuous loss, got one with a noise "
            "schedule. Use the discrete loss."
        )
    alpha, sigma = schedule.levels(batch.start)
    with torch.no_grad():
        path = bind_teacher(teacher, schedule, batch)(noisy, batch.start)
        own, change = velocity_along(target, schedule, noisy, batch.start, path, batch)
        tangent = alpha * (path - own - share * sigma * change)
        size = tangent.square().mean(dim=(1, 2, 3, 4)).sqrt()
        goal = own + tangent / (rearrange(size, "B -> B 1 1 1 1") + FLOOR)
    condition = condition_student(student, batch.guidance_scale, batch.fps)
    velocity = student(noisy, schedule.network_time(batch.start), batch.prompt_embeds, condition)
    clean, _ = schedule.split(noisy, velocity, batch.start)
    aim, _ = schedule.split(noisy, goal, batch.start)
    return DistillationLoss((velocity - goal).square().mean() / 2, clean, aim)
