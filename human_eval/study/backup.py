"""Copies of a study's database while it is in use, and the way back.

A copy is one SQLite file, also of a PostgreSQL database, so it can move a study from one to the
other. It holds the hashes of the clips, not the clips; restoring lists the clips that are missing.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import Connection, insert, select, text
from sqlalchemy.exc import DBAPIError

from human_eval.clips.ingest import Clip
from human_eval.collection.pairs import list_clips
from human_eval.definition.definition import StudyDefinition, parse_definition
from human_eval.errors import StorageDamaged, StudyError
from human_eval.storage import events
from human_eval.storage.database import (
    Database,
    create_file,
    driver_errors,
    open_database,
    translated_errors,
)
from human_eval.storage.keys import load_secret
from human_eval.storage.lock import SERVICE_RUNS, alone, file_lock
from human_eval.storage.migrate import downgrade_tables, table_version, upgrade_tables
from human_eval.storage.tables import Base, Study
from human_eval.study.queries import list_damage, list_defects
from human_eval.study.store import StudyStore, open_study

KEEP = 48  # backups; older ones go
ROWS = 10_000  # copied at once


def back_up(store: StudyStore) -> Path:
    """Copy the database into the backups folder, check the copy, and return its path.

    Answers may arrive meanwhile. The copy holds those acknowledged before it began.
    """
    store.backups.mkdir(mode=0o700, exist_ok=True)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    path = store.backups / f"study-{stamp}.db"
    unfinished = path.with_suffix(".unfinished")
    try:
        if store.database.is_sqlite:
            _copy_file(store.database, unfinished)
        else:
            _copy_into_file(store.database, unfinished)
        _check_copy(unfinished, unfinished)
        _sync(unfinished)
        digest = hashlib.sha256(unfinished.read_bytes()).hexdigest()
        path.with_suffix(".sha256").write_text(f"{digest}  {path.name}\n")
        unfinished.rename(path)
    finally:
        for leftover in store.backups.glob(f"{unfinished.name}*"):
            leftover.unlink()
    for old in list_backups(store)[:-KEEP]:
        _remove(old)
    return path


def list_backups(store: StudyStore) -> list[Path]:
    """Return the backups, oldest first."""
    return sorted(store.backups.glob("study-*.db"))


def replace_backups(store: StudyStore) -> Path:
    """Make a new backup and remove all others, which contain a rater erased since."""
    old = list_backups(store)
    fresh = back_up(store)
    for path in old:
        _remove(path)
    return fresh


def open_to_restore(folder: Path, backup: Path | None = None) -> tuple[StudyStore, Path]:
    """Open a study so that a backup can be restored, and return it with the backup's path.

    A missing or damaged SQLite database is replaced by an empty one; what is left of it is renamed
    to `study.db.damaged-TIME`. A PostgreSQL database may be empty.

    Args:
        backup: by default the newest.

    Raises:
        StudyError: there is no study, or no backup.
    """
    known = sorted((folder / "backups").glob("study-*.db"))
    if backup is None and not known:
        open_study(folder).close()  # reports what is wrong with the study, if anything is
        raise StudyError(f"There is no backup in {folder / 'backups'}. Name a file.")
    chosen = backup or known[-1]
    if not folder.is_dir():
        return open_study(folder), chosen  # raises the error
    load_secret(folder / "secret")
    path = folder / "study.db"
    if (folder / "study.url").is_file():
        return open_study(folder, when_empty=lambda: _read_definition(chosen, folder)), chosen
    if _is_sound(path):
        return open_study(folder), chosen
    definition = _read_definition(chosen, folder)
    with file_lock(folder, SERVICE_RUNS.format(folder=folder)):  # a service may still take answers
        _set_aside(path)
        create_file(path)
    return open_study(folder, when_empty=lambda: definition), chosen


def _read_definition(backup: Path, folder: Path) -> StudyDefinition:
    """Return the definition of the study that a backup is of.

    Raises:
        StudyError: the backup is damaged, or of another study than the folder's.
    """
    with _opened(backup, folder) as source, source.read() as connection:
        definition = connection.execute(select(Study.definition)).scalar_one()
    kept = [path.read_text(encoding="utf-8") for path in folder.glob("study*.toml")]
    if kept and definition not in kept:
        raise StudyError(
            f"{backup.name} is a backup of another study. Restore it into the folder of that study."
        )
    return parse_definition(definition, origin=str(backup))


def _set_aside(path: Path) -> None:
    """Rename what is left of a database, with the files beside it."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    for ending in ("", "-wal", "-shm"):
        left = path.with_name(f"{path.name}{ending}")
        if left.exists():
            left.rename(path.with_name(f"{path.name}.damaged-{stamp}{ending}"))


def _is_sound(path: Path) -> bool:
    """Return whether a file is an intact database of a study, of any version."""
    if not _is_sqlite(path):
        return False
    with closing(open_database(path)) as database:
        try:
            with database.read() as connection:
                has_study = connection.execute(select(Study.id)).first() is not None
                return has_study and not list_damage(connection)
        except (DBAPIError, StorageDamaged):
            return False


def restore(store: StudyStore, backup: Path) -> list[Clip]:
    """Replace the rows of the study by those of a backup, in one transaction.

    A backup of an earlier version is upgraded on the way; the file itself stays as it is.

    Returns:
        The clips whose files are missing from the media folder.

    Raises:
        StudyError: the backup is damaged, of another study, or made by a newer program; or a
            service runs, whose answers would be lost.
    """
    with (
        _opened(backup, store.folder) as source,
        alone(store.database, store.folder),
        source.read() as copy,
        store.write() as connection,
    ):
        hashes = [
            side.execute(select(Study.definition_hash)).scalar() for side in (copy, connection)
        ]
        if hashes[1] is not None and hashes[0] != hashes[1]:
            raise StudyError(
                f"{backup.name} is a backup of another study. Restore it into the folder of that "
                "study."
            )
        downgrade_tables(connection, "base")  # their triggers refuse to delete rows
        upgrade_tables(connection)
        _copy_rows(copy, connection)
        events.record(
            connection,
            "restored",
            actor="restore",
            subject="study",
            now=store.clock(),
            payload={"backup": backup.name},
        )
        if defects := list_defects(connection):
            raise StudyError(f"The backup is damaged ({defects[0]}). Nothing was restored.")
        clips = list_clips(copy, None)
    return [clip for clip in clips if not (store.media / clip.stored_name).is_file()]


@contextmanager
def _opened(backup: Path, folder: Path) -> Iterator[Database]:
    """Check a backup and open a copy of it, upgraded to the tables of this version.

    Args:
        folder: holds the copy until the end of the block.

    Raises:
        StudyError: the file is damaged, holds no study, or was made by a newer version.
    """
    if not backup.is_file():
        raise StudyError(
            f"There is no file {backup}. The folder backups/ of the study holds its backups."
        )
    _check_digest(backup)
    if not _is_sqlite(backup):
        raise StudyError(f"{backup} is not a backup. The folder backups/ of the study holds them.")
    with TemporaryDirectory(dir=folder) as scratch:
        copy = Path(scratch) / "study.db"
        shutil.copyfile(backup, copy)
        _check_copy(copy, backup)
        with closing(open_database(copy)) as database:
            yield database


def _copy_rows(source: Connection, target: Connection) -> None:
    for table in Base.metadata.sorted_tables:
        rows = source.execution_options(yield_per=ROWS).execute(select(table))
        flags = [column.name for column in table.columns if column.type.python_type is bool]
        for batch in rows.mappings().partitions(ROWS):
            values = [{**row, **{name: bool(row[name]) for name in flags}} for row in batch]
            target.execute(insert(table), values)
        if target.dialect.name == "postgresql" and "id" in table.columns:
            # The copied rows keep their numbers. The next row needs a new one.
            target.execute(
                text(
                    f"SELECT setval(pg_get_serial_sequence('{table.name}', 'id'), "
                    f"COALESCE((SELECT MAX(id) FROM {table.name}), 1))"
                )
            )


def _copy_file(database: Database, path: Path) -> None:
    """Copy the pages of an SQLite database as of one moment."""
    create_file(path)
    with (
        closing(open_database(path)) as target,
        translated_errors(),
        database.reading.connect() as source,
        target.writing.connect() as copy,
        _driver(source) as from_driver,
        _driver(copy) as to_driver,
    ):
        from_driver.backup(to_driver)
        to_driver.execute("PRAGMA journal_mode=DELETE")  # one file, without a -wal beside it


def _copy_into_file(database: Database, path: Path) -> None:
    create_file(path)
    with closing(open_database(path)) as target:
        with database.read() as source, target.write() as connection:
            upgrade_tables(connection)
            _copy_rows(source, connection)
        with (
            translated_errors(),
            target.writing.connect() as connection,
            _driver(connection) as driver,
        ):
            driver.execute("PRAGMA journal_mode=DELETE")


@contextmanager
def _driver(connection: Connection) -> Iterator[Any]:
    """Yield the driver's own connection."""
    driver = connection.dialect.loaded_dbapi
    assert driver is not None
    with driver_errors(driver):
        yield connection.connection.driver_connection


def _is_sqlite(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(15) == b"SQLite format 3"


def _check_copy(path: Path, name: Path) -> None:
    """Upgrade the copy of a study's database and check what it holds.

    Args:
        name: the file that messages name.
    """
    try:
        with closing(open_database(path)) as database, database.write() as connection:
            if table_version(connection) is not None:
                upgrade_tables(connection)
            study = connection.execute(select(Study.id)).first()
            defects = list_defects(connection)
    except DBAPIError as error:
        raise StudyError(
            f"{name} is not a backup of a study ({error.orig}). The folder backups/ of the study "
            "holds its backups."
        ) from error
    if study is None:
        raise StudyError(
            f"{name} holds no study. The folder backups/ of the study holds its backups."
        )
    if defects:
        raise StudyError(f"{name} is damaged ({defects[0]}). Use another backup.")


def _check_digest(path: Path) -> None:
    beside = path.with_suffix(".sha256")
    if not beside.is_file():
        return  # a copy made by hand; `_check_copy` checks its content
    expected = beside.read_text().split()[0]
    if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
        raise StudyError(f"{path} has changed since it was written. Use another backup.")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    path.unlink()
    path.with_suffix(".sha256").unlink(missing_ok=True)
