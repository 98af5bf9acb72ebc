"""Upgrade the tables of a database from one version to the next."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from human_eval.errors import StudyError

SCRIPTS = Path(__file__).parent / "migrations"


def upgrade_tables(connection: Connection, revision: str = "head") -> None:
    """Upgrade the tables to a version, or create them in an empty database.

    Raises:
        StudyError: a newer version of this program made them.
    """
    found, scripts = table_version(connection), ScriptDirectory(str(SCRIPTS))
    known = [step.revision for step in scripts.walk_revisions()]
    if found is not None and found not in known:
        raise StudyError(
            f"A newer program made this database (its version is {found}, this program knows "
            f"{', '.join(sorted(known))}). Update this program."
        )
    if found != scripts.get_current_head() or revision != "head":
        command.upgrade(_config(connection), revision)


def downgrade_tables(connection: Connection, revision: str) -> None:
    """Downgrade the tables to a version, or drop them all with "base"."""
    command.downgrade(_config(connection), revision)


def table_version(connection: Connection) -> str | None:
    """Return the version of the tables; None if there are none."""
    return MigrationContext.configure(connection).get_current_revision()


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    config.attributes["connection"] = connection
    return config
