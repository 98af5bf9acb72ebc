import pytest

from demo.requests import RequestError, read_prompt, read_request
from demo.session import MAX_SEED
from tests.support.fake_engine import MODELS

NOT_NUMBERS = ["4", [4], {"a": 1}, True, float("nan"), float("inf"), -float("inf"), 2**70]


@pytest.mark.parametrize(
    "prompt, message",
    [
        ("", "Expected a prompt, got an empty one"),
        (" \n\t ", "Expected a prompt, got an empty one"),
        ("\u200b\u200d", "Expected a prompt, got an empty one"),
        ("x" * 10_000, "at most 1000 characters, got 10000"),
        ("a\x00b", r"control character U\+0000"),
        ("a\x1bb", r"control character U\+001B"),
        ("a\ud800b", r"control character U\+D800"),
        (None, "Expected a prompt in words, got None"),
        (["a"], "Expected a prompt in words"),
        (7, "Expected a prompt in words, got 7"),
    ],
)
def test_a_prompt_that_cannot_be_used_is_refused_with_the_reason(prompt, message):
    with pytest.raises(RequestError, match=message):
        read_prompt(prompt)


@pytest.mark.parametrize(
    "prompt, read",
    [
        ("a  red\nstar", "a red star"),
        ("🎉🦊", "🎉🦊"),
        ("cafe\u0301", "café"),
        ("звезда", "звезда"),
        ("{{x}} ${y} %s <b>", "{{x}} ${y} %s <b>"),
    ],
)
def test_any_script_emoji_and_markup_is_a_prompt(prompt, read):
    assert read_prompt(prompt) == read


def test_none_takes_the_defaults_of_the_model_and_draws_a_seed():
    request = read_request(MODELS, "a star", "fake-teacher")

    assert (request.steps, request.guidance) == (50, 3.0)
    assert 0 <= request.seed <= MAX_SEED


@pytest.mark.parametrize("steps", [0, 9, -1, 3.5, *NOT_NUMBERS])
def test_steps_outside_the_range_of_the_model_are_refused(steps):
    with pytest.raises(RequestError, match="Expected steps as a whole number between 1 and 8"):
        read_request(MODELS, "a star", "fake-student", steps)


@pytest.mark.parametrize("guidance", [0.9, 15.1, *NOT_NUMBERS])
def test_guidance_outside_the_range_of_the_model_is_refused(guidance):
    with pytest.raises(RequestError, match="Expected guidance between 1 and 15"):
        read_request(MODELS, "a star", "fake-student", 4, guidance)


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, *NOT_NUMBERS])
def test_a_seed_outside_32_bits_is_refused(seed):
    with pytest.raises(RequestError, match="Expected seed as a whole number between 0 and"):
        read_request(MODELS, "a star", "fake-student", 4, 7.5, seed)


@pytest.mark.parametrize("model", ["nothing", "", None, 3, ["fake-student"], "x" * 10_000])
def test_an_unknown_model_is_refused_with_the_known_ones(model):
    with pytest.raises(RequestError, match="Expected a model from .*fake-student") as refusal:
        read_request(MODELS, "a star", model)
    assert len(str(refusal.value)) < 200
