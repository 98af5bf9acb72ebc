"""Clips as a player shows them: rotation, form of the pixels, times of frames, edit lists, HDR."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from human_eval.clips.media import read_footage
from human_eval.errors import StudyError
from tests.support.foreign_videos import paint, write_foreign_video

UPRIGHT = (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
ROTATED = {  # matrices of the track header, and the corner that the red square goes to
    (65536, 0, 0, 0, 65536, 0): "top left",
    (0, 65536, 0, -65536, 0, 0): "top right",
    (-65536, 0, 0, 0, -65536, 0): "bottom right",
    (0, -65536, 0, 65536, 0, 0): "bottom left",
    (-65536, 0, 0, 0, 65536, 0): "top right",
}


def _frames():
    """A red square at the top left; blue rises by 30 a frame."""
    frames = np.zeros((8, 32, 48, 3), np.uint8)
    frames[..., 2] = 30 * np.arange(8)[:, None, None]
    frames[:, :8, :8] = (250, 20, 20)
    return frames


def _encode(path, times=None, rate=8, pix_fmt="yuv420p", **settings):
    """Write the frames; `times` in milliseconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"bf": "0", "crf": "5"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, pix_fmt
        for name, value in settings.items():
            setattr(stream.codec_context, name, value)
        for number, pixels in enumerate(_frames()):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pix_fmt)
            if times:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def _shown(footage):
    """Return the numbers of the frames, read from their blue."""
    blue = footage.pixels[:, 12:20, 12:20, 2].mean(axis=(1, 2))
    return [round(float(value) / 30) for value in blue]


@pytest.mark.parametrize("matrix", ROTATED)
def test_a_rotated_or_mirrored_clip_is_turned(tmp_path, matrix):
    content = _encode(tmp_path / "a.mp4").read_bytes()
    at = content.index(struct.pack(">9i", *UPRIGHT), content.index(b"tkhd"))
    turned = struct.pack(">9i", *matrix, 0, 0, 1 << 30)
    (tmp_path / "a.mp4").write_bytes(content[:at] + turned + content[at + 36 :])

    red = read_footage(tmp_path / "a.mp4").pixels[0, ..., 0]

    corners = {"top left": red[4, 4], "top right": red[4, -4]}
    corners |= {"bottom left": red[-4, 4], "bottom right": red[-4, -4]}
    assert max(corners, key=corners.get) == ROTATED[matrix]
    assert (red.shape[0] > red.shape[1]) == (matrix[0] == 0)


@pytest.mark.parametrize(
    "matrix, name",
    [((46341, 46341, 0, -46341, 46341), "rotated"), ((131072, 0, 0, 0, 131072), "scaled")],
)
def test_a_matrix_that_is_no_quarter_turn_is_refused_by_name(tmp_path, matrix, name):
    content = _encode(tmp_path / "a.mp4").read_bytes()
    at = content.index(struct.pack(">9i", *UPRIGHT), content.index(b"tkhd"))
    turned = struct.pack(">9i", *matrix, 0, 0, 0, 1 << 30)
    (tmp_path / "a.mp4").write_bytes(content[:at] + turned + content[at + 36 :])

    with pytest.raises(StudyError, match=name):
        read_footage(tmp_path / "a.mp4")


@pytest.mark.parametrize(
    "aspect, size", [(Fraction(2), (96, 32)), (Fraction(1, 2), (48, 64)), (Fraction(1), (48, 32))]
)
def test_pixels_become_square(tmp_path, aspect, size):
    shape = read_footage(_encode(tmp_path / "a.mp4", sample_aspect_ratio=aspect)).shape

    assert (shape.width, shape.height) == size


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_frames_that_last_unequally_keep_their_times(tmp_path, suffix):
    times = [0, 100, 200, 700, 800, 900, 1000, 1100]

    footage = read_footage(_encode(tmp_path / f"a{suffix}", times, rate=1000))

    assert footage.fps == 10
    assert _shown(footage) == [0, 1, 2, 2, 2, 2, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("rate", [8, 24, Fraction(30000, 1001)])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_an_even_rate_is_kept(tmp_path, suffix, rate):
    footage = read_footage(_encode(tmp_path / f"a{suffix}", rate=rate))

    assert footage.fps == rate
    assert _shown(footage) == list(range(8))


@pytest.mark.parametrize(
    "delays, fps, shown",
    [
        ([100] * 8, 10, list(range(8))),
        ([130, 120] * 4, 8, list(range(8))),
        ([120, 130] * 4, 8, list(range(8))),
        ([100, 100, 500, *[100] * 5], 10, [0, 1, 2, 2, 2, 2, 2, 3, 4, 5, 6, 7]),
        ([100] * 7 + [500], 10, [*range(7), 7, 7, 7, 7, 7]),
    ],
)
def test_the_delays_of_a_gif_are_kept(tmp_path, delays, fps, shown):
    images = [Image.fromarray(frame) for frame in _frames()]
    images[0].save(
        tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=delays, loop=0
    )

    footage = read_footage(tmp_path / "a.gif")

    assert footage.fps == fps
    assert _shown(footage) == shown


def test_frames_hidden_by_an_edit_list_are_not_missing(tmp_path):
    with (
        av.open(str(_encode(tmp_path / "a.mp4"))) as whole,
        av.open(str(tmp_path / "b.mp4"), "w") as cut,
    ):
        stream = whole.streams.video[0]
        copy = cut.add_stream_from_template(stream)
        for packet in whole.demux(stream):
            if packet.dts is not None:  # as `ffmpeg -ss 0.5 -c copy`
                packet.pts -= int(Fraction(1, 2) / packet.time_base)
                packet.dts -= int(Fraction(1, 2) / packet.time_base)
                packet.stream = copy
                cut.mux(packet)

    assert _shown(read_footage(tmp_path / "b.mp4")) == [4, 5, 6, 7]


@pytest.mark.parametrize(
    "settings, name",
    [
        ({"color_trc": 16, "pix_fmt": "yuv420p10le"}, "PQ"),
        ({"color_trc": 18}, "HLG"),
        ({"color_primaries": 9}, "BT.2020"),
    ],
)
def test_hdr_and_wide_colours_are_refused_by_name(tmp_path, settings, name):
    with pytest.raises(StudyError, match=name):
        read_footage(_encode(tmp_path / "a.mp4", **settings))


def test_a_clip_whose_title_is_not_utf_8_is_read(tmp_path):
    path = write_foreign_video(tmp_path / "clip.mp4", paint(16, 64))
    path.write_bytes(path.read_bytes().replace(b"Cafe", "Café".encode("latin-1")))

    assert read_footage(path).pixels.shape == (20, 16, 64, 3)


def test_a_relative_name_with_a_colon_is_read(tmp_path, monkeypatch):
    _encode(tmp_path / "a.mp4").rename(tmp_path / "12:30.mp4")
    monkeypatch.chdir(tmp_path)

    assert _shown(read_footage(tmp_path.joinpath("12:30.mp4").relative_to(tmp_path))) == [*range(8)]
