"""The rater's session that an assignment belongs to: quotas count by session.

Until now all assignments of a rater counted together. They go to the session that the rater
entered last, so that a rater who is in the middle of it goes on where they were.
"""

import json

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column and fill it from the events of entering."""
    column = sa.Column("session", sa.Text(), server_default="", nullable=False)
    op.add_column("assignment", column)
    connection = op.get_bind()
    entered = sa.text("SELECT actor, payload FROM event WHERE kind = 'entered' ORDER BY id")
    sessions: dict[int, str] = {}
    for actor, payload in connection.execute(entered):
        sessions[int(actor.removeprefix("rater:"))] = json.loads(payload).get("session", "")
    rows = [{"rater": rater, "session": session} for rater, session in sessions.items() if session]
    if rows:
        fill = sa.text("UPDATE assignment SET session = :session WHERE rater_id = :rater")
        connection.execute(fill, rows)


def downgrade() -> None:
    """Remove the column."""
    op.drop_column("assignment", "session")
