"""The consistency function: its boundary, and what it makes of a network's output."""

import pytest
import torch
from torch.testing import assert_close

from tests.support.tiny_models import make_unet
from turbo.diffusion.consistency import (
    bind_consistency_function,
    boundary_scalings,
    embed_guidance_scale,
)
from turbo.diffusion.schedule import NoiseSchedule
from turbo.types import Conditioning


@pytest.mark.parametrize(
    "timestep, c_skip, c_out",
    [
        (4, 1.5622559e-4, 0.99992192),
        (9, 3.0863244e-5, 0.99998456),
        (19, 6.9251596e-6, 0.99999654),
        (39, 1.6436528e-6, 0.99999917),
        (279, 3.2116752e-8, 1.0),
        (999, 2.5050075e-9, 1.0),
    ],
)
def test_boundary_scalings_are_the_published_ones(timestep, c_skip, c_out):
    scalings = boundary_scalings(torch.tensor([timestep]))

    assert [scaling.item() for scaling in scalings] == pytest.approx([c_skip, c_out], rel=1e-6)


def test_a_smaller_timestep_scaling_widens_the_boundary():
    c_skip, c_out = (scaling.item() for scaling in boundary_scalings(torch.tensor([10]), 0.1))

    assert c_skip == pytest.approx(0.25 / 1.25)
    assert c_out == pytest.approx(1 / 1.25**0.5)


def test_boundary_scalings_have_parity_with_the_published_code(golden):
    recorded = golden("functions")

    c_skip, c_out = boundary_scalings(recorded["t"])

    assert_close(c_skip.flatten(), recorded["c_skip"], rtol=1e-5, atol=0)
    assert_close(c_out.flatten(), recorded["c_out"], rtol=1e-5, atol=0)


def test_boundary_scalings_have_parity_with_the_published_scheduler(golden):
    recorded = golden("scheduler")

    scalings = boundary_scalings(recorded["boundary/t"])

    for ours, name in zip(scalings, ("c_skip", "c_out"), strict=True):
        assert_close(ours.flatten(), recorded[f"boundary/{name}"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_consistency_function_is_the_identity_at_zero(prediction_type):
    schedule = NoiseSchedule.scaled_linear(prediction_type=prediction_type)
    student = make_unet(time_cond_proj_dim=256)
    latents = torch.randn(1, 4, 3, 4, 4)
    function = bind_consistency_function(
        student, schedule, torch.randn(1, 6, 16), torch.tensor([7.5])
    )

    assert torch.equal(function(latents, torch.tensor([0])), latents)


def test_consistency_function_tells_the_network_the_guidance_scale(schedule):
    student = make_unet(time_cond_proj_dim=256)
    latents, text = torch.randn(1, 4, 3, 4, 4), torch.randn(1, 6, 16)
    scale, timesteps = torch.tensor([7.5]), torch.tensor([999])

    clean = bind_consistency_function(student, schedule, text, scale)(latents, timesteps)

    conditioning = Conditioning(guidance=embed_guidance_scale(scale))
    noise = student(latents, timesteps, text, conditioning)
    assert_close(clean, schedule.remove_noise(latents, noise, timesteps), rtol=0, atol=1e-5)
