"""A decoded frame as a player shows it: its colours, the shape of its pixels, its rotation.

The study uses this module too, so it needs neither torch nor anything else of the library.
"""

from fractions import Fraction
from typing import Any, cast

import av
import numpy as np
from av.sidedata.sidedata import SideDataContainer
from av.video.reformatter import Colorspace, Interpolation

MAX_ASPECT = 4  # width to height of a pixel


class DisplayError(ValueError):
    """The file asks for a pixel shape, a scale or a rotation that is not supported."""


def show(frame: av.VideoFrame, aspect: Fraction | None) -> np.ndarray:
    """Return the picture, uint8 [height, width, 3], RGB.

    Args:
        aspect: width to height of a pixel, which the stream states; None is 1.

    Raises:
        DisplayError: the form of the pixels or the rotation is not supported.
    """
    matrix, square = find_matrix(frame), frame
    width, height = square_size(frame, aspect)
    if (width, height) != (frame.width, frame.height):
        square = frame.reformat(
            width, height, "rgb24", src_colorspace=matrix, interpolation=Interpolation.LANCZOS
        )
    return turn(square.to_ndarray(format="rgb24", src_colorspace=matrix), frame)


def find_matrix(frame: av.VideoFrame) -> Colorspace:
    """Return the matrix of the colours: BT.709 or BT.2020 if the frame is tagged so, else BT.601.

    The encoders of research code use BT.601 and do not say so in the file.
    """
    tagged = (Colorspace.ITU709, Colorspace.BT2020)
    return next((matrix for matrix in tagged if frame.colorspace == matrix), Colorspace.ITU601)


def square_size(frame: av.VideoFrame, aspect: Fraction | None) -> tuple[int, int]:
    """Return the width and height of a frame when its pixels are made square.

    Neither is smaller than before, so no row or column is lost.

    Raises:
        DisplayError: the sides of a pixel differ by more than a factor of `MAX_ASPECT`.
    """
    if not aspect or aspect == 1:
        return frame.width, frame.height
    if not 1 / MAX_ASPECT <= aspect <= MAX_ASPECT:
        raise DisplayError(
            f"The video has pixels of {aspect.numerator}:{aspect.denominator}. Make it "
            "again with square pixels."
        )
    if aspect > 1:
        return 2 * round(frame.width * aspect / 2), frame.height
    return frame.width, 2 * round(frame.height / aspect / 2)


def is_on_its_side(frame: av.VideoFrame) -> bool:
    """Return whether width and height are exchanged when the frame is shown."""
    a, b, c, d = _display_matrix(frame)
    return bool(np.allclose(np.abs([a, b, c, d]), [0, 1, 1, 0], atol=1e-3))


def turn(pixels: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """Rotate and mirror a picture by the display matrix of its file.

    Raises:
        DisplayError: the matrix also scales, or rotates by no multiple of 90 degrees.

    Source: FFmpeg, libavutil/display.h: x' = a x + c y, y' = b x + d y.
    """
    a, b, c, d = _display_matrix(frame)
    if is_on_its_side(frame):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    elif not np.allclose(np.abs([a, b, c, d]), [1, 0, 0, 1], atol=1e-3):
        raise DisplayError(
            "The file asks to show the video scaled, or rotated by an angle that is no multiple "
            "of 90 degrees. Make it again without that."
        )
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _display_matrix(frame: av.VideoFrame) -> tuple[float, float, float, float]:
    """Return a, b, c and d, which the file has in units of 2^-16."""
    # `frame.side_data` would refer back to the frame, which would then stay in memory, with the
    # threads that scale it, until garbage is collected; a process forked meanwhile waits for them.
    entry = SideDataContainer(frame).get("DISPLAYMATRIX")  # type: ignore[call-arg]  # stub
    if entry is None:
        return 1, 0, 0, 1
    a, b, _, c, d, *_ = np.frombuffer(bytes(cast(Any, entry)), np.int32)[:9] / 2**16
    return a, b, c, d
