"""What a browser has kept of a visit is checked like any other request."""

import json

import pytest

from demo.clip_store import ClipStore
from demo.session import GeneratedClip
from demo.tabs.visit import read_visit
from tests.support.fake_engine import MODELS

SETTINGS = {"prompt": "a star", "model": "fake-student", "steps": 3, "guidance": 2.0, "seed": 7}
RECIPE = {**SETTINGS, "negative": None}


@pytest.fixture
def store(tmp_path):
    return ClipStore(tmp_path / "clips", keep=2)


def make_clip(store, **recipe) -> GeneratedClip:
    path = store.new_path()
    path.touch()
    clip = GeneratedClip(
        path=path,
        seconds={"total": 1.0},
        unet_calls=4,
        frames=16,
        fps=8.0,
        recipe={**RECIPE, **recipe},
    )
    store.describe(clip)
    return clip


def read(store, kept):
    return read_visit(kept if isinstance(kept, str) else json.dumps(kept), MODELS, store)


def test_settings_and_clips_come_back(store):
    clip = make_clip(store)

    visit = read(store, {**SETTINGS, "clips": [clip.path.stem], "unfinished": True})

    assert visit.clips == (clip,) and visit.unfinished
    assert visit.settings == SETTINGS


def test_an_empty_prompt_comes_back_empty(store):
    visit = read(store, {**SETTINGS, "prompt": ""})

    assert visit.settings == {**SETTINGS, "prompt": ""}


@pytest.mark.parametrize(
    "kept", ["", "null", "[]", "{", "[" * 5_000, '{"clips": 3}' * 5_000, "1", '"x"']
)
def test_what_is_no_visit_is_ignored(store, kept):
    assert read(store, kept) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "gone"},
        {"model": ["fake-student"]},
        {"steps": 10**9},
        {"guidance": "much"},
        {"seed": -1},
        {"prompt": "x" * 5_000},
        {"prompt": ["a"]},
    ],
)
def test_settings_that_no_request_may_have_are_left_out(store, changes):
    visit = read(store, {**SETTINGS, **changes})

    assert visit.settings == {}


def test_only_clips_of_the_store_come_back(store):
    gone, dropped, damaged = (make_clip(store) for _ in range(3))  # the third drops the first
    foreign = make_clip(replace_keep(store, 9), model="of another server")
    dropped.path.unlink()
    damaged.path.with_suffix(".json").write_text("{")
    names = [
        *(gone.path.stem, dropped.path.stem, damaged.path.stem, foreign.path.stem),
        *("../../etc/passwd", "0" * 16, 3, None, ["x"], f"{damaged.path.stem}\n"),
    ]

    assert read(store, {"clips": names}).clips == ()
    assert not gone.path.with_suffix(".json").exists()


def replace_keep(store: ClipStore, keep: int) -> ClipStore:
    return ClipStore(store.folder, keep=keep)
