"""Read and write clips: a clip is read completely or refused, and written by one recipe."""

import hashlib
import os
import secrets
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.video.reformatter import ColorRange, Colorspace, Interpolation

from human_eval.clips import timing
from human_eval.errors import StudyError
from turbo import display

# H.264, which every browser plays. Constant quality, with losses that no rater can see. No
# B-frames, so that a loop starts at time 0. One thread, so that the bytes do not depend on the
# machine.
X264_OPTIONS = {"crf": "12", "preset": "veryfast", "bf": "0", "threads": "1"}
# Keep the name of the program and the settings of the encoder out of the file.
MUXER_OPTIONS = {"movflags": "faststart", "fflags": "+bitexact"}
WITHOUT_COMMENTS = "filter_units=remove_types=6"
BT709 = 1  # the colour standard that browsers assume for H.264; the same in all three fields

BT2020 = 9  # primaries, in the numbers of ITU-T H.273, as the transfer functions below
HDR = {16: "PQ, SMPTE ST 2084", 18: "HLG, ARIB STD-B67"}

PADDING = 8  # bytes of an empty MP4 box
MAX_BYTES = 256 * 2**20
VISIBLE_MARK = '"visible_mark": true'  # in the recipe that turbo writes into a file
MAX_PIXELS = 2**31  # height times width times frames: half a minute of 1920 x 1080


@dataclass(frozen=True)
class Shape:
    """Size, rate and length of a clip; both clips of a pair share them."""

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

    pixels: np.ndarray  # uint8, [frames, height, width, 3], RGB
    fps: Fraction

    @property
    def shape(self) -> Shape:
        count, height, width, _ = self.pixels.shape
        return Shape(width, height, self.fps, count)

    def fit(self, shape: Shape) -> "Footage":
        """Return the video in a smaller shape, at the same speed, without the surplus frames."""
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
        StudyError: the file is missing, cut short, damaged, too large, bears a visible mark, or
            has no frames or no frame rate.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise StudyError(f"The video cannot be read: {error.strerror}. Check the path.") from error
    if not 0 < size <= MAX_BYTES:
        raise StudyError(
            f"The video has {size:,} bytes; between 1 and {MAX_BYTES:,} are allowed. Make it again."
        )
    try:
        path = path.absolute()  # FFmpeg takes what precedes a colon for a protocol
        whole = {"err_detect": "explode"}
        with av.open(str(path), options=whole, metadata_errors="replace") as container:
            _check_whole(path, container.format.name)
            if VISIBLE_MARK in container.metadata.get("comment", ""):
                raise StudyError(
                    'The video bears the words "AI-generated", by which raters could recognise its '
                    "system. Make it again without --visible-mark."
                )
            return _decode(container, path)
    except (av.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise StudyError(f"The video cannot be decoded: {reason}. Make it again.") from error


def _check_whole(path: Path, format_: str) -> None:
    """Refuse a file cut short in a format that states no number of frames; see `_decode`."""
    if format_ == "gif":
        # Every GIF ends with an empty block and the trailer; zeros may follow.
        whole = path.read_bytes().rstrip(b"\0").endswith(b"\0;")
    elif format_ == "matroska,webm":
        content = path.read_bytes()
        whole = len(content) >= _find_matroska_end(content)
    else:
        return
    if not whole:
        raise StudyError("The file is cut short: its end is missing. Copy or make it again.")


def _find_matroska_end(content: bytes) -> int:
    """Return the length of a Matroska or WebM file according to the sizes of its elements.

    A live recording states neither the size of the segment nor a duration, only the sizes of the
    elements in it, so a cut between two elements is not found.

    Source: RFC 8794 (EBML), sections 4 to 6.
    """
    at = 0
    while at < len(content) and content[at]:  # no element starts with 0: that is padding
        _, at = _read_number(content, at)  # ID of the element
        size, at = _read_number(content, at)
        at += size or 0  # without a size, the elements inside it follow
    return at


def _read_number(content: bytes, at: int) -> tuple[int | None, int]:
    """Read a number whose leading zero bits give its length in bytes.

    Returns:
        The number, or None if all its bits are set ("unknown"), and the position after it.
    """
    first = content[at] if at < len(content) else 0
    length = 9 - first.bit_length()
    largest = 2 ** (7 * length) - 1
    number = int.from_bytes(content[at : at + length], "big") & largest
    return None if number == largest else number, at + length


def _decode(container: av.container.InputContainer, path: Path) -> Footage:
    if not container.streams.video:
        raise StudyError("The file has no video. Make it again.")
    stream = container.streams.video[0]
    stream.codec_context.options = {"err_detect": "explode"}
    if not stream.average_rate:
        raise StudyError("The video has no frame rate, or only one frame. Make it again.")
    frames: list[np.ndarray] = []
    times: list[Fraction | None] = []
    shown = 0
    for packet in container.demux(stream):
        shown += bool(packet.size) and not packet.is_discard
        for frame in packet.decode():
            picture = _picture(frame, stream)
            frames.append(picture)
            _check_pixels(picture.shape[1], picture.shape[0], len(frames))
            pts, unit = frame.pts, frame.time_base
            times.append(None if pts is None or unit is None else pts * Fraction(unit))
    _check_count(stream, path, len(frames), shown)
    if len(frames) < 2:
        raise StudyError(f"The video has {len(frames)} frames; it needs 2 or more. Make it again.")
    clock = timing.find_clock(times, stream)
    height, width, _ = frames[0].shape
    _check_pixels(width, height, len(clock.numbers))
    return Footage(np.stack([frames[number] for number in clock.numbers]), clock.fps)


def _check_count(stream: av.VideoStream, path: Path, decoded: int, shown: int) -> None:
    """Refuse a file without all frames that it states; an edit list may hide some of them."""
    if not stream.frames or decoded == stream.frames:
        return
    all_frames = {"ignore_editlist": "1"}
    with av.open(str(path), options=all_frames, metadata_errors="replace") as container:
        stored = sum(bool(packet.size) for packet in container.demux(video=0))
    if decoded != shown or stored != stream.frames:
        raise StudyError(
            f"The file is cut short: it has {decoded} of the {stream.frames} frames that it "
            "states. Copy or make it again."
        )


def _picture(frame: av.VideoFrame, stream: av.VideoStream) -> np.ndarray:
    """Return a frame as a player shows it: its colours, the shape of its pixels, its rotation."""
    if frame.is_corrupt:
        raise StudyError("The video has a damaged frame. Copy or make it again.")
    if name := HDR.get(frame.color_trc):
        raise StudyError(
            f"The video is HDR ({name}), which raters' screens show differently. Convert it to "
            "standard range: BT.709, 8 bits."
        )
    if frame.color_primaries == BT2020:
        raise StudyError(
            "The video has the wide colours of BT.2020, which raters' screens show differently. "
            "Convert it to BT.709."
        )
    try:
        _check_pixels(*display.square_size(frame, stream.sample_aspect_ratio))
        return display.show(frame, stream.sample_aspect_ratio)
    except display.DisplayError as refusal:
        raise StudyError(str(refusal)) from refusal


def _check_pixels(width: int, height: int, frames: int = 1) -> None:
    if width * height * frames > MAX_PIXELS:
        raise StudyError(
            f"The video has more than {MAX_PIXELS:,} pixels in all frames. Shorten it."
        )


def store_footage(footage: Footage, folder: Path) -> tuple[str, str, int]:
    """Encode a clip into the media folder under a random name.

    Returns:
        The name, the SHA-256 of the file, and its size in bytes.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = f"{secrets.token_hex(16)}.mp4"
    digest = write_footage(footage, folder / name)
    return name, digest, (folder / name).stat().st_size


def write_footage(footage: Footage, path: Path) -> str:
    """Encode a clip by the study's recipe and return the SHA-256 of the file.

    The file holds video only: no sound, no metadata, no trace of the program that made it. It
    appears under its path only when it is complete.
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
    """Pad an MP4 file to a given size with an empty box, which players skip.

    Args:
        size: in bytes; if it is less than the file's size plus `PADDING`, nothing is added.

    Source: ISO/IEC 14496-12, section 8.1.2, Free Space Box.
    """
    length = size - len(content)
    if length < PADDING:
        return content
    return content + length.to_bytes(4, "big") + b"free" + bytes(length - PADDING)
