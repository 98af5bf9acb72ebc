"""The manifest of a folder of clips: one row for each, for other programs to read."""

import csv
import hashlib
import io
import os
import re
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from filelock import FileLock

from turbo.text_files.decoding import FileRefused, decode
from turbo.text_files.tables import parse_table


@dataclass(frozen=True, kw_only=True)
class ManifestRow:
    """One clip."""

    path: str  # relative to the manifest
    model: str
    prompt: str
    seed: int
    num_steps: int
    guidance: float
    fps: float
    sha256: str  # of the mp4
    weights_sha256: str  # of the model; its first 16 digits


COLUMNS = [field.name for field in fields(ManifestRow)]
HEADER = ",".join(COLUMNS)
LOCK_SECONDS = 60


@dataclass(frozen=True)
class _Content:
    """What the file holds, and how a row is added."""

    rows: dict[str, dict[str, str]]  # by path
    size: int  # bytes to keep; after them comes what a killed process left of a row
    missing: str  # what has to follow before the next row: the header, or a line end
    delimiter: str = ","
    encoding: str = "utf-8"


class Manifest:
    """`manifest.csv` of a folder. Rows are only ever added, each whole or not at all.

    Processes may share a folder. A file that people have saved again, with another delimiter or in
    another Unicode encoding, is continued as it is.

    Raises:
        ValueError: the file is no manifest of ours, or has a damaged row. It stays as it is.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "manifest.csv"
        folder.mkdir(parents=True, exist_ok=True)
        self._written: _Content | None = None  # what the file held after the last row added here
        self._read()

    def rows(self) -> dict[str, dict[str, str]]:
        """Return the rows by path."""
        return self._read().rows

    def missing(self, paths: list[str]) -> list[str]:
        """Return the clips that are not listed, or whose file is not the one that was listed."""
        rows = self.rows()
        return [path for path in paths if path not in rows or not self._intact(rows[path])]

    def _intact(self, row: dict[str, str]) -> bool:
        file = self.folder / row["path"]
        return file.is_file() and sha256_of(file) == row["sha256"]

    def add(self, row: ManifestRow) -> None:
        """Append a row; a clip made again replaces its former row on reading."""
        with FileLock(self.folder / ".manifest.csv.lock", timeout=LOCK_SECONDS, thread_local=False):
            content = self._read_end() or self._read()
            line = io.StringIO()
            writer = csv.writer(line, delimiter=content.delimiter, lineterminator="\n")
            writer.writerow(map(str, asdict(row).values()))
            try:
                with self.path.open("ab") as file:
                    file.truncate(content.size)
                    file.write((content.missing + line.getvalue()).encode(content.encoding))
                    file.flush()
                    os.fsync(file.fileno())
                    self._written = replace(content, size=file.tell(), missing="")
            except OSError:  # such as a full disk
                with suppress(OSError):  # what stays of the row is mended by the next one
                    os.truncate(self.path, content.size)
                raise

    def _read_end(self) -> _Content | None:
        """Return where to append if only complete rows were added since our last one, else None.

        A file of thousands of rows takes longer to read than some clips take to make.
        """
        written = self._written
        if written is None or written.encoding != "utf-8" or not self.path.exists():
            return None
        header = written.delimiter.join(COLUMNS).encode()
        with self.path.open("rb") as file:
            same = file.read(len(header)) == header
            file.seek(written.size - 1)
            end = file.read()  # from the line end of that row on
        if not (same and end.startswith(b"\n") and end.endswith(b"\n")):
            return None
        return replace(written, size=written.size - 1 + len(end))

    def _read(self) -> _Content:
        content = self.path.read_bytes() if self.path.exists() else b""
        try:
            text, encoding = decode(content, self.path)
        except FileRefused:
            content, cut = _without_cut_character(content), content
            if content == cut:
                raise
            text, encoding = decode(content, self.path)
        if HEADER.startswith(text):  # also the empty file
            return _Content({}, len(content), HEADER[len(text) :] + "\n")
        begin = max(text.rfind("\n"), text.rfind("\r")) + 1
        last = text[begin:]
        delimiter = parse_table(text[:begin] or text, self.path).delimiter
        if _is_torn(last, delimiter):
            content, text = content[: len(content) - len(last.encode(encoding))], text[:begin]
        table = parse_table(text, self.path)
        if table.names != COLUMNS:
            raise ValueError(
                f"{self.path} has other columns than a manifest of turbo.generate "
                f"({', '.join(COLUMNS)}). Choose another folder."
            )
        rows = {row["path"]: row for row in table.rows.values()}
        end = "" if text.endswith(("\n", "\r")) else "\n"
        return _Content(rows, len(content), end, delimiter, encoding)


def _without_cut_character(content: bytes) -> bytes:
    """Leave out the bytes at the end that begin a character of UTF-8."""
    return re.sub(rb"[\xc2-\xf4][\x80-\xbf]{0,2}\Z", b"", content)


def _is_torn(line: str, delimiter: str) -> bool:
    """Return whether a line without its end is part of a row that a killed process left.

    Our rows begin with the path of a clip and the name of its model, and end with 16 digits. What
    may be a person's note is no part of a row.
    """
    if not line:
        return False
    [[name, *others]] = csv.reader([line], delimiter=delimiter)  # takes an open quotation as a cell
    if not others:  # folders have plain names; a clip of VBench is named after its prompt
        return re.fullmatch(r"[a-z0-9._-]+|[A-Za-z0-9._-]+/.*", name) is not None
    if not re.fullmatch(r"[A-Za-z0-9._-]*", others[0]):
        return False
    whole = len(others) >= len(COLUMNS) - 1 and re.fullmatch(r"[0-9a-f]{16}", others[-1])
    return name.endswith(".mp4") and not whole


def sha256_of(file: Path) -> str:
    """Return the hash of a file, which may be larger than the memory, in hexadecimal."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
