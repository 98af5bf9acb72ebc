"""Files of strangers: read apart, kept for a while, and never believed."""

import time

import pytest

from demo import dropped_clips
from demo.dropped_clips import DropError, DroppedClips
from demo.models import Request
from tests.support.fake_engine import save_colours

REQUEST = Request(prompt="a star", seed=1, steps=2, guidance=2.0)


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.mp4"
    save_colours("fake-student", REQUEST, path)
    return path


@pytest.fixture
def dropped(tmp_path):
    return DroppedClips(tmp_path / "dropped")


def test_a_dropped_video_gives_its_recipe_back_and_is_compared(dropped, clip, tmp_path):
    name = dropped.keep(clip.read_bytes())

    assert dropped.recipe(name)["prompt"] == "a star"
    assert dropped.compare(name, clip)["kind"] == "file"


def test_what_is_no_video_of_this_page_is_refused_and_not_kept(dropped, clip):
    content = clip.read_bytes()
    other = content.replace(b'"model"', b"'model'")

    for refused in (b"", b"#EXTM3U\n/etc/passwd\n", content[:200], other):
        with pytest.raises(DropError):
            dropped.keep(refused)
    assert list(dropped.folder.iterdir()) == []


def test_only_the_newest_are_kept(dropped, clip, monkeypatch):
    monkeypatch.setattr(dropped_clips, "KEPT", 1)
    monkeypatch.setattr(
        dropped_clips, "read_apart", lambda path: {"recipe": {"model": "fake-student"}}
    )
    first = dropped.keep(clip.read_bytes())
    time.sleep(0.02)
    second = dropped.keep(clip.read_bytes())

    with pytest.raises(DropError, match="Drop it again"):
        dropped.recipe(first)
    assert dropped.recipe(second)
    assert len(list(dropped.folder.iterdir())) == 2  # the video and what it says


@pytest.mark.parametrize("name", [None, 3, "", "../../etc/passwd", "0" * 16, ["a"], "0" * 10_000])
def test_a_name_that_was_not_given_out_is_refused(dropped, name):
    with pytest.raises(DropError):
        dropped.recipe(name)


def test_a_folder_that_cannot_be_written_is_reported(tmp_path, clip):
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(DropError, match="cannot be stored on this machine"):
        DroppedClips(tmp_path / "file" / "dropped").keep(clip.read_bytes())
