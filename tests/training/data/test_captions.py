"""Tables of captions."""

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
