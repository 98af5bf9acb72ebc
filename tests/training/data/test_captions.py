"""Tables of captions."""

import json
from pathlib import Path

import pytest

from training.data import captions
from training.data.captions import read_captions
from turbo.text_files.decoding import MAX_BYTES


@pytest.mark.parametrize(
    "name, lines",
    [("c.csv", "path,text\na.mp4,{}"), ("c.jsonl", '{{"path": "a.mp4", "text": "{}"}}')],
)
def test_a_table_of_captions_may_be_larger_than_other_text_files(
    tmp_path: Path, monkeypatch, name, lines
):
    (tmp_path / name).write_text(lines.format("x" * MAX_BYTES))

    [caption] = read_captions(tmp_path, name)

    assert len(caption.text) == MAX_BYTES
    monkeypatch.setattr(captions, "MAX_BYTES", MAX_BYTES)
    with pytest.raises(ValueError, match=r"tar files.*data\.hub"):
        read_captions(tmp_path, name)


@pytest.mark.parametrize("end", ["\u2028", "\x85"])
def test_only_a_line_feed_ends_a_line_of_captions(tmp_path: Path, end):
    rows = [{"path": "a.mp4", "text": f"a cat{end}runs"}, {"path": "b.mp4", "text": "a dog"}]
    lines = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "c.jsonl").write_text(lines, encoding="utf-8", newline="")

    texts = [caption.text for caption in read_captions(tmp_path, "c.jsonl")]

    assert texts == [f"a cat{end}runs", "a dog"]


@pytest.mark.parametrize(
    "row",
    [
        {"path": "a.mp4", "text": ["a cat", "a dog"]},
        {"path": "a.mp4", "text": 5},
        {"path": 7, "text": "a cat"},
        {"path": ["a.mp4"], "text": "a cat"},
        {"path": "a.mp4", "text": "a cat", "short_text": ["a cat"]},
    ],
)
def test_values_that_are_no_texts_are_refused_by_file_and_line(tmp_path: Path, row):
    rows = [{"path": "a.mp4", "text": "a cat"}, row]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))

    with pytest.raises(ValueError, match=r"c\.jsonl, line 2"):
        read_captions(tmp_path, "c.jsonl")
