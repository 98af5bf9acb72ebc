"""A video that knows how it was made, and its mp4 file, which says so too."""

import hashlib
import json
import os
import platform
import secrets
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
from av.video.reformatter import ColorRange, Colorspace
from einops import rearrange, repeat
from jaxtyping import UInt8

from turbo.display import show
from turbo.provenance import Signer, mark_generated, read_recipe
from turbo.types import Frames

# H.264 that every browser plays. All frames but the first are predicted from earlier ones only
# (bf=0), so that a loop and a synchronised player start at time 0; one thread, so that the bytes do
# not depend on the number of cores.
X264_OPTIONS = {"crf": "10", "preset": "veryfast", "bf": "0", "threads": "1"}
SUFFIX = ".mp4"
VISIBLE_MARK = "AI-generated"
BT709 = 1  # the colour standard browsers assume of H.264; the same number in all three fields


@dataclass(frozen=True, eq=False)
class Video:
    """Frames, their rate, and the recipe that makes them again."""

    frames: UInt8[np.ndarray, "F H W 3"]
    fps: float
    recipe: dict[str, Any] = field(default_factory=dict)  # JSON: model, prompt, seed, ...

    @classmethod
    def from_frames(
        cls, frames: Frames, fps: float, recipe: dict[str, Any] | None = None
    ) -> "Video":
        """Take the one video of a batch of one, rounding to the nearest of 256 levels.

        The published code cuts off instead, which is half a level darker on average.
        """
        levels = (255 * frames[0]).round().clamp(0, 255).byte().cpu().numpy()
        pixels = rearrange(levels, "F rgb H W -> F H W rgb")
        return cls(np.ascontiguousarray(pixels), fps, recipe or {})

    def save(self, path: Path | str, *, enlarge: int = 1, signer: Signer | None = None) -> Path:
        """Write an mp4 with the recipe in its comment; no half-written file is ever seen.

        A video with a recipe is marked as made by a model (`turbo.provenance`), and in words on
        every frame if its recipe says so.

        Args:
            enlarge: each pixel becomes a square of this side. Pixel art keeps its colours only
                when enlarged, since the format stores colour at half resolution.
            signer: signs the file; None leaves it unsigned.
        """
        path = Path(path)
        if path.suffix.lower() != SUFFIX:
            raise ValueError(f"Expected a path that ends in {SUFFIX}, got {path}. Rename it.")
        frames = repeat(self.frames, "F H W rgb -> F (H y) (W x) rgb", y=enlarge, x=enlarge)
        if self.recipe.get("visible_mark"):
            mark = draw_visible_mark(*frames.shape[1:3])
            frames = frames.copy()  # may be a view of our own
            frames[:, -mark.shape[0] :, : mark.shape[1]] = mark
        _, height, width, _ = frames.shape
        if height % 2 or width % 2:
            raise ValueError(
                f"Expected an even height and width, got {height}x{width}. Enlarge by 2."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{_own_prefix()}{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}")
        try:
            _encode(frames, self.fps, json.dumps(self.recipe, ensure_ascii=False), unfinished)
            if self.recipe:
                mark_generated(unfinished)
            if signer is not None:
                signer.sign(unfinished)
            with unfinished.open("rb+") as file:
                os.fsync(file.fileno())  # a manifest will list it
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
        return path


def _own_prefix() -> str:
    """Return the prefix of this machine's unfinished files; it is short, and hides them."""
    machine = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
    return f".unfinished-{machine}-"


def remove_unfinished(folder: Path) -> None:
    """Remove the files that killed processes of this machine left while encoding.

    Call it before this process saves a video: in a container, the killed one may have had its id.
    """
    prefix = _own_prefix()
    for file in folder.glob(f"{prefix}*{SUFFIX}"):
        process = file.name.removeprefix(prefix).partition("-")[0]
        if not process.isdecimal():
            continue  # another program wrote it
        if int(process) == os.getpid() or not psutil.pid_exists(int(process)):
            file.unlink(missing_ok=True)


def draw_visible_mark(height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """Return `VISIBLE_MARK` in white on black, for the lower left corner of frames of this size.

    Raises:
        ValueError: the frames are too small for it.
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(max(10, min(height // 20, width // 12)))
    left, top, right, bottom = (round(edge) for edge in font.getbbox(VISIBLE_MARK))
    margin = (bottom - top) // 3
    strip = Image.new("RGB", (right - left + 2 * margin, bottom - top + 2 * margin))
    if strip.width > width or strip.height > height:
        raise ValueError(
            f"The visible mark needs frames of {strip.width} x {strip.height} pixels; these have "
            f"{width} x {height}. Enlarge them, or leave the mark out."
        )
    ImageDraw.Draw(strip).text((margin - left, margin - top), VISIBLE_MARK, "white", font)
    return np.asarray(strip)


def _encode(frames: UInt8[np.ndarray, "F H W 3"], fps: float, comment: str, path: Path) -> None:
    # An absolute path: FFmpeg takes the part of a relative one before a colon for a protocol.
    with av.open(
        path.absolute(), "w", format="mp4", options={"movflags": "faststart"}
    ) as container:
        container.metadata["comment"] = comment
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options=X264_OPTIONS)
        _, stream.height, stream.width, _ = frames.shape
        stream.pix_fmt = "yuv420p"
        codec = stream.codec_context
        codec.color_primaries = codec.color_trc = codec.colorspace = BT709
        codec.color_range = ColorRange.MPEG
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def load_video(path: Path | str) -> Video:
    """Read an mp4 as a player shows it; its recipe is empty where the file has none of ours.

    Raises:
        DisplayError: the form of its pixels or its rotation is not supported.
    """
    with av.open(Path(path).absolute(), metadata_errors="ignore") as container:
        stream = container.streams.video[0]
        frames = [show(frame, stream.sample_aspect_ratio) for frame in container.decode(stream)]
        rate = stream.average_rate or Fraction(0)
        return Video(np.stack(frames), float(rate), read_recipe(container.metadata))
