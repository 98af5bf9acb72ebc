"""Files that are complete or absent, whenever the process or the machine stops."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

PARTIAL = ".partial"  # after the name of an unfinished file


@contextmanager
def open_whole(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing. It takes its name, and the place of a former one, at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:  # also KeyboardInterrupt, and the RuntimeError of torch's writer
        partial.unlink(missing_ok=True)  # a full disk needs the space
        raise


def write_whole(path: Path, content: bytes) -> None:
    """Write a file of these bytes, as by `open_whole`."""
    with open_whole(path) as file:
        file.write(content)
