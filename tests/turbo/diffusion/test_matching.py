"""Distribution matching: its gradients, its formula, and where it leads."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tests.support.tiny_models import make_unet, randomise
from turbo.diffusion.consistency import bind_consistency_function, embed_guidance_scale
from turbo.diffusion.ddim import signal_scales
from turbo.diffusion.distillation import SolverInput, student_of
from turbo.diffusion.guidance import bind_guided
from turbo.diffusion.matching import draw_timesteps, matching_loss
from turbo.diffusion.schedule import FlowSchedule, NoiseSchedule
from turbo.networks.unet import VideoUNet
from turbo.types import Conditioning

SHAPE = (2, 4, 3, 4, 4)
NOISE = [NoiseSchedule.scaled_linear(prediction_type=kind) for kind in ("epsilon", "v_prediction")]
FLOW = FlowSchedule.shifted(3.0)


@pytest.fixture(params=NOISE, ids=lambda schedule: schedule.prediction_type)
def schedule(request: pytest.FixtureRequest) -> NoiseSchedule:
    return request.param


@pytest.fixture
def teacher() -> VideoUNet:
    return make_unet(fps_conditioning=True)


@pytest.fixture
def fake() -> VideoUNet:
    network = student_of(make_unet(seed=1, fps_conditioning=True))
    return randomise(network, seed=1).requires_grad_(True)


@pytest.fixture
def student(teacher: VideoUNet) -> VideoUNet:
    return student_of(teacher).requires_grad_(True)


@pytest.fixture
def batch() -> SolverInput:
    return SolverInput(
        start=torch.tensor([999, 499]),
        end=torch.tensor([949, 449]),
        guidance_scale=torch.tensor([2.0, 5.0]),
        prompt_embeds=torch.randn(2, 5, 16),
        uncond_embeds=torch.randn(2, 5, 16),
        fps=torch.tensor([8, 12]),
    )


def told(batch: SolverInput) -> Conditioning:
    """Return the conditioning of the fake, which is that of the student."""
    return Conditioning(guidance=embed_guidance_scale(batch.guidance_scale), fps=batch.fps)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def diffuse(video: Tensor, schedule) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the loss draws: the noisy video, its noise and timesteps."""
    generator = seeded()
    timesteps = draw_timesteps(len(video), len(schedule), generator)
    noise = torch.randn(video.shape, generator=generator)
    alpha, sigma = schedule.levels(timesteps)
    return alpha * video + sigma * noise, noise, timesteps


def test_the_gradient_of_the_students_video_is_the_normalised_difference_of_the_two_estimates(
    student, fake, teacher, batch, schedule
):
    noisy = torch.randn(SHAPE)
    loss = matching_loss(student, fake, teacher, noisy, batch, schedule, seeded())
    [gradient] = torch.autograd.grad(loss.value, loss.clean)

    embeds = batch.prompt_embeds
    consistency_function = bind_consistency_function(
        student, schedule, embeds, batch.guidance_scale, batch.fps
    )
    video = consistency_function(noisy, batch.start).detach()
    diffused, _, timesteps = diffuse(video, schedule)
    with torch.no_grad():
        own = fake(diffused, timesteps, embeds, told(batch))
        guided = bind_guided(
            teacher,
            schedule,
            embeds,
            batch.uncond_embeds,
            batch.guidance_scale + 1,
            batch.fps,
        )(diffused, timesteps)
    (own, _), (wanted, _) = (schedule.split(diffused, out, timesteps) for out in (own, guided))
    for row in range(2):
        expected = (own[row] - wanted[row]) / (video[row] - wanted[row]).abs().mean()
        assert_close(gradient[row], expected / video.numel(), rtol=1e-3, atol=1e-6)
    assert_close(loss.clean.detach(), video)


def test_the_fake_learns_to_denoise_the_students_videos_and_nothing_else(
    student, fake, teacher, batch, schedule
):
    noisy = torch.randn(SHAPE)
    loss = matching_loss(student, fake, teacher, noisy, batch, schedule, seeded())
    loss.value.backward()
    found = {name: weight.grad.clone() for name, weight in fake.named_parameters()}

    fake.zero_grad()
    diffused, noise, timesteps = diffuse(loss.clean.detach(), schedule)
    output = fake(diffused, timesteps, batch.prompt_embeds, told(batch))
    error = output - noise
    if schedule.prediction_type == "v_prediction":
        alpha, sigma = schedule.levels(timesteps)
        error = output - (alpha * noise - sigma * loss.clean.detach())
    error.square().mean().backward()

    for name, weight in fake.named_parameters():
        assert_close(found[name], weight.grad, rtol=1e-2, atol=1e-5)
    assert all(weight.grad is None for weight in teacher.parameters())


def test_a_student_whose_fake_is_its_unguided_teacher_stays_as_it_is(
    student, teacher, batch, schedule
):
    unguided = SolverInput(**{**vars(batch), "guidance_scale": torch.zeros(2)})
    fake, noisy = student_of(teacher), torch.randn(SHAPE)

    loss = matching_loss(student, fake, teacher, noisy, unguided, schedule, seeded())

    [gradient] = torch.autograd.grad(loss.value, loss.clean)
    assert gradient.abs().max() < 1e-6


def test_without_weight_the_fake_learns_and_the_student_does_not(
    student, fake, teacher, batch, schedule
):
    noisy = torch.randn(SHAPE)
    loss = matching_loss(student, fake, teacher, noisy, batch, schedule, seeded(), weight=0.0)
    loss.value.backward()

    assert all(not weight.grad.any() for weight in student.parameters() if weight.grad is not None)
    assert any(weight.grad.any() for weight in fake.parameters())


def read_guidance(conditioning: Conditioning) -> Tensor:
    """Return w from its embedding: the slowest sine is that of w / 10."""
    return 10 * torch.asin(conditioning.guidance[:, 127])


class Normal(nn.Module):
    """The exact network of videos whose numbers are normal with deviation 1.

    Their mean is that of the prompt, or, told w, `start + slope w`.
    """

    guidance_size, takes_fps = 256, False

    def __init__(self, schedule: NoiseSchedule | FlowSchedule, scales: Tensor | None = None):
        super().__init__()
        self.start, self.slope = (nn.Parameter(torch.tensor(0.0)) for _ in range(2))
        self.schedule = schedule
        self.scales = torch.ones(len(schedule)) if scales is None else scales
        times = schedule.network_time(torch.arange(len(schedule)))
        self.place = {float(time): place for place, time in enumerate(times)}

    def forward(self, noisy, time, prompt_embeds, conditioning):
        timesteps = torch.tensor([self.place[float(t)] for t in time])
        alpha, sigma = self.schedule.levels(timesteps)
        mean = prompt_embeds.mean(dim=(1, 2))
        if conditioning.guidance is not None:
            mean = self.start + self.slope * read_guidance(conditioning)
        scale = self.scales[timesteps].view(-1, 1, 1, 1, 1)  # of the videos that it sees
        mean = scale * mean.view(-1, 1, 1, 1, 1)
        gain = alpha * scale**2 / ((alpha * scale) ** 2 + sigma**2)
        clean = mean + gain * (noisy - alpha * mean)
        return self.schedule.target(clean, (noisy - alpha * clean) / sigma, timesteps)


class Shift(nn.Module):
    """A student that adds `start + slope w` to its noise."""

    guidance_size, takes_fps = 256, False

    def __init__(self, schedule: NoiseSchedule | FlowSchedule) -> None:
        super().__init__()
        self.start, self.slope = (nn.Parameter(torch.tensor(0.0)) for _ in range(2))
        self.schedule = schedule

    def forward(self, noisy, time, prompt_embeds, conditioning):
        timesteps = torch.full((len(noisy),), len(self.schedule) - 1)
        alpha, sigma = self.schedule.levels(timesteps)
        shift = self.start + self.slope * read_guidance(conditioning)
        clean = noisy + shift.view(-1, 1, 1, 1, 1)
        return self.schedule.target(clean, (noisy - alpha * clean) / sigma, timesteps)


@pytest.mark.parametrize(
    "schedule, scales",
    [(NOISE[0], None), (NOISE[1], None), (FLOW, None), (NOISE[0], signal_scales())],
    ids=["epsilon", "v_prediction", "flow", "weakened"],
)
def test_the_students_videos_come_to_have_the_distribution_of_the_guided_teachers(schedule, scales):
    student, fake, teacher = Shift(schedule), Normal(schedule, scales), Normal(schedule, scales)
    weights = [student.start, student.slope, fake.start, fake.slope]
    optimizer = torch.optim.Adam([{"params": [weight]} for weight in weights])
    top, generator = torch.full((8,), len(schedule) - 1), seeded()

    for step in range(300):
        batch = SolverInput(
            start=top,
            end=top,
            guidance_scale=2 * torch.rand(8, generator=generator),
            prompt_embeds=torch.ones(8, 5, 16),  # so the guided teacher has the mean w + 1
            uncond_embeds=torch.zeros(8, 5, 16),
        )
        for group, rate in zip(optimizer.param_groups, (0.03, 0.03, 0.2, 0.2), strict=True):
            group["lr"] = rate * (1 - step / 300)  # the fake follows the student
        noisy = torch.randn(8, 4, 3, 4, 4, generator=generator)
        optimizer.zero_grad()
        networks = student, fake, teacher.requires_grad_(False)
        loss = matching_loss(*networks, noisy, batch, schedule, generator, scales=scales)
        loss.value.backward()
        optimizer.step()

    for network in (student, fake):
        assert network.start.item() == pytest.approx(1.0, abs=0.1)
        assert network.slope.item() == pytest.approx(1.0, abs=0.1)


def test_timesteps_are_spread_over_the_noise_levels_without_the_ends():
    drawn = draw_timesteps(4, 1000, seeded())

    assert [
        low <= t < high
        for t, low, high in zip(drawn, (20, 260, 500, 740), (260, 500, 740, 980), strict=True)
    ] == [True] * 4
    many = draw_timesteps(5000, 1000, seeded())
    assert 20 <= many.min() < 25 and 975 < many.max() < 980
