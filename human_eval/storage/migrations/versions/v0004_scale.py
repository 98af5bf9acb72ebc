"""How strong a preference is, for questions with a scale: column `strength` of `vote`.

Earlier votes, and votes on other questions, have strength 0.
"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.execute(
        "ALTER TABLE vote ADD COLUMN strength INTEGER DEFAULT 0 NOT NULL "
        "CONSTRAINT ck_vote_strength_known CHECK (strength IN (0, 1, 2))"
    )


def downgrade() -> None:
    """Drop the column: slight and strong preferences become equal."""
    op.execute("ALTER TABLE vote DROP COLUMN strength")
