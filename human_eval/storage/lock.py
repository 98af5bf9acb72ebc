"""Locks on a study: services that take answers exclude a restore, and vice versa.

SQLite allows one service, PostgreSQL several. The operating system or PostgreSQL releases a lock
when its process ends, however it ends, so that no stale lock remains.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from sqlalchemy import text

from human_eval.errors import StudyError
from human_eval.storage.database import Database, translated_errors

LOCK_FILE = "service.lock"
POSTGRESQL_LOCK = "hashtext('human_eval ' || current_schema())"  # one number for each study


@contextmanager
def serving(database: Database, folder: Path) -> Iterator[None]:
    """Hold the lock of a service until the end of the block.

    Raises:
        StudyError: another service uses this SQLite study, or a backup is being restored.
    """
    refusal = (
        f"Another service or a restore is using {folder}. Stop it first. Several services on one "
        "study need PostgreSQL."
        if database.is_sqlite
        else f"A backup is being restored into {folder}. Start again afterwards."
    )
    with _lock(database, folder, "pg_try_advisory_lock_shared", refusal):
        yield


@contextmanager
def alone(database: Database, folder: Path) -> Iterator[None]:
    """Exclude every service until the end of the block.

    Raises:
        StudyError: a service is running.
    """
    refusal = (
        f"A service is taking answers on {folder}, and they would be lost. Stop it, then run the "
        "same command."
    )
    with _lock(database, folder, "pg_try_advisory_lock", refusal):
        yield


@contextmanager
def _lock(database: Database, folder: Path, function: str, refusal: str) -> Iterator[None]:
    if database.is_sqlite:
        # No soft lock where the file system has none of its own: a killed process would leave it.
        lock = FileLock(
            folder / LOCK_FILE, blocking=False, thread_local=False, fallback_to_soft=False
        )
        try:
            lock.acquire()
        except Timeout as error:
            raise StudyError(refusal) from error
        try:
            yield
        finally:
            lock.release()
        return
    with translated_errors():
        connection = database.writing.connect().execution_options(isolation_level="AUTOCOMMIT")
        acquired = connection.scalar(text(f"SELECT {function}({POSTGRESQL_LOCK})"))
    try:
        if not acquired:
            raise StudyError(refusal)
        yield
    finally:
        # Close the connection itself: returned to the pool, it would keep the lock.
        connection.invalidate()
        connection.close()
