"""Tables as spreadsheets save them: CSV with commas, semicolons, tabs or bars, in any Unicode.

Every table that people give to this project is read here.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from turbo.text_files.decoding import FileRefused, read_text

DELIMITERS = ",;\t|"
MAX_CELL = 2**31 - 1  # characters; Python's own limit is 131,072
MAX_LISTED = 10  # columns in a message

# The usual names of a column, the preferred one first. Case, blanks, "_" and "-" do not matter.
PROMPT_NAMES = ("prompt", "text", "caption", "prompt_en")
PATH_NAMES = ("path", "filename", "file", "video", "video_path", "clip")


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table, and the delimiter with which rows can be added to it."""

    names: list[str]  # of the columns
    rows: dict[int, dict[str, str]]  # by line of the file, from 1; cells by column
    delimiter: str


def read_table(
    path: Path,
    columns: Mapping[str, Sequence[str]] | None = None,
    *,
    incomplete: dict[int, str] | None = None,
) -> Table:
    """Read a table whose first row names its columns.

    Args:
        columns: names that a column may have, by the name that it gets. Other columns keep theirs.
        incomplete: where given, a row without a cell for each column is put here, as the reason by
            its line, and left out of the table.

    Raises:
        FileRefused: it cannot be read, or not every row has a cell for each column.
    """
    return parse_table(read_text(path), path, columns, incomplete=incomplete)


def parse_table(
    text: str,
    path: Path,
    columns: Mapping[str, Sequence[str]] | None = None,
    *,
    incomplete: dict[int, str] | None = None,
) -> Table:
    """Read a table from the text of a file; see `read_table`."""
    if "\0" in text:
        raise FileRefused(f"{path} contains NUL characters, so it is not text. Save it again.")
    delimiter, skipped = _announced_delimiter(text)
    if not delimiter:
        delimiter = _find_delimiter(text, columns or {})
    lines = _split(text, path, delimiter)
    if skipped:
        lines.pop(1, None)
    header = next(iter(lines), 0)
    first = [name.strip() for name in lines.pop(header, [])]
    names = _rename(first, columns or {})
    repeated = sorted(
        {n for both in (first, names) for n, count in Counter(both).items() if n and count > 1}
    )
    if repeated:
        raise FileRefused(f"{path} has several columns named {repeated[0]!r}. Rename all but one.")
    while lines and not any(cell.strip() for cell in lines[max(lines)]):
        del lines[max(lines)]  # spreadsheets leave empty rows at the end
    rows = {}
    for number, cells in lines.items():
        if len(first) > 1 and [cell.strip() for cell in cells] == first:
            continue  # the header of a second table, appended to the first
        if len(cells) != len(names) and incomplete is not None:
            incomplete[number] = f"{len(cells)} cells instead of {len(names)}"
            continue
        if len(cells) != len(names):
            raise FileRefused(
                f"Line {number} of {path} has {len(cells)} cells instead of {len(names)}. Complete "
                f"or remove it; put text that contains {_show(delimiter)} in double quotes."
            )
        rows[number] = dict(zip(names, cells, strict=True))
    return Table(names=names, rows=rows, delimiter=delimiter)


def require_columns(table: Table, path: Path, columns: Mapping[str, Sequence[str]]) -> None:
    """Refuse a table without a column that `columns` names.

    Raises:
        FileRefused: one is missing; the message lists the names that it may have.
    """
    for name, usual in columns.items():
        if name not in table.names:
            there = ", ".join(map(repr, table.names[:MAX_LISTED])) or "none"
            more = ", ..." if len(table.names) > MAX_LISTED else ""
            raise FileRefused(
                f"{path} needs a column named {' or '.join(map(repr, usual))}; its columns are "
                f"{there}{more}. Add or rename it."
            )


def _announced_delimiter(text: str) -> tuple[str, bool]:
    """Read Excel's line `sep=;`, which may come before the header."""
    found = re.match(r'"?sep=(.)"?\r?\n', text, re.IGNORECASE)
    return (found[1], True) if found else ("", False)


def _find_delimiter(text: str, columns: Mapping[str, Sequence[str]]) -> str:
    """Choose the delimiter that finds the most wanted columns in the header, then the most."""

    def quality(delimiter: str) -> tuple[int, int]:
        try:
            header: list[str] = next(_reader(text, delimiter), [])
        except csv.Error:  # as quoted cells without their delimiter
            return 0, 0
        return len(set(_rename(header, columns)) & set(columns)), len(header)

    return max(DELIMITERS, key=quality)  # the first of equals


def _split(text: str, path: Path, delimiter: str) -> dict[int, list[str]]:
    """Return the cells of each row by the line where it begins; blank lines are left out."""
    reader = _reader(text, delimiter)
    lines, begin = {}, 1
    try:
        for cells in reader:
            if cells:
                lines[begin] = cells
            begin = reader.line_num + 1
    except csv.Error as error:
        raise FileRefused(
            f"{path} is not a valid CSV file: {error} in the row that begins in line {begin}. Put "
            "cells with delimiters, quotes or line breaks in double quotes, and double the quotes "
            "in them."
        ) from error
    return lines


def _reader(text: str, delimiter: str):  # type: ignore[no-untyped-def]  # csv._reader is private
    csv.field_size_limit(MAX_CELL)
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)


def _rename(header: Sequence[str], columns: Mapping[str, Sequence[str]]) -> list[str]:
    """Give the wanted columns their name; of several candidates, the first usual name wins."""
    names = [name.strip() for name in header]
    plain = [_plain(name) for name in names]
    for wanted, usual in columns.items():
        match = next((name for name in map(_plain, usual) if name in plain), None)
        if match is not None and match != _plain(wanted):
            names = ["" if name == wanted else name for name in names]  # another was asked for
        if match is not None:
            names[plain.index(match)] = wanted
    return names


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).casefold()


def _show(delimiter: str) -> str:
    return {",": "commas", ";": "semicolons", "\t": "tabs"}.get(delimiter, repr(delimiter))
