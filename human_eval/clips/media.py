"""Clips as frames: read whole or not at all, and written by the one recipe of every study."""

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.video.reformatter import ColorRange, Colorspace, Interpolation

from human_eval.errors import StudyError

# H.264 that every browser plays. Constant quality, far above what a rater can see; no B-frames, so
# that a loop starts at time 0; one thread, so that the bytes do not depend on the machine.
X264_OPTIONS = {"crf": "12", "preset": "veryfast", "bf": "0", "threads": "1"}
# Neither the program's name nor the encoder's settings stay in the file.
MUXER_OPTIONS = {"movflags": "faststart", "fflags": "+bitexact"}
WITHOUT_COMMENTS = "filter_units=remove_types=6"
BT709 = 1  # the colour standard browsers assume of H.264; the same number in all three fields

PADDING = 8  # bytes that an empty box takes
MAX_BYTES = 256 * 2**20
MAX_PIXELS = 2**31  # height times width times frames: half a minute of 1920 x 1080


@dataclass(frozen=True)
class Shape:
    """What both clips of a pair must share."""

    width: int  # pixels
    height: int
    fps: Fraction  # frames per second
    frames: int

    @property
    def seconds(self) -> Fraction:
        return self.frames / self.fps

    def __str__(self) -> str:
        return f"{self.width}x{self.height}, {self.frames} frames at {float(self.fps):g} fps"


@dataclass(frozen=True, eq=False)
class Footage:
    """Decoded frames."""

    pixels: np.ndarray  # uint8, frame x height x width x RGB
    fps: Fraction

    @property
    def shape(self) -> Shape:
        count, height, width, _ = self.pixels.shape
        return Shape(width, height, self.fps, count)

    def fit(self, shape: Shape) -> "Footage":
        """Shrink to a size, rate and length; speed stays, frames in between are left out."""
        times = [number / shape.fps for number in range(shape.frames)]
        chosen = [min(int(time * self.fps), len(self.pixels) - 1) for time in times]
        pixels = self.pixels[chosen]
        if pixels.shape[1:3] != (shape.height, shape.width):
            pixels = np.stack([_resize(frame, shape) for frame in pixels])
        return replace(self, pixels=pixels, fps=shape.fps)


def _resize(pixels: np.ndarray, shape: Shape) -> np.ndarray:
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
    small = frame.reformat(shape.width, shape.height, interpolation=Interpolation.LANCZOS)
    return small.to_ndarray(format="rgb24")


def read_footage(path: Path) -> Footage:
    """Decode every frame of a clip.

    Raises:
        StudyError: the file is missing or not wholly a video: cut short, damaged, without frames
            or a frame rate, or larger than a study should serve.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise StudyError(f"Expected a video, got: {error.strerror}. Check the path.") from error
    if not 0 < size <= MAX_BYTES:
        raise StudyError(
            f"Expected a video of at most {MAX_BYTES:,} bytes, got {size:,} bytes. Make it again."
        )
    try:
        with av.open(str(path), options={"err_detect": "explode"}) as container:
            _check_whole(path, container.format.name)
            return _decode(container)
    except (av.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise StudyError(
            f"Expected a video that can be decoded, got: {reason}. Make it again."
        ) from error


def _check_whole(path: Path, format_: str) -> None:
    """Refuse a file that ends early in a format of which decoders take half without a word."""
    find_end = _FIND_END.get(format_)
    if find_end is None:
        return
    size, end = path.stat().st_size, find_end(path.read_bytes())
    if size < end:
        raise StudyError(
            f"Expected at least {end:,} bytes, as the parts of the file announce, got {size:,}. "
            "The file was cut short; copy or make it again."
        )


def _find_gif_end(content: bytes) -> int:
    """Return where a GIF ends, or the first byte known to be missing.

    Source: Graphics Interchange Format, version 89a, sections 15 to 27.
    """
    at = 13 + _colour_table(content, 10)
    while at < len(content):
        if content[at] == 0x3B:  # trailer
            return at + 1
        if content[at] == 0x2C:  # image: position, size, colours, and the size of a code
            at += 11 + _colour_table(content, at + 9)
        else:  # extension, and its kind
            at += 2
        while at < len(content) and content[at]:  # blocks, each after its length
            at += 1 + content[at]
        at += 1
    return at + 1


def _colour_table(content: bytes, flags: int) -> int:
    """Return the bytes of the colour table that the flags at a place announce."""
    packed = content[flags] if flags < len(content) else 0
    return 3 * 2 ** (packed % 8 + 1) if packed & 0x80 else 0


def _find_matroska_end(content: bytes) -> int:
    """Return where a Matroska or WebM file ends by what its elements announce.

    Where the segment announces no size, as in a live recording, its parts do; a cut between two of
    them is not found.

    Source: RFC 8794 (EBML), sections 4 to 6.
    """
    at = 0
    while at < len(content) and content[at]:  # a zero is no element but padding
        _, at = _read_number(content, at)  # its name
        size, at = _read_number(content, at)
        at += size or 0  # the parts of an element without a size follow
    return at


def _read_number(content: bytes, at: int) -> tuple[int | None, int]:
    """Read a number whose leading zeros tell its length; None where all bits are set.

    Returns:
        The number, and the place behind it.
    """
    first = content[at] if at < len(content) else 0
    length = 9 - first.bit_length()
    largest = 2 ** (7 * length) - 1
    number = int.from_bytes(content[at : at + length], "big") & largest
    return None if number == largest else number, at + length


_FIND_END: dict[str, Callable[[bytes], int]] = {
    "gif": _find_gif_end,
    "matroska,webm": _find_matroska_end,
}


def _decode(container: av.container.InputContainer) -> Footage:
    if not container.streams.video:
        raise StudyError("Expected a video, got a file without pictures. Make it again.")
    stream = container.streams.video[0]
    stream.codec_context.options = {"err_detect": "explode"}
    if not stream.average_rate:
        raise StudyError("Expected a frame rate, got none. Make the clip again.")
    frames = list(_pictures(container, stream))
    if stream.frames and len(frames) != stream.frames:
        raise StudyError(
            f"Expected the {stream.frames} frames that the file announces, got {len(frames)}. "
            "The file was cut short; copy or make it again."
        )
    if len(frames) < 2:
        raise StudyError(f"Expected at least 2 frames, got {len(frames)}. Make the clip again.")
    return Footage(np.stack(frames), stream.average_rate)


def _pictures(
    container: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[np.ndarray]:
    pixels = 0
    for frame in container.decode(stream):
        if frame.is_corrupt:
            raise StudyError("Expected whole frames, got a damaged one. Copy or make it again.")
        pixels += frame.width * frame.height
        if pixels > MAX_PIXELS:
            raise StudyError(
                f"Expected at most {MAX_PIXELS:,} pixels in all frames, got more. Cut the clip."
            )
        # Where a file does not tell its colour matrix, the encoders of research code used BT.601.
        tagged = frame.colorspace == Colorspace.ITU709
        matrix = Colorspace.ITU709 if tagged else Colorspace.ITU601
        yield frame.to_ndarray(format="rgb24", src_colorspace=matrix)


def store_footage(footage: Footage, folder: Path) -> tuple[str, str, int]:
    """Encode a clip into the media folder under a name that tells nothing.

    Returns:
        The name, the SHA-256 of the file, and its size in bytes.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = f"{secrets.token_hex(16)}.mp4"
    digest = write_footage(footage, folder / name)
    return name, digest, (folder / name).stat().st_size


def write_footage(footage: Footage, path: Path) -> str:
    """Encode a clip by the study's recipe and return the SHA-256 of the file.

    The file holds pictures alone: no sound, metadata, or trace of what made it. No half-written
    file is ever seen under the path.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.mp4")
    try:
        _encode(footage, unfinished)
        unfinished.chmod(0o600)
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return digest


def _encode(footage: Footage, path: Path) -> None:
    shape = footage.shape
    with av.open(str(path), "w", format="mp4", options=MUXER_OPTIONS) as container:
        rate = footage.fps.limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options=X264_OPTIONS)
        stream.width, stream.height = shape.width, shape.height
        stream.pix_fmt = "yuv420p"
        codec = stream.codec_context
        codec.color_primaries = codec.color_trc = codec.colorspace = BT709
        codec.color_range = ColorRange.MPEG
        clean = BitStreamFilterContext(WITHOUT_COMMENTS, stream)
        for pixels in footage.pixels:
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
            for packet in stream.encode(frame):
                container.mux(clean.filter(packet))
        for packet in stream.encode():
            container.mux(clean.filter(packet))
        container.mux(clean.filter(None))


def pad_clip(content: bytes, size: int) -> bytes:
    """Return the file at a given size, by a box of nothing that players skip.

    Args:
        size: in bytes; at least the file's own and `PADDING`, or the file is returned as it is.

    Source: ISO/IEC 14496-12, section 8.1.2, Free Space Box.
    """
    length = size - len(content)
    if length < PADDING:
        return content
    return content + length.to_bytes(4, "big") + b"free" + bytes(length - PADDING)
