"""What a run reads of its training data."""

import hashlib
import json
from pathlib import Path

import pytest

from training.data.captions import Caption, Member
from training.data.source import hash_captions, read_prompts


def test_blank_lines_of_a_file_of_prompts_are_no_prompts(tmp_path: Path):
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\n\na dog\n   \na bird\n")

    assert read_prompts(file) == ["a cat", "a dog", "a bird"]


def test_a_file_of_blank_lines_has_no_prompts(tmp_path: Path):
    file = tmp_path / "prompts.txt"
    file.write_text("\n   \n")

    with pytest.raises(ValueError, match="has no prompts"):
        read_prompts(file)


def sha256_of_rows(*rows: list[str | None]) -> str:
    """The hash of a table, as `dataset.json` has it since the first version."""
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def test_a_table_is_hashed_with_paths_relative_to_its_folder():
    low, high, elsewhere = (
        hash_captions([Caption(folder / place / "0.mp4", "a cat")], folder)
        for folder, place in [
            (Path("videos"), "low"),
            (Path("videos"), "high"),
            (Path("/data/videos"), "low"),
        ]
    )

    assert low != high
    assert low == elsewhere == sha256_of_rows(["low/0.mp4", None, "a cat", ""])


@pytest.mark.parametrize("folder", [Path("videos"), Path("/data/videos")])
def test_videos_directly_in_the_folder_have_the_hash_of_earlier_versions(folder: Path):
    captions = [Caption(folder / "0.mp4", "a cat"), Caption(folder / "1.mp4", "a dog", "dog")]

    earlier = sha256_of_rows(["0.mp4", None, "a cat", ""], ["1.mp4", None, "a dog", "dog"])
    assert hash_captions(captions, folder) == earlier


def test_tars_data_sets_and_prepared_clips_have_the_hash_of_earlier_versions():
    in_tar = Caption(Path("videos/sub/a.tar"), "a cat", member=Member("part/0.mp4", 512, 9))
    of_hub = Caption(Path("owner/name/7"), "a cat", content=lambda: b"")
    prepared = Caption(Path("videos/low/0.mp4"), "a cat")

    assert hash_captions([in_tar], Path("videos")) == sha256_of_rows(
        ["a.tar", "part/0.mp4", "a cat", ""]
    )
    assert hash_captions([of_hub], Path()) == sha256_of_rows(["7", None, "a cat", ""])
    assert hash_captions([prepared], None) == sha256_of_rows(["0.mp4", None, "a cat", ""])
