"""The pipeline: determinism, cost, progress, refusals."""

import json
import math

import numpy as np
import pytest

from turbo.pipeline import Progress, Result
from turbo.request import check_request


def _count_calls(unet):
    calls = []
    unet.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_same_recipe_makes_identical_frames(tiny_pipeline):
    first = tiny_pipeline("a cat", seed=3)

    again = tiny_pipeline("a cat", seed=3)

    assert np.array_equal(first.frames, again.frames)
    assert first.recipe == again.recipe


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


def test_student_calls_its_network_once_a_step(tiny_pipeline):
    calls = _count_calls(tiny_pipeline.unet)

    *_, result = tiny_pipeline.stream(["a cat"], [0], steps=4)

    assert len(calls) == 4 == result.timings["unet_calls"]


def test_teacher_calls_its_network_twice_a_step(tiny_teacher):
    calls = _count_calls(tiny_teacher.unet)

    *_, result = tiny_teacher.stream(["a cat"], [0])

    assert len(calls) == 100 == result.timings["unet_calls"]


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


def test_video_has_the_size_of_the_card(tiny_pipeline):
    video = tiny_pipeline("a cat")

    assert video.frames.shape == (3, 8, 8, 3)
    assert video.frames.dtype == np.uint8
    assert video.fps == 8


@pytest.mark.parametrize(
    "request_, message",
    [
        ({"prompt": ""}, "Expected a prompt, got ''. Say what the video should show."),
        ({"prompt": " \t "}, "Expected a prompt, got ' \\t '. Say what the video should show."),
        (
            {"prompt": "x" * 10_000},
            "Expected at most 1000 characters, got 10000. Shorten the prompt.",
        ),
        (
            {"prompt": "a\x00cat"},
            "Expected a prompt without control characters, got '\\x00'. Remove it.",
        ),
        (
            {"seed": -1},
            "Expected a whole seed between 0 and 4294967295, got -1. Choose another.",
        ),
        (
            {"seed": 2**32},
            "Expected a whole seed between 0 and 4294967295, got 4294967296. Choose another.",
        ),
        (
            {"steps": 0},
            "Expected a whole number of steps between 1 and 8 for tiny-student, got 0. "
            "Its default is 4.",
        ),
        (
            {"steps": 2.5},
            "Expected a whole number of steps between 1 and 8 for tiny-student, got 2.5. "
            "Its default is 4.",
        ),
        (
            {"guidance": 99.0},
            "Expected guidance between 1 and 15 for tiny-student, got 99.0. Its default is 7.5.",
        ),
        (
            {"guidance": math.nan},
            "Expected guidance between 1 and 15 for tiny-student, got nan. Its default is 7.5.",
        ),
    ],
)
def test_request_out_of_range_is_refused_in_words(student_card, request_, message):
    settings = {"seed": 0, "steps": None, "guidance": None} | request_
    prompt = settings.pop("prompt", "a cat")

    with pytest.raises(ValueError) as refusal:
        check_request(student_card, prompt, **settings)

    assert str(refusal.value) == message


def test_stream_refuses_before_it_computes(tiny_pipeline):
    calls = _count_calls(tiny_pipeline.unet)

    with pytest.raises(ValueError, match="Expected a prompt"):
        tiny_pipeline.stream(["a cat", ""], [0, 1])
    with pytest.raises(ValueError, match="as many seeds as prompts"):
        tiny_pipeline.stream(["a cat"], [])

    assert not calls


def test_request_takes_defaults_from_the_card(student_card):
    request = check_request(student_card, "👩‍👩‍👧 ça va")

    assert (request.seed, request.steps, request.guidance) == (0, 4, 7.5)
