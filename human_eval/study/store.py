"""A study on disk: one folder and one database.

study.toml  the definition as given; the copy in the database is the one that counts
study-v1.toml  a former definition; `amend` writes it
study.db    SQLite; a study created in PostgreSQL has study.url instead
secret      signs tokens and derives pseudonyms; without it no rater can come back
media/      the clips, under random names
backups/    copies of the database
"""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from sqlalchemy import Connection, insert, select

from human_eval.collection.pairs import add_prompts
from human_eval.definition.definition import StudyDefinition, parse_definition
from human_eval.definition.prompts import Prompt
from human_eval.errors import StudyError
from human_eval.storage.database import Database, create_file, now_ms, open_database
from human_eval.storage.keys import Keys, create_secret, load_secret
from human_eval.storage.migrate import upgrade_tables
from human_eval.storage.private_file import create_private
from human_eval.storage.tables import Event, Study


@dataclass(frozen=True)
class StudyStore:
    """An open study."""

    folder: Path
    database: Database
    definition: StudyDefinition
    keys: Keys
    clock: Callable[[], int] = now_ms
    rng: random.Random = field(default_factory=random.SystemRandom)

    @property
    def media(self) -> Path:
        """The folder of the clips."""
        return self.folder / "media"

    @property
    def backups(self) -> Path:
        """The folder of the backups."""
        return self.folder / "backups"

    def write(self) -> AbstractContextManager[Connection]:
        """Open a transaction that is committed at the end of the block."""
        return self.database.write()

    def read(self) -> AbstractContextManager[Connection]:
        """Open a transaction that reads one state of the database."""
        return self.database.read()

    def close(self) -> None:
        """Close the connections."""
        self.database.close()


def create_study(
    folder: Path,
    definition: StudyDefinition,
    prompts: Sequence[Prompt],
    *,
    database_url: str | None = None,
) -> StudyStore:
    """Create the folder and the database of a study. Its definition never changes afterwards.

    Raises:
        StudyError: the folder holds a study already, or there are no prompts.
    """
    if any((folder / name).exists() for name in ("secret", "study.db", "study.url")):
        raise StudyError(f"{folder} already holds a study. Choose another folder.")
    if not prompts:
        raise StudyError("There are no prompts. Check the file of prompts.")
    for path in (folder, folder / "media", folder / "backups"):
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o700)
    made = folder / "study.db"
    if database_url is None:
        create_file(made)
    try:
        database = _fill_database(database_url or made, definition, prompts)
    except Exception:
        if database_url is None:
            for leftover in folder.glob(f"{made.name}*"):
                leftover.unlink()
        raise
    (folder / "study.toml").write_text(definition.source, encoding="utf-8")
    if database_url is not None:
        create_private(folder / "study.url", database_url)
    return StudyStore(folder, database, definition, create_secret(folder / "secret"))


def _fill_database(
    where: Path | str, definition: StudyDefinition, prompts: Sequence[Prompt]
) -> Database:
    database = open_database(where)
    with _closed_on_failure(database), database.write() as connection:
        upgrade_tables(connection)
        if connection.execute(select(Study.name)).first():
            raise StudyError("The database already holds a study. Use another database.")
        values = {
            "id": 1,
            "name": definition.name,
            "definition": definition.source,
            "definition_hash": definition.hash,
            "created_at": now_ms(),
            "erasing": False,
        }
        connection.execute(insert(Study), values)
        add_prompts(connection, prompts)
    return database


@contextmanager
def _closed_on_failure(database: Database) -> Iterator[None]:
    try:
        yield
    except BaseException:
        database.close()
        raise


def open_study(
    folder: Path, *, when_empty: Callable[[], StudyDefinition] | None = None
) -> StudyStore:
    """Open a study and upgrade its tables to this version.

    Args:
        when_empty: returns the definition of an empty database that a backup will fill; by default
            an empty database is refused.

    Raises:
        StudyError: there is no study, or a newer version made it.
    """
    url = folder / "study.url"
    if not folder.is_dir():
        raise StudyError(
            f"There is no study at {folder}. Create one with `python -m human_eval create`."
        )
    where = url.read_text().strip() if url.is_file() else folder / "study.db"
    keys = load_secret(folder / "secret")
    database = open_database(where)
    with _closed_on_failure(database), database.write() as connection:
        upgrade_tables(connection)
        row = connection.execute(select(Study.definition, Study.definition_hash)).one_or_none()
        if row is not None:
            definition = parse_definition(row.definition, origin="the database")
            assert definition.hash == row.definition_hash
            definition = _follow_amendments(connection, definition)
        elif when_empty is not None:
            definition = when_empty()
        else:  # the message leaves out the URL, which may hold a password
            raise StudyError(
                f"The database of {folder} is empty. Restore a backup with "
                "`python -m human_eval restore`."
            )
    return StudyStore(folder, database, definition, keys)


def _follow_amendments(connection: Connection, definition: StudyDefinition) -> StudyDefinition:
    """Return the first definition after all amendments, with the earlier ones."""
    amended = select(Event.payload).where(Event.kind == "amended").order_by(Event.id)
    for payload in connection.execute(amended).scalars():
        following = parse_definition(json.loads(payload)["definition"], origin="the database")
        definition = replace(following, earlier=definition.versions)
    return definition
