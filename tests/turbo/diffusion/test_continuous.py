"""The continuous-time loss: its derivative, its formula, and what it refuses."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from training.tiny import wan_parts
from turbo.diffusion.consistency import embed_guidance_scale
from turbo.diffusion.continuous import FLOOR, continuous_loss, velocity_along
from turbo.diffusion.distillation import SolverInput, student_of
from turbo.diffusion.guidance import bind_guided
from turbo.diffusion.schedule import FlowSchedule, NoiseSchedule
from turbo.networks.lora import add_lora
from turbo.networks.wan import WanNetwork
from turbo.types import Conditioning

SIGMAS = torch.tensor([0.0, 0.512, 0.75])  # 1000 sigma is exact in float32
SCHEDULE = FlowSchedule(SIGMAS)


@pytest.fixture
def teacher() -> WanNetwork:
    torch.manual_seed(0)
    network = wan_parts()["teacher"]
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    return network


@pytest.fixture
def student(teacher: WanNetwork) -> WanNetwork:
    network = add_lora(student_of(teacher, share=True).requires_grad_(False), 4)
    for weight in network.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.1)
    return network


@pytest.fixture
def batch() -> SolverInput:
    return SolverInput(
        start=torch.tensor([1, 2]),
        end=torch.tensor([0, 0]),
        guidance_scale=torch.tensor([2.0, 3.0]),
        prompt_embeds=torch.randn(2, 24, 16),
        uncond_embeds=torch.randn(2, 24, 16),
    )


def velocity(network: WanNetwork, noisy: Tensor, sigma: Tensor, batch: SolverInput) -> Tensor:
    guidance = embed_guidance_scale(batch.guidance_scale, 256)
    return network(noisy, 1000 * sigma, batch.prompt_embeds, Conditioning(guidance=guidance))


def slope(function, step: float) -> Tensor:
    """Return the derivative at 0 by the central difference of fourth order."""
    far, near = (function(2 * step) - function(-2 * step)), (function(step) - function(-step))
    return (8 * near - far) / (12 * step)


@torch.no_grad()
def test_the_change_of_the_velocity_is_its_finite_difference(student, batch):
    noisy, path = torch.randn(2, 2, 4, 3, 4, 4)

    own, change = velocity_along(student, SCHEDULE, noisy, batch.start, path, batch)

    sigma = SIGMAS[batch.start]
    finite = slope(lambda h: velocity(student, noisy + h * path, sigma + h, batch), 1.25e-4)
    assert_close(own, velocity(student, noisy, sigma, batch))
    assert (change - finite).norm() / finite.norm() < 2e-3


def test_the_loss_takes_the_slope_of_the_clean_estimate_along_the_teachers_path(
    teacher, student, batch
):
    noisy = torch.randn(2, 4, 3, 4, 4)

    loss = continuous_loss(student, student, teacher, noisy, batch, SCHEDULE)

    with torch.no_grad():
        guided = bind_guided(
            teacher, SCHEDULE, batch.prompt_embeds, batch.uncond_embeds, batch.guidance_scale + 1
        )
        path, sigma = guided(noisy, batch.start), SIGMAS[batch.start]
        levels = sigma[:, None, None, None, None]

        def clean(h: float) -> Tensor:
            at = noisy + h * path
            return at - (levels + h) * velocity(student, at, sigma + h, batch)

        tangent = (1 - levels) * slope(clean, 1.25e-4)
        size = tangent.square().mean(dim=(1, 2, 3, 4), keepdim=True).sqrt()
        assert_close(loss.value, (tangent / (size + FLOOR)).square().mean() / 2, rtol=2e-3, atol=0)
        assert_close(loss.clean, clean(0))


def test_a_step_against_its_gradient_moves_the_estimate_towards_its_target(teacher, student, batch):
    noisy = torch.randn(2, 4, 3, 4, 4)
    trained = [p for p in student.parameters() if p.requires_grad]

    loss = continuous_loss(student, student, teacher, noisy, batch, SCHEDULE)
    loss.value.backward()
    with torch.no_grad():
        for weight in trained:
            weight -= 1e-3 * weight.grad
    moved = continuous_loss(student, student, teacher, noisy, batch, SCHEDULE)

    assert ((moved.clean - loss.clean) * (loss.target - loss.clean)).sum() > 0


def test_without_the_students_change_it_learns_the_guided_velocity(teacher, student, batch):
    noisy = torch.randn(2, 4, 3, 4, 4)
    guided = bind_guided(
        teacher, SCHEDULE, batch.prompt_embeds, batch.uncond_embeds, batch.guidance_scale + 1
    )
    with torch.no_grad():
        error = guided(noisy, batch.start) - velocity(student, noisy, SIGMAS[batch.start], batch)

    loss = continuous_loss(student, student, teacher, noisy, batch, SCHEDULE, share=0.0)

    alpha, sigma = SCHEDULE.levels(batch.start)
    tangent = alpha * error
    size = tangent.square().mean(dim=(1, 2, 3, 4), keepdim=True).sqrt()
    assert_close(loss.clean - loss.target, sigma * tangent / (size + FLOOR), rtol=1e-3, atol=1e-4)


def test_a_noise_schedule_is_refused(teacher, student, batch):
    with pytest.raises(ValueError, match="flow-matching"):
        continuous_loss(
            student,
            student,
            teacher,
            torch.randn(2, 4, 3, 4, 4),
            batch,
            NoiseSchedule.scaled_linear(),
        )
