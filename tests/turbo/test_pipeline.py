"""The pipeline: determinism, cost, progress, refusals."""

import dataclasses
import json
import math
import pickle
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from turbo.pipeline import Progress, Result, load_pipeline


def _count_calls(unet):
    calls = []
    unet.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_same_recipe_makes_identical_frames(tiny_pipeline):
    first = tiny_pipeline("a cat", seed=3)

    again = tiny_pipeline("a cat", seed=3)

    assert np.array_equal(first.frames, again.frames)
    assert first.recipe == again.recipe


@contextmanager
def _default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def _matrix_precision(precision):
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        assert torch.get_float32_matmul_precision() == precision
        torch.set_float32_matmul_precision("highest")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tiny_pipeline", "tiny_teacher"])
@pytest.mark.parametrize(
    "ambient",
    [
        lambda: _default_dtype(torch.float64),
        lambda: _default_dtype(torch.bfloat16),
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        lambda: torch.device("meta"),
        lambda: _matrix_precision("medium"),
        torch.enable_grad,
    ],
    ids=["float64", "bfloat16", "autocast", "meta", "matrix precision", "grad"],
)
def test_the_state_of_the_caller_changes_no_video(ambient, kind, request):
    pipeline = request.getfixturevalue(kind)
    wanted = pipeline("a cat", seed=3, steps=2).frames

    with ambient():
        found = pipeline("a cat", seed=3, steps=2).frames

    assert (found == wanted).all()


def test_autocast_around_loading_changes_no_weights():
    with torch.autocast("cpu", torch.bfloat16):  # the adapters of a student are merged
        loaded = load_pipeline("shapes-turbo").unet.state_dict()

    wanted = load_pipeline("shapes-turbo").unet.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in wanted.items())


def test_between_two_updates_the_state_is_that_of_the_caller(tiny_pipeline):
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.device("meta"):
        for _ in tiny_pipeline.stream(["a cat"], [0], steps=2):
            assert torch.is_autocast_enabled("cpu")
            assert torch.empty(1).is_meta


def test_batch_and_order_change_no_video(tiny_pipeline):
    prompts, seeds = ["a cat", "", "a dog on a hill"], [1, 2, 3]
    prompts[1] = "🌟 étoile"
    alone = [tiny_pipeline(p, seed=s).frames for p, s in zip(prompts, seeds, strict=True)]

    *_, together = tiny_pipeline.stream(prompts, seeds)
    *_, reversed_ = tiny_pipeline.stream(prompts[::-1], seeds[::-1])

    for video, other, frames in zip(together.videos, reversed_.videos[::-1], alone, strict=True):
        assert np.array_equal(video.frames, frames)
        assert np.array_equal(other.frames, frames)


@pytest.mark.parametrize("change", [{"seed": 1}, {"guidance": 5.0}, {"steps": 2}, {"prompt": "b"}])
def test_each_part_of_the_recipe_changes_the_video(tiny_pipeline, change):
    recipe = {"prompt": "a cat", "seed": 0, "steps": 4, "guidance": 7.5}

    def frames(prompt, **settings):
        return tiny_pipeline(prompt, **settings).frames

    assert not np.array_equal(frames(**recipe), frames(**(recipe | change)))


def test_a_student_samples_with_the_timestep_scaling_of_its_card(tiny_pipeline, monkeypatch):
    noise = torch.randn(1, *tiny_pipeline.latent_shape, generator=torch.Generator().manual_seed(0))
    card = dataclasses.replace(tiny_pipeline.card, timestep_scaling=1e-12)  # identity anywhere
    monkeypatch.setattr(tiny_pipeline, "card", card)

    updates = [*tiny_pipeline.stream(["a cat"], [0], steps=1, noise=noise)]

    [clean] = [u.clean for u in updates if isinstance(u, Progress) and u.clean is not None]
    assert_close(clean, noise)


def test_student_calls_its_network_once_a_step(tiny_pipeline):
    calls = _count_calls(tiny_pipeline.unet)

    *_, result = tiny_pipeline.stream(["a cat"], [0], steps=4)

    assert len(calls) == 4 == result.timings["unet_calls"]


def test_teacher_calls_its_network_twice_a_step(tiny_teacher):
    calls = _count_calls(tiny_teacher.unet)

    *_, result = tiny_teacher.stream(["a cat"], [0], steps=10)

    assert len(calls) == 20 == result.timings["unet_calls"]


def test_stream_tells_every_stage_and_step(tiny_pipeline):
    *updates, result = tiny_pipeline.stream(["a cat"], [0], steps=2)

    assert all(isinstance(update, Progress) for update in updates)
    assert [(update.stage, update.step) for update in updates] == [
        ("text", 0),
        ("denoise", 0),
        ("denoise", 1),
        ("denoise", 2),
        ("decode", 2),
    ]
    assert isinstance(result, Result)
    stages = sum(result.timings[stage] for stage in ("text", "denoise", "decode"))
    assert 0 < stages <= result.timings["total"]


def test_closing_the_stream_stops_the_network(tiny_teacher):
    calls = _count_calls(tiny_teacher.unet)
    updates = tiny_teacher.stream(["a cat"], [0])
    while next(updates).step < 3:
        pass

    updates.close()

    assert len(calls) == 6


def test_video_carries_its_recipe(tiny_pipeline):
    recipe = tiny_pipeline("a cat", seed=7, steps=2, guidance=5).recipe

    assert recipe | {"versions": None} == {
        "model": "tiny-student",
        "weights_sha256": "",
        "prompt": "a cat",
        "seed": 7,
        "steps": 2,
        "guidance": 5.0,
        "dtype": "float32",
        "device": "cpu",
        "memory": "full",
        "compiled": False,
        "versions": None,
    }
    assert set(recipe["versions"]) == {"torch", "diffusers", "turbo"}
    assert json.loads(json.dumps(recipe)) == recipe
    assert b"torch_version" not in pickle.dumps(recipe)  # plain data: readers need no torch


def test_video_has_the_size_of_the_card(tiny_pipeline):
    video = tiny_pipeline("a cat")

    assert video.frames.shape == (3, 8, 8, 3)
    assert video.frames.dtype == np.uint8
    assert video.fps == 8


def test_stream_refuses_before_it_computes(tiny_pipeline):
    calls = _count_calls(tiny_pipeline.unet)

    with pytest.raises(ValueError, match="prompt is empty"):
        tiny_pipeline.stream(["a cat", ""], [0, 1])
    with pytest.raises(ValueError, match="as many seeds as prompts"):
        tiny_pipeline.stream(["a cat"], [])

    assert not calls


def test_video_is_made_of_the_composed_prompt(tiny_pipeline):
    sent, composed = tiny_pipeline("a  cafe\u0301\n"), tiny_pipeline("a café")

    assert sent.recipe["prompt"] == "a café"
    assert np.array_equal(sent.frames, composed.frames)


def _stream(pipeline, prompts=("a cat", "a dog", "a hill"), **options):
    *updates, result = pipeline.stream(list(prompts), list(range(len(prompts))), **options)
    return updates, result


@pytest.mark.parametrize("batch_size", [2, 3])
def test_a_batch_makes_the_videos_of_single_runs(tiny_pipeline, batch_size):
    calls = _count_calls(tiny_pipeline.unet)
    _, alone = _stream(tiny_pipeline, steps=2)
    single = len(calls)

    _, together = _stream(tiny_pipeline, steps=2, batch_size=batch_size)

    assert (single, len(calls) - single) == (6, 2 * math.ceil(3 / batch_size))
    assert_close(together.latents, alone.latents, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(together.videos, alone.videos, strict=True):
        assert np.abs(ours.frames.astype(int) - theirs.frames).max() <= 1


def test_a_teacher_makes_a_batch_too(tiny_teacher):
    _, alone = _stream(tiny_teacher, steps=2)
    _, together = _stream(tiny_teacher, steps=2, batch_size=3)

    assert_close(together.latents, alone.latents, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["tiny_pipeline", "tiny_teacher"])
def test_embeddings_take_the_place_of_prompts(kind, request):
    pipeline = request.getfixturevalue(kind)
    embeds = pipeline.text_encoder.encode(["a dog"])

    _, given = _stream(pipeline, ["a cat"], steps=2, prompt_embeds=embeds)

    _, expected = _stream(pipeline, ["a dog"], steps=2)
    assert_close(given.latents, expected.latents, rtol=1e-4, atol=1e-4)
    assert given.videos[0].recipe["given"] == ["prompt_embeds"]
    assert "given" not in expected.videos[0].recipe


def test_initial_noise_can_be_given_and_leaves_later_draws_alone(tiny_pipeline):
    noise = torch.randn(
        (1, *tiny_pipeline.latent_shape), generator=torch.Generator().manual_seed(0)
    )
    _, drawn = _stream(tiny_pipeline, ["a cat"], steps=2)

    _, given = _stream(tiny_pipeline, ["a cat"], steps=2, noise=noise)
    _, other = _stream(tiny_pipeline, ["a cat"], steps=2, noise=-noise)

    assert torch.equal(given.latents, drawn.latents)  # the draw of seed 0
    assert not torch.equal(other.latents, drawn.latents)


def test_every_step_shows_its_clean_estimate(tiny_pipeline):
    updates, result = _stream(tiny_pipeline, ["a cat"], steps=3)

    cleans = [update.clean for update in updates if update.clean is not None]

    assert [tuple(clean.shape) for clean in cleans] == [(1, *tiny_pipeline.latent_shape)] * 3
    assert torch.equal(cleans[-1], result.latents)
    assert not torch.equal(cleans[0], cleans[1])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"noise": torch.zeros(1, 4, 3, 4, 4)}, "Expected noise of shape"),
        ({"step_noise": [torch.zeros(1, 4, 3, 4, 4)]}, "Expected noise of shape"),
        ({"prompt_embeds": torch.zeros(1, 24, 16)}, "Expected embeddings of 3 prompts"),
        ({"batch_size": 0}, "positive batch_size"),
    ],
)
def test_tensors_that_do_not_fit_the_prompts_are_refused(tiny_pipeline, options, message):
    with pytest.raises(ValueError, match=message):
        _stream(tiny_pipeline, **options)


@pytest.mark.slow
def test_models_can_be_loaded_in_several_threads_at_once():
    with ThreadPoolExecutor(3) as pool:
        loaded = [pool.submit(load_pipeline, "shapes-turbo", "cpu") for _ in range(6)]

        assert all(model.result().card.name == "shapes-turbo" for model in loaded)


@pytest.mark.parametrize("part", ["unet", "vae"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_make_no_video(part, value, tiny_pipeline):
    network = getattr(tiny_pipeline, part)
    last = network.conv_out if part == "unet" else network.decoder.conv_out
    next(last.parameters()).data.fill_(value)
    tiny_pipeline.placement = dataclasses.replace(tiny_pipeline.placement, dtype=torch.float16)

    with pytest.raises(ArithmeticError, match="--dtype float32"):
        tiny_pipeline("a cat", steps=1)
