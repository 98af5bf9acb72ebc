"""Motion guidance: the recorded motion prior, its worked numbers, and that the score is a slope."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tests.support.golden import Golden, videocrafter_unet
from tests.support.tiny_models import make_unet
from turbo.convert.unet import videocrafter_names
from turbo.diffusion.consistency import few_step_timesteps
from turbo.diffusion.distillation import SolverGrid
from turbo.diffusion.motion import (
    MOTION_LAYERS,
    capture_attention,
    guide_motion,
    invert_step,
    invert_to,
    motion_energy,
    motion_score,
    motion_strength,
    temporal_attention_layers,
)
from turbo.diffusion.schedule import NoiseSchedule
from turbo.networks.unet import VideoUNet
from turbo.types import Conditioning


@pytest.fixture
def unet() -> VideoUNet:
    """A teacher in double precision, so that slopes can be measured."""
    return make_unet().double()


@pytest.fixture
def videos() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"noisy": (2, 4, 3, 4, 4), "example": (2, 4, 3, 4, 4), "text": (2, 6, 16)}
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in shapes.items()
    }


def _recorded_teacher(golden) -> tuple[Golden, VideoUNet]:
    return golden("motion_prior_tiny"), videocrafter_unet(golden("vc2_unet_tiny"), "teacher")


def test_the_default_layers_are_the_published_ones(golden):
    recorded, teacher = _recorded_teacher(golden)
    ours = {theirs: ours for ours, theirs in videocrafter_names(teacher).items()}

    published = [ours[f"{layer}.to_q.weight"] for layer in recorded.metadata("attn_layers")]

    assert [f"{layer}.to_q.weight" for layer in MOTION_LAYERS] == published
    assert temporal_attention_layers(teacher) == MOTION_LAYERS


def test_motion_score_is_in_parity_with_the_published_code(golden):
    """Energy, score and prediction, ours in double precision.

    The recording is in float32, whose rounding changes the score by 1.2e-4 of its largest value
    between processors. In double precision ours is a second implementation: 1e-6 from the recorded
    energy of 8.06, and 1e-4 from the recorded score, which reaches 4.4.
    """
    recorded, teacher = _recorded_teacher(golden)
    timesteps = recorded["timesteps"]
    names = ("z_t", "z_example", "context", "context_example")
    noisy, example, context, context_example = (recorded[name].double() for name in names)

    scored = motion_score(
        teacher.double(),
        noisy,
        example,
        timesteps,
        context,
        context_example,
        torch.full_like(timesteps, recorded.metadata("fps")),
    )

    energy = recorded.metadata("temp_loss_scale") * recorded["temp_loss"]
    close = partial(assert_close, check_dtype=False)
    close(scored.energy[0], energy, rtol=1e-4, atol=0)
    close(scored.output, recorded["cond_teacher_output"], rtol=0, atol=2e-5)
    largest = recorded["score"].abs().max()
    close(scored.score, recorded["score"], rtol=0, atol=1e-4 * largest)


def test_attention_maps_are_in_parity_with_the_published_code(golden):
    recorded, teacher = _recorded_teacher(golden)
    told = Conditioning(fps=torch.full_like(recorded["timesteps"], recorded.metadata("fps")))

    _, maps = capture_attention(
        teacher, recorded["z_example"], recorded["timesteps"], recorded["context_example"], told
    )

    layers = recorded.metadata("attn_layers")
    assert len(maps) == len(layers)
    names = recorded.names("attn_probs_example/")
    assert names
    for name in names:
        index = layers.index(name.removeprefix("attn_probs_example/"))
        assert_close(maps[index][0], recorded[name], rtol=0, atol=1e-5)


def test_inversion_is_in_parity_with_the_published_code(golden, schedule):
    recorded, teacher = _recorded_teacher(golden)
    expected = recorded["inversion/latents"]
    fps = torch.full_like(recorded["timesteps"], recorded.metadata("fps"))
    grid = SolverGrid(200)

    walk = []
    teacher.register_forward_pre_hook(lambda module, inputs: walk.append(inputs[0]))

    last = invert_to(
        grid.timesteps[[len(expected) - 1]],
        teacher,
        schedule,
        recorded["z_t"],
        grid.timesteps,
        recorded["context"],
        fps,
    )

    assert_close(torch.stack([*walk[1:], last]), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("solver, num_steps", [("solver50", 50), ("solver200", 200)])
def test_inverted_steps_are_in_parity_with_the_published_solver(
    solver, num_steps, golden, schedule
):
    recorded = golden("ddim_solver")
    far, near = SolverGrid(num_steps).interval(recorded[f"{solver}/index"])

    inverted = invert_step(
        schedule, recorded[f"{solver}/reverse_in"], recorded[f"{solver}/pred_noise"], near, far
    )

    assert_close(inverted, recorded[f"{solver}/reverse_out"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "near, far, landed",
    [(0, 19, 0.46966574), (19, 39, 0.47987732), (0, 4, 0.49004072), (499, 504, 0.49043900)],
)
def test_an_inverted_step_follows_the_worked_example(near, far, landed, schedule):
    noisy = torch.full((1, 1, 1, 1, 1), 0.5)

    inverted = invert_step(schedule, noisy, -noisy / 2, torch.tensor([near]), torch.tensor([far]))

    assert inverted.item() == pytest.approx(landed, rel=2e-6)


def test_a_step_back_undoes_an_inverted_step(schedule):
    noisy, noise = torch.full((2, 1, 1, 1, 1, 1), 0.5)
    near, far = torch.tensor([499]), torch.tensor([519])

    inverted = invert_step(schedule, noisy, noise, near, far)
    back = schedule.ddim_step(schedule.remove_noise(inverted, noise, far), noise, near)

    assert_close(back, noisy)


def test_the_energy_follows_the_worked_example():
    """Off by 0.1, 0.3 and 0 where their example looks most; the scale is 100 * 100."""
    example = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])[None, None]
    seen = torch.tensor([[0.2, 0.6, 0.2], [0.2, 0.3, 0.5], [0.3, 0.1, 0.6]])[None, None]

    alone = motion_energy([seen], [example])
    beside_an_equal_layer = motion_energy([seen, example], [example] * 2)

    assert alone.item() == pytest.approx(10_000 * (0.1**2 + 0.3**2) / 3)
    assert beside_an_equal_layer.item() == pytest.approx(alone.item() / 2)


def test_the_energy_looks_where_the_example_looks_most():
    example, seen = torch.eye(3)[None, None], torch.eye(3)[None, None]
    example[..., 0, :] = torch.tensor([0.1, 0.3, 0.6])
    seen[..., 0, :] = torch.tensor([0.7, 0.2, 0.1])

    assert motion_energy([seen], [example]).item() == pytest.approx(10_000 * 0.5**2 / 3)


def test_attention_maps_are_not_rounded_where_the_network_is_in_half_precision():
    unet = nn.Module.to(make_unet(), torch.bfloat16)
    noisy, text = torch.randn(1, 4, 3, 4, 4), torch.randn(1, 6, 16)
    layers = temporal_attention_layers(unet)

    _, maps = capture_attention(unet, noisy, torch.tensor([519]), text, Conditioning(), layers)

    for attention in maps:
        assert_close(attention.sum(dim=-1), torch.ones(attention.shape[:-1]))


def test_motion_is_guided_from_the_boundary_on():
    strength = motion_strength(torch.tensor([499, 500]), 0.5, 0.5, num_timesteps=1000)

    assert strength.tolist() == [0.0, 0.5]


def test_guidance_follows_the_worked_example(schedule):
    noise, score = torch.full((2, 1, 1, 1, 1, 1), 0.5)

    guided = guide_motion(noise, 4 * score, torch.tensor([0.05]), schedule, torch.tensor([749]))

    assert guided.item() == pytest.approx(0.41270491, rel=1e-6)


@pytest.mark.parametrize(
    "num_steps, percentage, guided",
    [
        (16, 0.5, [999, 939, 879, 819, 759, 699, 639, 579, 519]),
        (16, 0.3, [999, 939, 879, 819, 759]),
        (8, 0.5, [999, 874, 749, 624]),
        (4, 0.5, [999, 749]),
    ],
)
def test_motion_is_guided_in_the_noisiest_steps(num_steps, percentage, guided):
    timesteps = few_step_timesteps(num_steps, 200)

    strength = motion_strength(timesteps, 0.05, percentage, num_timesteps=1000)

    assert timesteps[strength > 0].tolist() == guided
    assert strength[strength > 0].tolist() == pytest.approx([0.05] * len(guided))


@pytest.mark.parametrize("percentage, first", [(0.5, 100), (0.2, 160), (1.0, 0)])
def test_the_share_of_timesteps_is_the_share_of_grid_points(percentage, first):
    grid = SolverGrid(200)

    strength = motion_strength(
        grid.timesteps, percentage=percentage, num_timesteps=grid.num_timesteps
    )

    assert (strength > 0).long().argmax() == first and bool((strength[first:] > 0).all())


def test_motion_is_guided_in_the_noisiest_share_of_a_shorter_schedule():
    grid = SolverGrid(50, 500)

    strength = motion_strength(grid.timesteps, num_timesteps=grid.num_timesteps)

    assert grid.timesteps[strength > 0].tolist() == list(range(259, 500, 10))


def test_watching_changes_nothing_and_leaves_nothing_behind(unet, videos):
    timesteps, told = torch.tensor([519, 999]), Conditioning()
    plain = unet(videos["noisy"], timesteps, videos["text"], told)

    layers = temporal_attention_layers(unet)
    watched, maps = capture_attention(
        unet, videos["noisy"], timesteps, videos["text"], told, layers
    )

    assert torch.equal(watched, plain)
    assert not any(module._forward_hooks for module in unet.modules())
    for seen in maps:
        assert seen.shape[0] == 2 and seen.shape[2:] == (3, 3)
        assert_close(seen.sum(dim=-1), torch.ones_like(seen[..., 0]))


def test_a_network_without_temporal_attention_is_refused(videos):
    blocks = {"down_block_types": ("DownBlock3D",) * 2, "up_block_types": ("UpBlock3D",) * 2}
    unet = make_unet(**blocks)

    with pytest.raises(ValueError, match="none in its decoder"):
        capture_attention(
            unet, videos["noisy"], torch.tensor([519, 999]), videos["text"], Conditioning()
        )


def test_a_network_without_the_named_layers_is_refused_with_those_it_has(unet, videos):
    with pytest.raises(ValueError, match=temporal_attention_layers(unet)[0]):
        motion_score(
            unet,
            videos["noisy"],
            videos["example"],
            torch.tensor([519, 999]),
            videos["text"],
            videos["text"],
        )


def test_the_score_is_the_slope_of_the_energy(unet, videos):
    timesteps, text = torch.tensor([519, 999]), videos["text"]
    direction = torch.randn(2, 4, 3, 4, 4, generator=torch.Generator().manual_seed(1)).double()

    def scored(shift):
        noisy = videos["noisy"] + shift * direction
        layers = temporal_attention_layers(unet)
        return motion_score(unet, noisy, videos["example"], timesteps, text, text, layers=layers)

    up, down = (scored(shift).energy.sum() for shift in (1e-5, -1e-5))
    assert_close((scored(0).score * direction).sum(), (up - down) / 2e-5, rtol=1e-5, atol=0)


def test_a_video_that_moves_as_its_example_is_left_alone(unet, videos):
    noisy, text = videos["noisy"], videos["text"]

    timesteps, layers = torch.tensor([519, 999]), temporal_attention_layers(unet)
    scored = motion_score(unet, noisy, noisy, timesteps, text, text, layers=layers)

    assert_close(scored.energy, torch.zeros(2, dtype=torch.float64))
    assert_close(scored.score, torch.zeros_like(noisy))


def test_every_video_has_its_own_score(unet, videos):
    noisy, example, text = videos["noisy"], videos["example"], videos["text"]
    timesteps = torch.tensor([519, 999])

    def score(rows):
        inputs = (noisy[rows], example[rows], timesteps[rows], text[rows], text[rows])
        return motion_score(unet, *inputs, layers=temporal_attention_layers(unet))

    together, alone = score(slice(None)), score(slice(1, None))

    assert_close(together.score[1:], alone.score)
    assert_close(together.energy[1:], alone.energy)


def test_an_example_is_where_its_own_video_is(unet, videos):
    schedule, text = NoiseSchedule.scaled_linear(), videos["text"]
    timesteps = SolverGrid(4).timesteps

    def invert(places: list[int]) -> torch.Tensor:
        return invert_to(timesteps[places], unet, schedule, videos["noisy"], timesteps, text)

    apart = [invert([2, 2])[0], invert([0, 0])[1]]
    called: list[int] = []
    hook = unet.register_forward_pre_hook(lambda module, inputs: called.append(len(inputs[0])))

    example = invert([2, 0])

    hook.remove()
    assert_close(example, torch.stack(apart))
    assert called == [2, 1, 1]  # the second video is there after one step


def test_recomputing_activations_keeps_the_score():
    teacher, inputs = (
        make_unet(),
        (torch.tensor([519]), torch.randn(1, 5, 16), torch.randn(1, 5, 16)),
    )
    noisy, example = torch.randn(2, 1, 4, 3, 4, 4)
    layers = temporal_attention_layers(teacher)
    expected = motion_score(teacher, noisy, example, *inputs, layers=layers)

    teacher.enable_gradient_checkpointing()
    found = motion_score(teacher, noisy, example, *inputs, layers=layers)

    assert expected.score.abs().sum() > 0
    assert_close(found.score, expected.score, rtol=0, atol=0)
