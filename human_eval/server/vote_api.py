"""The vote path over HTTP: enter, claim a pair, watch its clips, submit.

What a browser sends is never believed further than one of the choices: who votes, on which pair,
with which sides, and when, is the server's knowledge. No answer names a system, and an answer is
acknowledged only after it is safely on disk.
"""

import asyncio
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from human_eval.collection import assignment, pair_view, returns, submission
from human_eval.collection.pair_view import PairView
from human_eval.collection.progress import (
    Outcome,
    Progress,
    ending,
    is_screened_out,
    read_progress,
    stopping,
)
from human_eval.collection.submission import Answer, Submission, shown_choices
from human_eval.errors import (
    NotAcceptable,
    NotYours,
    StorageBusy,
    StudyClosed,
    StudyError,
    StudyPaused,
)
from human_eval.server import http, sign_in
from human_eval.server.accounts import Door
from human_eval.server.clip_server import ClipServer
from human_eval.server.http import read_body, reply
from human_eval.server.rate_page import RatePage
from human_eval.server.sign_in import Pass, read_pass
from human_eval.storage import events
from human_eval.storage.lock import serving
from human_eval.storage.writer import Writer
from human_eval.study.store import StudyStore

MIN_FREE = 256 * 2**20  # bytes on disk, below which the service says that it is unwell


class VoteService:
    """The routes of one study. They answer while `running()` is open."""

    def __init__(self, store: StudyStore, *, embedded: bool = False) -> None:
        """
        Args:
            embedded: the page lives in another site's frame, so that its cookie is a third party's.
        """
        self.store = store
        self.router = APIRouter()
        self._embedded = embedded
        self._door = Door(store.folder)
        self._clips = ClipServer(store)
        self._writer: Writer | None = None
        self._refused: Counter[tuple[str, str]] = Counter()
        self._undone = ""  # why the chores could not be done the last time
        page = RatePage(embedded=embedded)
        for method, path, handler in (
            ("POST", "/api/enter", self.enter),
            ("POST", "/api/claim", self.claim),
            ("POST", "/api/submit", self.submit),
            ("POST", "/api/return", self.give_back),
            ("POST", "/api/stop", self.stop),
            ("GET", "/api/study", self.describe),
            ("GET", "/media/{token}", self._clips.send),
            ("GET", "/rate", page.send),
            ("GET", "/rate/", page.without_slash),
            ("GET", "/rate/{name}", page.send),
            ("GET", "/healthz", self.health),
        ):
            self.router.add_route(path, http.guard(handler, self.refuse), methods=[method])

    @property
    def waiting(self) -> int:
        """How many writes wait for their turn."""
        return 0 if self._writer is None else self._writer.waiting

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Carry out writes; every second, return expired leases and write refusals down.

        Raises:
            StudyError: another service already runs on this SQLite study, or it is being restored.
        """
        with serving(self.store.database, self.store.folder):
            self._writer = Writer(self.store.database)
            stopping = asyncio.Event()
            chores = asyncio.create_task(self._do_chores(stopping))
            try:
                yield
            finally:
                stopping.set()
                await chores
                await asyncio.to_thread(self._writer.close)
                self._writer = None

    async def enter(self, request: Request) -> Response:
        """Let a rater in, and give them the cookie by which they are known from here on."""
        body = await read_body(request, http.EnterBody)
        if not body.consent:
            raise NotAcceptable("Expected consent, got none. Nothing was stored.")
        arrival = await sign_in.recognise(self.store, self._door, body)
        before, now = self._pass(request), self.store.clock()
        mine: Pass = await self._write(
            lambda connection: sign_in.admit(connection, self.store, arrival, before, now)
        )
        response = reply({"study": self._description(entered=True)})
        sign_in.set_cookie(response, self.store.keys, mine, embedded=self._embedded)
        return response

    async def describe(self, request: Request) -> Response:
        """Say what is asked, of whom, under which conditions."""
        return reply(self._description(entered=self._pass(request) is not None))

    async def claim(self, request: Request) -> Response:
        """Hand out a pair, or say how it ends."""
        mine = read_pass(self.store.keys, request)
        body = await read_body(request, http.ClaimBody)
        claimed = await self._write(
            lambda connection: self._claim(connection, mine.rater_id, body.ahead)
        )
        lease, shown, progress, end = claimed
        if lease is None or shown is None:
            return reply({"ballot": None, **self._ending(mine, end, progress)})
        self._clips.remember(lease.assignment_id, shown)
        return reply(
            {
                "ballot": self.store.keys.sign("ballot", [lease.assignment_id, lease.attempt]),
                "prompt": shown.prompt,
                **self._clips.addresses(lease.assignment_id),
                "width": shown.width,
                "height": shown.height,
                "fps": shown.fps,
                "frames": shown.frames,
                "seconds_left": max(0, lease.expires_at - self.store.clock()) / 1000,
                "progress": {"answered": progress.answered, "wanted": progress.wanted},
            }
        )

    async def submit(self, request: Request) -> Response:
        """Store the answers to a pair; the receipt means that they are on disk."""
        mine = read_pass(self.store.keys, request)
        body = await read_body(request, http.SubmitBody)
        assignment_id, attempt = self.store.keys.read("ballot", body.ballot)
        ballot = Submission(
            assignment_id=assignment_id,
            attempt=attempt,
            rater_id=mine.rater_id,
            answers={
                key: Answer(given.choice, given.seconds) for key, given in body.answers.items()
            },
            loops=body.loops,
            revision=body.revision,
        )
        shown = await self._clips.find(assignment_id)
        now = self.store.clock()
        receipt = await self._write(
            lambda connection: submission.submit(
                connection, self.store.definition, ballot, now=now, clip_seconds=shown.seconds
            )
        )
        return reply(
            {
                "answers": receipt.answers,
                "revision": receipt.revision,
                "duplicate": receipt.duplicate,
                "undo_seconds": self.store.definition.assignment.undo_seconds,
            }
        )

    async def give_back(self, request: Request) -> Response:
        """Take a pair back unanswered."""
        mine = read_pass(self.store.keys, request)
        body = await read_body(request, http.ReturnBody)
        assignment_id, _ = self.store.keys.read("ballot", body.ballot)
        now = self.store.clock()
        await self._write(
            lambda connection: returns.give_back(
                connection, mine.rater_id, assignment_id, body.reason, now=now, detail=body.detail
            )
        )
        return reply({"returned": True})

    async def stop(self, request: Request) -> Response:
        """Let a rater go although pairs are left; others may have theirs."""
        mine = read_pass(self.store.keys, request)
        body = await read_body(request, http.StopBody)
        progress, end = await self._write(
            lambda connection: self._stop(connection, mine.rater_id, body.technical)
        )
        return reply(self._ending(mine, end, progress))

    async def health(self, request: Request) -> Response:
        """Say whether answers can be stored: 200, or 503 and why not."""
        problems = await self.problems()
        return reply({"problems": problems}, 503 if problems else 200)

    async def problems(self) -> list[str]:
        """Return why answers cannot be stored, or soon cannot; an empty list is good health."""
        problems = []
        if self._writer is None or not self._writer.alive:
            problems.append("the writer has stopped")
        if shutil.disk_usage(self.store.folder).free < MIN_FREE:
            problems.append("the disk is nearly full")
        try:
            await self._write(lambda connection: connection.execute(text("SELECT 1")).all())
        except (StudyError, DBAPIError) as error:
            problems.append(_tell(error))
        if self._undone and self._undone not in problems:
            problems.append(self._undone)
        return problems

    def refuse(self, kind: str, request: Request) -> None:
        """Count a refused request; the event is written within a second."""
        mine = self._pass(request)
        self._refused[kind, "unknown" if mine is None else f"rater:{mine.rater_id}"] += 1

    def _pass(self, request: Request) -> Pass | None:
        try:
            return read_pass(self.store.keys, request)
        except NotYours:
            return None

    def _claim(
        self, connection: Connection, rater_id: int, ahead: bool
    ) -> tuple[assignment.Assignment | None, PairView | None, Progress, Outcome | None]:
        store = self.store
        progress = read_progress(connection, store.definition, rater_id)
        if is_screened_out(connection, rater_id):
            return None, None, progress, "screened_out"
        try:
            lease = assignment.claim(
                connection,
                store.definition,
                rater_id,
                now=store.clock(),
                rng=store.rng,
                ahead=ahead,
            )
        except StudyPaused:
            return None, None, progress, "paused"
        except StudyClosed:
            return None, None, progress, ending(progress, closed=True)
        if lease is None:
            return None, None, progress, ending(progress)
        return lease, pair_view.show(connection, lease.assignment_id), progress, None

    def _stop(
        self, connection: Connection, rater_id: int, technical: bool
    ) -> tuple[Progress, Outcome]:
        progress = read_progress(connection, self.store.definition, rater_id)
        assignment.release_all(connection, rater_id)
        end = stopping(progress, technical=technical)
        events.record(
            connection,
            "stopped",
            actor=f"rater:{rater_id}",
            subject="study",
            now=self.store.clock(),
            payload={"outcome": end},
        )
        return progress, end

    def _ending(self, mine: Pass, end: Outcome | None, progress: Progress) -> dict[str, Any]:
        code = getattr(self.store.definition.codes, end or "", "")
        return {
            "outcome": end,
            "code": code,
            "finish": sign_in.way_back(self.store, mine, code),
            "progress": {"answered": progress.answered, "wanted": progress.wanted},
        }

    def _description(self, *, entered: bool) -> dict[str, Any]:
        """Say what raters may know; not the title, which may name what is compared."""
        definition = self.store.definition
        return {
            "consent": definition.consent.text.strip(),
            "instructions": definition.instructions.strip(),
            "ways_in": sign_in.describe_ways_in(self.store),
            "entered": entered,
            "min_loops": definition.viewing.min_loops,
            "wanted": definition.quotas.per_study or None,
            "questions": [
                {
                    "key": question.key,
                    "wording": question.wording,
                    "choices": shown_choices(question),
                }
                for question in definition.questions
            ],
        }

    async def _write(self, job: Callable[[Connection], Any]) -> Any:
        if self._writer is None:
            raise StorageBusy("Expected a running service, got one that stops. Try again.")
        return await asyncio.wrap_future(self._writer.submit(job))

    async def _do_chores(self, stopping: asyncio.Event) -> None:
        """Do them every second, and once more in the end, whatever the database says."""
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), timeout=1)
            try:
                await self._note_refusals()
                await self._write(
                    lambda connection: assignment.sweep(connection, self.store.clock())
                )
                self._undone = ""
            except Exception as error:  # they must go on; /healthz tells
                self._undone = _tell(error)
            if stopping.is_set():
                return

    async def _note_refusals(self) -> None:
        refused, self._refused = self._refused, Counter()
        try:
            await self._write(lambda connection: self._record_refusals(connection, refused))
        except Exception:
            self._refused.update(refused)  # for the next time
            raise

    def _record_refusals(self, connection: Connection, refused: Counter[tuple[str, str]]) -> None:
        for (kind, rater), count in refused.items():
            events.record(
                connection,
                "refused",
                actor=rater,
                subject="service",
                now=self.store.clock(),
                payload={"refusal": kind},
                count=count,
            )


def _tell(error: Exception) -> str:
    """Return what anybody may read of an error, which is not the statement and its values."""
    return str(error.orig) if isinstance(error, DBAPIError) else str(error)


def create_app(store: StudyStore, *, embedded: bool = False) -> FastAPI:
    """Make an application of the study's routes alone."""
    service = VoteService(store, embedded=embedded)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service = service
    app.include_router(service.router)
    return app
