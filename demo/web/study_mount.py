"""The desk where the study is: it opens behind the page, which need not wait for it.

Three doors lead to it: raters', readers' and researchers'. Until the study is there, each says so.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from html import escape

from fastapi import FastAPI
from starlette.responses import HTMLResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from human_eval.errors import StudyError
from human_eval.reporting.live_results import LiveResults
from human_eval.server.admin import create_admin_app
from human_eval.server.results_api import create_results_app
from human_eval.server.vote_api import create_app
from human_eval.study.store import StudyStore

logger = logging.getLogger(__name__)

PREPARING = "The study is being prepared. This takes a few seconds."


class Doorway:
    """Leads to an application as soon as it is there; says why not before."""

    def __init__(self) -> None:
        self.app: ASGIApp | None = None
        self.note = PREPARING

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.app is not None:
            await self.app(scope, receive, send)
            return
        waiting = self.note == PREPARING
        refresh = '<meta http-equiv="refresh" content="2">' if waiting else ""
        page = (
            f'<!doctype html><html lang="en"><title>Study</title>{refresh}'
            '<meta name="viewport" content="width=device-width">'
            '<meta name="color-scheme" content="light dark">'
            f'<body style="font:1rem/1.5 system-ui;padding:1rem"><p role="status">'
            f"{escape(self.note)}</p>"
        )
        headers = {"cache-control": "no-store", "retry-after": "2"}
        await HTMLResponse(page, 503, headers)(scope, receive, send)


class Desk:
    """Opens a study, serves it, and knows how it is."""

    def __init__(self, open_store: Callable[[], StudyStore], *, embedded: bool = False) -> None:
        """
        Args:
            open_store: opens the study, or makes it first; slow, called in a thread.
            embedded: the page lives in another site's frame.
        """
        self.raters, self.readers, self.researchers = Doorway(), Doorway(), Doorway()
        self.store: StudyStore | None = None
        self.results: LiveResults | None = None
        self._open_store = open_store
        self._embedded = embedded
        self._application: FastAPI | None = None

    @property
    def note(self) -> str:
        """Why there is no study (yet)."""
        return "" if self.store else self.raters.note

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Open the study in the background, and close it at the end."""
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
        """Say what is wrong with the study; nothing is also said while it is being prepared."""
        if self._application is None:
            failed = self.raters.note != PREPARING
            return [self.raters.note] if failed else []
        return await self._application.state.service.problems()

    async def _open(self, stack: AsyncExitStack) -> None:
        try:
            store = await asyncio.to_thread(self._open_store)
            stack.callback(store.close)
            application = create_app(store, embedded=self._embedded)
            await stack.enter_async_context(application.router.lifespan_context(application))
        except (StudyError, OSError) as error:
            logger.error("The study cannot be offered: %s", error)
            self._say("The study cannot be offered. The server's log says why.")
            return
        results = LiveResults(store)
        self.raters.app = application
        self.readers.app = create_results_app(store, results)
        self.researchers.app = create_admin_app(
            store, application.state.service, embedded=self._embedded
        )
        self._application, self.store, self.results = application, store, results
        await asyncio.to_thread(results.read)  # so that the first reader need not wait

    def _say(self, note: str) -> None:
        for door in (self.raters, self.readers, self.researchers):
            door.note = note
