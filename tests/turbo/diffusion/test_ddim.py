"""The teacher's sampler against diffusers' DDIMScheduler and the published traces."""

import pytest
import torch
from diffusers import DDIMScheduler
from torch.testing import assert_close

from turbo.diffusion.ddim import ddim_timesteps, sample_ddim, signal_scales
from turbo.diffusion.guidance import guide
from turbo.diffusion.schedule import NoiseSchedule

TRACE = 1e-4  # stated by the recording, relative, over a whole run


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
        assert_close(state.latents, noisy, rtol=0, atol=1e-5)


@pytest.mark.parametrize("start, end, expected", [(981, 961, 0.59223885), (1, 0, 0.50324933)])
def test_a_step_lands_where_the_specification_says(schedule, start, end, expected):
    noisy = torch.full((1, 1, 1, 1, 1), 0.5)
    timesteps = torch.tensor([start, end]) if end else torch.tensor([start])

    landed = next(sample_ddim(lambda *_: -noisy / 2, schedule, noisy, timesteps))

    assert landed.latents.item() == pytest.approx(expected, rel=1e-6)


def _recorded_denoiser(recorded, *, guided):
    def predict(noisy, timesteps, text):
        wave = torch.sin(timesteps / 50).view(-1, 1, 1, 1, 1)
        return 0.3 * noisy + wave + 0.2 * text.mean() * noisy.cos()

    def denoiser(noisy, timesteps):
        cond, uncond = (predict(noisy, timesteps, recorded[name]) for name in ("cond", "uncond"))
        return guide(cond, uncond, 7.5) if guided else cond

    return denoiser


@pytest.mark.parametrize("case", ["scale0_cfg", "scale1_cfg", "scale1_nocfg"])
def test_samples_have_parity_with_the_published_sampler(case, golden, schedule):
    """Guided and not, with VideoCrafter2's scales and without.

    Seen here: 2e-5 in latents of up to 23, a relative 1e-6; the published sampler sums its schedule
    in float64. The mean over texts is over the whole batch.
    """
    recorded = golden("ddim_sampler")
    denoiser = _recorded_denoiser(recorded, guided=case.endswith("_cfg"))
    scales = signal_scales() if case.startswith("scale1") else None

    steps = sample_ddim(denoiser, schedule, recorded["x_T"], ddim_timesteps(50), scales=scales)
    states, cleans = zip(*((step.latents, step.clean) for step in steps), strict=True)

    assert ddim_timesteps(50).flip(0).tolist() == recorded[f"{case}/ddim_timesteps"].tolist()
    assert_close(torch.stack(states), recorded[f"{case}/x_inter"][1:], rtol=TRACE, atol=TRACE)
    assert_close(states[-1], recorded[f"{case}/out"], rtol=TRACE, atol=TRACE)
    assert_close(torch.stack(cleans), recorded[f"{case}/pred_x0"][1:], rtol=TRACE, atol=TRACE)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_given_step_noise_replaces_the_draws(eta, schedule):
    noise, timesteps = torch.randn(2, 4, 3, 4, 4), ddim_timesteps(4)
    noises = [torch.randn_like(noise) for _ in timesteps]
    drawn = [torch.Generator().manual_seed(seed) for seed in range(2)]
    same = [torch.Generator().manual_seed(seed) for seed in range(2)]

    def sample(**options):
        *_, step = sample_ddim(_network, schedule, noise, timesteps, eta=eta, **options)
        return step.latents

    given = sample(step_noise=noises)
    assert torch.equal(given, sample(step_noise=noises, generators=drawn))
    assert torch.equal(given, sample(generators=same)) == (eta == 0)


@pytest.mark.parametrize("case", ["scale0_cfg", "scale1_cfg", "scale1_nocfg"])
def test_estimates_have_parity_with_the_published_sampler(case, golden, schedule):
    """The estimates of single steps, each from the recorded latents: no error is fed back."""
    recorded = golden("ddim_sampler")
    denoiser = _recorded_denoiser(recorded, guided=case.endswith("_cfg"))
    scales = signal_scales() if case.startswith("scale1") else torch.ones(1000)

    for index, t in enumerate(ddim_timesteps(50)):
        noisy = recorded[f"{case}/x_inter"][index]
        start = t.expand(len(noisy))
        clean, _ = schedule.split(noisy, denoiser(noisy, start), start)
        expected = recorded[f"{case}/pred_x0"][index + 1]
        assert_close(clean / scales[t], expected, rtol=TRACE, atol=TRACE)


def test_scales_have_parity_with_the_published_ones(golden):
    recorded = golden("ddim_sampler")["scale_arr"]  # longer than the schedule, by an oversight

    assert_close(signal_scales(), recorded[:1000], rtol=1e-4, atol=0)


@pytest.mark.parametrize("start, end, expected", [(381, 361, 0.545), (1, 0, 0.50363349)])
def test_a_scaled_step_lands_where_the_specification_says(schedule, start, end, expected):
    noisy = torch.full((1, 1, 1, 1, 1), 0.5)
    timesteps = torch.tensor([start, end]) if end else torch.tensor([start])

    landed = next(
        sample_ddim(lambda *_: -noisy / 2, schedule, noisy, timesteps, scales=signal_scales())
    )

    assert landed.latents.item() == pytest.approx(expected, abs=5e-4 if end else 1e-6)
