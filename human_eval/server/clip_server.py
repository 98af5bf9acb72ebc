"""Clips for raters: looked up once, kept in memory, sent in full or by byte range.

The address of a clip is signed. It names an assignment and a side, never a file or a system.
"""

import asyncio
from pathlib import Path

from fastapi import Response

from human_eval.clips.media import pad_clip
from human_eval.collection import pair_view
from human_eval.collection.pair_view import PairView
from human_eval.errors import TooLate
from human_eval.server import http
from human_eval.study.store import StudyStore

CACHED_CLIPS = 256  # about 50 MB
CACHED_VIEWS = 20_000


class ClipServer:
    """Serves the clips of one study."""

    def __init__(self, store: StudyStore) -> None:
        self._store = store
        self._views: dict[int, PairView] = {}  # by assignment
        self._clips: dict[Path, bytes] = {}

    def addresses(self, assignment_id: int) -> dict[str, str]:
        """Return the addresses of an assignment's clips by side, relative to the study's root."""
        sign = self._store.keys.sign
        return {side: f"media/{sign('media', [assignment_id, side])}" for side in ("left", "right")}

    def remember(self, assignment_id: int, view: PairView) -> None:
        """Cache what an assignment shows."""
        if len(self._views) >= CACHED_VIEWS:
            self._views.clear()  # `find` reads them again
        self._views[assignment_id] = view

    async def find(self, assignment_id: int) -> PairView:
        """Return what an assignment shows.

        Raises:
            NotYours: there is no such assignment.
        """
        view = self._views.get(assignment_id)
        if view is None:
            view = await asyncio.to_thread(self._read_view, assignment_id)
            self.remember(assignment_id, view)
        return view

    async def send(self, token: str, requested: str | None) -> Response:
        """Send the clip of a signed address, or the requested byte range of it.

        Raises:
            NotYours: the address is forged.
            TooLate: the assignment has expired.
        """
        assignment_id, side = self._store.keys.read("media", token)
        view = await self.find(assignment_id)
        grace = 1000 * self._store.definition.assignment.undo_seconds
        if self._store.clock() > view.until + grace:
            raise TooLate("The time for this pair is over. Reload the page.")
        path = self._store.media / (view.left if side == "left" else view.right)
        try:
            content = self._clips.get(path)
            if content is None:
                content = await asyncio.to_thread(self._read_clip, path)
        except FileNotFoundError:
            message = "This video is missing. Skip the pair and choose 'A video does not play'."
            return http.reply({"error": message}, 404)
        return http.send_clip(pad_clip(content, view.bytes), requested)

    def _read_view(self, assignment_id: int) -> PairView:
        with self._store.read() as connection:
            return pair_view.show(connection, assignment_id)

    def _read_clip(self, path: Path) -> bytes:
        content = path.read_bytes()
        while len(self._clips) >= CACHED_CLIPS:
            self._clips.pop(next(iter(self._clips)), None)
        self._clips[path] = content
        return content
