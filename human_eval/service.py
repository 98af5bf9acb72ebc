"""The vote path over HTTP: enter, claim a pair, watch its clips, submit.

What a browser sends is never believed further than one of the choices: who votes, on which pair,
with which sides, and when, is the server's knowledge. No answer names a system, and an answer is
acknowledged only after it is safely on disk.
"""

import asyncio
import fcntl
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from fastapi import APIRouter, FastAPI, Request, Response
from sqlalchemy import Connection, select, text

from human_eval import assignment, events, exchange, returns, showing, submission
from human_eval.errors import (
    NotAcceptable,
    NotYours,
    StorageBusy,
    StorageFull,
    StudyError,
    TooLate,
)
from human_eval.exchange import read_body, reply
from human_eval.showing import Showing
from human_eval.store import StudyStore, enter
from human_eval.submission import Answer, Ballot, shown_choices
from human_eval.tables import AssignmentRow
from human_eval.writer import Writer

COOKIE = "human_eval_rater"
CACHED_CLIPS = 256  # some 50 MB
CACHED_SHOWINGS = 20_000
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
        self._writer: Writer | None = None
        self._refused: Counter[tuple[str, str]] = Counter()
        self._showings: dict[int, Showing] = {}
        self._clips: dict[Path, bytes] = {}
        for path, handler in (
            ("/api/enter", self.enter),
            ("/api/claim", self.claim),
            ("/api/submit", self.submit),
            ("/api/return", self.give_back),
        ):
            self.router.add_route(path, exchange.guard(handler, self.refuse), methods=["POST"])
        for path, handler in (
            ("/api/study", self.describe),
            ("/media/{token}", self.media),
            ("/healthz", self.health),
        ):
            self.router.add_route(path, exchange.guard(handler, self.refuse), methods=["GET"])

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Carry out writes; every second, return expired leases and write refusals down.

        Raises:
            StudyError: another service already runs on this SQLite study.
        """
        with open(self.store.folder / "service.lock", "w") as lock:
            if self.store.database.is_sqlite:
                _lock(lock, self.store.folder)
            self._writer = Writer(self.store.database)
            chores = asyncio.create_task(self._do_chores())
            try:
                yield
            finally:
                chores.cancel()
                with suppress(asyncio.CancelledError):
                    await chores
                with suppress(StorageBusy, StorageFull):
                    await self._write(self._note_refusals)
                await asyncio.to_thread(self._writer.close)
                self._writer = None

    async def enter(self, request: Request) -> Response:
        """Let a rater in, and give them the cookie by which they are known from here on."""
        body = await read_body(request, exchange.EnterBody)
        definition, keys = self.store.definition, self.store.keys
        if not body.consent:
            raise NotAcceptable("Expected consent, got none. Nothing was stored.")
        if body.invitation is not None:
            provider, name = (str(part) for part in keys.read("invitation", body.invitation))
        elif definition.anonymous:
            provider, name = "anonymous", keys.sign("rater", [self.store.rng.getrandbits(128)])
        else:
            raise NotYours("Expected an invitation, got none. Use the link that you were given.")
        now = self.store.clock()
        rater_id = await self._write(
            lambda connection: enter(connection, keys, provider, name, now)
        )
        response = reply({"study": self._description()})
        response.set_cookie(
            COOKIE,
            keys.sign("rater", [rater_id]),
            max_age=30 * 86_400,
            httponly=True,
            secure=self._embedded,
            samesite="none" if self._embedded else "lax",
        )
        return response

    async def describe(self, request: Request) -> Response:
        """Say what is asked, of whom, under which conditions."""
        return reply(self._description())

    async def claim(self, request: Request) -> Response:
        """Hand out a pair."""
        rater_id = self._rater(request)
        body = await read_body(request, exchange.ClaimBody)
        lease, shown, answered = await self._write(
            lambda connection: self._claim(connection, rater_id, body.ahead)
        )
        codes = self.store.definition.codes
        if lease is None:
            outcome = "done" if answered else "no_work_left"
            return reply({"ballot": None, "outcome": outcome, "code": getattr(codes, outcome)})
        keys = self.store.keys
        self._remember(lease.assignment_id, shown)
        media = {
            side: "media/" + keys.sign("media", [lease.assignment_id, side])
            for side in ("left", "right")
        }
        return reply(
            {
                "ballot": keys.sign("ballot", [lease.assignment_id, lease.attempt]),
                "prompt": shown.prompt,
                **media,
                "width": shown.width,
                "height": shown.height,
                "fps": shown.fps,
                "frames": shown.frames,
                "seconds_left": max(0, lease.expires_at - self.store.clock()) / 1000,
            }
        )

    async def submit(self, request: Request) -> Response:
        """Store the answers to a pair; the receipt means that they are on disk."""
        rater_id = self._rater(request)
        body = await read_body(request, exchange.SubmitBody)
        assignment_id, attempt = self.store.keys.read("ballot", body.ballot)
        ballot = Ballot(
            assignment_id=assignment_id,
            attempt=attempt,
            rater_id=rater_id,
            answers={
                key: Answer(given.choice, given.seconds) for key, given in body.answers.items()
            },
            loops=body.loops,
            revision=body.revision,
        )
        now = self.store.clock()
        receipt = await self._write(
            lambda connection: submission.submit(connection, self.store.definition, ballot, now=now)
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
        rater_id = self._rater(request)
        body = await read_body(request, exchange.ReturnBody)
        assignment_id, _ = self.store.keys.read("ballot", body.ballot)
        now = self.store.clock()
        await self._write(
            lambda connection: returns.give_back(
                connection, rater_id, assignment_id, body.reason, now=now
            )
        )
        return reply({"returned": True})

    async def media(self, request: Request) -> Response:
        """Send a clip, or the range of it that is asked for, under a name that says nothing."""
        assignment_id, side = self.store.keys.read("media", request.path_params["token"])
        shown = self._showings.get(assignment_id)
        if shown is None:
            shown = await asyncio.to_thread(self._look_up, assignment_id)
            self._remember(assignment_id, shown)
        grace = 1000 * self.store.definition.assignment.undo_seconds
        if self.store.clock() > shown.until + grace:
            raise TooLate("Expected a pair that is open, got one whose time is over. Reload.")
        path = self.store.media / (shown.left if side == "left" else shown.right)
        try:
            content = self._clips.get(path)
            if content is None:
                content = await asyncio.to_thread(self._read_clip, path)
        except FileNotFoundError:
            return reply({"error": "Expected a clip, got none. Report the pair as broken."}, 404)
        return exchange.send_clip(content, request.headers.get("range"))

    async def health(self, request: Request) -> Response:
        """Say whether answers can be stored: 200, or 503 and why not."""
        problems = []
        if self._writer is None or not self._writer.alive:
            problems.append("the writer has stopped")
        if shutil.disk_usage(self.store.folder).free < MIN_FREE:
            problems.append("the disk is nearly full")
        try:
            await self._write(lambda connection: connection.execute(text("SELECT 1")).all())
        except StudyError as error:
            problems.append(str(error))
        return reply({"problems": problems}, 503 if problems else 200)

    def refuse(self, kind: str, request: Request) -> None:
        """Count a refused request; the event is written within a second."""
        try:
            actor = f"rater:{self._rater(request)}"
        except NotYours:
            actor = "unknown"
        self._refused[kind, actor] += 1

    def _claim(
        self, connection: Connection, rater_id: int, ahead: bool
    ) -> tuple[assignment.Lease | None, Showing, bool]:
        store = self.store
        lease = assignment.claim(
            connection,
            store.definition,
            rater_id,
            now=store.clock(),
            rng=store.rng,
            ahead=ahead,
        )
        if lease is not None:
            return lease, showing.show(connection, lease.assignment_id), True
        mine = select(AssignmentRow.id).where(
            AssignmentRow.rater_id == rater_id, AssignmentRow.state == "submitted"
        )
        return None, _NOTHING, connection.execute(mine.limit(1)).first() is not None

    def _rater(self, request: Request) -> int:
        token = request.cookies.get(COOKIE)
        if token is None:
            raise NotYours("Expected a rater's cookie, got none. Enter the study first.")
        [rater_id] = self.store.keys.read("rater", token)
        return int(rater_id)

    def _description(self) -> dict[str, Any]:
        definition = self.store.definition
        return {
            "title": definition.title or definition.name,
            "consent": definition.consent.text.strip(),
            "needs_invitation": not definition.anonymous,
            "min_loops": definition.viewing.min_loops,
            "questions": [
                {
                    "key": question.key,
                    "wording": question.wording,
                    "choices": shown_choices(question),
                }
                for question in definition.questions
            ],
        }

    def _remember(self, assignment_id: int, shown: Showing) -> None:
        if len(self._showings) >= CACHED_SHOWINGS:
            self._showings.clear()  # they are read again on demand
        self._showings[assignment_id] = shown

    def _read_clip(self, path: Path) -> bytes:
        content = path.read_bytes()
        while len(self._clips) >= CACHED_CLIPS:
            self._clips.pop(next(iter(self._clips)), None)
        self._clips[path] = content
        return content

    def _look_up(self, assignment_id: int) -> Showing:
        with self.store.read() as connection:
            return showing.show(connection, assignment_id)

    async def _write(self, job: Callable[[Connection], Any]) -> Any:
        if self._writer is None:
            raise StorageBusy("Expected a running service, got one that stops. Try again.")
        return await asyncio.wrap_future(self._writer.submit(job))

    async def _do_chores(self) -> None:
        while True:
            await asyncio.sleep(1)
            with suppress(StorageBusy, StorageFull):
                await self._write(self._note_refusals)
                await self._write(
                    lambda connection: assignment.sweep(connection, self.store.clock())
                )

    def _note_refusals(self, connection: Connection) -> None:
        refused, self._refused = self._refused, Counter()
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


def create_app(store: StudyStore, *, embedded: bool = False) -> FastAPI:
    """Make an application of the study's routes alone."""
    service = VoteService(store, embedded=embedded)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(service.router)
    return app


def _lock(file: TextIO, folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise StudyError(
            f"Expected no other service on {folder}, got one. SQLite takes one; use PostgreSQL "
            "for several."
        ) from error


_NOTHING = Showing("", "", "", 0, 0, 0.0, 0, 0)
