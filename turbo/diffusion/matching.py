"""Distribution matching: the student's videos get as likely to the teacher as to a second network.

That network, the fake, learns to denoise the student's videos. The difference of its estimates and
the teacher's is the gradient of the divergence of the two distributions.

Source: DMD, arXiv:2311.18828; DMD2, arXiv:2405.14867, here without its adversarial loss.
"""

import torch

from turbo.diffusion.consistency import TIMESTEP_SCALING, bind_consistency_function
from turbo.diffusion.distillation import DistillationLoss, SolverInput, bind_teacher
from turbo.types import Conditioning, Latents, Schedule, Timesteps, VideoNetwork, checked

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
    timestep_scaling: float = TIMESTEP_SCALING,
) -> DistillationLoss:
    """Return the losses of student and fake, as one: no weight has a gradient of both.

    With x the student's estimate at `batch.start`, x_t the same with noise, and F(x_t), T(x_t) the
    estimates of the clean video by the fake and by the guided teacher, the student's loss

        mean (x - (x - g))² / 2,  g = (F(x_t) - T(x_t)) / mean |x - T(x_t)|

    has the gradient g; x - g is constant. The fake's loss is that of the teacher's own training, on
    x_t. One call of the fake serves both losses.

    Args:
        student: its videos are estimates in one step from `noisy`.
        fake: starts as the teacher, so that g is 0 at first. Without guidance.
        noisy: the student's own latents at `batch.start`, by `roll_out`; `batch.end` is not used.
        generator: on the CPU; draws timesteps and noise of x_t.

    Source: DMD, arXiv:2311.18828, Eq. 7 and 8; DMD2, arXiv:2405.14867, section 4.5, where the
    student's input is its own sample.
    """
    embeds = batch.prompt_embeds
    clean = bind_consistency_function(
        student,
        schedule,
        embeds,
        batch.guidance_scale,
        batch.fps,
        timestep_scaling=timestep_scaling,
    )(noisy, batch.start)
    video = clean.detach()
    timesteps = draw_timesteps(len(video), len(schedule), generator).to(video.device)
    noise = torch.randn(video.shape, generator=generator).to(video)
    diffused = schedule.add_noise(video, noise, timesteps)
    output = fake(diffused, schedule.network_time(timesteps), embeds, Conditioning(fps=batch.fps))
    with torch.no_grad():
        guided = bind_teacher(teacher, schedule, batch)(diffused, timesteps)
        wanted, _ = schedule.split(diffused, guided, timesteps)  # T(x_t)
        own, _ = schedule.split(diffused, output, timesteps)  # F(x_t)
        size = (video - wanted).abs().mean(dim=(1, 2, 3, 4), keepdim=True)
        goal = video - (own - wanted) / size
    error = output - schedule.target(video, noise, timesteps)
    value = (clean - goal).square().mean() / 2 + error.square().mean()
    return DistillationLoss(value, clean, goal)
