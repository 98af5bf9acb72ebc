"""Clips of training videos: the window of a video, its frame rate and its size."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, BinaryIO, Literal

import av
import numpy as np
import torch
from av.video.reformatter import Interpolation
from einops import rearrange
from jaxtyping import UInt8
from torch.utils.data import Dataset

from training.data.captions import Caption
from training.data.order import EpochOrder
from turbo.display import find_matrix, is_on_its_side, square_size, turn

ATTEMPTS = 100  # videos to try for one position
GUESSED_TIMES = "mpeg"  # program streams: after a seek, FFmpeg guesses the times of some frames
WINDOWS = 2  # separates the draws of windows from those of the order


@dataclass(frozen=True)
class ClipShape:
    """What a clip is cut and scaled to."""

    frames: int
    height: int
    width: int
    fps: float
    stride: Literal["exact", "whole"]
    resize: Literal["crop", "squash"]


@dataclass(frozen=True)
class Window:
    """Some frames of a video."""

    frames: UInt8[np.ndarray, "F H W 3"]
    fps: float  # at which the frames were taken
    native_fps: float  # of the video
    seconds: float  # of the whole video


@dataclass(frozen=True)
class Clip:
    """A training clip as drawn from the folder."""

    window: Window
    text: str
    short_text: str
    unusable: dict[str, str] = field(default_factory=dict)  # videos that were tried before: why not
    motion: bool = True  # as for `Caption`

    @property
    def fps(self) -> float:
        return self.window.fps


def read_clip(caption: Caption, shape: ClipShape, rng: np.random.Generator) -> Window:
    """Decode a random window of a video.

    With the stride "whole", every n-th frame is taken, n = round(native rate / fps), as in the
    published code; "exact" takes the nearest frame to each time.

    Raises:
        ValueError: the video is broken, shorter than the clip, or slower than its frame rate.
    """
    try:
        with caption.open() as file, _open(file) as container:
            stream = container.streams.video[0]
            native = float(stream.average_rate or stream.guessed_rate or 0)
            duration = _duration(container, stream)
            if native < shape.fps - 0.01:
                raise ValueError(f"{native:.2f} frames per second, expected {shape.fps}")
            rate = native / round(native / shape.fps) if shape.stride == "whole" else shape.fps
            spare = duration - (shape.frames - 1) / rate - 1 / native
            if spare < -1e-3:
                raise ValueError(f"{duration:.2f} seconds are too short")
            start = rng.uniform(0, max(spare, 0))
            if shape.stride == "whole":
                start = round(start * native) / native  # on a frame
            wanted = start + np.arange(shape.frames) / rate
            decoded = _decode_at(caption, container, stream, wanted, native)
            aspect = stream.sample_aspect_ratio
            frames = np.stack([_resized(frame, aspect, shape) for frame in decoded])
            return Window(frames, rate, native, duration)
    except (av.FFmpegError, OSError, IndexError) as failure:
        raise ValueError(f"it cannot be decoded: {failure}") from failure


def _open(file: BinaryIO) -> av.container.InputContainer:
    """Open a video, whatever the encoding of its title and other tags is."""
    return av.open(file, "r", metadata_errors="ignore")


def _duration(container: Any, stream: Any) -> float:
    """Return the length in seconds, as the stream or else the container states it."""
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    # Matroska has it in a tag; the container's length is that of the sound, too.
    for tag in ("DURATION", "DURATION-eng"):
        if found := re.fullmatch(r"(\d+):(\d\d):(\d\d\.\d+)", stream.metadata.get(tag, "")):
            hours, minutes, seconds = map(Fraction, found.groups())
            end = 3600 * hours + 60 * minutes + seconds
            return float(end - (stream.start_time or 0) * stream.time_base)
    if container.duration is not None:
        return float(Fraction(container.duration, av.time_base))
    raise ValueError("its length is not stated")


def _decode_at(
    caption: Caption, container: Any, stream: Any, wanted: np.ndarray, native: float
) -> Iterator[av.VideoFrame]:
    """Return the frame nearest to each of the wanted times, in seconds from the first frame."""
    origin = float((stream.start_time or 0) * stream.time_base)
    frames = _decode_from(caption, container, stream, origin + wanted[0], 0.5 / native)
    return _choose(frames, origin + wanted, native, float(stream.time_base))


def _decode_from(
    caption: Caption, container: Any, stream: Any, time: float, margin: float
) -> Iterator[av.VideoFrame]:
    """Yield the frames from one at most `margin` later than `time`; without one, from the first."""
    if container.format.name != GUESSED_TIMES:
        container.seek(int(time / stream.time_base), stream=stream)
    frames = container.decode(stream)
    first = next(frames, None)
    if first is not None and first.time is not None and first.time < time + margin + 1e-6:
        yield first
        yield from frames
        return
    # In MPEG-TS, AVI and others, a seek can end after the time.
    with caption.open() as file, _open(file) as again:
        yield from again.decode(video=0)


def _choose(
    frames: Iterable[av.VideoFrame], wanted: np.ndarray, native: float, unit: float
) -> Iterator[av.VideoFrame]:
    """Yield the frame nearest to each of the wanted times, in seconds as the frames state them.

    Two frames count as a period apart if they nearly are, since times are multiples of `unit` and
    the rate is a mean; then the first of them is taken until half a period after it.
    """
    period = 1 / native
    little = period / 8 + min(unit, period / 2)
    left = list(wanted)
    before, shown = None, 0.0  # a frame and its time
    for frame in frames:
        if frame.time is None:
            raise ValueError("it has a frame without a time")
        apart = frame.time - shown
        middle = shown + (period if abs(apart - period) < little else apart) / 2
        while left and left[0] <= frame.time:
            yield frame if before is None or middle <= left[0] - 1e-6 else before
            left.pop(0)
        if not left:
            return
        before, shown = frame, frame.time
    while before is not None and left and shown + period / 2 > left[0] - 1e-6:
        yield before
        left.pop(0)
    if left:
        raise ValueError(f"it ends {len(left)} frames early")


def _resized(
    frame: av.VideoFrame, aspect: Fraction | None, shape: ClipShape
) -> UInt8[np.ndarray, "H W 3"]:
    """Scale a frame: to the size ("squash"), or to cover it, and cut the middle ("crop").

    Args:
        aspect: width to height of a pixel; None is 1.
    """
    on_its_side = is_on_its_side(frame)
    height, width = shape.height, shape.width
    if shape.resize == "crop":
        shown = square_size(frame, aspect)[:: -1 if on_its_side else 1]  # width and height
        scale = max(shape.height / shown[1], shape.width / shown[0])
        width, height = (max(1, round(scale * side)) for side in shown)
        height, width = max(height, shape.height), max(width, shape.width)
    stored = (height, width) if on_its_side else (width, height)
    scaled = frame.reformat(
        *stored, "rgb24", src_colorspace=find_matrix(frame), interpolation=Interpolation.LANCZOS
    ).to_ndarray()
    top, left = (height - shape.height) // 2, (width - shape.width) // 2
    return turn(scaled, frame)[top : top + shape.height, left : left + shape.width]


class VideoFolder(Dataset[Clip]):
    """The clips of a run by position. Every epoch shows another window of each video.

    An unusable video is replaced by another, drawn from its position, and named in the clip.
    """

    def __init__(self, captions: Sequence[Caption], shape: ClipShape, seed: int) -> None:
        self.captions, self.shape, self.seed = captions, shape, seed
        self.order = EpochOrder(seed, len(captions))

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, position: int) -> Clip:
        epoch, row = self.order(position)
        rng = np.random.default_rng([self.seed, epoch, WINDOWS, row])
        unusable: dict[str, str] = {}
        for _ in range(ATTEMPTS):
            caption = self.captions[row]
            try:
                window = read_clip(caption, self.shape, rng)
            except ValueError as refusal:
                unusable[caption.name] = str(refusal)
                row = int(rng.integers(len(self.captions)))
            else:
                return Clip(window, caption.text, caption.short_text, unusable, caption.motion)
        path, reason = [*unusable.items()][-1]
        raise ValueError(
            f"None of {ATTEMPTS} videos is usable. The last: {path}: {reason}. Check the paths in "
            "the table of captions, data.fps, and the codecs of the files."
        )

    def read(self, epoch: int, row: int) -> Clip:
        """Return the clip that an epoch shows of the video of a row.

        Raises:
            ValueError: the video is unusable.
        """
        caption = self.captions[row]
        rng = np.random.default_rng([self.seed, epoch, WINDOWS, row])
        window = read_clip(caption, self.shape, rng)
        return Clip(window, caption.text, caption.short_text, motion=caption.motion)


def stack_frames(clips: Sequence[Clip]) -> torch.Tensor:
    """Return the frames of clips of one shape, (B, F, 3, H, W) in [0, 1]."""
    frames = torch.from_numpy(np.stack([clip.window.frames for clip in clips]))
    return rearrange(frames, "B F H W rgb -> B F rgb H W").float() / 255
