"""The folder of generated clips. File names are random, and the oldest clips are deleted."""

import secrets
from pathlib import Path
from tempfile import TemporaryFile


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
        return self.folder / f"{secrets.token_hex(8)}.mp4"

    def _try_to_write(self) -> None:
        with TemporaryFile(dir=self.folder) as file:
            file.write(b"try")
