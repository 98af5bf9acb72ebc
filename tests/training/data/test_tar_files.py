"""Videos in WebDataset shards: the same clips as from a folder, in any order."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from training.data.captions import Caption, read_captions
from training.data.source import list_captions
from training.data.tar_files import read_tars
from training.data.video_folder import ClipShape, VideoFolder

SHAPE = ClipShape(frames=4, height=16, width=16, fps=8, stride="exact", resize="crop")


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def pack(captions: list[Caption], folder: Path, per_tar: int = 4) -> None:
    for first in range(0, len(captions), per_tar):
        files = {}
        for row, caption in enumerate(captions[first : first + per_tar], first):
            facts = {"caption": caption.text, "short_text": caption.short_text}
            files[f"part/{row:04d}.mp4"] = caption.path.read_bytes()
            files[f"part/{row:04d}.json"] = json.dumps(facts).encode()
        write_tar(folder / f"{first:04d}.tar", files)


@pytest.mark.parametrize("damage", ["zeros", "cut", "cut within the header", "a bit"])
def test_a_tar_that_is_damaged_at_a_header_is_refused(tmp_path, damage):
    path = tmp_path / "a.tar"
    files = {f"{i}.{end}": b"x" * 90_000 for i in range(4) for end in ("mp4", "txt")}
    write_tar(path, files)
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        header = tar.getmembers()[4].offset
    if damage == "zeros":  # as of a download that was killed
        content[header:] = bytes(len(content) - header)
    elif damage == "a bit":
        content[header + 10] ^= 1
    else:
        del content[header + 100 * ("within" in damage) :]
    path.write_bytes(content)

    with pytest.raises(ValueError, match="cut off or damaged"):
        read_tars(tmp_path)


def test_tars_give_the_clips_of_a_folder(videos, tmp_path):
    captions = read_captions(videos, "captions.csv")
    pack(captions, tmp_path)

    in_tars = list_captions(tmp_path, "captions.csv")

    folder, tars = (VideoFolder(found, SHAPE, seed=3) for found in (captions, in_tars))
    assert {caption.path.name for caption in in_tars} == {"0000.tar", "0004.tar"}
    for position in (5, 0, 8, 3):
        there, here = folder[position], tars[position]
        assert np.array_equal(here.window.frames, there.window.frames)
        assert (here.text, here.short_text) == (there.text, there.short_text)


def test_a_text_file_is_a_caption(tmp_path):
    write_tar(tmp_path / "a.tar", {"x.mp4": b"video", "x.txt": b"a cat\n", "x.seen.jpg": b""})

    (caption,) = read_tars(tmp_path)

    assert (caption.text, caption.short_text) == ("a cat", "")
    assert caption.name == str(tmp_path / "a.tar/x.mp4")
    assert caption.open().read() == b"video"


@pytest.mark.parametrize("name, content", [("x.txt", "a cat"), ("x.json", '{"text": "a cat"}')])
def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path, name, content):
    write_tar(tmp_path / "a.tar", {"x.mp4": b"video", name: content.encode("utf-8-sig")})

    (caption,) = read_tars(tmp_path)

    assert caption.text == "a cat"


def test_files_of_macos_beside_others_are_no_samples(tmp_path):
    files = {"x.mp4": b"video", "x.txt": b"a cat"}
    copies = {f"{folder}._{name}": b"\0" for folder in ("", "part/") for name in files}
    write_tar(tmp_path / "a.tar", copies | files)

    (caption,) = read_tars(tmp_path)

    assert caption.open().read() == b"video"


def test_tars_take_the_place_of_the_usual_table_alone(tmp_path):
    write_tar(tmp_path / "a.tar", {"x.mp4": b"video", "x.txt": b"a cat"})

    assert [caption.text for caption in list_captions(tmp_path, "captions.csv")] == ["a cat"]
    with pytest.raises(ValueError, match=r"trian\.csv"):
        list_captions(tmp_path, "trian.csv")


@pytest.mark.parametrize(
    "files, message",
    [
        ({"x.mp4": b""}, "x has no text"),
        ({"x.mp4": b"", "x.txt": b" "}, "x has no text"),
        ({"x.txt": b"a cat"}, "x has 0 videos"),
        ({"x.mp4": b"", "x.webm": b"", "x.txt": b"a cat"}, "x has 2 videos"),
        ({"x.mp4": b"", "x.json": b"{"}, "x.json is not JSON"),
        ({"x.mp4": b"", "x.json": b"[]"}, "x.json is not an object"),
        ({"x.mp4": b"", "x.json": b'{"text": "a", "short_text": ["b"]}'}, "x: .*short_text"),
        ({"x.mp4": b"", "x.txt": b"\xff"}, "a.tar cannot be read"),
        ({}, "hold no videos"),
    ],
)
def test_a_tar_without_captioned_videos_is_refused(tmp_path, files, message):
    write_tar(tmp_path / "a.tar", files)

    with pytest.raises(ValueError, match=message):
        read_tars(tmp_path)


def test_a_tar_that_is_cut_off_is_refused(tmp_path):
    write_tar(tmp_path / "a.tar", {"x.mp4": bytes(5000), "x.txt": b"a cat"})
    whole = (tmp_path / "a.tar").read_bytes()
    for size in (100, 3000, 5900):
        (tmp_path / "a.tar").write_bytes(whole[:size])

        with pytest.raises(ValueError, match="a.tar"):
            read_tars(tmp_path)
