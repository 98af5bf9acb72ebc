"""The folder of generated clips. File names are random, and the oldest clips are deleted."""

import secrets
from pathlib import Path


class ClipStore:
    """Gives out paths for new clips and keeps the newest clips."""

    def __init__(self, folder: Path, *, keep: int = 200) -> None:
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.keep = keep

    def new_path(self) -> Path:
        """Return the path of a file that does not exist yet. The name reveals nothing."""
        clips = sorted(self.folder.glob("*.mp4"), key=lambda clip: clip.stat().st_mtime)
        for clip in clips[: max(len(clips) + 1 - self.keep, 0)]:
            clip.unlink(missing_ok=True)
        return self.folder / f"{secrets.token_hex(8)}.mp4"
