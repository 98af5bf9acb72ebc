"""The study's glossary in the database: a task is a pair, and a leased assignment is open.

Table `task` becomes `pair`, `assignment.task_id` becomes `pair_id`, `leased_at` becomes
`assigned_at`, state `leased` becomes `open`, and event subjects `task:N` become `pair:N`. SQLite
cannot rename a constraint, so the tables are created anew and their rows copied.
"""

from collections.abc import Callable

import sqlalchemy as sa
from alembic import op

from human_eval.storage.migrations.versions import v0001_tables as before

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

LONG, FLAG = before.LONG, before.FLAG


def upgrade() -> None:
    """Rename everything, keeping every row."""
    tables = {"task": "pair", "assignment": "assignment", "vote": "vote"}
    creators = (_create_pair, _create_assignment, before.create_vote)
    _recreate(tables, creators, state=("leased", "open"))
    _rename_subjects("task:", "pair:")


def downgrade() -> None:
    """Restore the former names, keeping every row."""
    tables = {"pair": "task", "assignment": "assignment", "vote": "vote"}
    creators = (before.create_task, before.create_assignment, before.create_vote)
    _recreate(tables, creators, state=("open", "leased"))
    _rename_subjects("pair:", "task:")


def _recreate(
    tables: dict[str, str], creators: tuple[Callable[[], None], ...], state: tuple[str, str]
) -> None:
    """Copy tables aside, drop them, create their successors and copy the rows back.

    Args:
        tables: new name by old name, referenced tables first.
        creators: create the new tables, in the same order of columns.
        state: the old and the new word for an assignment that is neither answered nor expired.
    """
    for old in tables:
        op.execute(f"CREATE TEMPORARY TABLE old_{old} AS SELECT * FROM {old}")
    for old in reversed(tables):  # no row may refer to a table that is dropped
        op.drop_table(old)
    op.execute(f"UPDATE old_assignment SET state = '{state[1]}' WHERE state = '{state[0]}'")
    for create in creators:
        create()
    for old, new in tables.items():
        op.execute(f"INSERT INTO {new} SELECT * FROM old_{old}")
        op.execute(f"DROP TABLE old_{old}")
        if op.get_bind().dialect.name == "postgresql":
            # The rows brought their numbers along: the next one must be a new one.
            op.execute(
                f"SELECT setval(pg_get_serial_sequence('{new}', 'id'), "
                f"COALESCE((SELECT MAX(id) FROM {new}), 0) + 1, false)"
            )
    for kept in before.KEPT:
        if kept[0] == "vote":
            before.refuse(*kept)


def _rename_subjects(old: str, new: str) -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP TRIGGER keep_event_update")
    else:
        op.execute("DROP TRIGGER keep_event_update ON event")
    op.execute(
        f"UPDATE event SET subject = '{new}' || substr(subject, {len(old) + 1}) "
        f"WHERE subject LIKE '{old}%'"
    )
    before.refuse("event", "UPDATE", "TRUE")


def _create_pair() -> None:
    op.create_table(
        "pair",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("comparison", sa.Text(), nullable=False),
        sa.Column("prompt_index", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("variant", sa.Text(), nullable=False),
        sa.Column("simulated", FLAG, nullable=False),
        sa.Column("clip_a", sa.Integer(), nullable=False),
        sa.Column("clip_b", sa.Integer(), nullable=False),
        sa.Column("gold_answer", sa.Text(), nullable=True),
        sa.Column("target", sa.Integer(), nullable=True),
        sa.Column("taken", sa.Integer(), nullable=False),
        sa.Column("order_key", LONG, nullable=False),
        sa.Column("withheld", FLAG, nullable=False),
        sa.CheckConstraint(
            "(kind = 'real') = (target IS NOT NULL)", name=op.f("ck_pair_only_real_has_quota")
        ),
        sa.CheckConstraint(
            "gold_answer IS NULL OR gold_answer IN ('a', 'b')", name=op.f("ck_pair_gold_word")
        ),
        sa.CheckConstraint(
            "kind IN ('real', 'gold', 'mirror', 'identical')", name=op.f("ck_pair_kind_word")
        ),
        sa.CheckConstraint(
            "taken >= 0 AND (target IS NULL OR taken <= target)", name=op.f("ck_pair_quota")
        ),
        sa.ForeignKeyConstraint(["clip_a"], ["clip.id"], name="fk_pair_clip_a"),
        sa.ForeignKeyConstraint(["clip_b"], ["clip.id"], name="fk_pair_clip_b"),
        sa.ForeignKeyConstraint(
            ["prompt_index"], ["prompt.prompt_index"], name="fk_pair_prompt_index"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_pair"),
        sa.UniqueConstraint(
            "comparison",
            "prompt_index",
            "kind",
            "variant",
            "simulated",
            name="uq_pair_comparison_prompt_index_kind_variant_simulated",
        ),
        sa.UniqueConstraint(
            "id", "comparison", "simulated", name="uq_pair_id_comparison_simulated"
        ),
        sqlite_strict=True,
    )
    op.create_index(
        "ix_pair_next",
        "pair",
        ["simulated", "taken", "order_key"],
        unique=False,
        sqlite_where=sa.text("kind = 'real' AND taken < target AND NOT withheld"),
        postgresql_where=sa.text("kind = 'real' AND taken < target AND NOT withheld"),
    )


def _create_assignment() -> None:
    op.create_table(
        "assignment",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("pair_id", sa.Integer(), nullable=False),
        sa.Column("rater_id", sa.Integer(), nullable=False),
        sa.Column("comparison", sa.Text(), nullable=False),
        sa.Column("simulated", FLAG, nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("slot", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("side_a", sa.Text(), nullable=False),
        sa.Column("assigned_at", LONG, nullable=False),
        sa.Column("expires_at", LONG, nullable=False),
        sa.Column("submitted_at", LONG, nullable=True),
        sa.CheckConstraint("side_a IN ('left', 'right')", name=op.f("ck_assignment_side_a_word")),
        sa.CheckConstraint(
            "state IN ('open', 'submitted', 'expired', 'returned')",
            name=op.f("ck_assignment_state_word"),
        ),
        sa.CheckConstraint("slot IN (0, 1)", name=op.f("ck_assignment_slot_word")),
        sa.ForeignKeyConstraint(
            ["rater_id", "simulated"], ["rater.id", "rater.simulated"], name="fk_assignment_rater"
        ),
        sa.ForeignKeyConstraint(
            ["pair_id", "comparison", "simulated"],
            ["pair.id", "pair.comparison", "pair.simulated"],
            name="fk_assignment_pair",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_assignment"),
        sa.UniqueConstraint(
            "rater_id", "comparison", "ordinal", name="uq_assignment_rater_id_comparison_ordinal"
        ),
        sa.UniqueConstraint("pair_id", "rater_id", name="uq_assignment_pair_id_rater_id"),
        sqlite_strict=True,
    )
    op.create_index(
        "ix_assignment_expiry",
        "assignment",
        ["expires_at"],
        unique=False,
        sqlite_where=sa.text("state = 'open'"),
        postgresql_where=sa.text("state = 'open'"),
    )
    op.create_index(
        "uq_assignment_open",
        "assignment",
        ["rater_id", "slot"],
        unique=True,
        sqlite_where=sa.text("state = 'open'"),
        postgresql_where=sa.text("state = 'open'"),
    )
