"""The noise schedule against published numbers and diffusers."""

from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch.testing import assert_close

from turbo.diffusion.schedule import FlowSchedule, NoiseSchedule

SCALED_LINEAR = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def _normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_noising_has_parity_with_the_published_code(schedule, golden):
    recorded = golden("scheduler")
    clean, noise, timesteps = (recorded[f"add_noise/{name}"] for name in ("x", "noise", "t"))

    noisy = schedule.add_noise(clean, noise, timesteps)
    velocity = replace(schedule, prediction_type="v_prediction").target(clean, noise, timesteps)

    assert_close(noisy, recorded["add_noise/out"], rtol=0, atol=1e-5)
    assert_close(velocity, recorded["get_velocity/out"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "timestep, alpha_squared, alpha, sigma",
    [
        (0, 0.99914998, 0.99957490, 0.02915513),
        (4, 0.99571025, 0.99785280, 0.06549615),
        (19, 0.98224396, 0.99108225, 0.13325180),
        (39, 0.96289492, 0.98127210, 0.19262680),
        (199, 0.75523806, 0.86904436, 0.49473423),
        (279, 0.62572908, 0.79103041, 0.61177685),
        (499, 0.27766943, 0.52694350, 0.84990036),
        (519, 0.25157753, 0.50157505, 0.86511415),
        (759, 0.05221289, 0.22850141, 0.97354358),
        (979, 0.00591277, 0.07689451, 0.99703926),
        (994, 0.00494917, 0.07035036, 0.99752235),
        (999, 0.00466010, 0.06826489, 0.99766725),
    ],
)
def test_levels_are_the_published_ones(schedule, timestep, alpha_squared, alpha, sigma):
    levels = schedule.levels(torch.tensor([timestep]))

    assert schedule.alphas_cumprod[timestep].item() == pytest.approx(alpha_squared, rel=1e-5)
    assert [level.item() for level in levels] == pytest.approx([alpha, sigma], rel=1e-5)


def test_schedule_has_parity_with_the_published_code(schedule, golden):
    """Equal to the last bit with AVX2; without it, torch rounds `linspace` otherwise."""
    recorded = golden("scheduler")["alphas_cumprod"]

    assert_close(schedule.alphas_cumprod, recorded, rtol=1e-5, atol=0)


@pytest.mark.parametrize("timestep, noisy", [(999, 0.5670985), (519, 0.9341321)])
def test_add_noise_mixes_by_level(schedule, timestep, noisy):
    ones = torch.ones(1, 1, 1, 1, 1)

    mixed = schedule.add_noise(ones, ones / 2, torch.tensor([timestep]))

    assert mixed.item() == pytest.approx(noisy, rel=1e-6)


def test_remove_noise_undoes_add_noise(schedule):
    clean, noise = _normal(2, 3, 4, 2, 4, 4)
    timesteps = torch.tensor([0, 519, 999])

    noisy = schedule.add_noise(clean, noise, timesteps)

    assert_close(schedule.remove_noise(noisy, noise, timesteps), clean, rtol=0, atol=2e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_split_reads_the_perfect_output_as_what_was_mixed(prediction_type):
    schedule = NoiseSchedule.scaled_linear(prediction_type=prediction_type)
    clean, noise = _normal(2, 3, 4, 2, 4, 4)
    timesteps = torch.tensor([0, 519, 999])
    output = schedule.target(clean, noise, timesteps)

    both = schedule.split(schedule.add_noise(clean, noise, timesteps), output, timesteps)

    assert_close(both, (clean, noise), rtol=0, atol=2e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("start, end", [(999, 979), (519, 499), (39, 19)])
def test_ddim_step_agrees_with_diffusers(prediction_type, start, end):
    noisy, output = _normal(2, 1, 4, 2, 8, 8)
    settings = {"prediction_type": prediction_type}
    schedule = NoiseSchedule.scaled_linear(**settings)
    reference = DDIMScheduler(**SCALED_LINEAR, clip_sample=False, **settings)
    reference.set_timesteps(50)

    clean, noise = schedule.split(noisy, output, torch.tensor([start]))
    ours = schedule.ddim_step(clean, noise, torch.tensor([end]))

    theirs = reference.step(output, start, noisy).prev_sample
    assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_split_has_parity_with_the_published_code(kind, golden):
    recorded = golden("functions")
    schedule = NoiseSchedule.scaled_linear(prediction_type=kind)

    clean, noise = schedule.split(recorded["sample"], recorded["model_output"], recorded["t"])

    assert_close(clean, recorded[f"pred_x0/{kind}"], rtol=1e-5, atol=1e-5)
    assert_close(noise, recorded[f"pred_noise/{kind}"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0, 8.0])
def test_a_flow_schedule_has_the_shifted_times_of_diffusers(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)  # its times fall from 1000 to 1
    theirs = scheduler.timesteps.flip(0)

    time = FlowSchedule.shifted(shift).network_time(torch.arange(1000))

    assert time[0] == 0
    assert_close(time[1:], theirs[:-1], rtol=1e-6, atol=1e-4)


def test_a_step_of_a_flow_is_that_of_euler():
    noisy, output = torch.randn(2, 2, 4, 3, 4, 4, dtype=torch.float64)
    schedule = FlowSchedule.shifted(5.0, dtype=torch.float64)
    start, end = torch.tensor([999, 500]), torch.tensor([600, 0])

    stepped = schedule.ddim_step(*schedule.split(noisy, output, start), end)

    length = (schedule.sigmas[end] - schedule.sigmas[start]).view(2, 1, 1, 1, 1)
    assert_close(stepped, noisy + length * output, rtol=0, atol=1e-13)


def test_the_velocity_of_a_flow_leads_back_to_its_ends():
    clean, noise = torch.randn(2, 2, 4, 3, 4, 4, dtype=torch.float64)
    schedule, timesteps = FlowSchedule.shifted(3.0, dtype=torch.float64), torch.tensor([999, 20])
    noisy = schedule.add_noise(clean, noise, timesteps)

    found = schedule.split(noisy, schedule.target(clean, noise, timesteps), timesteps)

    assert_close(found, (clean, noise))
    assert_close(schedule.remove_noise(noisy, noise, timesteps), clean)
