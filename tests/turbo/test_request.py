"""The rules for prompt, seed, steps and guidance, which page, API and library share."""

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo.request import (
    MAX_PROMPT_LENGTH,
    MAX_SEED,
    RequestError,
    check_guidance,
    check_prompt,
    check_request,
    check_seed,
    check_steps,
)

NOT_NUMBERS = ["4", [4], {"a": 1}, True, 4j, math.nan, math.inf, -math.inf, 2**70, 10**400]


@pytest.mark.parametrize(
    "prompt, message",
    [
        ("", "empty"),
        (" \n\t ", "empty"),
        ("\u200b\u200d", "empty"),
        ("x" * 10_000, "has 10000 characters; at most 1000"),
        ("\ufb2c" * MAX_PROMPT_LENGTH, "has 3000 characters; at most 1000"),
        ("a\x00cat", r"U\+0000"),
        ("a\x1bb", r"U\+001B"),
        ("a\x85b", r"U\+0085"),
        ("a\ud800b", r"U\+D800"),
        (None, "must be text"),
        (["a"], "must be text"),
        (7, "must be text"),
    ],
)
def test_a_prompt_that_cannot_be_used_is_refused_with_the_reason(prompt, message):
    with pytest.raises(RequestError, match=message):
        check_prompt(prompt)


@pytest.mark.parametrize(
    "prompt, checked",
    [
        ("a  red\nstar\t", "a red star"),
        ("a\u2028b\u3000c", "a b c"),
        ("🎉🦊", "🎉🦊"),
        ("👩‍👩‍👧 ça va", "👩‍👩‍👧 ça va"),
        ("cafe\u0301", "café"),
        ("звезда", "звезда"),
        ("{{x}} ${y} %s <b>", "{{x}} ${y} %s <b>"),
        ("x" * MAX_PROMPT_LENGTH, "x" * MAX_PROMPT_LENGTH),
    ],
)
def test_a_prompt_is_composed_and_its_blanks_are_squeezed(prompt, checked):
    assert check_prompt(prompt) == checked


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_a_checked_prompt_passes_again_unchanged(prompt):
    try:
        checked = check_prompt(prompt)
    except RequestError:
        return
    assert check_prompt(checked) == checked
    assert len(checked.splitlines()) == 1  # the manifest holds a row a line


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, None, *NOT_NUMBERS])
def test_a_seed_outside_32_bits_is_refused(seed):
    with pytest.raises(RequestError, match=f"whole number from 0 to {MAX_SEED}, not"):
        check_seed(seed)


@pytest.mark.parametrize("steps", [0, 9, -1, 2.5, *NOT_NUMBERS])
def test_steps_outside_the_range_of_the_model_are_refused(student_card, steps):
    with pytest.raises(RequestError, match="whole number from 1 to 8 for Tiny, not"):
        check_steps(student_card, steps)


@pytest.mark.parametrize("guidance", [0.9, 15.1, *NOT_NUMBERS])
def test_guidance_outside_the_range_of_the_model_is_refused(student_card, guidance):
    with pytest.raises(RequestError, match="number from 1 to 15 for Tiny, not"):
        check_guidance(student_card, guidance)


def test_a_message_repeats_little_of_what_was_sent():
    with pytest.raises(RequestError) as refusal:
        check_seed("\ud800" * 10_000)

    assert len(str(refusal.value)) < 200
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("number", [4, 4.0, np.int64(4), np.float32(4)])
def test_numbers_of_every_library_are_taken(student_card, number):
    request = check_request(student_card, "a", seed=number, steps=number, guidance=number)

    assert (request.seed, request.steps, request.guidance) == (4, 4, 4.0)
    assert list(map(type, (request.seed, request.steps, request.guidance))) == [int, int, float]


def test_none_takes_the_defaults_of_the_card(student_card):
    request = check_request(student_card, "a cat")

    assert (request.seed, request.steps, request.guidance) == (0, 4, 7.5)


def test_the_rules_need_no_torch():
    script = "import sys, turbo.request; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
