"""Who uses a study right now: services that take answers, or one command that must be alone.

SQLite takes one service, PostgreSQL several. A lock of the operating system, or of PostgreSQL, goes
with the process that holds it, however that ends; nothing is left behind to clean up.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import text

from human_eval.errors import StudyError
from human_eval.storage.database import Database, refusals

LOCK_FILE = "service.lock"
POSTGRESQL_LOCK = "hashtext('human_eval ' || current_schema())"  # one number for each study


@contextmanager
def serving(database: Database, folder: Path) -> Iterator[None]:
    """Be a service of the study until the end of the block.

    Raises:
        StudyError: another service runs and the database is SQLite, or a backup is being restored.
    """
    refusal = (
        f"Expected no other service on {folder}, got one. SQLite takes one; use PostgreSQL for "
        "several."
        if database.is_sqlite
        else f"Expected a study that is not being restored, got {folder}. Start again afterwards."
    )
    with _lock(database, folder, "pg_try_advisory_lock_shared", refusal):
        yield


@contextmanager
def alone(database: Database, folder: Path) -> Iterator[None]:
    """Keep every service away until the end of the block.

    Raises:
        StudyError: one runs.
    """
    refusal = (
        f"Expected no service on {folder}, got one that takes answers: they would be lost. "
        "Stop it, then run the same command."
    )
    with _lock(database, folder, "pg_try_advisory_lock", refusal):
        yield


@contextmanager
def _lock(database: Database, folder: Path, function: str, refusal: str) -> Iterator[None]:
    if database.is_sqlite:
        with open(folder / LOCK_FILE, "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StudyError(refusal) from error
            yield
        return
    with refusals():
        connection = database.writing.connect().execution_options(isolation_level="AUTOCOMMIT")
        taken = connection.scalar(text(f"SELECT {function}({POSTGRESQL_LOCK})"))
    try:
        if not taken:
            raise StudyError(refusal)
        yield
    finally:
        # For good: back in the pool it would keep the lock.
        connection.invalidate()
        connection.close()
