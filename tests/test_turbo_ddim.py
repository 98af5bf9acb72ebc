"""The teacher's sampler against diffusers' DDIMScheduler and the published traces."""

import pytest
import torch
from diffusers import DDIMScheduler
from torch.testing import assert_close

from turbo.ddim import ddim_timesteps, sample_ddim
from turbo.guidance import guide
from turbo.schedule import NoiseSchedule


def _network(noisy, timesteps):
    return 0.3 * noisy + torch.sin(timesteps / 50).view(-1, 1, 1, 1, 1)


def test_leading_timesteps_are_those_of_the_teachers():
    assert ddim_timesteps(50).tolist() == list(range(981, 0, -20))
    assert ddim_timesteps(4).tolist() == [751, 501, 251, 1]


def test_trailing_timesteps_start_at_pure_noise():
    assert ddim_timesteps(50, spacing="trailing").tolist() == list(range(999, 18, -20))
    assert ddim_timesteps(4, spacing="trailing").tolist() == [999, 749, 499, 249]
    assert ddim_timesteps(1, spacing="trailing").tolist() == [999]


def test_timesteps_refuse_no_steps():
    with pytest.raises(ValueError, match="Expected num_steps between 1 and 1000, got 0."):
        ddim_timesteps(0)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("num_steps", [4, 25, 50])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samples_agree_with_diffusers(prediction_type, spacing, num_steps, eta):
    reference = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1, timestep_spacing=spacing,
        prediction_type=prediction_type,
    )  # fmt: skip
    reference.set_timesteps(num_steps)
    schedule = NoiseSchedule.scaled_linear(prediction_type=prediction_type)
    timesteps = ddim_timesteps(num_steps, spacing=spacing)
    noise = torch.randn(1, 4, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    ours_generator, theirs_generator = (torch.Generator().manual_seed(7) for _ in range(2))

    ours = sample_ddim(_network, schedule, noise, timesteps, eta=eta, generators=[ours_generator])

    assert torch.equal(timesteps, reference.timesteps)
    noisy = noise
    for state, t in zip(ours, timesteps, strict=True):
        output = _network(noisy, t[None])
        noisy = reference.step(output, t, noisy, eta=eta, generator=theirs_generator).prev_sample
        assert_close(state, noisy, rtol=0, atol=1e-5)


@pytest.mark.parametrize("start, end, expected", [(981, 961, 0.59223885), (1, 0, 0.50324933)])
def test_a_step_lands_where_the_specification_says(schedule, start, end, expected):
    noisy = torch.full((1, 1, 1, 1, 1), 0.5)
    timesteps = torch.tensor([start, end]) if end else torch.tensor([start])

    landed = next(sample_ddim(lambda *_: -noisy / 2, schedule, noisy, timesteps))

    assert landed.item() == pytest.approx(expected, rel=1e-6)


def test_samples_agree_with_the_published_sampler(golden, schedule):
    recorded = golden("ddim_sampler")

    def predict(noisy, timesteps, text):
        wave = torch.sin(timesteps / 50).view(-1, 1, 1, 1, 1)
        return 0.3 * noisy + wave + 0.2 * text.mean() * noisy.cos()

    def denoiser(noisy, timesteps):
        cond, uncond = (predict(noisy, timesteps, recorded[name]) for name in ("cond", "uncond"))
        return guide(cond, uncond, 7.5)

    states = list(sample_ddim(denoiser, schedule, recorded["x_T"], ddim_timesteps(50)))

    expected = recorded["scale0_cfg/x_inter"][1:]
    assert_close(torch.stack(states), expected, rtol=1e-4, atol=1e-4)
