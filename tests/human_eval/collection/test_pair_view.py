"""Neither side of a pair can be told by what it weighs."""

import random
from fractions import Fraction

import numpy as np
import pytest
from fastapi.testclient import TestClient

from human_eval.clips.media import PADDING, Footage, pad_clip, read_footage, write_footage
from human_eval.definition.prompts import Prompt
from human_eval.server.vote_api import create_app
from human_eval.study.store import create_study
from tests.human_eval.server.test_vote_api import claim, enter
from tests.support.studies import add_clips, define, make_clip, stored_clips


@pytest.fixture
def footage():
    pixels = np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3)).astype(np.uint8)
    return Footage(pixels, Fraction(8))


@pytest.mark.parametrize("more", [PADDING, PADDING + 1, 5000])
def test_a_padded_clip_has_the_wanted_size_and_the_same_frames(footage, tmp_path, more):
    path = tmp_path / "clip.mp4"
    write_footage(footage, path)
    plain, content = read_footage(path), path.read_bytes()

    padded = pad_clip(content, len(content) + more)
    path.write_bytes(padded)

    assert len(padded) == len(content) + more
    assert np.array_equal(read_footage(path).pixels, plain.pixels)


def test_a_clip_that_has_no_room_for_a_box_stays_as_it_is():
    assert pad_clip(b"clip", 4) == pad_clip(b"clip", 4 + PADDING - 1) == b"clip"


def test_both_sides_of_a_pair_weigh_the_same(tmp_path):
    sizes = {"ours": 900, "theirs": 4000, "third": 1700}
    store = create_study(tmp_path / "study", define(), [Prompt(0, "x")])
    add_clips(store, [make_clip(system, 0, bytes=size) for system, size in sizes.items()])
    for clip in stored_clips(store):
        content = random.Random(clip.system).randbytes(clip.bytes)
        (store.media / clip.stored_name).write_bytes(content)

    with TestClient(create_app(store)) as client:
        enter(client)
        pair = claim(client)
        left, right = (client.get("/" + pair[side]) for side in ("left", "right"))
    store.close()

    assert left.content != right.content
    assert left.headers["content-length"] == right.headers["content-length"]
    assert dict(left.headers) == dict(right.headers)
