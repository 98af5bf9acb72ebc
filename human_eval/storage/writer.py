"""A queue of writes and the threads that carry them out.

SQLite lets waiting connections try at random times, so that under load some rater waits for
seconds. One thread that takes what has queued up and commits it together is fair, and quicker as
well: one sync to disk serves many answers. PostgreSQL has several threads and no need of that.
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

CAPACITY = 2_000  # waiting writes; more are refused, so that nobody waits for minutes
BATCH = 256  # writes to one commit
POSTGRESQL_THREADS = 8


class Writer:
    """Carries out jobs, each wholly or not at all, and answers after the commit."""

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
        """Whether writes are being carried out."""
        return all(thread.is_alive() for thread in self._threads)

    @property
    def waiting(self) -> int:
        """How many jobs have not been taken up."""
        return self._waiting.qsize()

    def submit(self, job: Job) -> Future[Any]:
        """Queue a job.

        Raises:
            StorageBusy: the queue is full, or nobody works on it any more.
        """
        if not self.alive:
            raise StorageBusy(
                "Expected a running writer, got one that has stopped; nothing was stored. "
                "Start the service again."
            )
        future: Future[Any] = Future()
        try:
            self._waiting.put_nowait((job, future))
        except queue.Full as error:
            raise StorageBusy(
                f"Expected fewer than {CAPACITY} waiting answers, got more; nothing was stored. "
                "Send the same request again in a few seconds."
            ) from error
        return future

    def close(self) -> None:
        """Finish what is waiting, then stop."""
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (entry := self._waiting.get()) is not None:
            entries = [entry]
            while len(entries) < self._batch and not self._waiting.empty():
                following = self._waiting.get_nowait()  # nobody else takes: batches mean one thread
                if following is None:
                    self._waiting.put(None)
                    break
                entries.append(following)
            # One that its sender gave up on is not begun; from here on none can be given up.
            self._carry_out([entry for entry in entries if entry[1].set_running_or_notify_cancel()])

    def _carry_out(self, entries: list[_Entry]) -> None:
        if not entries:
            return
        outcomes: list[tuple[Future[Any], Any, BaseException | None]] = []
        try:
            with self._database.write() as connection:
                for job, future in entries:
                    outcomes.append((future, *_attempt(job, connection)))
        except BaseException as error:  # noqa: B036 - to those who wait; the thread must live on
            outcomes = [(future, None, error) for _, future in entries]
        for future, result, refusal in outcomes:
            if refusal is None:
                future.set_result(result)
            else:
                future.set_exception(refusal)


def _attempt(job: Job, connection: Connection) -> tuple[Any, BaseException | None]:
    """Return the job's result or its refusal; of a refused job nothing stays."""
    # By hand: a full disk ends the whole transaction, and with it the savepoint that leaving a
    # `with` block would try to return to.
    savepoint = connection.begin_nested()
    try:
        result = job(connection)
        savepoint.commit()
    except (StudyError, IntegrityError) as refusal:
        savepoint.rollback()
        return None, refusal
    except DBAPIError:
        raise
    except Exception as error:  # a defect of one job is not the others' failure
        savepoint.rollback()
        return None, error
    return result, None
