"""The version of a database's tables, and the way from one version to the next."""

from pathlib import Path
from typing import Any

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from human_eval.errors import StudyError
from human_eval.storage.tables import Base

SCRIPTS = Path(__file__).parent / "migrations"


def upgrade_tables(connection: Connection, revision: str = "head") -> None:
    """Bring the tables to a version; an empty database gets all of them.

    Raises:
        StudyError: a newer program made them.
    """
    found = table_version(connection)
    known = [step.revision for step in ScriptDirectory(str(SCRIPTS)).walk_revisions()]
    if found is not None and found not in known:
        raise StudyError(
            f"Expected tables of a version from {known}, got {found!r}: a newer program made them. "
            "Update this one."
        )
    if found != latest_version() or revision != "head":
        command.upgrade(_config(connection), revision)


def downgrade_tables(connection: Connection, revision: str) -> None:
    """Take steps back, down to a version or to "base", which is an empty database."""
    command.downgrade(_config(connection), revision)


def table_version(connection: Connection) -> str | None:
    """Return the version of the tables; None if there are none."""
    return MigrationContext.configure(connection).get_current_revision()


def latest_version() -> str:
    """Return the version that this program works with."""
    head = ScriptDirectory(str(SCRIPTS)).get_current_head()
    assert head is not None
    return head


def list_differences(connection: Connection) -> list[Any]:
    """Return how the database differs from `human_eval.storage.tables`; empty if it does not."""
    return list(compare_metadata(MigrationContext.configure(connection), Base.metadata))


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    config.attributes["connection"] = connection
    return config
