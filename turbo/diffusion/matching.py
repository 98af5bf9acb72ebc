"""Distribution matching: the student's videos get as likely to the teacher as to a second network.

That network, the fake, learns to denoise the student's videos. The difference of its estimates and
the teacher's is the gradient of the divergence of the two distributions.

Source: DMD, arXiv:2311.18828; DMD2, arXiv:2405.14867, here without its adversarial loss.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from turbo.diffusion.consistency import TIMESTEP_SCALING, condition_student
from turbo.diffusion.distillation import DistillationLoss, SolverInput, bind_student, bind_teacher
from turbo.types import Latents, Schedule, Timesteps, VideoNetwork, checked

NOISE_RANGE = (0.02, 0.98)  # of the timesteps, as in DMD2


def draw_timesteps(count: int, num_timesteps: int, generator: torch.Generator) -> Timesteps:
    """Draw timesteps from `NOISE_RANGE`, one from each of `count` equal parts.

    So a batch has high and low noise, which lowers the variance of the gradient.
    """
    low, high = NOISE_RANGE
    place = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    return ((low + (high - low) * place) * num_timesteps).long()


@checked
def matching_loss(
    student: VideoNetwork,
    fake: VideoNetwork,
    teacher: VideoNetwork,
    noisy: Latents,
    batch: SolverInput,
    schedule: Schedule,
    generator: torch.Generator,
    *,
    weight: float = 1.0,
    scales: Float[Tensor, " T"] | None = None,
    timestep_scaling: float = TIMESTEP_SCALING,
) -> DistillationLoss:
    """Return the losses of student and fake, as one: no parameter has a gradient of both.

    With x the student's estimate at `batch.start`, x_t the same with noise, and F(x_t), T(x_t) the
    estimates of the clean video by the fake and by the guided teacher, the student's loss

        mean (x - (x - g))² / 2,  g = (F(x_t) - T(x_t)) / mean |x - T(x_t)|

    has the gradient g; x - g is constant. The fake's loss is that of the teacher's own training, on
    x_t. One call of the fake serves both losses.

    Args:
        student: its videos are estimates in one step from `noisy`.
        fake: starts as the teacher, by `student_of`. It is conditioned on w, as the student is,
            since the distribution of the student's videos depends on w.
        noisy: the student's own latents at `batch.start`, by `roll_out`; `batch.end` is not used.
        generator: on the CPU; draws timesteps and noise of x_t.
        weight: of the student's loss: 0 while the fake alone learns. g is of use once the fake
            knows the student's videos; a fake that is the teacher lacks its guidance.
        scales: `ddim.signal_scales`, for a teacher that was trained on weakened latents. x is
            weakened for both networks.

    Source: DMD, arXiv:2311.18828, Eq. 7 and 8; DMD2, arXiv:2405.14867, section 4.5, where the
    student's input is its own sample.
    """
    clean = bind_student(student, schedule, batch, timestep_scaling)(noisy, batch.start)
    video = clean.detach()
    timesteps = draw_timesteps(len(video), len(schedule), generator).to(video.device)
    noise = torch.randn(video.shape, generator=generator).to(video)
    shown = video  # to both networks
    if scales is not None:
        shown = rearrange(scales[timesteps], "B -> B 1 1 1 1") * video
    diffused = schedule.add_noise(shown, noise, timesteps)
    output = fake(
        diffused,
        schedule.network_time(timesteps),
        batch.prompt_embeds,
        condition_student(fake, batch.guidance_scale, batch.fps),
    )
    with torch.no_grad():
        guided = bind_teacher(teacher, schedule, batch)(diffused, timesteps)
        wanted, _ = schedule.split(diffused, guided, timesteps)  # T(x_t)
        own, _ = schedule.split(diffused, output, timesteps)  # F(x_t)
        size = (shown - wanted).abs().mean(dim=(1, 2, 3, 4), keepdim=True)
        goal = video - (own - wanted) / size
    error = output - schedule.target(shown, noise, timesteps)
    value = weight * (clean - goal).square().mean() / 2 + error.square().mean()
    return DistillationLoss(value, clean, goal)
