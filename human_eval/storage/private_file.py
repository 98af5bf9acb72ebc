"""Files that only their owner can read."""

import os
from pathlib import Path


def create_private(path: Path, text: str = "") -> None:
    """Create a file that only its owner can read, and write `text` to it.

    Raises:
        FileExistsError: the file exists; it is left as it is.
    """
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
