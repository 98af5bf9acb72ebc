"""The manifest of a folder of clips: one row each, through which other programs know them."""

import csv
import hashlib
import io
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path


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


class Manifest:
    """`manifest.csv` of a folder. Rows are only ever added, each whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "manifest.csv"
        folder.mkdir(parents=True, exist_ok=True)
        if not self.path.exists() or not self.path.stat().st_size:
            self._append(COLUMNS)
        self._drop_torn_row()

    def rows(self) -> dict[str, dict[str, str]]:
        """Return the rows by path.

        Raises:
            ValueError: the file's columns are not ours.
        """
        with self.path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames != COLUMNS:
                raise ValueError(
                    f"{self.path} has other columns than a manifest of turbo.generate "
                    f"({', '.join(COLUMNS)}). Choose another folder."
                )
            return {row["path"]: row for row in reader}

    def missing(self, paths: list[str]) -> list[str]:
        """Return the clips that are not listed, or whose file is not the one that was listed."""
        rows = self.rows()
        return [path for path in paths if path not in rows or not self._intact(rows[path])]

    def _intact(self, row: dict[str, str]) -> bool:
        file = self.folder / row["path"]
        return file.is_file() and sha256_of(file) == row["sha256"]

    def add(self, row: ManifestRow) -> None:
        """Append a row; a clip made again replaces its former row on reading."""
        self._append(list(map(str, asdict(row).values())))

    def _append(self, values: list[str]) -> None:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(values)
        with self.path.open("ab") as file:
            file.write(line.getvalue().encode())  # one write: two processes may share a folder
            file.flush()
            os.fsync(file.fileno())

    def _drop_torn_row(self) -> None:
        """Cut off what a process killed while writing left behind; prompts hold no newlines."""
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            os.truncate(self.path, len(whole))


def sha256_of(file: Path) -> str:
    """Return the hash of a file, which may be larger than the memory, in hexadecimal."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
