"""A study while it is served: its writer, what happens every second, and whether it is healthy."""

import asyncio
import logging
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from human_eval.collection import assignment
from human_eval.errors import StorageBusy, StudyError
from human_eval.storage import events
from human_eval.storage.lock import LockLost, serving
from human_eval.storage.writer import Writer
from human_eval.study.amendment import describe_edits, find_edits
from human_eval.study.media_check import describe_lost, find_lost_clips
from human_eval.study.store import StudyStore

logger = logging.getLogger(__name__)
MEDIA_SECONDS = 30  # between two comparisons of the clips' files with the database
PROBE_SECONDS = 15  # a database that is busy for longer counts as one that does not answer
MIN_FREE = 256 * 2**20  # bytes on disk; below this the study reports a problem


@dataclass(frozen=True)
class SyncStatus:
    """How many votes are in the data set of a published study."""

    stored: int = 0  # here
    pending: int = 0  # of these, not in the data set yet
    last: str = "never"  # UTC, when the data set was last up to date
    problem: str = ""  # why it is not

    @property
    def synced(self) -> int:
        """The votes that survive the loss of this machine."""
        return self.stored - self.pending


class VoteService:
    """The writer of one study and its periodic work, both active inside `running()`."""

    def __init__(self, store: StudyStore) -> None:
        self.store = store
        # Of a published study: returns how many votes are in its data set.
        self.read_sync: Callable[[], SyncStatus] | None = None
        self._writer: Writer | None = None
        self._refused: Counter[tuple[str, str]] = Counter()  # by error and actor, not yet stored
        self._media_problem, self._media_checked = "", float("-inf")  # monotonic seconds
        self._problem = ""  # why the periodic work failed the last time
        self._lock_lost = ""  # why nothing may be stored any more

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Carry out writes; every second, store refusals and return expired assignments.

        Raises:
            StudyInUse: another service uses this SQLite study, or a backup is being restored.
        """
        with serving(self.store.database, self.store.folder) as renew:
            self._writer = Writer(self.store.database)
            if problem := await asyncio.to_thread(self._check_media):
                logger.warning(problem)
            if edits := describe_edits(find_edits(self.store)):
                logger.warning(edits)
            stopping = asyncio.Event()
            periodic = asyncio.create_task(self._work_every_second(renew, stopping))
            try:
                yield
            finally:
                stopping.set()
                try:
                    await periodic
                finally:  # a second Ctrl-C cancels the last periodic work
                    await asyncio.to_thread(self._writer.close)
                    self._writer = None

    async def write(self, job: Callable[[Connection], Any]) -> Any:
        """Run a job in a transaction; return its result once that is committed.

        Raises:
            StorageBusy: too many writes are waiting, or the service is stopping.
            StudyError: the job refused; nothing of it is stored.
        """
        if self._writer is None or self._lock_lost:
            raise StorageBusy("The study is being restarted. Try again in a few seconds.")
        return await asyncio.wrap_future(self._writer.submit(job))

    @property
    def waiting(self) -> int:
        """The number of writes in the queue."""
        return 0 if self._writer is None else self._writer.waiting

    def count_refusal(self, error: str, actor: str) -> None:
        """Count a refused request; an event is stored within a second.

        Args:
            error: the name of the error's class.
            actor: "rater:NUMBER" or "unknown".
        """
        self._refused[error, actor] += 1

    async def problems(self) -> list[str]:
        """Return why answers cannot be given or stored, now or soon; empty for a healthy study."""
        problems = []
        if self._writer is None or not self._writer.alive:
            problems.append("the writer has stopped")
        if shutil.disk_usage(self.store.folder).free < MIN_FREE:
            problems.append("the disk is nearly full")
        try:
            probe = self.write(lambda connection: connection.execute(text("SELECT 1")).all())
            await asyncio.wait_for(probe, PROBE_SECONDS)
        except TimeoutError:
            problems.append(f"the database has not answered for {PROBE_SECONDS} seconds")
        except (StudyError, DBAPIError) as error:
            problems.append(_describe(error))
        for problem in (self._lock_lost, self._problem):
            if problem and problem not in problems:
                problems.append(problem)
        if self.read_sync and (sync := await asyncio.to_thread(self.read_sync)).problem:
            problems.append(f"{sync.pending} votes are on this machine only: {sync.problem}")
        if not problems and (problem := await asyncio.to_thread(self._check_media)):
            problems.append(problem)
        return problems

    def _check_media(self) -> str:
        """Return whether clips lack their files, as of some seconds ago."""
        if time.monotonic() - self._media_checked >= MEDIA_SECONDS:
            lost = find_lost_clips(self.store)
            self._media_problem = describe_lost(lost) if lost else ""
            self._media_checked = time.monotonic()
        return self._media_problem

    async def _work_every_second(
        self, renew_lock: Callable[[], None], stopping: asyncio.Event
    ) -> None:
        """Do the periodic work until the service stops, and once more then."""
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), timeout=1)
            try:
                await asyncio.to_thread(renew_lock)
                await self._store_refusals()
                await self.write(
                    lambda connection: assignment.sweep(connection, self.store.clock())
                )
                self._problem = ""
            except LockLost as error:
                self._lock_lost = str(error)
            except Exception as error:  # the next round may succeed; until then `problems` has it
                self._problem = _describe(error)
            if stopping.is_set():
                return

    async def _store_refusals(self) -> None:
        refused, self._refused = self._refused, Counter()

        def record(connection: Connection) -> None:
            for (error, actor), count in refused.items():
                events.record(
                    connection,
                    "refused",
                    actor=actor,
                    subject="service",
                    now=self.store.clock(),
                    payload={"refusal": error},
                    count=count,
                )

        try:
            await self.write(record)
        except Exception:
            self._refused.update(refused)  # store them in the next round
            raise


def _describe(error: Exception) -> str:
    """Return an error's text without the SQL statement and its values, which are private."""
    return str(error.orig) if isinstance(error, DBAPIError) else str(error)
