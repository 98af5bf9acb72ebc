"""Room on a disk, asked for before gigabytes are written."""

import shutil
from pathlib import Path


def nearest_existing(path: Path) -> Path:
    """Return a path, or of those it lies in the innermost that is there."""
    return next(place for place in (path, *path.parents) if place.exists())


def check_space(folder: Path, needed: int) -> None:
    """Refuse to begin what would fill the disk.

    Args:
        folder: where it will be written; it need not exist yet.
        needed: bytes.

    Raises:
        OSError: there is less room.
    """
    free = shutil.disk_usage(nearest_existing(folder)).free
    if free < needed:
        raise OSError(
            f"Expected {needed / 1e9:.1f} GB free in {folder}, got {free / 1e9:.1f} GB. Make room, "
            "or set HF_HOME (downloads) and T2V_WEIGHTS_DIR (converted weights) to another disk."
        )
