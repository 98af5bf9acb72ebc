"""Consistency distillation: its draws, its numbers, where its gradient goes."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import mse_loss
from torch.testing import assert_close

from tests.support.tiny_models import make_unet
from turbo.diffusion.consistency import (
    bind_consistency_function,
    embed_guidance_scale,
    few_step_timesteps,
)
from turbo.diffusion.distillation import (
    DistillationBatch,
    SolverGrid,
    SolverInput,
    consistency_loss,
    draw_batch,
    draw_guidance,
    pseudo_huber,
    roll_out,
    squared,
    student_of,
    teacher_step,
    update_ema,
)
from turbo.diffusion.schedule import NoiseSchedule
from turbo.networks.lora import add_lora
from turbo.pipeline import load_pipeline
from turbo.types import Conditioning


class _Predicts:
    """A network that predicts a known noise: `noise`, or else the mean of its prompt."""

    guidance_size, takes_fps = 256, False

    def __init__(self, schedule, noise=None):
        self.schedule, self.noise = schedule, noise

    def __call__(self, noisy, timesteps, prompt_embeds, conditioning):
        value = prompt_embeds.mean(dim=(1, 2)).view(-1, 1, 1, 1, 1)
        noise = (value if self.noise is None else torch.tensor(self.noise)).expand_as(noisy)
        if self.schedule.prediction_type == "epsilon":
            return noise
        clean = self.schedule.remove_noise(noisy, noise, timesteps)
        return self.schedule.target(clean, noise, timesteps)


def _worked_example(schedule, index):
    """The scalar iteration of the specification: z_t = 0.8, w = 7.5, teacher 0.5 and 0.4."""
    start, end = SolverGrid().interval(torch.tensor([index]))
    alpha, _ = schedule.levels(start)
    return DistillationBatch(
        clean=0.8 / alpha,
        noise=torch.zeros_like(alpha),
        start=start,
        end=end,
        guidance_scale=torch.tensor([7.5]),
        prompt_embeds=torch.full((1, 1, 1), 0.5),
        uncond_embeds=torch.full((1, 1, 1), 0.4),
    )


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    "index, clean, landed, target, loss",
    [
        (25, 0.56009859, 0.76675057, 0.56800270, 0.00696712),
        (0, 0.72653091, 0.67530710, 0.67530710, 0.05023357),
    ],
)
def test_loss_follows_the_worked_example(prediction_type, index, clean, landed, target, loss):
    schedule = NoiseSchedule.scaled_linear(prediction_type=prediction_type)
    batch = _worked_example(schedule, index)
    networks = (_Predicts(schedule, noise) for noise in (0.6, 0.55, None))

    noisy = batch.add_noise(schedule)

    result = consistency_loss(*networks, noisy, batch, schedule)

    assert noisy.item() == pytest.approx(0.8)
    step = teacher_step(_Predicts(schedule), schedule, noisy, batch)
    assert result.clean.item() == pytest.approx(clean, rel=1e-5)
    assert step.item() == pytest.approx(landed, rel=1e-5)
    assert result.target.item() == pytest.approx(target, rel=1e-5)
    assert result.value.item() == pytest.approx(loss, rel=1e-4)


def test_pseudo_huber_has_the_published_values():
    error = torch.tensor([0, 5e-4, 1e-3, 0.01, 1])

    loss = pseudo_huber(error).tolist()

    published = [0, 1.1803399e-4, 4.1421356e-4, 9.0498756e-3, 0.9990005]
    assert loss == pytest.approx(published, rel=1e-3, abs=1e-9)  # kappa's own last bit in float32
    assert pseudo_huber(torch.tensor([0, 0.002, 1])).mean().item() == pytest.approx(0.33341217)


def test_the_squared_distance_can_be_chosen(tiny_unet, schedule):
    generator = torch.Generator().manual_seed(0)
    latents, embeds = (
        torch.randn(shape, generator=generator) for shape in [(2, 4, 3, 4, 4), (2, 5, 16)]
    )
    guidance, student = draw_guidance(2, generator), student_of(tiny_unet)
    batch = draw_batch(latents, embeds, embeds, guidance, grid=SolverGrid(), generator=generator)

    noisy = batch.add_noise(schedule)
    loss = consistency_loss(student, student, tiny_unet, noisy, batch, schedule, distance=squared)

    assert loss.value > 0
    assert_close(loss.value, mse_loss(loss.clean, loss.target))


def test_pseudo_huber_is_in_parity_with_the_published_code(golden):
    recorded = golden("functions")

    error = recorded["sample"] - recorded["model_output"]

    assert_close(pseudo_huber(error).mean(), recorded["huber"])
    assert_close(pseudo_huber(error, 0.1).mean(), recorded["huber_c0.1"])


@pytest.mark.parametrize(
    "num_steps, starts, ends",
    [(50, [19, 39, 999], [0, 19, 979]), (200, [4, 9, 999], [0, 4, 994])],
)
def test_grid_steps_down_to_zero(num_steps, starts, ends):
    start, end = SolverGrid(num_steps).interval(torch.tensor([0, 1, num_steps - 1]))

    assert start.tolist() == starts
    assert end.tolist() == ends


def test_grid_refuses_no_steps():
    with pytest.raises(ValueError, match="from 1 to 1000 steps, not 0"):
        SolverGrid(0)


@pytest.mark.parametrize("solver, num_steps", [("solver50", 50), ("solver200", 200)])
def test_steps_are_in_parity_with_the_published_solver(solver, num_steps, golden, schedule):
    recorded = golden("ddim_solver")
    grid = SolverGrid(num_steps)
    _, end = grid.interval(recorded[f"{solver}/index"])

    landed = schedule.ddim_step(
        recorded[f"{solver}/pred_x0"], recorded[f"{solver}/pred_noise"], end
    )

    everywhere, _ = grid.interval(torch.arange(num_steps))
    assert torch.equal(everywhere, recorded[f"{solver}/ddim_timesteps"])
    assert_close(landed, recorded[f"{solver}/x_prev"].float(), rtol=0, atol=1e-5)


def test_draws_stay_in_their_ranges_and_repeat_with_the_seed():
    def draw():
        generator = torch.Generator().manual_seed(0)
        return *SolverGrid().draw(1000, generator), draw_guidance(1000, generator, 2, 6)

    start, end, guidance = draw()

    assert set(start.tolist()) == set(range(19, 1000, 20))
    assert torch.equal(end, (start - 20).clamp(min=0))
    assert 2 <= guidance.min() < 2.1 and 5.9 < guidance.max() < 6
    assert all(torch.equal(a, b) for a, b in zip(draw(), (start, end, guidance), strict=True))


def test_student_starts_as_its_teacher_for_every_scale(tiny_unet):
    student = student_of(tiny_unet)
    noisy, timesteps, text = torch.randn(1, 4, 3, 4, 4), torch.tensor([519]), torch.randn(1, 6, 16)

    for scale in (0.0, 7.5, 15.0):
        guidance = embed_guidance_scale(torch.tensor([scale]))
        output = student(noisy, timesteps, text, Conditioning(guidance=guidance))
        assert_close(output, tiny_unet(noisy, timesteps, text), rtol=0, atol=1e-5)


def test_student_is_a_copy_and_training_it_leaves_its_teacher_alone(tiny_unet):
    before = copy.deepcopy(tiny_unet.state_dict())
    student = student_of(tiny_unet)

    for parameter in student.parameters():
        parameter.data += 1

    assert all(p.requires_grad for p in student.parameters())
    assert all(torch.equal(before[name], t) for name, t in tiny_unet.state_dict().items())


def test_student_that_shares_is_the_same_network_without_a_copy(tiny_unet):
    shared, copied = student_of(tiny_unet, share=True), student_of(tiny_unet)

    assert_close(shared.state_dict(), copied.state_dict(), rtol=0, atol=0)
    own = {p.data_ptr() for p in tiny_unet.parameters()}
    added = [name for name, p in shared.named_parameters() if p.data_ptr() not in own]
    assert added == ["time_embedding.cond_proj.weight"]


def test_a_student_that_takes_motion_starts_as_its_teacher_too(tiny_unet):
    student = student_of(tiny_unet, motion=True)
    noisy, timesteps, text = torch.randn(1, 4, 3, 4, 4), torch.tensor([519]), torch.randn(1, 6, 16)

    for guidance, motion in ((7.5, 0.05), (15.0, 0.0), (5.0, None)):
        conditioning = Conditioning(
            guidance=embed_guidance_scale(torch.tensor([guidance])),
            motion=None if motion is None else embed_guidance_scale(torch.tensor([motion])),
        )
        output = student(noisy, timesteps, text, conditioning)
        assert_close(output, tiny_unet(noisy, timesteps, text), rtol=0, atol=1e-5)


def test_guidance_motion_and_their_combination_all_learn_from_the_second_step(tiny_unet):
    student = student_of(tiny_unet, motion=True).requires_grad_(True)
    projections = ("cond_proj", "motion_cond_proj", "combine_proj")
    weights = [getattr(student.time_embedding, name).weight for name in projections]
    optimiser = torch.optim.SGD(weights, lr=1e-2)
    conditioning = Conditioning(
        guidance=embed_guidance_scale(torch.tensor([7.5])),
        motion=embed_guidance_scale(torch.tensor([0.05])),
    )
    noisy, timesteps, text = torch.randn(1, 4, 3, 4, 4), torch.tensor([519]), torch.randn(1, 6, 16)

    for _ in range(2):
        optimiser.zero_grad()
        student(noisy, timesteps, text, conditioning).square().mean().backward()
        optimiser.step()

    gradients = {
        name: weight.grad.abs().sum().item()
        for name, weight in zip(projections, weights, strict=True)
    }
    assert all(size > 0 for size in gradients.values()), gradients


@pytest.mark.parametrize("num_steps", [30, 300, 999])
def test_a_grid_that_would_not_reach_the_last_timestep_is_refused(num_steps):
    with pytest.raises(ValueError, match=f"{num_steps} steps do not divide"):
        SolverGrid(num_steps)


@pytest.fixture
def batch():
    latents, text = torch.randn(2, 4, 3, 4, 4), torch.randn(2, 6, 16)
    empty = torch.randn(1, 6, 16).expand(2, -1, -1)
    generator = torch.Generator().manual_seed(0)
    guidance = draw_guidance(2, generator)
    return draw_batch(latents, text, empty, guidance, grid=SolverGrid(), generator=generator)


def test_gradient_reaches_adapters_and_guidance_projection_only(tiny_unet, batch, schedule):
    student = add_lora(student_of(tiny_unet), rank=4)
    target, noisy = copy.deepcopy(student), batch.add_noise(schedule)

    consistency_loss(student, target, tiny_unet, noisy, batch, schedule).value.backward()

    reached = {name for name, p in student.named_parameters() if p.grad is not None}
    for name, _ in student.named_parameters():
        assert (name in reached) == ("lora_" in name or "cond_proj" in name), name
    assert student.time_embedding.cond_proj.weight.grad.abs().sum() > 0
    assert not any(p.grad is not None for p in [*tiny_unet.parameters(), *target.parameters()])


def test_student_may_be_its_own_target(tiny_unet, batch, schedule):
    student = add_lora(student_of(tiny_unet), rank=4)

    shared, apart = (
        consistency_loss(student, target, tiny_unet, batch.add_noise(schedule), batch, schedule)
        for target in (student, copy.deepcopy(student))
    )

    assert_close(shared.value, apart.value)
    assert not shared.target.requires_grad and shared.clean.requires_grad


def test_target_does_not_depend_on_guidance_where_the_prompt_changes_nothing(
    tiny_unet, batch, schedule
):
    student, noisy = student_of(tiny_unet), batch.add_noise(schedule)
    same = replace(batch, uncond_embeds=batch.prompt_embeds)
    harder = replace(same, guidance_scale=same.guidance_scale + 5)

    weak, strong = (
        consistency_loss(student, student, tiny_unet, noisy, inputs, schedule).target
        for inputs in (same, harder)
    )

    assert_close(weak, strong, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_training_lowers_the_loss(tiny_unet, batch, schedule):
    student = add_lora(student_of(tiny_unet), rank=4)
    target, noisy = student_of(tiny_unet), batch.add_noise(schedule)
    weights = [p for p in student.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(weights, lr=1e-2)

    losses = []
    for _ in range(15):
        loss = consistency_loss(student, target, tiny_unet, noisy, batch, schedule).value
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())

    assert losses[-1] < 0.7 * losses[0]


def test_ema_moves_by_one_minus_decay():
    average, student = make_unet(seed=1), make_unet(seed=2)
    before = average.conv_in.weight.clone()

    update_ema(average, student, decay=0.9)

    expected = 0.9 * before + 0.1 * student.conv_in.weight
    assert_close(average.conv_in.weight, expected)


def test_bound_functions_of_a_batch_and_of_its_videos_agree(tiny_unet, batch, schedule):
    student = student_of(tiny_unet)
    whole = bind_consistency_function(student, schedule, batch.prompt_embeds, batch.guidance_scale)(
        batch.clean, batch.start
    )

    second = bind_consistency_function(
        student, schedule, batch.prompt_embeds[1:], batch.guidance_scale[1:]
    )(batch.clean[1:], batch.start[1:])

    assert_close(whole[1:], second, rtol=1e-4, atol=1e-4)


def test_the_loss_and_the_roll_out_have_the_timestep_scaling(tiny_unet, batch, schedule):
    """So small a scaling leaves all latents as they are: c_skip is 1 at every timestep."""
    student, same = student_of(tiny_unet), {"timestep_scaling": 1e-12}
    noisy = batch.add_noise(schedule)
    timesteps = few_step_timesteps(2, 50)
    noises = [batch.clean, batch.noise]

    loss = consistency_loss(student, student, tiny_unet, noisy, batch, schedule, **same)
    rolled = roll_out(student, schedule, noises, batch, timesteps, **same)

    assert_close(loss.clean, noisy)
    assert_close(loss.target, teacher_step(tiny_unet, schedule, noisy, batch))
    last = timesteps[-1].expand(len(noisy))
    assert_close(rolled, schedule.add_noise(batch.clean, batch.noise, last))


def test_every_video_of_a_batch_has_its_own_noise(batch):
    assert not torch.allclose(batch.noise[0], batch.noise[1])


def _roll_out(student, schedule, noises, prompt_embeds, origin_steps):
    """Roll out to the timestep of the last noise, on the way to 4 steps."""
    timesteps = few_step_timesteps(4, origin_steps)[: len(noises)]
    start = timesteps[-1].expand(len(prompt_embeds))
    inputs = SolverInput(
        start=start,
        end=start - 1,
        guidance_scale=torch.full((len(start),), 1.5),
        prompt_embeds=prompt_embeds,
        uncond_embeds=torch.zeros_like(prompt_embeds),
    )
    return roll_out(student, schedule, noises, inputs, timesteps)


def test_a_roll_out_ends_with_what_the_pipeline_gives_its_network():
    pipeline, called_with = load_pipeline("shapes-turbo", "cpu"), []
    noises = [*torch.randn(4, 1, *pipeline.latent_shape)]
    hook = pipeline.unet.register_forward_pre_hook(lambda unet, args: called_with.append(args[0]))
    prompt = "a red star moving left on a black background"
    list(pipeline.stream([prompt], [0], guidance=1.5, noise=noises[0], step_noise=noises[1:]))
    hook.remove()
    embeds = pipeline.text_encoder.encode([prompt])

    for place in range(4):
        given = noises[: place + 1]
        noisy = _roll_out(pipeline.unet, pipeline.schedule, given, embeds, origin_steps=20)
        assert_close(noisy, called_with[place])


def test_a_roll_out_drops_nothing_and_can_start_a_gradient(schedule):
    student = student_of(make_unet(temporal_dropout=0.5)).train()
    noises, embeds = [*torch.randn(3, 1, 4, 3, 4, 4)], torch.randn(1, 5, 16)

    noisy, again = (_roll_out(student, schedule, noises, embeds, 50) for _ in range(2))

    assert torch.equal(noisy, again) and student.training
    assert not noisy.is_inference()  # autograd refuses to save such a tensor
