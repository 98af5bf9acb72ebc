"""Training videos: which frames, at which rate, in which order, and what is unusable."""

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
import torch

from tests.support.foreign_videos import GREEN, paint, write_foreign_video
from training.data.captions import Caption, read_captions
from training.data.order import ClipSource, EpochOrder
from training.data.video_folder import ClipShape, VideoFolder, Window, read_clip, stack_frames
from training.loop import Slot
from turbo.video import Video

SHAPE = ClipShape(frames=4, height=16, width=16, fps=8, stride="exact", resize="crop")


def write_ramp(path: Path, frames: int = 40, fps: float = 16) -> Caption:
    """A video whose frame n is grey of level 4 n."""
    levels = 4 * np.arange(frames, dtype=np.uint8).reshape(-1, 1, 1, 1)
    pixels = np.broadcast_to(levels, (frames, 16, 16, 3)).copy()
    return Caption(Video(pixels, fps).save(path), "grey")


def write_foreign(
    path: Path,
    codec: str = "libx264",
    *,
    fps: int = 16,
    size: int = 16,
    times: np.ndarray | None = None,
    options: dict[str, str] | None = None,
) -> Caption:
    """The same video as another program writes it; `times` are in milliseconds."""
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "Cafe"
        stream = container.add_stream(codec, rate=fps, options=options or {})
        stream.width = stream.height = size
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for n in range(40):
            pixels = np.full((size, size, 3), 4 * n, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = int(times[n]), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return Caption(path, "grey")


def wanted_times(window: Window, seed: int, native: float) -> np.ndarray:
    """Return the times that `read_clip` draws for `SHAPE`, in seconds from the first frame."""
    spare = window.seconds - (SHAPE.frames - 1) / SHAPE.fps - 1 / native
    start = np.random.default_rng(seed).uniform(0, spare)
    return start + np.arange(SHAPE.frames) / SHAPE.fps


def frame_numbers(pixels: np.ndarray) -> list[int]:
    return [round(float(frame.mean()) / 4) for frame in pixels]


def slots(processes: int, count: int, steps: int, rank: int = 0) -> list[Slot]:
    generator = torch.Generator()
    return [
        Slot(step, index, count, index == rank, generator)
        for step in range(steps)
        for index in range(rank, count, processes)
    ]


@pytest.mark.parametrize(
    "native, fps, stride, rate, step",
    [
        (16, 8, "exact", 8, 2),
        (24, 16, "whole", 12, 2),  # round(1.5) = 2, as in the published code
        (30, 16, "whole", 15, 2),
        (24, 8, "exact", 8, 3),
        (16, 16, "whole", 16, 1),
    ],
)
def test_frames_are_taken_at_the_rate_that_is_reported(tmp_path, native, fps, stride, rate, step):
    video = write_ramp(tmp_path / "a.mp4", fps=native)
    shape = ClipShape(4, 16, 16, fps, stride, "crop")

    window = read_clip(video, shape, np.random.default_rng(0))

    numbers = frame_numbers(window.frames)
    assert window.fps == pytest.approx(rate)
    assert (window.native_fps, window.seconds) == (native, pytest.approx(40 / native, abs=0.01))
    assert np.diff(numbers).tolist() == [step] * 3
    assert 0 <= numbers[0] and numbers[-1] < 40


@pytest.mark.parametrize(
    "name, codec, options",
    [
        ("a.ts", "libx264", {"g": "12", "bf": "3"}),
        ("a.mpg", "mpeg2video", {"g": "12", "bf": "2", "qmin": "1", "qmax": "2"}),
        ("a.avi", "mpeg4", {"g": "12", "bf": "2", "qmin": "1", "qmax": "2"}),
        ("a.m4v", "mpeg4", {"g": "12", "bf": "2", "qmin": "1", "qmax": "2"}),
    ],
)
def test_a_seek_that_ends_too_late_loses_no_frames(tmp_path, name, codec, options):
    fps, size = (25, 256) if codec == "mpeg2video" else (16, 16)  # many blocks with times
    video = write_foreign(tmp_path / name, codec, fps=fps, size=size, options=options)

    for seed in range(20):
        window = read_clip(video, SHAPE, np.random.default_rng(seed))
        expected = np.rint(wanted_times(window, seed, fps) * fps)
        # Some codecs miss a level, and in AVI files with B-frames the first frame is a frame late.
        assert np.abs(frame_numbers(window.frames) - expected).max() <= 1


def test_frames_of_a_variable_rate_are_those_nearest_in_time(tmp_path: Path):
    times = 50 * np.arange(40)
    times[10:] += 1000  # a gap
    times[30:] = times[30] + 200 * np.arange(10)  # a quarter of the rate
    video = write_foreign(tmp_path / "a.mp4", times=times)

    for seed in range(40):
        window = read_clip(video, SHAPE, np.random.default_rng(seed))
        wanted = wanted_times(window, seed, window.native_fps)
        nearest = np.abs(times / 1000 - wanted[:, None]).argmin(axis=1)
        assert frame_numbers(window.frames) == nearest.tolist()


@pytest.mark.parametrize(
    "name, codec, fps, unit", [("a.mkv", "libx264", 24, 0.001), ("a.gif", "gif", 30, 0.01)]
)
def test_rounded_times_of_a_constant_rate_change_no_clip(tmp_path, name, codec, fps, unit):
    """Prepared clips and resumed runs depend on it."""
    video = write_foreign(tmp_path / name, codec, fps=fps)
    with av.open(str(video.path)) as container:
        times = np.array([frame.time for frame in container.decode(video=0)])

    for seed in range(40):
        window = read_clip(video, SHAPE, np.random.default_rng(seed))
        wanted = wanted_times(window, seed, window.native_fps)
        half = 0.5 / window.native_fps
        first = (times > wanted[:, None] - half - 1e-6).argmax(axis=1)
        assert frame_numbers(window.frames) == first.tolist()


def test_sound_that_is_longer_than_the_video_loses_no_window(tmp_path: Path):
    path = write_foreign(tmp_path / "a.mkv").path
    with av.open(str(path)) as video, av.open(str(tmp_path / "sound.mkv"), "w") as container:
        packets = list(video.demux(video=0))
        picture = container.add_stream_from_template(video.streams.video[0])
        sound = container.add_stream("aac", rate=44100, layout="mono")
        for packet in packets[:-1]:  # the last one is empty
            packet.stream = picture
            container.mux(packet)
        for n in range(200):
            silence = np.zeros((1, 1024), np.float32)
            frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 44100, 1024 * n
            container.mux(sound.encode(frame))
        container.mux(sound.encode())
    video = Caption(tmp_path / "sound.mkv", "grey")

    windows = [read_clip(video, SHAPE, np.random.default_rng(seed)) for seed in range(20)]

    assert all(window.seconds == pytest.approx(2.5, abs=0.05) for window in windows)


def test_a_title_that_is_no_utf8_is_not_read(tmp_path: Path):
    path = write_foreign(tmp_path / "a.mp4").path
    path.write_bytes(path.read_bytes().replace(b"Cafe", "Café".encode("latin-1")))

    assert read_clip(Caption(path, "grey"), SHAPE, np.random.default_rng(0)).seconds == 2.5


def test_windows_start_anywhere_in_the_video(tmp_path: Path):
    video = write_ramp(tmp_path / "a.mp4")

    starts = {
        frame_numbers(read_clip(video, SHAPE, np.random.default_rng(seed)).frames)[0]
        for seed in range(60)
    }

    assert min(starts) <= 3 and max(starts) >= 30


@pytest.mark.parametrize("resize, kept", [("crop", False), ("squash", True)])
def test_a_wide_frame_is_cropped_or_squashed(tmp_path: Path, resize, kept):
    pixels = np.zeros((20, 16, 64, 3), dtype=np.uint8)
    pixels[:, :, :20] = pixels[:, :, 44:] = 255  # white edges, which a crop to a square loses
    Video(pixels, 8).save(tmp_path / "wide.mp4")
    shape = ClipShape(4, 16, 16, 8, "exact", resize)

    clip = read_clip(Caption(tmp_path / "wide.mp4", "wide"), shape, np.random.default_rng(0)).frames

    assert clip.shape == (4, 16, 16, 3)
    assert bool(clip[:, :, :3].mean() > 128) == kept


@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_clips_have_the_colours_and_the_rotation_that_a_player_shows(tmp_path: Path, resize):
    write_foreign_video(tmp_path / "tall.mp4", paint(16, 64), rotated=True)
    shape = ClipShape(4, 32, 8, 8, "exact", resize)

    clip = read_clip(Caption(tmp_path / "tall.mp4", ""), shape, np.random.default_rng(0)).frames

    assert clip.shape == (4, 32, 8, 3)
    assert clip[:, :14].min() > 240
    assert np.abs(clip[:, 24].astype(int) - GREEN).max() <= 3


@pytest.mark.parametrize("resize, white", [("crop", 0), ("squash", 1 / 2)])
def test_a_frame_with_oblong_pixels_is_cropped_as_a_player_shows_it(tmp_path, resize, white):
    picture = np.roll(paint(16, 16), -4, axis=1)  # white at both sides, which the crop loses
    write_foreign_video(tmp_path / "a.mp4", picture, aspect=Fraction(2))
    shape = ClipShape(4, 16, 16, 8, "exact", resize)

    clip = read_clip(Caption(tmp_path / "a.mp4", ""), shape, np.random.default_rng(0)).frames

    assert (clip[..., 0] > 160).mean() == pytest.approx(white, abs=0.1)


def test_what_cannot_make_a_clip_is_refused(tmp_path: Path):
    write_ramp(tmp_path / "short.mp4", frames=4)
    write_ramp(tmp_path / "slow.mp4", fps=4)
    (tmp_path / "text.mp4").write_text("no video")
    whole = write_ramp(tmp_path / "whole.mp4").path.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])

    for name, reason in {
        "short": "too short",
        "slow": "frames per second",
        "text": "cannot be decoded",
        "cut": "early|cannot be decoded",
        "none": "cannot be decoded",
    }.items():
        with pytest.raises(ValueError, match=reason):
            read_clip(Caption(tmp_path / f"{name}.mp4", name), SHAPE, np.random.default_rng(3))


@pytest.fixture
def videos(tmp_path: Path) -> list[Caption]:
    return [
        Caption(write_ramp(tmp_path / f"{i}.mp4", frames=10).path, f"video {i}") for i in range(5)
    ]


def texts(source: ClipSource, wanted: list[Slot], processes: int) -> list[list[str]]:
    return [[clip.text for clip in source(slot, processes)] for slot in wanted]


def source_of(captions: list[Caption], micro_batch: int = 1, **options) -> ClipSource:
    folder = VideoFolder(captions, SHAPE, seed=3)
    return ClipSource(folder, micro_batch, **{"workers": 0, "max_broken": 0.0} | options)


def test_every_video_is_seen_once_per_epoch_in_another_order(videos):
    seen = [text for (text,) in texts(source_of(videos), slots(1, 5, 4), 1)]

    epochs = [seen[i : i + 5] for i in range(0, 20, 5)]
    assert all(len(set(epoch)) == 5 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_the_order_is_drawn_from_the_seed():
    orders = [[EpochOrder(seed, 20)(place)[1] for place in range(20)] for seed in (3, 3, 4)]

    assert orders[0] == orders[1] != orders[2]


def test_any_number_of_processes_shares_the_clips_of_one(videos):
    alone = texts(source_of(videos, 2), slots(1, 2, 3), 1)

    ranks = [texts(source_of(videos, 2), slots(2, 2, 3, rank), 2) for rank in range(2)]

    assert [ranks[i % 2][i // 2] for i in range(6)] == alone


def test_a_resumed_run_continues_with_the_clips_it_would_have_seen(videos):
    whole = source_of(videos, 2)
    clips = [whole(slot, 1) for slot in slots(1, 2, 3)]

    resumed = source_of(videos, 2)(slots(1, 2, 3)[3], 1)

    for clip, again in zip(clips[3], resumed, strict=True):
        assert clip.text == again.text
        assert np.array_equal(clip.window.frames, again.window.frames)


def test_workers_decode_the_same_clips(videos):
    wanted = slots(1, 2, 2)
    assert texts(source_of(videos, workers=1), wanted, 1) == texts(source_of(videos), wanted, 1)


def test_broken_videos_are_replaced_and_counted_up_to_the_limit(videos):
    videos[1].path.write_text("broken")
    source = source_of(videos, max_broken=0.2)

    seen = [text for (text,) in texts(source, slots(1, 5, 3), 1)]

    assert len(seen) == 15 and "video 1" not in seen
    assert list(source.unusable) == [str(videos[1].path)]


def test_in_a_resumed_run_broken_videos_are_replaced_as_before(videos):
    for video in videos[1:3]:
        video.path.write_text("broken")
    wanted = slots(1, 5, 3)

    whole = texts(source_of(videos, max_broken=1.0), wanted, 1)
    resumed = [texts(source_of(videos, max_broken=1.0), wanted[n:], 1) for n in range(1, 15)]

    assert resumed == [whole[n:] for n in range(1, 15)]


def test_more_broken_videos_than_allowed_stop_the_run(videos):
    for video in videos[:2]:
        video.path.write_text("broken")

    with pytest.raises(ValueError, match="2 of 5 videos are unusable"):
        texts(source_of(videos, max_broken=0.2), slots(1, 5, 3), 1)


def test_a_broken_video_counts_once_and_so_does_a_whole_one_whatever_its_rows(videos):
    videos[1].path.write_text("broken")
    rows = 4 * videos

    with pytest.raises(ValueError, match="1 of 5 videos are unusable"):
        texts(source_of(rows, max_broken=0.19), slots(1, 20, 1), 1)
    assert len(texts(source_of(rows, max_broken=0.2), slots(1, 20, 1), 1)) == 20


def test_a_folder_without_a_usable_video_stops_the_run(videos):
    for video in videos:
        video.path.unlink()

    with pytest.raises(ValueError, match="None of 100 videos is usable"):
        texts(source_of(videos, max_broken=1.0), slots(1, 1, 1), 1)


@pytest.mark.parametrize(
    "name, content",
    [
        (
            "captions.csv",
            "path,text,short_text,use_motion_guide\n"
            "a.mp4,a long cat,cat,FALSE\nb.mp4,a dog,,true\n",
        ),
        (
            "captions.csv",
            "Video;Caption;short_text;use_motion_guide\n"
            "a.mp4;a long cat;cat;False\nb.mp4;a dog;;\n",
        ),
        (
            "captions.jsonl",
            '{"path": "a.mp4", "text": "a long cat", "short_text": "cat", '
            '"use_motion_guide": false}\n'
            '{"path": "b.mp4", "text": "a dog"}\n',
        ),
    ],
)
def test_captions_are_read_from_csv_and_jsonl(tmp_path: Path, name, content):
    (tmp_path / name).write_text(content)

    assert read_captions(tmp_path, name) == [
        Caption(tmp_path / "a.mp4", "a long cat", "cat", motion=False),
        Caption(tmp_path / "b.mp4", "a dog"),
    ]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("captions.csv", "path,text\na.mp4,\n", "line 2: expected a path and a text"),
        ("captions.csv", "path,title\na.mp4,cat\n", "needs a column named 'text'"),
        ("captions.csv", "path,text\na.mp4,a cat, and a dog\n", "3 cells instead of 2"),
        ("captions.csv", "path,text,use_motion_guide\na.mp4,cat,maybe\n", "line 2: .* got 'maybe'"),
        ("captions.csv", "path,text\n", "lists no videos"),
        ("captions.jsonl", '{"path": "a.mp4"\n', "line 1"),
        ("captions.jsonl", "[1]\n", "line 1: expected an object"),
        ("other.csv", "", "cannot be read"),
    ],
)
def test_captions_that_are_none_are_refused(tmp_path: Path, name, content, message):
    (tmp_path / name.replace("other", "another")).write_text(content)

    with pytest.raises(ValueError, match=message):
        read_captions(tmp_path, name)


def test_frames_become_numbers_from_zero_to_one(videos):
    frames = stack_frames(source_of(videos, 2)(slots(1, 1, 1)[0], 1))

    assert frames.shape == (2, 4, 3, 16, 16)
    assert 0 <= frames.min() and frames.max() < 0.2


BIG = """
import numpy as np
from training.data.order import ClipSource, EpochOrder
from training.loop import Slot
from dataclasses import dataclass, field

@dataclass
class Big:
    content: np.ndarray
    unusable: dict = field(default_factory=dict)

class Endless:
    captions = ()
    def __getitem__(self, position): return Big(np.zeros(10_000_000, np.uint8))

source = ClipSource(Endless(), 1, workers=2, max_broken=0)
source(Slot(0, 0, 1, True, None), 1)
print("ready", flush=True)
input()
"""


@pytest.mark.slow
def test_workers_of_a_killed_run_end():
    """They have clips to hand over, which are larger than a pipe."""
    with psutil.Popen(
        [sys.executable, "-c", BIG],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as run:
        assert run.stdout.readline() == b"ready\n"
        workers = run.children()
        run.kill()

    assert len(workers) == 2
    assert psutil.wait_procs(workers, timeout=20)[1] == []
