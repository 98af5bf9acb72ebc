"""Few-step sampling against published timesteps, traces and diffusers' LCMScheduler."""

import pytest
import torch
from diffusers import LCMScheduler
from torch import nn
from torch.testing import assert_close

from tests.support.tiny_models import make_unet
from turbo.diffusion.consistency import (
    ConsistencyFunction,
    bind_consistency_function,
    boundary_scalings,
)
from turbo.diffusion.few_step import draw_noise, few_step_timesteps, sample_latents
from turbo.diffusion.guidance import embed_guidance_scale
from turbo.diffusion.schedule import NoiseSchedule
from turbo.networks.unet import Conditioning, VideoUNet

NO_TEXT = torch.zeros(1, 1, 1)


@pytest.mark.parametrize(
    "num_steps, origin_steps, timesteps",
    [
        (1, 50, [999]),
        (2, 200, [999, 499]),
        (4, 50, [999, 759, 519, 279]),
        (4, 200, [999, 749, 499, 249]),
        (8, 50, [999, 879, 759, 639, 519, 399, 279, 159]),
        (8, 200, [999, 874, 749, 624, 499, 374, 249, 124]),
        (16, 50, list(range(999, 98, -60))),
        (16, 200, list(range(999, 98, -60))),
        (32, 50, list(range(999, 378, -20))),
        (50, 200, list(range(999, 18, -20))),
    ],
)
def test_timesteps_are_the_published_ones(num_steps, origin_steps, timesteps):
    assert few_step_timesteps(num_steps, origin_steps).tolist() == timesteps


def test_timesteps_have_parity_with_the_published_code(golden):
    recorded = golden("scheduler")
    names = [name for name in recorded.file.keys() if name.startswith("timesteps/")]

    for name in names:
        num_steps, origin_steps = map(int, name.removeprefix("timesteps/").split("_"))
        assert torch.equal(few_step_timesteps(num_steps, origin_steps), recorded[name]), name


@pytest.mark.parametrize("num_steps", [0, 51])
def test_timesteps_refuse_more_steps_than_the_grid_has(num_steps):
    with pytest.raises(ValueError, match=f"between 1 and 50, got {num_steps}."):
        few_step_timesteps(num_steps, 50)


class _Network(VideoUNet):
    """Stands for a UNet whose output is known."""

    def __init__(self):
        nn.Module.__init__(self)

    def forward(self, noisy, timesteps, prompt_embeds, conditioning):
        return 0.3 * noisy + torch.sin(timesteps.float()).view(-1, 1, 1, 1, 1)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("num_steps, origin_steps", [(1, 50), (4, 50), (8, 50), (16, 200)])
def test_samples_agree_with_diffusers(prediction_type, num_steps, origin_steps):
    schedule = NoiseSchedule.scaled_linear(prediction_type=prediction_type)
    timesteps = few_step_timesteps(num_steps, origin_steps)
    noise = torch.randn(1, 4, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    network = _Network()
    reference = LCMScheduler(
        beta_end=0.012, clip_sample=False, prediction_type=prediction_type,
        original_inference_steps=origin_steps,
    )  # fmt: skip
    reference.set_timesteps(timesteps=timesteps.tolist(), original_inference_steps=origin_steps)
    function = ConsistencyFunction(network, schedule, NO_TEXT, Conditioning())
    generator, theirs_generator = (torch.Generator().manual_seed(7) for _ in range(2))

    ours = list(sample_latents(function, schedule, noise, timesteps, [generator]))

    noisy = noise
    for clean, t in zip(ours, timesteps, strict=True):
        output = network(noisy, t[None], NO_TEXT, None)
        step = reference.step(output, t, noisy, generator=theirs_generator)
        assert_close(clean, step.denoised, rtol=0, atol=1e-5)
        noisy = step.prev_sample
    assert_close(ours[-1], noisy, rtol=0, atol=1e-5)


@pytest.mark.parametrize("trace", ["1_50", "4_50", "8_200"])
def test_samples_have_parity_with_the_published_code(trace, golden, monkeypatch, schedule):
    recorded = golden("scheduler")
    noises = iter(recorded[f"trace_{trace}/noises"])
    monkeypatch.setattr("turbo.diffusion.few_step.draw_noise", lambda *_: next(noises))
    function = ConsistencyFunction(_Network(), schedule, NO_TEXT, Conditioning())
    timesteps = few_step_timesteps(*map(int, trace.split("_")))

    ours = sample_latents(function, schedule, recorded[f"trace_{trace}/init"], timesteps, [])

    assert_close(torch.stack(list(ours)), recorded[f"trace_{trace}/denoised"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_a_step_has_parity_with_the_published_code(prediction_type, golden, monkeypatch):
    """The second of four steps, of a network that predicts another thing than noise.

    Only what the network's output means differs; one that predicts the clean latents themselves
    does not exist here, so the noise it stands for is given instead.
    """
    recorded, step = golden("scheduler"), f"step_{prediction_type}"
    noisy, output = recorded[f"{step}/sample"], recorded[f"{step}/model_output"]
    timesteps = few_step_timesteps(4, 50)[1:3]
    kind = "epsilon" if prediction_type == "sample" else prediction_type
    schedule = NoiseSchedule.scaled_linear(prediction_type=kind)
    alpha, sigma = schedule.levels(timesteps[:1])
    if prediction_type == "sample":
        output = (noisy - alpha * output) / sigma
    monkeypatch.setattr("turbo.diffusion.few_step.draw_noise", lambda *_: recorded[f"{step}/noise"])
    states = []

    def function(latents, times):
        states.append(latents)
        clean, _ = schedule.split(latents, output, times)
        c_skip, c_out = boundary_scalings(times)
        return c_skip * latents + c_out * clean

    first, _ = sample_latents(function, schedule, noisy, timesteps, [])

    assert_close(first, recorded[f"{step}/denoised"], rtol=1e-5, atol=1e-5)
    assert_close(states[1], recorded[f"{step}/prev_sample"], rtol=1e-5, atol=1e-5)


def test_four_steps_follow_the_worked_example(schedule, monkeypatch):
    """The scalar chain of the specification: estimates and states after re-noising."""
    noises = iter(torch.tensor([0.1, -0.2, 0.3]))
    monkeypatch.setattr(
        "turbo.diffusion.few_step.draw_noise", lambda *_: next(noises).expand(1, 1, 1, 1, 1)
    )
    outputs, states = iter([0.7, 0.5, 0.3, 0.2]), []

    def function(noisy, timesteps):
        states.append(noisy.item())
        clean = schedule.remove_noise(noisy, torch.full_like(noisy, next(outputs)), timesteps)
        c_skip, c_out = boundary_scalings(timesteps)
        return c_skip * noisy + c_out * clean

    start = torch.full((1, 1, 1, 1, 1), 0.8)
    cleans = list(sample_latents(function, schedule, start, few_step_timesteps(4, 50), []))

    expected = [1.48880279, -0.21542056, -1.07781816, -1.00047886]
    assert [clean.item() for clean in cleans] == pytest.approx(expected, rel=1e-5)
    assert states[1:] == pytest.approx([0.43754789, -0.28107241, -0.66905385], rel=1e-5)


def test_noise_of_a_video_does_not_depend_on_its_batch():
    def generators(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    together = draw_noise(torch.empty(3, 4, 2, 4, 4), generators(1, 2, 3))
    alone = draw_noise(torch.empty(1, 4, 2, 4, 4), generators(2))

    assert torch.equal(together[1:2], alone)


def test_noise_refuses_a_shared_generator():
    with pytest.raises(ValueError, match="Expected 2 generators, got 1."):
        draw_noise(torch.empty(2, 4, 2, 4, 4), [torch.Generator()])


def test_samples_of_a_batch_are_those_of_its_videos(schedule):
    student = make_unet(time_cond_proj_dim=256)
    noise, text = torch.randn(2, 4, 3, 4, 4), torch.randn(2, 6, 16)
    scale = torch.tensor([5.0, 9.0])

    def sample(rows):
        function = bind_consistency_function(student, schedule, text[rows], scale[rows])
        generators = [torch.Generator().manual_seed(seed) for seed in range(2)][rows]
        timesteps = few_step_timesteps(2, 50)
        *_, latents = sample_latents(function, schedule, noise[rows], timesteps, generators)
        return latents

    together = sample(slice(0, 2))

    assert_close(together[1:], sample(slice(1, 2)), rtol=1e-4, atol=1e-4)


def test_embedding_size_follows_the_network(schedule):
    student = make_unet(time_cond_proj_dim=32)

    function = bind_consistency_function(
        student, schedule, torch.randn(1, 6, 16), torch.tensor([5.0])
    )

    expected = embed_guidance_scale(torch.tensor([5.0]), 32)
    assert torch.equal(function.conditioning.guidance, expected)
