"""Training videos: a folder of files with a table of captions, decoded in worker processes.

Which clip stands at which position of a run depends on the seed alone, so a resumed run continues
with the clips that it would have seen.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import torch
from av.video.reformatter import Colorspace, Interpolation
from einops import rearrange
from jaxtyping import UInt8
from torch.utils.data import DataLoader, Dataset

from training.loop import Slot
from turbo.text_files.decoding import read_text
from turbo.text_files.tables import PATH_NAMES, PROMPT_NAMES, read_table, require_columns

_COLUMNS = {"path": PATH_NAMES, "text": ("text", *PROMPT_NAMES)}  # and, optionally, short_text
ATTEMPTS = 100  # videos to try for one position


@dataclass(frozen=True)
class Caption:
    """One row of the table of captions."""

    path: Path
    text: str
    short_text: str = ""


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
class Clip:
    """A training clip as drawn from the folder."""

    frames: UInt8[np.ndarray, "F H W 3"]
    fps: float  # at which the frames were taken
    text: str
    short_text: str
    unusable: tuple[str, ...] = field(default=())  # videos that were tried before this one, and why


def read_captions(folder: Path, file: str) -> list[Caption]:
    """Read the table of captions, CSV or JSONL, with `path` (inside `folder`) and `text`.

    The columns of a CSV file may have the other usual names, such as `video` and `caption`.

    Raises:
        ValueError: it cannot be read, or a column, a path or a text is missing.
    """
    path = folder / file
    rows: Mapping[int, Mapping[str, Any]]
    if path.suffix == ".jsonl":
        lines = enumerate(read_text(path).splitlines(), 1)
        rows = {number: _parse_line(path, number, line) for number, line in lines if line.strip()}
    else:
        table = read_table(path, _COLUMNS)
        require_columns(table, path, _COLUMNS)
        rows = table.rows
    captions = []
    for number, row in rows.items():
        if not row.get("path") or not (row.get("text") or "").strip():
            raise ValueError(f"{path}, line {number}: expected a path and a text, got {row}.")
        captions.append(
            Caption(folder / row["path"], row["text"], (row.get("short_text") or "").strip())
        )
    if not captions:
        raise ValueError(f"{path} lists no videos.")
    return captions


def _parse_line(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as failure:
        raise ValueError(f"{path}, line {number}: {failure}.") from failure
    if not isinstance(row, dict):
        raise ValueError(f"{path}, line {number}: expected an object, got {line[:60]!r}.")
    return row


def read_clip(
    path: Path, shape: ClipShape, rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "F H W 3"], float]:
    """Decode a random window of a video; return its frames and the rate they were taken at.

    With the stride "whole", every n-th frame is taken, n = round(native rate / fps), as in the
    published code; "exact" takes the nearest frame to each time.

    Raises:
        ValueError: the video is broken, shorter than the clip, or slower than its frame rate.
    """
    try:
        with av.open(str(path)) as container:
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
            return np.stack(list(_decode_at(container, stream, wanted, native, shape))), rate
    except (av.FFmpegError, OSError, IndexError) as failure:
        raise ValueError(f"it cannot be decoded: {failure}") from failure


def _duration(container: Any, stream: Any) -> float:
    """Return the length in seconds, as the stream or else the container states it."""
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None:
        return float(Fraction(container.duration, av.time_base))
    raise ValueError("its length is not stated")


def _decode_at(
    container: Any, stream: Any, wanted: np.ndarray, native: float, shape: ClipShape
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Yield the frame nearest to each of the wanted times, in seconds from the first frame."""
    origin = float((stream.start_time or 0) * stream.time_base)
    container.seek(int((origin + wanted[0]) / stream.time_base), stream=stream)
    left = list(origin + wanted)
    for frame in container.decode(stream):
        while left and frame.time > left[0] - 0.5 / native - 1e-6:
            left.pop(0)
            yield _resized(frame, shape)
        if not left:
            return
    raise ValueError(f"it ends {len(left)} frames early")


def _resized(frame: av.VideoFrame, shape: ClipShape) -> UInt8[np.ndarray, "H W 3"]:
    """Scale a frame: to the size ("squash"), or to cover it, and cut the middle ("crop")."""
    height, width = shape.height, shape.width
    if shape.resize == "crop":
        scale = max(shape.height / frame.height, shape.width / frame.width)
        height, width = (max(1, round(scale * side)) for side in (frame.height, frame.width))
        height, width = max(height, shape.height), max(width, shape.width)
    scaled = frame.reformat(
        width,
        height,
        "rgb24",
        src_colorspace=Colorspace.ITU709,
        interpolation=Interpolation.LANCZOS,
    ).to_ndarray()
    top, left = (height - shape.height) // 2, (width - shape.width) // 2
    return scaled[top : top + shape.height, left : left + shape.width]


class VideoFolder(Dataset[Clip]):
    """The clips of a run by position: every video once per epoch, in an order drawn from the seed.

    An unusable video is replaced by another, drawn from its position, and named in the clip.
    """

    def __init__(self, captions: list[Caption], shape: ClipShape, seed: int) -> None:
        self.captions, self.shape, self.seed = captions, shape, seed
        self._epoch, self._order = -1, np.zeros(0, dtype=np.int64)

    def __getitem__(self, position: int) -> Clip:
        rng = np.random.default_rng([self.seed, position])
        caption, unusable = self._caption_at(position), []
        for _ in range(ATTEMPTS):
            try:
                frames, fps = read_clip(caption.path, self.shape, rng)
            except ValueError as refusal:
                unusable.append(f"{caption.path}: {refusal}")
                caption = self.captions[int(rng.integers(len(self.captions)))]
            else:
                return Clip(frames, fps, caption.text, caption.short_text, tuple(unusable))
        raise ValueError(
            f"None of {ATTEMPTS} videos is usable. The last: {unusable[-1]}. Check the paths in "
            "the table of captions, data.fps, and the codecs of the files."
        )

    def _caption_at(self, position: int) -> Caption:
        epoch, place = divmod(position, len(self.captions))
        if epoch != self._epoch:
            rng = np.random.default_rng([self.seed, epoch, 1])
            self._epoch, self._order = epoch, rng.permutation(len(self.captions))
        return self.captions[self._order[place]]


class ClipSource:
    """The micro-batches of one process, decoded ahead by its workers.

    Raises:
        ValueError: more videos than `max_broken` of the folder are unusable.
    """

    def __init__(
        self, videos: VideoFolder, micro_batch: int, *, workers: int, max_broken: float
    ) -> None:
        self.videos, self.micro_batch, self.workers = videos, micro_batch, workers
        self.limit = max_broken * len(videos.captions)
        self.unusable: dict[str, str] = {}  # by path
        self._ahead: Iterator[list[Clip]] | None = None
        self._next: tuple[int, int] | None = None  # step and slot that `_ahead` yields next

    def __call__(self, slot: Slot, processes: int) -> list[Clip]:
        """Return the clips of a slot. Slots are asked for in the order of a run."""
        if self._ahead is None or self._next != (slot.step, slot.index):
            order = _positions(slot, processes, self.micro_batch)
            self._ahead = iter(self._loader(order))
        clips = next(self._ahead)
        after = slot.index + processes
        self._next = (
            (slot.step, after) if after < slot.count else (slot.step + 1, after - slot.count)
        )
        for clip in clips:
            for reason in clip.unusable:
                self.unusable.setdefault(reason.partition(": ")[0], reason)
        if len(self.unusable) > self.limit:
            raise ValueError(
                f"{len(self.unusable)} of {len(self.videos.captions)} videos are unusable, more "
                f"than data.max_broken allows. The last: {[*self.unusable.values()][-1]}. "
                "Repair or remove them."
            )
        return clips

    def _loader(self, positions: Iterator[list[int]]) -> DataLoader[Clip]:
        return DataLoader(
            self.videos,
            batch_sampler=positions,
            num_workers=self.workers,
            collate_fn=_as_list,
            generator=torch.Generator(),  # else it draws from the generator of dropout masks
        )


def _as_list(clips: list[Clip]) -> list[Clip]:
    return clips


def _positions(slot: Slot, processes: int, micro_batch: int) -> Iterator[list[int]]:
    """Yield the positions of this process' slots, from `slot` on, without end."""
    step, index = slot.step, slot.index
    while True:
        first = (step * slot.count + index) * micro_batch
        yield list(range(first, first + micro_batch))
        index += processes
        if index >= slot.count:
            step, index = step + 1, index - slot.count


def stack_frames(clips: list[Clip]) -> torch.Tensor:
    """Return the frames of clips of one shape, (B, F, 3, H, W) in [0, 1]."""
    frames = torch.from_numpy(np.stack([clip.frames for clip in clips]))
    return rearrange(frames, "B F H W rgb -> B F rgb H W").float() / 255
