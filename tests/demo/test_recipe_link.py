"""A link restores the settings of a video, and is checked like any other request."""

import base64
import json

import pytest

from demo.models import RequestError
from demo.recipe_link import link_to, read_link
from demo.tabs.dropped import describe_comparison
from tests.support.fake_engine import MODELS

RECIPE = {
    "model": "fake-student",
    "prompt": "a “red” star 🎉 <b>&amp;</b>",
    "seed": 2**32 - 1,
    "steps": 3,
    "guidance": 2.5,
    "dtype": "float32",
}


def encode(value) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode()


def read(link):
    return read_link(link.removeprefix("?recipe="), MODELS)


def test_a_link_gives_the_settings_back():
    model, request = read(link_to(RECIPE))

    settings = (request.prompt, request.seed, request.steps, request.guidance)
    assert (model, *settings) == tuple(RECIPE[name] for name in ("model", "prompt")) + (
        2**32 - 1,
        3,
        2.5,
    )
    assert len(link_to({**RECIPE, "prompt": "🎉" * 1000})) < 6_000


@pytest.mark.parametrize(
    "link, message",
    [
        (None, "damaged"),
        ("", "damaged"),
        ("%%%", "damaged"),
        ("é", "damaged"),
        ("A", "damaged"),
        (link_to(RECIPE)[8:-9], "damaged"),
        ("W" * 100_000, "damaged"),
        (encode("[" * 100), "damaged"),
        (base64.urlsafe_b64encode(b"[" * 6_000).decode(), "damaged"),
        (encode({"model": "fake-student"}), "damaged"),
        (encode(["gone", "a star", 1, 4, 2.0]), "There is no such model"),
        (encode([["x"], "a star", 1, 4, 2.0]), "There is no such model"),
        (encode(["fake-student", "a star", -1, 4, 2.0]), "seed"),
        (encode(["fake-student", "a star", 1, 10**9, 2.0]), "steps"),
        (encode(["fake-student", "a star", 1, 4, None]), "not complete"),
        (encode(["fake-student", "", 1, 4, 2.0]), "prompt is empty"),
    ],
)
def test_a_link_that_this_page_cannot_follow_is_refused(link, message):
    with pytest.raises(RequestError, match=message):
        read_link(link, MODELS)


def test_the_words_about_a_dropped_video_name_what_differs():
    def describe(kind, dropped=RECIPE):
        found = {"kind": kind, "frames": 16, "different": 3, "worst": 5, "largest": 200}
        return describe_comparison(found, dropped, RECIPE)

    edited = describe("frames", {**RECIPE, "dtype": "float16", "note": None})

    assert describe("file") == "Made by this recipe, bit for bit."
    assert "dtype (float16; here float32)" in edited and "note" not in edited
    assert "frame 5 differs most" in describe("other frames")
    assert "encoded again" in describe("encoded again")
    texts = [describe(kind) for kind in ("file", "frames", "encoded again", "other frames")]
    assert len({*texts, describe("other size")}) == 5
