"""Before writing gigabytes: check the free disk space, and wait for others that write the same."""

import shutil
from pathlib import Path

LOCK_SECONDS = 24 * 3600  # to wait for another process that writes the same files


def nearest_existing(path: Path) -> Path:
    """Return the path, or its nearest parent that exists."""
    return next(place for place in (path, *path.parents) if place.exists())


WEIGHTS_ADVICE = (
    "Make room, or set HF_HOME (downloads) and T2V_WEIGHTS_DIR (converted weights) to another disk."
)


def check_space(folder: Path, needed: int, advice: str = WEIGHTS_ADVICE) -> None:
    """Check that a folder has room.

    Args:
        folder: where the files will be written; it need not exist yet.
        needed: bytes.
        advice: the end of the message.

    Raises:
        OSError: there is too little free space.
    """
    free = shutil.disk_usage(nearest_existing(folder)).free
    if free < needed:
        raise OSError(
            f"{folder} needs {needed / 1e9:.1f} GB of free space and has {free / 1e9:.1f} GB. "
            + advice
        )
