"""Connections to the database of a study: SQLite in a file, or PostgreSQL by URL.

SQLite commits are synced to disk before they are acknowledged (WAL, synchronous FULL). Every
write transaction takes the write lock at its start: a transaction that reads first and asks for the
lock later can fail however long it is willing to wait.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from sqlalchemy import Connection, Engine, QueuePool, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, TimeoutError

from human_eval.errors import StorageBusy, StorageDamaged, StorageFull, StudyError

SAFE_SQLITE = (3, 51, 3)  # before it, two connections could corrupt a WAL database
WITHDRAWN_SQLITE = (3, 52, 0)
BUSY_MILLISECONDS = 8_000
FULL_CODES = {"53100", "53200"}  # PostgreSQL: disk_full, out_of_memory
FULL_TEXTS = ("database or disk is full", "No space left on device")
AWAY_TEXTS = ("connection failed", "connection is bad", "connection timeout expired")
DAMAGED_TEXTS = ("disk image is malformed", "file is not a database")
READ_ONLY_TEXTS = ("readonly database", "read-only transaction")
REFUSED_TEXTS = {  # of PostgreSQL on connecting; what they mean, without names
    "password authentication failed|no password supplied": "a wrong user or password",
    'FATAL: +(database|role) ".*" does not exist': "a user or a database that it does not have",
    "no pg_hba.conf entry": "no right to connect from here",
    "failed to resolve host": "a host of unknown name",
    "invalid port number|invalid connection option": "a port or a setting that does not exist",
}


@dataclass(frozen=True)
class Database:
    """One engine for transactions that write and one for those that only read."""

    writing: Engine
    reading: Engine

    @property
    def is_sqlite(self) -> bool:
        """Whether one file holds it, to which one thread should write."""
        return self.writing.dialect.name == "sqlite"

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Open a transaction; it commits at the end of the block, unless that raises.

        Raises:
            StorageBusy, StorageFull: nothing of the block was stored.
        """
        with refusals(), self.writing.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a transaction that sees one state of the database and changes nothing."""
        with refusals(), self.reading.connect() as connection:
            yield connection

    def dispose(self) -> None:
        """Close every connection."""
        self.writing.dispose()
        self.reading.dispose()


def open_database(where: Path | str, *, driver: ModuleType | None = None) -> Database:
    """Connect to the SQLite file or the `postgresql://` URL.

    Args:
        driver: the DB-API module for SQLite; by default one whose SQLite is safe.

    Raises:
        StudyError: there is no such file, it is no URL we know, or SQLite is too old.
    """
    if isinstance(where, str):
        return _open_postgresql(where)
    if not where.is_file():
        raise StudyError(
            f"Expected a database at {where}, got no such file. Bring a backup back: "
            "`python -m human_eval restore`."
        )
    driver = driver or safe_sqlite()
    return Database(
        writing=_sqlite_engine(where, driver, "BEGIN IMMEDIATE"),
        reading=_sqlite_engine(where, driver, "BEGIN"),
    )


def create_file(path: Path, *, driver: ModuleType | None = None) -> None:
    """Make an empty SQLite database that only its owner may read.

    Raises:
        FileExistsError: there is a file of that name.
    """
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    connection = (driver or safe_sqlite()).connect(str(path))
    # Once, here: setting it on each connect fails while another connection writes.
    connection.execute("PRAGMA journal_mode=WAL")
    connection.close()


def safe_sqlite() -> ModuleType:
    """Return a DB-API module whose SQLite does not have the WAL-reset bug.

    Raises:
        StudyError: this machine has none.

    Source: sqlite.org/wal.html, "The WAL-reset bug"; fixed in 3.51.3.
    """
    try:
        from pysqlite3 import dbapi2 as driver
    except ImportError:  # it has wheels for Linux alone
        import sqlite3 as driver
    version = driver.sqlite_version_info
    if version < SAFE_SQLITE or version == WITHDRAWN_SQLITE:
        raise StudyError(
            f"Expected SQLite 3.51.3 or newer, got {driver.sqlite_version}, which can corrupt a "
            "database under load. Run `pip install pysqlite3`, or use --database postgresql://..."
        )
    module: ModuleType = driver
    return module


def _sqlite_engine(path: Path, driver: ModuleType, begin: str) -> Engine:
    def connect() -> Any:
        # mode=rw: should the file vanish while we run, no empty one may take its place.
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

    # Named, since SQLAlchemy takes "sqlite://" for a database in memory, whose pool closes the
    # connections of other threads while they use them.
    engine = create_engine(
        "sqlite://", module=driver, creator=connect, poolclass=QueuePool, pool_size=8
    )
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    return engine


def _open_postgresql(url: str) -> Database:
    # Without the URL, which may hold a password.
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:  # ValueError: of the port
        raise StudyError(
            "Expected postgresql://USER:PASSWORD@HOST:PORT/NAME, got no such URL. Correct it "
            "(in a password write @ as %40 and : as %3A), or leave --database out to use SQLite."
        ) from error
    if parsed.get_backend_name() != "postgresql":
        raise StudyError(
            f"Expected a postgresql:// URL, got {parsed.drivername!r}. "
            "Leave --database out to use SQLite."
        )
    settings = "-c synchronous_commit=on -c lock_timeout=5000 -c timezone=UTC"
    given = " ".join(parsed.normalized_query.get("options", ()))
    parsed = parsed.set(drivername="postgresql+psycopg").update_query_dict(
        {"options": f"{settings} {given}".strip(), "connect_timeout": "8"}
    )
    engine = create_engine(parsed, pool_size=16, max_overflow=4, pool_pre_ping=True)
    reading = engine.execution_options(isolation_level="REPEATABLE READ")
    return Database(writing=engine, reading=reading)


@contextmanager
def refusals() -> Iterator[None]:
    """Turn a database that is full, locked, away or damaged into the error that says so."""
    try:
        yield
    except TimeoutError as error:  # no free connection
        raise StorageBusy(_BUSY) from error
    except DBAPIError as error:
        raise translate(error) from error


def translate(error: DBAPIError) -> Exception:
    """Return the `StudyError` that says what a database error means, or the error itself."""
    message = str(error.orig)
    code = getattr(error.orig, "sqlstate", None) or ""
    if code in FULL_CODES or any(text in message for text in FULL_TEXTS):
        return StorageFull(
            f"Expected room on the disk, got {message.strip()!r}; nothing was stored. "
            "Free disk space, then do the same again."
        )
    if any(text in message for text in DAMAGED_TEXTS):
        return StorageDamaged(
            f"Expected a sound database, got: {message.strip()}. Bring a backup back: "
            "`python -m human_eval restore`."
        )
    if any(text in message for text in READ_ONLY_TEXTS):
        return StorageBusy(
            f"Expected a database that can be written, got: {message.strip()}; nothing was stored. "
            "Make it writable (the file, its folder, its disk; of PostgreSQL, use the primary)."
        )
    for pattern, meaning in REFUSED_TEXTS.items():
        if re.search(pattern, message):
            return StorageBusy(
                f"Expected PostgreSQL to let us in, got {meaning}; nothing was stored. "
                "Correct the database's URL: --database, or study.url in the study's folder."
            )
    passing = code[:2] in {"08", "40", "53", "55", "57"} or error.connection_invalidated
    away = any(text in message for text in AWAY_TEXTS)
    locked = "locked" in message or "disk I/O" in message
    return StorageBusy(_BUSY) if passing or away or locked else error


_BUSY = (
    "Expected the database to answer, got none in time; nothing was stored. "
    "Send the same request again in a few seconds."
)
