"""What a run reads of its training data."""

from pathlib import Path

import pytest

from training.config import load_config
from training.data.source import read_prompts

TINY = Path(__file__).parents[3] / "training" / "configs" / "tiny_vc2.toml"


def prompts_of(file: Path) -> list[str]:
    return read_prompts(load_config(TINY, [f"data.prompts={file}"]).data)


def test_blank_lines_of_a_file_of_prompts_are_no_prompts(tmp_path: Path):
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\n\na dog\n   \na bird\n")

    assert prompts_of(file) == ["a cat", "a dog", "a bird"]


def test_a_file_of_blank_lines_has_no_prompts(tmp_path: Path):
    file = tmp_path / "prompts.txt"
    file.write_text("\n   \n")

    with pytest.raises(ValueError, match="at least 1 prompt"):
        prompts_of(file)
