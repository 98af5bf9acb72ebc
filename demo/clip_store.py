"""The shelf of finished clips: opaque names in one folder, the oldest make room."""

import secrets
from pathlib import Path


class Shelf:
    """Hands out paths for new clips and keeps the newest ones."""

    def __init__(self, folder: Path, *, keep: int = 200) -> None:
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.keep = keep

    def new_path(self) -> Path:
        """Return a path that nothing has yet; its name tells nothing of the clip."""
        clips = sorted(self.folder.glob("*.mp4"), key=lambda clip: clip.stat().st_mtime)
        for clip in clips[: max(len(clips) + 1 - self.keep, 0)]:
            clip.unlink(missing_ok=True)
        return self.folder / f"{secrets.token_hex(8)}.mp4"
