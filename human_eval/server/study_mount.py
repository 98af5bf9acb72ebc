"""The study next to the page: it opens in the background, and then its three applications answer.

They are the raters' page with its vote API, the results for readers, and the administration.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from html import escape

from fastapi import FastAPI
from starlette.responses import HTMLResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from human_eval.errors import StorageBusy, StudyError, StudyInUse, StudyNotReady
from human_eval.reporting.live_results import LiveResults
from human_eval.server.admin import create_admin_app
from human_eval.server.results_api import create_results_app
from human_eval.server.vote_api import create_app
from human_eval.server.vote_service import VoteService
from human_eval.study.store import StudyStore

logger = logging.getLogger(__name__)

PREPARING = "The study is being prepared. This takes a few seconds."
IN_USE = "Another program is using this study. The study opens here once that program has ended."
FAILED = "The study could not be opened. The server's log has the reason."
RETRY_SECONDS = 30.0  # between two attempts to open a study that is not ready, or in use


class DeferredApp:
    """Passes requests on to an application once it is set; before, replies 503 with a note."""

    def __init__(self) -> None:
        self.app: ASGIApp | None = None
        self.note = PREPARING

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.app is not None:
            await self.app(scope, receive, send)
            return
        seconds = 2 if self.note == PREPARING else 30
        refresh = "" if self.note == FAILED else f'<meta http-equiv="refresh" content="{seconds}">'
        page = (
            f'<!doctype html><html lang="en"><title>Study</title>{refresh}'
            '<meta name="viewport" content="width=device-width">'
            '<meta name="color-scheme" content="light dark">'
            f'<body style="font:1rem/1.5 system-ui;padding:1rem"><p role="status">'
            f"{escape(self.note)}</p>"
        )
        headers = {"cache-control": "no-store", "retry-after": str(seconds)}
        await HTMLResponse(page, 503, headers)(scope, receive, send)


class StudyMount:
    """Opens a study, serves it, and reports its problems.

    Args:
        open_store: opens the study, and creates it if necessary; slow, called in a thread. Where
            it raises `StudyNotReady`, `StudyInUse` or `StorageBusy`, visitors read why, and it is
            called again later.
        frames: other sites that may show the page in a frame.
    """

    def __init__(self, open_store: Callable[[], StudyStore], *, frames: Sequence[str] = ()) -> None:
        self.apps = {path: DeferredApp() for path in ("/study", "/results", "/admin")}
        self.store: StudyStore | None = None  # this and the next two: None until it is open
        self.live_results: LiveResults | None = None
        self.service: VoteService | None = None
        self._open_store = open_store
        self._frames = tuple(frames)

    @property
    def note(self) -> str:
        """Why the study is not available; empty if it is."""
        return "" if self.store else self.apps["/study"].note

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Open the study in the background, and close it at the end of the block."""
        async with AsyncExitStack() as stack:
            opening = asyncio.create_task(self._open(stack))
            try:
                yield
            finally:
                if not opening.done():
                    opening.cancel()
                with suppress(asyncio.CancelledError):
                    await opening

    async def problems(self) -> list[str]:
        """Return what is wrong with the study; empty while it is being prepared."""
        if self.service is not None:
            return await self.service.problems()
        return [] if self.note == PREPARING else [self.note]

    async def _open(self, stack: AsyncExitStack) -> None:
        try:
            store, vote_app = await self._wait_for_study(stack)
        except Exception as error:
            unknown = not isinstance(error, StudyError | OSError)
            logger.error("The study could not be opened: %s", error, exc_info=unknown)
            self._show(FAILED)
            return
        live_results, service = LiveResults(store), vote_app.state.service
        self.apps["/study"].app = vote_app
        self.apps["/results"].app = create_results_app(store, live_results)
        self.apps["/admin"].app = create_admin_app(store, service, embedded=vote_app.state.embedded)
        self.store, self.live_results, self.service = store, live_results, service
        await asyncio.to_thread(live_results.read)  # so that the first reader does not wait

    async def _wait_for_study(self, stack: AsyncExitStack) -> tuple[StudyStore, FastAPI]:
        """Open the study and start its service, as soon as both are possible."""
        while True:
            try:
                async with AsyncExitStack() as opened:
                    store = await asyncio.to_thread(self._open_store)
                    opened.callback(store.close)
                    vote_app = create_app(store, frames=self._frames)
                    await opened.enter_async_context(vote_app.router.lifespan_context(vote_app))
                    stack.push_async_exit(opened.pop_all())
                    return store, vote_app
            except (StudyNotReady, StudyInUse, StorageBusy) as reason:
                logger.warning(reason)
                # The message of a lock is for operators, and names the folder.
                self._show(IN_USE if isinstance(reason, StudyInUse) else str(reason))
            await asyncio.sleep(RETRY_SECONDS)

    def _show(self, note: str) -> None:
        for app in self.apps.values():
            app.note = note
