"""Videos as other programs write them: colours of any standard, rotated, with oblong pixels."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Colorspace

UPRIGHT = (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)  # the matrix of the track header
ROTATED = (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)  # a quarter turn to the right
GREEN = (60, 180, 75)  # which BT.601 and BT.709 store differently


def write_foreign_video(
    path: Path,
    picture: np.ndarray,
    *,
    colours: Colorspace = Colorspace.ITU601,
    tag: int = 2,
    aspect: Fraction | None = None,
    rotated: bool = False,
) -> Path:
    """Write 20 frames of a picture, at 16 per second.

    Args:
        tag: what the file says of its colours, by ITU-T H.273; 2 says nothing.
        aspect: width to height of a pixel.
    """
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "Cafe"
        stream = container.add_stream("libx264", rate=16, options={"crf": "1"})
        stream.height, stream.width, _ = picture.shape
        stream.pix_fmt = "yuv420p"
        stream.codec_context.colorspace = tag
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for _ in range(20):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=colours)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if rotated:
        content = path.read_bytes()
        at = content.index(struct.pack(">9i", *UPRIGHT), content.index(b"tkhd"))
        path.write_bytes(content[:at] + struct.pack(">9i", *ROTATED) + content[at + 36 :])
    return path


def paint(height: int, width: int) -> np.ndarray:
    """Return a green picture whose left half is white."""
    picture = np.full((height, width, 3), GREEN, np.uint8)
    picture[:, : width // 2] = 255
    return picture
