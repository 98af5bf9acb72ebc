"""What an mp4 says about its making, and whether two mp4s are the same video.

python -m turbo.provenance clip.mp4              # its recipe, and the mark that a model made it
python -m turbo.provenance clip.mp4 again.mp4    # the same file, the same frames, or which differ

Both print JSON. No torch, so that this starts at once: a page runs it on the files of strangers in
a process of its own.
"""

import argparse
import json
import re
import struct
from argparse import RawDescriptionHelpFormatter as RawDescription
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np

from turbo.manifest import sha256_of

# https://cv.iptc.org/newscodes/digitalsourcetype/
AI_GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
    f' Iptc4xmpExt:DigitalSourceType="{AI_GENERATED}"/>'
    '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
)
_XMP_BOX = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")  # XMP specification, part 3
MAX_TEXT = 16 * 1024  # characters of a recipe
_X264 = re.compile(rb"x264 - core [ -~]+")  # the encoder's version and settings, in the first frame

# "frames": the frames are the same, the rest of the file is not.
# "encoded again": all that is known is that another encoder, or other settings, wrote it.
Kind = Literal["file", "frames", "encoded again", "other frames", "other size"]


@dataclass(frozen=True)
class Provenance:
    """What a file says about its making."""

    recipe: dict[str, Any]  # empty without one of ours
    ai_generated: bool  # IPTC digital source type


@dataclass(frozen=True)
class Comparison:
    """How a clip differs from another one."""

    kind: Kind
    frames: int = 0  # of the longer one
    different: int = 0  # frames
    worst: int = 0  # the frame that differs most, counted from 1; 0 if none
    largest: int = 0  # difference of a pixel in that frame, in 255 levels


def mark_generated(path: Path) -> None:
    """Add the mark that a model made this mp4: IPTC's digital source type, as XMP."""
    packet = _XMP.encode()
    with path.open("ab") as file:
        file.write(struct.pack(">I4s16s", 24 + len(packet), b"uuid", _XMP_BOX) + packet)


@dataclass(frozen=True)
class Signer:
    """Signs files with Content Credentials (C2PA): who made them, and that a model did.

    The signature differs every time, so a signed file has the frames of an unsigned one but not its
    bytes.
    """

    certificate: Path  # PEM: the signer's, then those above it
    key: Path  # PEM: ECDSA on the curve P-256

    def sign(self, path: Path) -> None:
        """Sign an mp4 in place. Nothing is requested from the network.

        Raises:
            ValueError: the certificate or the key cannot be used, or `c2pa` is not installed.
            OSError: a file cannot be read or written.
        """
        try:
            import c2pa
        except ImportError as missing:
            raise ValueError("Signing needs a package: pip install c2pa-python.") from missing
        made = {"action": "c2pa.created", "digitalSourceType": AI_GENERATED}
        actions = {"label": "c2pa.actions.v2", "data": {"actions": [made]}}
        claim = {"claim_generator_info": [{"name": "t2v-turbo"}], "assertions": [actions]}
        info = c2pa.C2paSignerInfo(
            "es256", self.certificate.read_bytes(), self.key.read_bytes(), None
        )
        signed = path.with_name(f"{path.stem}-signed{path.suffix}")
        try:
            with c2pa.Signer.from_info(info) as signer, c2pa.Builder(claim) as builder:
                builder.sign_file(path, signed, signer)
            signed.replace(path)
        except c2pa.C2paError as refusal:
            raise ValueError(
                f"{self.certificate} and {self.key} cannot sign a video: {refusal}. They must be "
                "a chain of certificates that may sign documents, and its ECDSA P-256 key, in PEM."
            ) from refusal
        finally:
            signed.unlink(missing_ok=True)


def read_provenance(path: Path) -> Provenance:
    """Read what an mp4 says about its making, without decoding a frame.

    Raises:
        ValueError: it is no mp4.
    """
    with _open(path) as container:
        metadata = container.metadata
        return Provenance(read_recipe(metadata), AI_GENERATED in metadata.get("xmp", ""))


def read_recipe(metadata: dict[str, str]) -> dict[str, Any]:
    """Return the recipe in the metadata of an mp4; empty where there is none of ours."""
    comment = metadata.get("comment", "")
    if len(comment) > MAX_TEXT:
        return {}
    try:
        recipe = json.loads(comment)
    except (ValueError, RecursionError):  # the comment of another program
        return {}
    return recipe if isinstance(recipe, dict) else {}


def compare_clips(clip: Path, reference: Path) -> Comparison:
    """Compare a clip, which may be anything, with one of ours.

    The clip is decoded only while it has the codec, the size and the frames of the reference.

    Raises:
        ValueError: a file is no mp4, or is damaged.
    """
    if sha256_of(clip) == sha256_of(reference):
        return Comparison("file")
    with _open(clip) as one, _open(reference) as other:
        ours, theirs = other.streams.video[0], one.streams.video[0]
        codec = theirs.codec_context  # None of a codec that FFmpeg does not know
        if codec is None or codec.name != ours.codec_context.name:
            return Comparison("encoded again")
        if (theirs.width, theirs.height) != (ours.width, ours.height):
            return Comparison("other size")
        codec.options = {"max_pixels": str(2 * ours.width * ours.height)}
        differences = []
        for ours_frame, their_frame in zip_longest(other.decode(ours), one.decode(theirs)):
            differences.append(_difference(ours_frame, their_frame))
            if ours_frame is None:  # it may go on for hours
                break
    largest = max(differences)
    if not largest:
        return Comparison("frames", len(differences))
    same_encoder = _encoder(clip) == _encoder(reference)
    return Comparison(
        kind="other frames" if same_encoder else "encoded again",
        frames=len(differences),
        different=sum(difference > 0 for difference in differences),
        # Not the first one: the encoder spends its bits otherwise some frames before a change.
        worst=differences.index(largest) + 1,
        largest=largest,
    )


def _difference(one: av.VideoFrame | None, other: av.VideoFrame | None) -> int:
    """Return the largest difference of two frames' pixels in 255 levels."""
    if one is None or other is None or (one.width, one.height) != (other.width, other.height):
        return 255
    first, second = (frame.to_ndarray(format="rgb24").astype(np.int16) for frame in (one, other))
    return int(np.abs(first - second).max())


def _encoder(path: Path) -> bytes:
    """Return version and settings of x264 as the first frame has them; empty of other encoders."""
    with _open(path) as container:
        packet = next(container.demux(video=0))
        found = _X264.search(bytes(packet))
        return found[0] if found else b""


@contextmanager
def _open(path: Path) -> Iterator[av.container.InputContainer]:
    try:
        # The named format, so that no file is taken for a list of other files or addresses.
        with av.open(
            path.absolute(), format="mp4", options={"export_xmp": "1"}, metadata_errors="replace"
        ) as container:
            if not container.streams.video:
                raise ValueError("The file has no video.")
            yield container
    except av.FFmpegError as damage:
        raise ValueError(
            f"The file is not an mp4 video, or is damaged ({damage.strerror})."
        ) from damage


def main() -> None:
    """Print what one clip says, or how it differs from another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RawDescription)
    parser.add_argument("clip", type=Path)
    parser.add_argument("reference", type=Path, nargs="?", help="clip to compare it with")
    options = parser.parse_args()
    try:
        found = (
            read_provenance(options.clip)
            if options.reference is None
            else compare_clips(options.clip, options.reference)
        )
    except ValueError as refusal:
        parser.error(str(refusal))
    except OSError as failure:
        parser.error(f"A file cannot be read: {failure}. Check its path.")
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    main()
