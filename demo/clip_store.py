"""The folder of generated clips. File names are random, and the oldest clips are deleted.

A JSON file beside each clip describes it, so that a page which is reloaded can show it again.
"""

import json
import re
import secrets
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryFile

from demo.session import GeneratedClip

NAME = re.compile(r"[0-9a-f]{16}")


class ClipStore:
    """Gives out paths for new clips and keeps the newest clips."""

    def __init__(self, folder: Path, *, keep: int = 200) -> None:
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.keep = keep

    def problem(self) -> str:
        """Return why no clip can be stored now; empty if one can."""
        try:
            self._try_to_write()
        except OSError as failure:
            return f"the folder of clips cannot be written ({failure.strerror})"
        return ""

    def new_path(self) -> Path:
        """Return the path of a file that does not exist yet. The name reveals nothing.

        Raises:
            OSError: the folder cannot be written.
        """
        self._try_to_write()
        clips = sorted(self.folder.glob("*.mp4"), key=lambda clip: clip.stat().st_mtime)
        for clip in clips[: max(len(clips) + 1 - self.keep, 0)]:
            clip.unlink(missing_ok=True)
            clip.with_suffix(".json").unlink(missing_ok=True)
        return self.folder / f"{secrets.token_hex(8)}.mp4"

    def describe(self, clip: GeneratedClip) -> None:
        """Store what is known about a clip beside it."""
        facts = {**asdict(clip), "path": clip.path.name}
        clip.path.with_suffix(".json").write_text(json.dumps(facts))

    def find(self, name: object) -> GeneratedClip | None:
        """Return the clip of a name that a browser has kept, or None if it is gone."""
        path = self.path_of(name)
        if path is None:
            return None
        try:
            facts = json.loads(path.with_suffix(".json").read_text())
        except (OSError, ValueError):
            return None
        return GeneratedClip(**{**facts, "path": path})

    def path_of(self, name: object) -> Path | None:
        """Return the file of a name that a browser has kept, or None if it is gone."""
        if not isinstance(name, str) or not NAME.fullmatch(name):
            return None
        path = self.folder / f"{name}.mp4"
        return path if path.exists() else None

    def _try_to_write(self) -> None:
        with TemporaryFile(dir=self.folder) as file:
            file.write(b"try")
