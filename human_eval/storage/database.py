"""Connections to the database of a study: an SQLite file, or PostgreSQL by URL.

SQLite syncs a commit to disk before it is acknowledged (WAL, synchronous FULL). Every write
transaction takes the write lock at its start: one that reads first and asks for the lock later can
fail at once, whatever its timeout.
"""

import re
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from sqlalchemy import Connection, Engine, QueuePool, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError, TimeoutError

from human_eval.errors import StorageBusy, StorageDamaged, StorageFull, StudyError
from human_eval.storage.private_file import create_private

SAFE_SQLITE = (3, 51, 3)  # before it, two connections could corrupt a WAL database
WITHDRAWN_SQLITE = (3, 52, 0)
BUSY_MILLISECONDS = 8_000
# With these, PostgreSQL's client (libpq) detects a dead connection within about ten seconds.
TIMEOUTS = {
    "connect_timeout": "8",  # seconds
    "tcp_user_timeout": "8000",  # milliseconds
    "keepalives_idle": "5",  # seconds
    "keepalives_interval": "2",
    "keepalives_count": "3",
}
FULL_CODES = {"53100", "53200"}  # PostgreSQL: disk_full, out_of_memory
INSUFFICIENT_PRIVILEGE = "42501"
# Classes of codes of PostgreSQL: connection, rollback, resources, prerequisite state, operator
# intervention, input or output.
TEMPORARY_CLASSES = {"08", "40", "53", "55", "57", "58"}
FULL_TEXTS = ("database or disk is full", "No space left on device")
DAMAGED_TEXTS = ("disk image is malformed", "file is not a database", "malformed database schema")
DAMAGED_CODES = {"XX001", "XX002"}  # PostgreSQL: data_corrupted, index_corrupted
UNREADABLE_TEXTS = ("locked", "disk I/O", "unable to open database file", "locking protocol")
READ_ONLY_TEXTS = ("readonly database", "read-only transaction")
REFUSED_TEXTS = {  # what PostgreSQL reports on connecting, and its meaning without any names
    "password authentication failed|no password supplied": "the user or password is wrong",
    'FATAL: +(database|role) ".*" does not exist': "the user or database does not exist",
    "no pg_hba.conf entry": "this machine has no right to connect",
    "failed to resolve host": "the host name is unknown",
    "invalid port number|invalid connection option": "the port or an option is not valid",
}


def now_ms() -> int:
    """Return the time as the database stores it: milliseconds since 1970, UTC."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True)
class Database:
    """Two engines: one for transactions that write, one for those that only read."""

    writing: Engine
    reading: Engine

    @property
    def is_sqlite(self) -> bool:
        """Whether the database is an SQLite file, to which one thread should write."""
        return self.writing.dialect.name == "sqlite"

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Open a transaction that is committed at the end of the block, unless the block raises.

        Raises:
            StorageBusy, StorageFull: nothing of the block was stored.
        """
        with translated_errors(), self.writing.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a transaction that reads one state of the database."""
        with translated_errors(), self.reading.connect() as connection:
            yield connection

    def close(self) -> None:
        """Close every connection."""
        self.writing.dispose()
        self.reading.dispose()


def open_database(where: Path | str) -> Database:
    """Connect to the SQLite file or the `postgresql://` URL.

    Raises:
        StudyError: the file does not exist, the URL is not valid, or SQLite is too old.
    """
    if isinstance(where, str):
        return _open_postgresql(where)
    if not where.is_file():
        raise StudyError(
            f"The database {where} does not exist. Restore a backup with "
            "`python -m human_eval restore`."
        )
    driver = safe_sqlite()
    return Database(
        writing=_sqlite_engine(where, driver, "BEGIN IMMEDIATE"),
        reading=_sqlite_engine(where, driver, "BEGIN"),
    )


def create_file(path: Path) -> None:
    """Create an empty SQLite database that only its owner can read.

    Raises:
        FileExistsError: the file exists.
        StudyError: it could not be written, and does not exist.
    """
    driver = safe_sqlite()
    create_private(path)
    try:
        with driver_errors(driver), closing(driver.connect(str(path))) as connection:
            # Set once, here: setting it on each connect fails while another connection writes.
            connection.execute("PRAGMA journal_mode=WAL")
    except StudyError:
        path.unlink()
        raise


def safe_sqlite() -> ModuleType:
    """Return a DB-API module whose SQLite does not have the WAL-reset bug.

    Raises:
        StudyError: this machine has none.

    Source: sqlite.org/wal.html, "The WAL-reset bug"; fixed in 3.51.3.
    """
    try:
        from pysqlite3 import dbapi2 as driver
    except ImportError:  # it has wheels for Linux only
        import sqlite3 as driver
    version = driver.sqlite_version_info
    if version < SAFE_SQLITE or version == WITHDRAWN_SQLITE:
        raise StudyError(
            f"SQLite {driver.sqlite_version} can corrupt a database under load; 3.51.3 or newer is "
            "needed. Run `pip install pysqlite3`, or use --database postgresql://..."
        )
    module: ModuleType = driver
    return module


def _sqlite_engine(path: Path, driver: ModuleType, begin: str) -> Engine:
    def connect() -> Any:
        # mode=rw: if the file disappears while the service runs, do not create an empty one.
        connection = driver.connect(
            f"file:{path.absolute()}?mode=rw",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=BUSY_MILLISECONDS / 1000,
        )
        for pragma in (
            "synchronous=FULL",
            "foreign_keys=ON",
            "trusted_schema=OFF",
            "cell_size_check=ON",
            "cache_size=-65536",
        ):
            connection.execute(f"PRAGMA {pragma}")
        return connection

    # SQLAlchemy takes "sqlite://" for a database in memory. The pool that it would choose closes
    # connections that other threads use.
    engine = create_engine(
        "sqlite://", module=driver, creator=connect, poolclass=QueuePool, pool_size=8
    )
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    return engine


def _open_postgresql(url: str) -> Database:
    # The messages leave out the URL, which may hold a password.
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:  # ValueError: the port is not a number
        raise StudyError(
            "The database URL is not of the form postgresql://USER:PASSWORD@HOST:PORT/NAME. "
            "Correct it (in a password write @ as %40 and : as %3A), or omit --database to use "
            "SQLite."
        ) from error
    if parsed.get_backend_name() != "postgresql":
        raise StudyError(
            f"The database URL must begin with postgresql://, not {parsed.drivername}://. "
            "Omit --database to use SQLite."
        )
    settings = "-c synchronous_commit=on -c lock_timeout=5000 -c timezone=UTC"
    given = " ".join(parsed.normalized_query.get("options", ()))
    timeouts = {name: value for name, value in TIMEOUTS.items() if name not in parsed.query}
    parsed = parsed.set(drivername="postgresql+psycopg").update_query_dict(
        {**timeouts, "options": f"{settings} {given}".strip()}
    )
    engine = create_engine(parsed, pool_size=16, max_overflow=4, pool_pre_ping=True)
    reading = engine.execution_options(isolation_level="REPEATABLE READ")
    return Database(writing=engine, reading=reading)


@contextmanager
def translated_errors() -> Iterator[None]:
    """Raise the `StudyError` for a database that is full, locked, unreachable or damaged."""
    try:
        yield
    except TimeoutError as error:  # no free connection
        raise StorageBusy(_BUSY) from error
    except DBAPIError as error:
        raise translate(error) from error


@contextmanager
def driver_errors(driver: Any) -> Iterator[None]:
    """Raise the `StudyError` where a block calls the driver itself, without SQLAlchemy."""
    try:
        yield
    except driver.Error as error:
        raise translate(DBAPIError.instance(None, None, error, driver.Error)) from error


def translate(error: DBAPIError) -> Exception:
    """Return the `StudyError` for a database error, or the error itself if there is none."""
    message = str(error.orig)
    code = getattr(error.orig, "sqlstate", None) or ""
    if code in FULL_CODES or any(text in message for text in FULL_TEXTS):
        return StorageFull(
            f"The disk is full, so nothing was stored ({message.strip()}). Free disk space, then "
            "try again."
        )
    if code in DAMAGED_CODES or any(text in message for text in DAMAGED_TEXTS):
        return StorageDamaged(
            f"The database is damaged ({message.strip()}). Restore a backup with "
            "`python -m human_eval restore`."
        )
    if any(text in message for text in READ_ONLY_TEXTS):
        return StorageBusy(
            f"The database is read-only, so nothing was stored ({message.strip()}). Make it "
            "writable (file, folder and disk; for PostgreSQL, connect to the primary)."
        )
    for pattern, meaning in REFUSED_TEXTS.items():
        if re.search(pattern, message):
            return StorageBusy(
                f"PostgreSQL refused the connection: {meaning}. Nothing was stored. Correct the "
                "database URL: --database, or study.url in the study's folder."
            )
    if code == INSUFFICIENT_PRIVILEGE:
        return StudyError(
            f"PostgreSQL refused the statement: {message.strip()}. Nothing was stored. Give the "
            "user of the database URL all rights on the schema of the study."
        )
    temporary = code[:2] in TEMPORARY_CLASSES or error.connection_invalidated
    unreadable = any(text in message for text in UNREADABLE_TEXTS)
    return StorageBusy(_BUSY) if temporary or _lost_connection(error) or unreadable else error


def _lost_connection(error: DBAPIError) -> bool:
    """Whether psycopg has no connection: its OperationalError then has no code of the server."""
    server_code = getattr(error.orig, "sqlstate", "")  # SQLite's errors have no such attribute
    return isinstance(error, OperationalError) and server_code is None


_BUSY = "The database did not respond in time, so nothing was stored. Try again in a few seconds."
