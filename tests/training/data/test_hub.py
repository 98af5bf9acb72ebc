"""Data sets that the library `datasets` reads: folders in its layouts, no download."""

import gc
import shutil
import sys
from pathlib import Path

import pytest

from training.build import teacher_card
from training.config import load_config
from training.data.source import open_data
from training.forecast import describe_data

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
TINY = Path(__file__).parents[3] / "training" / "configs" / "tiny_vc2.toml"


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch):
    library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(library.config, "HF_HUB_OFFLINE", True)
    yield library
    gc.collect()  # of files that it leaves open, before a test that would see the warning


def opened(source: Path, out: Path):
    config = load_config(TINY, [f"data.hub={source}", f"run.out={out}"])
    return open_data(config, card := teacher_card(config)), describe_data(config, card)


def test_a_folder_of_videos_with_a_table_is_read(videos, tmp_path, datasets):
    source = tmp_path / "set"
    shutil.copytree(videos, source)
    table = (source / "captions.csv").read_text().replace("path,", "file_name,", 1)
    (source / "metadata.csv").write_text(table)
    (source / "captions.csv").unlink()

    clips, described = opened(source, tmp_path)

    assert {c.text for c in clips.captions} == {f"the video number {n}" for n in range(6)}
    assert {c.short_text for c in clips.captions} == {"", "video"}
    assert clips[0].window.frames.shape == (4, 16, 16, 3)
    assert "6 videos, 0 of them missing" in described


def test_videos_inside_a_table_are_the_files_that_they_were(videos, tmp_path, datasets):
    kinds = {"video": datasets.Video(decode=False), "caption": datasets.Value("string")}
    files = sorted(videos.glob("*.mp4"))[:2]
    rows = {
        "video": [{"bytes": file.read_bytes(), "path": file.name} for file in files],
        "caption": ["a cat", "a dog"],
    }
    table = datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))
    (tmp_path / "set").mkdir()
    table.to_parquet(tmp_path / "set" / "train.parquet")

    clips, _ = opened(tmp_path / "set", tmp_path)

    assert [caption.open().read() for caption in clips.captions] == [f.read_bytes() for f in files]
    assert {clips[0].text, clips[1].text} == {"a cat", "a dog"}


def test_a_data_set_without_texts_is_refused(tmp_path, datasets):
    table = datasets.Dataset.from_dict({"video": ["0.mp4"], "label": [1]})
    (tmp_path / "set").mkdir()
    table.to_parquet(tmp_path / "set" / "train.parquet")

    with pytest.raises(ValueError, match="columns video, label"):
        opened(tmp_path / "set", tmp_path)


@pytest.mark.parametrize("column", ["text", "short_text"])
def test_a_column_of_lists_is_refused(tmp_path, datasets, column):
    columns = {"video": ["0.mp4"], "text": ["a cat"], column: [["a cat", "a dog"]]}
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "set" / "train.parquet")

    with pytest.raises(ValueError, match="set, row 0"):
        opened(tmp_path / "set", tmp_path)


def test_the_library_is_asked_for_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)

    with pytest.raises(ValueError, match="pip install"):
        opened(tmp_path, tmp_path)


def test_a_data_set_beside_a_folder_is_refused():
    with pytest.raises(ValueError, match="data.hub"):
        load_config(TINY, ["data.hub=owner/name", "data.folder=videos"])
