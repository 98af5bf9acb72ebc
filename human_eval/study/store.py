"""A study: one folder, one database, and what one can do with them.

study.toml  the definition, as given; the database's copy is the one that counts
study.db    SQLite, unless the study was created in PostgreSQL: then study.url names it
secret      signs tokens and makes pseudonyms; losing it locks every rater out
media/      the clips, under names that tell nothing
backups/    copies of the database
"""

import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
from sqlalchemy import Connection, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from human_eval.clips.ingest import Clip
from human_eval.collection import assignment, pairs, submission
from human_eval.collection.assignment import Assignment
from human_eval.collection.submission import Receipt, Submission
from human_eval.definition.definition import StudyDefinition, parse_definition
from human_eval.definition.prompts import Prompt
from human_eval.errors import StudyError
from human_eval.storage import events
from human_eval.storage.database import Database, create_file, open_database
from human_eval.storage.keys import Keys, create_secret, load_secret
from human_eval.storage.migrate import upgrade_tables
from human_eval.storage.tables import Rater, Study
from human_eval.study import queries

INSERT: dict[str, Callable[..., sqlite.Insert | postgresql.Insert]] = {  # that know conflicts
    "sqlite": sqlite.insert,
    "postgresql": postgresql.insert,
}
SIMULATED = "simulated"  # the provider of raters who are none


def now_ms() -> int:
    """Return the time in milliseconds since 1970, UTC."""
    return time.time_ns() // 1_000_000


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
        """Where the clips lie."""
        return self.folder / "media"

    @property
    def backups(self) -> Path:
        """Where copies of the database lie."""
        return self.folder / "backups"

    def write(self) -> AbstractContextManager[Connection]:
        """Open a transaction that commits at the end of the block."""
        return self.database.write()

    def read(self) -> AbstractContextManager[Connection]:
        """Open a transaction that sees one state and changes nothing."""
        return self.database.read()

    def close(self) -> None:
        """Close the connections."""
        self.database.dispose()

    # Raters and their answers

    def enter(
        self, provider: str, name: str, *, consented: bool = True, simulated: bool = False
    ) -> int:
        """Return the number of a rater, new or known, by the name their provider gave them."""
        with self.write() as connection:
            return enter(connection, self.keys, provider, name, self.clock(), simulated, consented)

    def rater_number(self, pseudonym: str) -> int:
        """Return the number of the rater of that pseudonym.

        Raises:
            StudyError: there is none.
        """
        with self.read() as connection:
            number = connection.execute(
                select(Rater.id).where(Rater.pseudonym == pseudonym)
            ).scalar()
        if number is None:
            raise StudyError(
                f"Expected a rater's pseudonym, got {pseudonym!r}. `screen` lists them."
            )
        return number

    def claim(self, rater_id: int, *, ahead: bool = False) -> Assignment | None:
        """Return the pair a rater is to answer; see `human_eval.collection.assignment.claim`."""
        with self.write() as connection:
            return assignment.claim(
                connection,
                self.definition,
                rater_id,
                now=self.clock(),
                rng=self.rng,
                ahead=ahead,
            )

    def submit(self, ballot: Submission) -> Receipt:
        """Store the answers of a turn; see `human_eval.collection.submission.submit`."""
        with self.write() as connection:
            return submission.submit(connection, self.definition, ballot, now=self.clock())

    def sweep(self) -> int:
        """Give back the leases that have expired, and return their number."""
        with self.write() as connection:
            return assignment.sweep(connection, self.clock())

    # What is to be judged

    def prompts(self) -> list[Prompt]:
        """Return the prompts in order."""
        with self.read() as connection:
            return pairs.list_prompts(connection)

    def clips(self) -> list[Clip]:
        """Return the clips of the systems."""
        with self.read() as connection:
            return pairs.list_clips(connection)

    def add_clips(self, clips: Iterable[Clip], *, pair: bool = True) -> dict[str, int]:
        """Store clips in one transaction, then pair those of complete comparisons.

        Returns:
            New pairs by comparison.
        """
        with self.write() as connection:
            for clip in clips:
                pairs.add_clip(connection, clip, now=self.clock())
        return self.make_pairs() if pair else {}

    def make_pairs(self, *, simulated: bool = False, partial: bool = False) -> dict[str, int]:
        """Pair clips; see `human_eval.collection.pairs.make_pairs`."""
        with self.write() as connection:
            return pairs.make_pairs(
                connection, self.definition, rng=self.rng, simulated=simulated, partial=partial
            )

    # What was answered

    def votes(self, as_of: datetime | None = None, *, simulated: bool = False) -> pd.DataFrame:
        """Return one row per current answer; people's, or those of a simulation, never both."""
        moment = None if as_of is None else int(as_of.timestamp() * 1000)
        with self.read() as connection:
            return queries.read_votes(
                connection, self.definition, as_of=moment, simulated=simulated
            )

    def pairs(self, *, simulated: bool = False) -> pd.DataFrame:
        """Return one row per pair, with the names of its clips."""
        with self.read() as connection:
            return queries.read_pairs(connection, self.definition, simulated=simulated)

    def tally(self, *, simulated: bool = False) -> pd.DataFrame:
        """Count the answers; quick at any size."""
        with self.read() as connection:
            return queries.tally(connection, simulated=simulated)

    def progress(self, *, simulated: bool = False) -> dict[str, Any]:
        """Return how far the study is."""
        with self.read() as connection:
            return queries.progress(connection, simulated=simulated)

    def list_defects(self) -> list[str]:
        """Check the database; an empty list is a sound one."""
        with self.read() as connection:
            return queries.list_defects(connection)

    # What was decided

    def exclude(self, subject: str, *, rule: str, evidence: Mapping[str, Any], author: str) -> int:
        """Exclude answers from analyses; see `human_eval.storage.events.exclude`."""
        with self.write() as connection:
            return events.exclude(
                connection, subject, rule=rule, evidence=evidence, author=author, now=self.clock()
            )

    def revoke(self, event_id: int, *, author: str, reason: str) -> int:
        """Take an exclusion back; see `human_eval.storage.events.revoke`."""
        with self.write() as connection:
            return events.revoke(
                connection, event_id, author=author, reason=reason, now=self.clock()
            )

    def set_closed(self, closed: bool, *, author: str) -> None:
        """Take no more answers, or take them again.

        Raises:
            StudyError: it is so already.
        """
        now = self.clock()
        with self.write() as connection:
            if (connection.execute(select(Study.closed_at)).scalar_one() is not None) == closed:
                state = "a closed" if closed else "an open"
                raise StudyError(
                    f"Expected a study in another state, got {state} one. Nothing was changed."
                )
            connection.execute(update(Study).values(closed_at=now if closed else None))
            kind = "closed" if closed else "reopened"
            events.record(connection, kind, actor=author, subject="study", now=now)

    def set_paused(self, paused: bool, *, author: str) -> None:
        """Hand out no new pairs, or hand them out again; open pairs can still be answered.

        Raises:
            StudyError: it is so already.
        """
        with self.write() as connection:
            if assignment.is_paused(connection) == paused:
                state = "a paused" if paused else "a running"
                raise StudyError(
                    f"Expected a study in another state, got {state} one. Nothing was changed."
                )
            kind = "paused" if paused else "resumed"
            events.record(connection, kind, actor=author, subject="study", now=self.clock())


def enter(
    connection: Connection,
    keys: Keys,
    provider: str,
    name: str,
    now: int,
    simulated: bool = False,
    consented: bool = True,
) -> int:
    """Return the number of a rater, new or known.

    Raises:
        StudyError: the provider is that of simulated raters, and this one is not, or vice versa.
    """
    if simulated != (provider == SIMULATED):
        raise StudyError(
            f"Expected the provider {SIMULATED!r} for simulated raters alone, got {provider!r} "
            f"for a rater that is {'' if simulated else 'not '}simulated. Choose another name."
        )
    pseudonym = keys.pseudonym(provider, name)
    statement = select(Rater.id).where(Rater.provider == provider, Rater.pseudonym == pseudonym)
    known = connection.execute(statement).scalar()
    if known is not None:
        return known
    values = {
        "provider": provider,
        "pseudonym": pseudonym,
        "simulated": simulated,
        "created_at": now,
        "consented_at": now if consented else None,
    }
    insert_new = INSERT[connection.dialect.name](Rater).on_conflict_do_nothing(
        index_elements=[Rater.provider, Rater.pseudonym]
    )
    made = connection.execute(insert_new.returning(Rater.id), values).scalar()
    # None where PostgreSQL let the same person in on another connection meanwhile.
    return connection.execute(statement).scalar_one() if made is None else made


def create_study(
    folder: Path,
    definition: StudyDefinition,
    prompts: Sequence[Prompt],
    *,
    database_url: str | None = None,
) -> StudyStore:
    """Make the folder and the database of a new study. From here on its definition is frozen.

    Raises:
        StudyError: there is a study already, or the prompts are none.
    """
    if any((folder / name).exists() for name in ("secret", "study.db", "study.url")):
        raise StudyError(f"Expected no study in {folder}, got one. Choose another folder.")
    if not prompts:
        raise StudyError("Expected at least one prompt, got none. Check the file of prompts.")
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
        _write_private(folder / "study.url", database_url)
    return StudyStore(folder, database, definition, create_secret(folder / "secret"))


def _fill_database(
    where: Path | str, definition: StudyDefinition, prompts: Sequence[Prompt]
) -> Database:
    database = open_database(where)
    with _disposed_on_failure(database), database.write() as connection:
        upgrade_tables(connection)
        if connection.execute(select(Study.name)).first():
            raise StudyError("Expected an empty database, got one with a study. Use another one.")
        values = {
            "id": 1,
            "name": definition.name,
            "definition": definition.source,
            "definition_hash": definition.hash,
            "created_at": now_ms(),
            "erasing": False,
        }
        connection.execute(insert(Study), values)
        pairs.add_prompts(connection, prompts)
    return database


@contextmanager
def _disposed_on_failure(database: Database) -> Iterator[None]:
    try:
        yield
    except BaseException:
        database.dispose()
        raise


def open_study(
    folder: Path,
    *,
    database_url: str | None = None,
    when_empty: Callable[[], StudyDefinition] | None = None,
) -> StudyStore:
    """Open a study, bringing its tables up to date.

    Args:
        when_empty: returns the definition where the database is empty, which a backup is to fill;
            by default that is refused.

    Raises:
        StudyError: there is no study, or a newer program made it.
    """
    url = folder / "study.url"
    if not folder.is_dir():
        raise StudyError(
            f"Expected the folder of a study, got {str(folder)!r}. "
            "Make one with `python -m human_eval create`."
        )
    where = database_url or (url.read_text().strip() if url.is_file() else folder / "study.db")
    keys = load_secret(folder / "secret")
    database = open_database(where)
    with _disposed_on_failure(database), database.write() as connection:
        upgrade_tables(connection)
        row = connection.execute(select(Study.definition, Study.definition_hash)).one_or_none()
        if row is not None:
            definition = parse_definition(row.definition, origin="the database")
            assert definition.hash == row.definition_hash
        elif when_empty is not None:
            definition = when_empty()
        else:  # without the URL, which may hold a password
            raise StudyError(
                f"Expected a study in the database of {folder}, got an empty database. Bring a "
                "backup back: `python -m human_eval restore`."
            )
    return StudyStore(folder, database, definition, keys)


def _write_private(path: Path, text: str) -> None:
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text)
