"""Files that are complete or absent, whenever the process or the machine stops."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

PARTIAL = ".partial"  # after the name of an unfinished file


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a path to write a file to. At the end it is renamed, and replaces a former file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:  # also KeyboardInterrupt, and the RuntimeError of torch's writer
        partial.unlink(missing_ok=True)  # a full disk needs the space
        raise


@contextmanager
def open_whole(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing, as by `whole_file`."""
    with whole_file(path) as partial, partial.open("wb") as file:
        yield file


def write_whole(path: Path, content: bytes) -> None:
    """Write a file of these bytes, as by `whole_file`."""
    with whole_file(path) as partial:
        partial.write_bytes(content)
