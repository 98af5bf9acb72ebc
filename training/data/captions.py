"""The list of training videos: a folder of files with a table of captions."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from turbo.text_files.decoding import read_text
from turbo.text_files.tables import PATH_NAMES, PROMPT_NAMES, parse_table, require_columns

TEXT_NAMES = ("text", *PROMPT_NAMES)  # of the column of captions
_COLUMNS = {"path": PATH_NAMES, "text": TEXT_NAMES}  # and, optionally, short_text
MAX_BYTES = 2**30  # of a table: a million captions of 1,000 bytes
_REMEDY = "Put the videos and their texts into tar files, or name a data set in data.hub."


@dataclass(frozen=True)
class Member:
    """A video inside a tar file."""

    name: str
    offset: int  # bytes
    size: int


@dataclass(frozen=True)
class Caption:
    """One row of the table of captions."""

    path: Path
    text: str
    short_text: str = ""
    member: Member | None = None  # where `path` is a tar
    motion: bool = True  # whether T2V-Turbo-v2 guides its motion
    content: Callable[[], bytes] | None = None  # reads the video where `path` is no file

    @property
    def is_missing(self) -> bool:
        """Return whether the file is missing."""
        return self.content is None and not self.path.is_file()

    @property
    def name(self) -> str:
        """Return how a message names the video."""
        return f"{self.path}/{self.member.name}" if self.member else str(self.path)

    def open(self) -> BinaryIO:
        """Open the video.

        Raises:
            OSError: it is not there.
        """
        if self.content is not None:
            return BytesIO(self.content())
        file = self.path.open("rb")
        if self.member is None:
            return file
        with file:
            file.seek(self.member.offset)
            return BytesIO(file.read(self.member.size))


def count_videos(captions: Sequence[Caption]) -> int:
    """Return how many videos there are; one video can have several rows."""
    return len({caption.name for caption in captions})


def read_captions(folder: Path, file: str) -> list[Caption]:
    """Read the table of captions, CSV or JSONL, with `path` (inside `folder`) and `text`.

    Optional: `short_text`, and `use_motion_guide` (true or false, as in the published tables).

    The columns of a CSV file may have the other usual names, such as `video` and `caption`.

    Raises:
        ValueError: it cannot be read, or a column, a path or a text is missing.
    """
    path = folder / file
    text = read_text(path, MAX_BYTES, _REMEDY)
    rows: Mapping[int, Mapping[str, Any]]
    if path.suffix == ".jsonl":
        lines = enumerate(text.split("\n"), 1)
        rows = {number: _parse_line(path, number, line) for number, line in lines if line.strip()}
    else:
        table = parse_table(text, path, _COLUMNS)
        require_columns(table, path, _COLUMNS)
        rows = table.rows
    captions = []
    for number, row in rows.items():
        check_texts(row, ("path", "text", "short_text"), f"{path}, line {number}")
        if not row.get("path") or not (row.get("text") or "").strip():
            raise ValueError(f"{path}, line {number}: expected a path and a text, got {row}.")
        motion = read_motion_flag(row, f"{path}, line {number}")
        short = (row.get("short_text") or "").strip()
        captions.append(Caption(folder / row["path"], row["text"], short, motion=motion))
    if not captions:
        raise ValueError(f"{path} lists no videos.")
    return captions


def check_texts(row: Mapping[str, Any], names: Sequence[str], place: str) -> None:
    """Refuse a row with a value that is neither a text nor missing.

    Args:
        names: of the values.
        place: of the row, for the message.

    Raises:
        ValueError: a value is a number or a list, for example.
    """
    for name in names:
        if not isinstance(row.get(name), str | None):
            raise ValueError(f"{place}: expected a text in {name}, got {row[name]!r}. Correct it.")


def read_motion_flag(row: Mapping[str, Any], place: str) -> bool:
    """Return whether the motion of a video is guided: true, unless the row says false.

    Raises:
        ValueError: it says something else.
    """
    value = row.get("use_motion_guide")
    flag = "true" if value in (None, "") else str(value).strip().lower()
    if flag not in ("true", "false"):
        raise ValueError(f"{place}: expected true or false in use_motion_guide, got {value!r}.")
    return flag == "true"


def _parse_line(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as failure:
        raise ValueError(f"{path}, line {number}: {failure}.") from failure
    if not isinstance(row, dict):
        raise ValueError(f"{path}, line {number}: expected an object, got {line[:60]!r}.")
    return row
