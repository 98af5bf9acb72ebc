"""Frames as a player shows them: colours by their tag, rotation, form of the pixels."""

import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import Colorspace

from tests.support.foreign_videos import GREEN, paint, write_foreign_video
from turbo.display import DisplayError, show


def show_first(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return show(next(container.decode(stream)), stream.sample_aspect_ratio)


@pytest.mark.parametrize(
    "colours, tag",
    [
        (Colorspace.ITU601, 2),
        (Colorspace.ITU601, 6),
        (Colorspace.ITU709, 1),
        (Colorspace.BT2020, 9),
    ],
)
def test_colours_are_read_by_their_tag_and_without_one_as_bt601(tmp_path, colours, tag):
    path = write_foreign_video(tmp_path / "a.mp4", paint(16, 64), colours=colours, tag=tag)

    assert np.abs(show_first(path)[8, 48].astype(int) - GREEN).max() <= 3


def test_a_rotated_frame_with_oblong_pixels_is_shown_square_and_upright(tmp_path: Path):
    path = tmp_path / "a.mp4"
    write_foreign_video(path, paint(16, 64), aspect=Fraction(2), rotated=True)

    picture = show_first(path)

    assert picture.shape == (128, 16, 3)
    assert picture[:60].min() > 240 and picture[68:, :, 0].max() < 80


def test_a_shown_frame_is_freed_at_once(tmp_path: Path):
    path = write_foreign_video(tmp_path / "a.mp4", paint(16, 64), rotated=True)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    references = sys.getrefcount(frame)

    show(frame, None)

    assert sys.getrefcount(frame) == references


def test_pixels_of_an_odd_form_are_refused(tmp_path: Path):
    path = write_foreign_video(tmp_path / "a.mp4", paint(16, 64), aspect=Fraction(9, 2))

    with pytest.raises(DisplayError, match="9:2"):
        show_first(path)
