"""Each vote says under which amendment of the study it was given: 0 is the study as created."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; no study was amended before."""
    column = sa.Column("amendment", sa.Integer(), server_default="0", nullable=False)
    op.add_column("vote", column)


def downgrade() -> None:
    """Remove the column."""
    op.drop_column("vote", "amendment")
