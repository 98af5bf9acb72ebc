"""Few-step sampling against published timesteps, traces and diffusers' LCMScheduler."""

import pytest
import torch
from diffusers import LCMScheduler
from torch.testing import assert_close

from tests.support.tiny_models import make_unet
from turbo.diffusion.consistency import (
    bind_consistency_function,
    boundary_scalings,
    embed_guidance_scale,
    few_step_timesteps,
    sample_consistency,
)
from turbo.diffusion.schedule import NoiseSchedule, draw_noise

NO_TEXT = torch.zeros(1, 1, 1)
STEP = ("clean", "latents")
SCALES = torch.tensor([7.5, 7.5])


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


class _Network:
    """A network with a known output."""

    guidance_size, takes_fps = 256, False

    def __call__(self, noisy, timesteps, prompt_embeds, conditioning):
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
    function = bind_consistency_function(network, schedule, NO_TEXT, torch.tensor([7.5]))
    generator, theirs_generator = (torch.Generator().manual_seed(7) for _ in range(2))

    ours = list(sample_consistency(function, schedule, noise, timesteps, [generator]))

    noisy = noise
    for step, t in zip(ours, timesteps, strict=True):
        output = network(noisy, t[None], NO_TEXT, None)
        theirs = reference.step(output, t, noisy, generator=theirs_generator)
        assert_close(step.clean, theirs.denoised, rtol=0, atol=1e-5)
        assert_close(step.latents, theirs.prev_sample, rtol=0, atol=1e-5)
        noisy = theirs.prev_sample


@pytest.mark.parametrize("trace", ["1_50", "4_50", "8_200"])
def test_samples_have_parity_with_the_published_code(trace, golden, schedule):
    """The published sampler adds noise after its last step too, which changes no estimate."""
    recorded = golden("scheduler")
    noises = list(recorded[f"trace_{trace}/noises"])
    function = bind_consistency_function(_Network(), schedule, NO_TEXT.expand(2, -1, -1), SCALES)
    timesteps = few_step_timesteps(*map(int, trace.split("_")))

    start = recorded[f"trace_{trace}/init"]
    ours = list(sample_consistency(function, schedule, start, timesteps, step_noise=noises))

    cleans, states = (torch.stack([getattr(s, name) for s in ours]) for name in STEP)
    assert_close(cleans, recorded[f"trace_{trace}/denoised"], rtol=0, atol=1e-5)
    assert_close(states[:-1], recorded[f"trace_{trace}/prev_samples"][:-1], rtol=0, atol=1e-5)
    assert torch.equal(states[-1], cleans[-1])


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_a_step_has_parity_with_the_published_code(prediction_type, golden):
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

    def function(latents, times):
        clean, _ = schedule.split(latents, output, times)
        c_skip, c_out = boundary_scalings(times)
        return c_skip * latents + c_out * clean

    given = [recorded[f"{step}/noise"]]
    first, _ = sample_consistency(function, schedule, noisy, timesteps, step_noise=given)

    assert_close(first.clean, recorded[f"{step}/denoised"], rtol=1e-5, atol=1e-5)
    assert_close(first.latents, recorded[f"{step}/prev_sample"], rtol=1e-5, atol=1e-5)


def test_four_steps_follow_the_worked_example(schedule):
    """The scalar chain of the specification: estimates and states after re-noising."""
    noises = [torch.full((1, 1, 1, 1, 1), noise) for noise in (0.1, -0.2, 0.3)]
    outputs = iter([0.7, 0.5, 0.3, 0.2])

    def function(noisy, timesteps):
        clean = schedule.remove_noise(noisy, torch.full_like(noisy, next(outputs)), timesteps)
        c_skip, c_out = boundary_scalings(timesteps)
        return c_skip * noisy + c_out * clean

    start = torch.full((1, 1, 1, 1, 1), 0.8)
    timesteps = few_step_timesteps(4, 50)
    steps = list(sample_consistency(function, schedule, start, timesteps, step_noise=noises))

    cleans = [1.48880279, -0.21542056, -1.07781816, -1.00047886]
    states = [0.43754789, -0.28107241, -0.66905385, cleans[-1]]
    assert [step.clean.item() for step in steps] == pytest.approx(cleans, rel=1e-5)
    assert [step.latents.item() for step in steps] == pytest.approx(states, rel=1e-5)


@pytest.mark.parametrize("given, message", [(1, "got it for 1"), (0, "got it for 0")])
def test_too_little_step_noise_is_refused(given, message, schedule):
    noise = torch.zeros(1, 1, 1, 1, 1)

    with pytest.raises(ValueError, match=message):
        list(
            sample_consistency(
                lambda noisy, _: noisy,
                schedule,
                noise,
                few_step_timesteps(4, 50),
                step_noise=[noise] * given,
            )
        )


def test_step_noise_of_another_batch_is_refused(schedule):
    noise = torch.zeros(2, 1, 1, 1, 1)

    with pytest.raises(ValueError, match=r"shape \(2, 1, 1, 1, 1\), got \(1, 1, 1, 1, 1\)"):
        list(
            sample_consistency(
                lambda noisy, _: noisy,
                schedule,
                noise,
                few_step_timesteps(2, 50),
                step_noise=[noise[:1]],
            )
        )


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
        *_, step = sample_consistency(function, schedule, noise[rows], timesteps, generators)
        return step.latents

    together = sample(slice(0, 2))

    assert_close(together[1:], sample(slice(1, 2)), rtol=1e-4, atol=1e-4)


def test_embedding_size_follows_the_network(schedule):
    student, seen = make_unet(time_cond_proj_dim=32), []
    student.time_embedding.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    noisy, text, scale = torch.randn(1, 4, 3, 4, 4), torch.randn(1, 6, 16), torch.tensor([5.0])

    bind_consistency_function(student, schedule, text, scale)(noisy, torch.tensor([999]))

    assert torch.equal(seen[0].guidance, embed_guidance_scale(scale, 32))


def test_a_teacher_is_not_bound_as_a_student(tiny_unet, schedule):
    with pytest.raises(ValueError, match="got a teacher"):
        bind_consistency_function(tiny_unet, schedule, NO_TEXT, torch.tensor([5.0]))
