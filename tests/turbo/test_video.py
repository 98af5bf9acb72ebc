"""The mp4: its recipe, its colours, and that no half of one is ever seen."""

import av
import numpy as np
import pytest
import torch

from tests.support.foreign_videos import GREEN, paint, write_foreign_video
from turbo import video as video_module
from turbo.video import Video, load_video

RECIPE = {"model": "shapes-vcm", "prompt": 'a "red" star, ⭐ étoile; a=b\\', "seed": 2**32 - 1}


@pytest.fixture
def pixel_art() -> np.ndarray:
    """A red square and a yellow one cross a blue sky."""
    frames = np.full((16, 32, 32, 3), (20, 30, 160), np.uint8)
    for index, frame in enumerate(frames):
        frame[8:16, index : index + 8] = (220, 30, 40)
        frame[20:24, 16 - index : 20 - index] = (250, 220, 40)
    return frames


def test_file_gives_back_recipe_size_and_rate(pixel_art, tmp_path):
    path = Video(pixel_art, 8, RECIPE).save(tmp_path / "clip.mp4", enlarge=8)

    loaded = load_video(path)

    assert loaded.recipe == RECIPE
    assert loaded.fps == 8
    assert loaded.frames.shape == (16, 256, 256, 3)


def test_enlarged_pixels_keep_their_colours(pixel_art, tmp_path):
    path = Video(pixel_art, 8).save(tmp_path / "clip.mp4", enlarge=8)

    centres = load_video(path).frames[:, 4::8, 4::8]

    error = np.abs(centres.astype(int) - pixel_art)
    assert error.max() <= 8
    assert error.mean() < 2


def test_file_of_another_maker_is_read_as_a_player_shows_it(tmp_path):
    path = write_foreign_video(tmp_path / "clip.mp4", paint(16, 64), rotated=True)
    path.write_bytes(path.read_bytes().replace(b"Cafe", "Café".encode("latin-1")))

    frames = load_video(path).frames

    assert frames.shape == (20, 64, 16, 3)
    assert np.abs(frames[:, 48, 8].astype(int) - GREEN).max() <= 3


def test_file_plays_in_every_browser(pixel_art, tmp_path):
    path = Video(pixel_art, 8).save(tmp_path / "clip.mp4", enlarge=8)

    with av.open(path) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert container.start_time == 0
        assert container.duration == pytest.approx(2e6)  # microseconds
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # plays before it is all there


def test_same_video_makes_the_same_bytes(pixel_art, tmp_path):
    first, second = (Video(pixel_art, 8, RECIPE).save(tmp_path / f"{n}.mp4") for n in "ab")

    assert first.read_bytes() == second.read_bytes()


def test_failed_write_leaves_the_old_file_alone(pixel_art, tmp_path, monkeypatch):
    path = Video(pixel_art, 8).save(tmp_path / "clip.mp4")
    before = path.read_bytes()

    def fill_disk(frames, fps, comment, unfinished):
        unfinished.write_bytes(b"half a video")
        raise OSError("No space left on device")

    monkeypatch.setattr(video_module, "_encode", fill_disk)
    with pytest.raises(OSError, match="No space left"):
        Video(pixel_art, 8).save(path)

    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["clip.mp4"]


def test_odd_sizes_are_refused():
    with pytest.raises(ValueError, match="Expected an even height and width, got 9x8."):
        Video(np.zeros((2, 9, 8, 3), np.uint8), 8).save("never-written.mp4")


@pytest.mark.parametrize("comment", ["made by hand", "[1, 2]", None])
def test_file_of_another_maker_has_an_empty_recipe(comment, pixel_art, tmp_path, monkeypatch):
    encode = video_module._encode
    monkeypatch.setattr(
        video_module,
        "_encode",
        lambda frames, fps, _, path: encode(frames, fps, comment or "", path),
    )

    assert load_video(Video(pixel_art, 8, RECIPE).save(tmp_path / "clip.mp4")).recipe == {}


def test_levels_are_rounded_to_the_nearest():
    frames = torch.tensor([0.0, 0.5 / 255 + 1e-4, 0.4 / 255, 1.0]).reshape(1, 1, 1, 2, 2)

    video = Video.from_frames(frames.expand(1, 1, 3, 2, 2), fps=8)

    assert video.frames[0, :, :, 0].tolist() == [[0, 1], [0, 255]]
