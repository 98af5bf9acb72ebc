"""Upgrade the tables of a database from one version to the next."""

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
    """Upgrade the tables to a version, or create them in an empty database.

    Raises:
        StudyError: a newer version of this program made them.
    """
    found = table_version(connection)
    known = [step.revision for step in ScriptDirectory(str(SCRIPTS)).walk_revisions()]
    if found is not None and found not in known:
        raise StudyError(
            f"A newer program made this database (its version is {found}, this program knows "
            f"{', '.join(sorted(known))}). Update this program."
        )
    if found != latest_version() or revision != "head":
        command.upgrade(_config(connection), revision)


def downgrade_tables(connection: Connection, revision: str) -> None:
    """Downgrade the tables to a version, or drop them all with "base"."""
    command.downgrade(_config(connection), revision)


def table_version(connection: Connection) -> str | None:
    """Return the version of the tables; None if there are none."""
    return MigrationContext.configure(connection).get_current_revision()


def latest_version() -> str:
    """Return the version that this program uses."""
    head = ScriptDirectory(str(SCRIPTS)).get_current_head()
    assert head is not None
    return head


def list_differences(connection: Connection) -> list[Any]:
    """Return the differences between the database and `human_eval.storage.tables`."""
    return list(compare_metadata(MigrationContext.configure(connection), Base.metadata))


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    config.attributes["connection"] = connection
    return config
