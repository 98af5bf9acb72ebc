"""Clips on their way to a rater: looked up once, kept in memory, sent by ranges.

Their addresses are signed and belong to one turn and side; nothing on the way names a file.
"""

import asyncio
from pathlib import Path
from typing import Any

from fastapi import Request, Response

from human_eval.clips.media import pad_clip
from human_eval.collection import pair_view
from human_eval.collection.pair_view import PairView
from human_eval.errors import TooLate
from human_eval.server import http
from human_eval.study.store import StudyStore

CACHED_CLIPS = 256  # some 50 MB
CACHED_SHOWINGS = 20_000


class ClipServer:
    """Serves the clips of one study."""

    def __init__(self, store: StudyStore) -> None:
        self._store = store
        self._showings: dict[int, PairView] = {}
        self._clips: dict[Path, bytes] = {}

    def addresses(self, assignment_id: int) -> dict[str, str]:
        """Return where the clips of a turn are, by side, relative to the study's root."""
        sign = self._store.keys.sign
        return {side: f"media/{sign('media', [assignment_id, side])}" for side in ("left", "right")}

    def remember(self, assignment_id: int, shown: PairView) -> None:
        """Keep what a turn shows, so that it need not be read again."""
        if len(self._showings) >= CACHED_SHOWINGS:
            self._showings.clear()  # they are read again on demand
        self._showings[assignment_id] = shown

    async def find(self, assignment_id: int) -> PairView:
        """Return what a turn shows.

        Raises:
            NotYours: there is no such turn.
        """
        shown = self._showings.get(assignment_id)
        if shown is None:
            shown = await asyncio.to_thread(self._look_up, assignment_id)
            self.remember(assignment_id, shown)
        return shown

    async def send(self, request: Request) -> Response:
        """Send a clip, or the range of it that is asked for, under a name that says nothing.

        Raises:
            NotYours: the address is not ours.
            TooLate: the turn's time is over.
        """
        assignment_id, side = self._store.keys.read("media", request.path_params["token"])
        shown = await self.find(assignment_id)
        grace = 1000 * self._store.definition.assignment.undo_seconds
        if self._store.clock() > shown.until + grace:
            raise TooLate("Expected a pair that is open, got one whose time is over. Reload.")
        path = self._store.media / (shown.left if side == "left" else shown.right)
        try:
            content = self._clips.get(path)
            if content is None:
                content = await asyncio.to_thread(self._read, path)
        except FileNotFoundError:
            missing: dict[str, Any] = {
                "error": "Expected a clip, got none. Report the pair as broken."
            }
            return http.reply(missing, 404)
        content = pad_clip(content, shown.bytes)
        return http.send_clip(content, request.headers.get("range"))

    def _look_up(self, assignment_id: int) -> PairView:
        with self._store.read() as connection:
            return pair_view.show(connection, assignment_id)

    def _read(self, path: Path) -> bytes:
        content = path.read_bytes()
        while len(self._clips) >= CACHED_CLIPS:
            self._clips.pop(next(iter(self._clips)), None)
        self._clips[path] = content
        return content
