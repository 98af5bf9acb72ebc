"""Locks on a study: services that take answers exclude a restore, and vice versa.

SQLite allows one service, PostgreSQL several. The operating system or PostgreSQL releases a lock
when its process ends, however it ends, so that no stale lock remains. PostgreSQL also releases it
when it restarts: a service has to renew its lock.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from human_eval.errors import StudyError, StudyInUse
from human_eval.storage.database import Database, translated_errors

LOCK_FILE = "service.lock"
SERVICE_RUNS = (
    "A service is taking answers on {folder}, and they would be lost. Stop it, then run the same "
    "command."
)
POSTGRESQL_LOCK = "hashtext('human_eval ' || current_schema())"  # one number for each study


class LockLost(StudyError):
    """Another command has used the study while this service had no lock."""


class SessionLock:
    """A lock that belongs to a connection to PostgreSQL, and is lost with it."""

    def __init__(self, database: Database, function: str, refusal: str) -> None:
        self._database, self._function, self._refusal = database, function, refusal
        self._connection: Connection | None = None

    def take(self) -> None:
        """Take the lock.

        Raises:
            StudyInUse: another process excludes it.
        """
        taken = False
        with translated_errors():
            self._connection = self._database.writing.connect().execution_options(
                isolation_level="AUTOCOMMIT"
            )
            acquire = text(f"SELECT {self._function}({POSTGRESQL_LOCK})")
            try:
                taken = self._connection.scalar(acquire)
            finally:
                if not taken:
                    self.release()
        if not taken:
            raise StudyInUse(self._refusal)

    def renew(self) -> None:
        """Take the lock again if its connection was lost. Call it every second.

        Raises:
            StorageBusy: PostgreSQL does not answer.
            LockLost: another process excludes it by now.
        """
        if self._connection is not None:
            try:
                self._connection.scalar(text("SELECT 1"))
                return
            except DBAPIError:
                self.release()
        try:
            self.take()
        except StudyInUse as error:
            raise LockLost(
                "The connection to PostgreSQL was lost, and another command has changed the study "
                "since then. Start the service again."
            ) from error

    def release(self) -> None:
        """Release the lock and close its connection."""
        if self._connection is not None:
            with suppress(SQLAlchemyError):  # at once, and not when PostgreSQL notices the closing
                self._connection.execute(text("SELECT pg_advisory_unlock_all()"))
            self._connection.invalidate()
            self._connection.close()
            self._connection = None


def serving(database: Database, folder: Path) -> AbstractContextManager[Callable[[], None]]:
    """Hold the lock of a service until the end of the block.

    The block gets a function that takes the lock again if PostgreSQL has dropped it; see
    `SessionLock.renew`.

    Raises:
        StudyInUse: another service uses this SQLite study, or a backup is being restored.
    """
    refusal = (
        f"Another service or a restore is using {folder}. Stop it first. Several services on one "
        "study need PostgreSQL."
        if database.is_sqlite
        else f"A backup is being restored into {folder}. Start again afterwards."
    )
    return _lock(database, folder, "pg_try_advisory_lock_shared", refusal)


def alone(database: Database, folder: Path) -> AbstractContextManager[object]:
    """Exclude every service until the end of the block.

    Raises:
        StudyInUse: a service is running.
    """
    return _lock(database, folder, "pg_try_advisory_lock", SERVICE_RUNS.format(folder=folder))


@contextmanager
def _lock(
    database: Database, folder: Path, function: str, refusal: str
) -> Iterator[Callable[[], None]]:
    if database.is_sqlite:
        with file_lock(folder, refusal):
            yield lambda: None  # only the end of the process releases it
        return
    lock = SessionLock(database, function, refusal)
    lock.take()
    try:
        yield lock.renew
    finally:
        lock.release()


@contextmanager
def file_lock(folder: Path, refusal: str) -> Iterator[None]:
    """Hold the lock of the folder of an SQLite study until the end of the block.

    Raises:
        StudyInUse: another process holds it; `refusal` is the message.
    """
    # No soft lock where the file system has none of its own: a killed process would leave it.
    lock = FileLock(folder / LOCK_FILE, blocking=False, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise StudyInUse(refusal) from error
    try:
        yield
    finally:
        lock.release()
