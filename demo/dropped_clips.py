"""Videos that visitors drop on the page, to get their recipe and to check it.

They are untrusted files: they are never served, another process reads them, and the newest few
are kept.
"""

import json
from pathlib import Path
from typing import Any

from demo.clip_store import ClipStore
from demo.models import read_apart

KEPT = 20
MAX_BYTES = 32 * 2**20  # twice the largest clip of a published model


class DropError(ValueError):
    """A dropped file cannot be used. Visitors see the text."""


class DroppedClips:
    """Keeps dropped videos under random names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, content: bytes) -> str:
        """Store a video, and return its name.

        Raises:
            DropError: it is not an mp4 file, carries no recipe, or cannot be stored.
        """
        try:
            path = ClipStore(self.folder, keep=KEPT).new_path()
            path.write_bytes(content)
        except OSError as failure:
            reason = failure.strerror or type(failure).__name__
            raise DropError(f"The video cannot be stored on this machine ({reason}).") from failure
        try:
            found = read_apart(path)
            if not found["recipe"]:
                raise DropError("This video carries no recipe. Videos of this page carry one.")
            path.with_suffix(".json").write_text(json.dumps(found))
        except ValueError as refusal:
            path.unlink(missing_ok=True)
            raise DropError(str(refusal)) from refusal
        return path.stem

    def recipe(self, name: object) -> dict[str, Any]:
        """Return the recipe that a dropped video carries.

        Raises:
            DropError: there is no such video any more.
        """
        return json.loads(self._path(name).with_suffix(".json").read_text())["recipe"]

    def compare(self, name: object, made: Path) -> dict[str, Any]:
        """Return the fields of `turbo.provenance.Comparison` of a dropped video with ours.

        Raises:
            DropError: there is no such video any more, or it is damaged.
        """
        try:
            return read_apart(self._path(name), made)
        except ValueError as refusal:
            raise DropError(str(refusal)) from refusal

    def _path(self, name: object) -> Path:
        path = ClipStore(self.folder, keep=KEPT).path_of(name)
        if path is None:
            raise DropError("This video is no longer here. Drop it again.")
        return path
