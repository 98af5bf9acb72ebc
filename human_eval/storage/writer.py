"""A queue of writes and the threads that carry them out.

Connections that wait for SQLite retry at random times, so some raters would wait for seconds under
load. A single thread that commits the whole queue at once serves answers in order, and is faster:
many answers share one sync to disk. PostgreSQL needs no batches and has several threads.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, IntegrityError

from human_eval.errors import StorageBusy, StudyError
from human_eval.storage.database import Database

Job = Callable[[Connection], Any]
_Entry = tuple[Job, Future[Any]]

CAPACITY = 2_000  # waiting writes; more are refused instead of waiting for minutes
BATCH = 256  # writes in one commit
POSTGRESQL_THREADS = 8


class Writer:
    """Carries out jobs, each completely or not at all, and replies after the commit."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._batch = BATCH if database.is_sqlite else 1
        self._waiting: queue.Queue[_Entry | None] = queue.Queue(CAPACITY)
        self._threads = [
            threading.Thread(target=self._work, name=f"writer-{number}", daemon=True)
            for number in range(1 if database.is_sqlite else POSTGRESQL_THREADS)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def alive(self) -> bool:
        """Whether the threads are running."""
        return all(thread.is_alive() for thread in self._threads)

    @property
    def waiting(self) -> int:
        """The number of jobs in the queue."""
        return self._waiting.qsize()

    def submit(self, job: Job) -> Future[Any]:
        """Queue a job.

        Raises:
            StorageBusy: the queue is full, or the writer has stopped.
        """
        if not self.alive:
            raise StorageBusy(
                "The service can no longer store answers; nothing was stored. Start it again."
            )
        future: Future[Any] = Future()
        try:
            self._waiting.put_nowait((job, future))
        except queue.Full as error:
            raise StorageBusy(
                "Too many answers are waiting, so nothing was stored. Try again in a few seconds."
            ) from error
        return future

    def close(self) -> None:
        """Finish the jobs in the queue, then stop."""
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (entry := self._waiting.get()) is not None:
            entries = [entry]
            while len(entries) < self._batch and not self._waiting.empty():
                following = self._waiting.get_nowait()  # never empty: batches mean a single thread
                if following is None:
                    self._waiting.put(None)
                    break
                entries.append(following)
            # Skip jobs that were cancelled; from here on none can be cancelled.
            self._carry_out([entry for entry in entries if entry[1].set_running_or_notify_cancel()])

    def _carry_out(self, entries: list[_Entry]) -> None:
        if not entries:
            return
        outcomes: list[tuple[Future[Any], Any, BaseException | None]] = []
        try:
            with self._database.write() as connection:
                for job, future in entries:
                    outcomes.append((future, *_attempt(job, connection)))
        except BaseException as error:  # noqa: B036 - goes to the callers; the thread goes on
            outcomes = [(future, None, error) for _, future in entries]
        for future, result, refusal in outcomes:
            if refusal is None:
                future.set_result(result)
            else:
                future.set_exception(refusal)


def _attempt(job: Job, connection: Connection) -> tuple[Any, BaseException | None]:
    """Return the result of a job, or its error; a job that fails leaves nothing behind."""
    # Without `with`: a full disk ends the whole transaction, and leaving the block would then roll
    # back to a savepoint that no longer exists.
    savepoint = connection.begin_nested()
    try:
        result = job(connection)
        savepoint.commit()
    except (StudyError, IntegrityError) as refusal:
        savepoint.rollback()
        return None, refusal
    except DBAPIError:
        raise
    except Exception as error:  # a defect in one job must not fail the others
        savepoint.rollback()
        return None, error
    return result, None
