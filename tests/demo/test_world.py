import pytest

from demo.world import World
from tests.support.fake_engine import WORLD

FITTING = "a red star moving left on a black background"


@pytest.mark.parametrize(
    "prompt",
    [
        FITTING,
        "A red star is moving left, on a black background.",
        "On a black background, a red star moving left",
        "  the RED star   moving left on a black background ",
    ],
)
def test_a_prompt_of_known_phrases_fits_in_any_order(prompt):
    assert WORLD.knows(prompt)


@pytest.mark.parametrize(
    "prompt",
    [
        "a corgi surfing at sunset",
        "a red star moving left",
        "a red star and a blue heart moving left on a black background",
        "a redder star moving left on a black background",
        "🎉",
        "",
    ],
)
def test_a_prompt_with_missing_or_other_words_does_not_fit(prompt):
    assert not WORLD.knows(prompt)


def test_every_example_fits():
    assert all(WORLD.knows(example) for example in WORLD.examples)


@pytest.mark.parametrize("prompt", ["a corgi surfing at sunset", "", "🎉", "x" * 1000, FITTING])
def test_the_nearest_prompt_fits(prompt):
    assert WORLD.knows(WORLD.nearest(prompt))


@pytest.mark.parametrize(
    "prompt, nearest",
    [
        (FITTING, FITTING),
        ("a big red star flying to the left on black", FITTING),
        ("blue hearts, jumping, white background", "a blue heart jumping on a white background"),
        ("orange heart jumping in a desert", "an orange heart jumping in the desert"),
        ("a grene circel in the desert standing", "a green circle standing still in the desert"),
    ],
)
def test_the_nearest_prompt_keeps_what_the_prompt_says(prompt, nearest):
    assert WORLD.nearest(prompt) == nearest


def test_a_world_without_slots_knows_every_prompt():
    assert World(slots={}, examples=("a corgi",)).knows("anything at all")
