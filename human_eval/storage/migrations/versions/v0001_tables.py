"""The first tables of a study, and the triggers that keep its records unchanged."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

LONG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
FLAG = sa.Boolean().with_variant(sa.Integer(), "sqlite")
NUMBER: sa.types.TypeEngine[float] = sa.Double().with_variant(sa.REAL(), "sqlite")

# (table, refused statement, condition): the definition of a study, its prompts, votes and events
# never change. Only `erase` deletes votes; it sets `study.erasing` first.
KEPT = [
    ("study", "DELETE", "TRUE"),
    (
        "study",
        "UPDATE",
        "OLD.definition <> NEW.definition OR OLD.definition_hash <> NEW.definition_hash"
        " OR OLD.name <> NEW.name OR OLD.created_at <> NEW.created_at",
    ),
    ("prompt", "UPDATE", "TRUE"),
    ("prompt", "DELETE", "TRUE"),
    ("vote", "UPDATE", "TRUE"),
    ("vote", "DELETE", "NOT (SELECT erasing FROM study)"),
    ("event", "UPDATE", "TRUE"),
    ("event", "DELETE", "TRUE"),
]


def upgrade() -> None:
    """Create the tables, then the triggers."""
    _create_event()
    _create_prompt()
    _create_rater()
    _create_study()
    _create_clip()
    create_task()
    create_assignment()
    create_vote()
    for table, action, condition in KEPT:
        refuse(table, action, condition)


def downgrade() -> None:
    """Drop every table and trigger."""
    for table in ("vote", "assignment", "task", "clip", "study", "rater", "prompt", "event"):
        op.drop_table(table)
    if op.get_bind().dialect.name != "sqlite":
        for table, action, _ in KEPT:
            op.execute(f"DROP FUNCTION keep_{table}_{action.lower()}()")


def refuse(table: str, action: str, condition: str) -> None:
    """Create the trigger that refuses to update or delete rows of a table under a condition."""
    if op.get_bind().dialect.name == "sqlite":
        _refuse_in_sqlite(table, action, condition)
    else:
        _refuse_in_postgresql(table, action, condition)


def _refuse_in_sqlite(table: str, action: str, condition: str) -> None:
    op.execute(
        f"CREATE TRIGGER keep_{table}_{action.lower()} BEFORE {action} ON {table} "
        f"WHEN {condition} BEGIN SELECT RAISE(ABORT, '{table} rows are kept'); END"
    )


def _refuse_in_postgresql(table: str, action: str, condition: str) -> None:
    name = f"keep_{table}_{action.lower()}"
    row = "NEW" if action == "UPDATE" else "OLD"
    op.execute(
        f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ "
        f"BEGIN IF {condition} THEN RAISE EXCEPTION '{table} rows are kept' "
        f"USING ERRCODE = 'integrity_constraint_violation'; END IF; RETURN {row}; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {name} BEFORE {action} ON {table} FOR EACH ROW EXECUTE FUNCTION {name}()"
    )


def _create_event() -> None:
    op.create_table(
        "event",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", LONG, nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.CheckConstraint("count > 0", name="ck_event_counted"),
        sa.PrimaryKeyConstraint("id", name="pk_event"),
        sqlite_strict=True,
    )
    op.create_index("ix_event_kind", "event", ["kind"], unique=False)


def _create_prompt() -> None:
    op.create_table(
        "prompt",
        sa.Column("prompt_index", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("display", sa.Text(), nullable=False),
        sa.Column("category", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("prompt_index", name="pk_prompt"),
        sqlite_strict=True,
    )


def _create_rater() -> None:
    op.create_table(
        "rater",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("pseudonym", sa.Text(), nullable=False),
        sa.Column("simulated", FLAG, nullable=False),
        sa.Column("created_at", LONG, nullable=False),
        sa.Column("consented_at", LONG, nullable=True),
        sa.Column("erased_at", LONG, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_rater"),
        sa.UniqueConstraint("id", "simulated", name="uq_rater_id_simulated"),
        sa.UniqueConstraint("provider", "pseudonym", name="uq_rater_provider_pseudonym"),
        sqlite_strict=True,
    )


def _create_study() -> None:
    op.create_table(
        "study",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("definition", sa.Text(), nullable=False),
        sa.Column("definition_hash", sa.Text(), nullable=False),
        sa.Column("created_at", LONG, nullable=False),
        sa.Column("closed_at", LONG, nullable=True),
        sa.Column("erasing", FLAG, nullable=False),
        sa.CheckConstraint("id = 1", name="ck_study_only_one"),
        sa.PrimaryKeyConstraint("id", name="pk_study"),
        sa.UniqueConstraint("definition_hash", name="uq_study_definition_hash"),
        sqlite_strict=True,
    )


def _create_clip() -> None:
    op.create_table(
        "clip",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("system", sa.Text(), nullable=False),
        sa.Column("prompt_index", sa.Integer(), nullable=False),
        sa.Column("variant", sa.Text(), nullable=False),
        sa.Column("seed", LONG, nullable=True),
        sa.Column("source_sha256", sa.Text(), nullable=False),
        sa.Column("stored_name", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("fps", NUMBER, nullable=False),
        sa.Column("frames", sa.Integer(), nullable=False),
        sa.Column("bytes", LONG, nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.CheckConstraint("status IN ('ok', 'quarantined')", name="ck_clip_status_word"),
        sa.ForeignKeyConstraint(
            ["prompt_index"], ["prompt.prompt_index"], name="fk_clip_prompt_index"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_clip"),
        sa.UniqueConstraint("stored_name", name="uq_clip_stored_name"),
        sa.UniqueConstraint(
            "system", "prompt_index", "variant", name="uq_clip_system_prompt_index_variant"
        ),
        sqlite_strict=True,
    )


def create_task() -> None:
    """Create the table of pairs, then called tasks."""
    op.create_table(
        "task",
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
            "(kind = 'real') = (target IS NOT NULL)", name="ck_task_only_real_has_quota"
        ),
        sa.CheckConstraint(
            "gold_answer IS NULL OR gold_answer IN ('a', 'b')", name="ck_task_gold_word"
        ),
        sa.CheckConstraint(
            "kind IN ('real', 'gold', 'mirror', 'identical')", name="ck_task_kind_word"
        ),
        sa.CheckConstraint(
            "taken >= 0 AND (target IS NULL OR taken <= target)", name="ck_task_quota"
        ),
        sa.ForeignKeyConstraint(["clip_a"], ["clip.id"], name="fk_task_clip_a"),
        sa.ForeignKeyConstraint(["clip_b"], ["clip.id"], name="fk_task_clip_b"),
        sa.ForeignKeyConstraint(
            ["prompt_index"], ["prompt.prompt_index"], name="fk_task_prompt_index"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_task"),
        sa.UniqueConstraint(
            "comparison",
            "prompt_index",
            "kind",
            "variant",
            "simulated",
            name="uq_task_comparison_prompt_index_kind_variant_simulated",
        ),
        sa.UniqueConstraint(
            "id", "comparison", "simulated", name="uq_task_id_comparison_simulated"
        ),
        sqlite_strict=True,
    )
    op.create_index(
        "ix_task_next",
        "task",
        ["simulated", "taken", "order_key"],
        unique=False,
        sqlite_where=sa.text("kind = 'real' AND taken < target AND NOT withheld"),
        postgresql_where=sa.text("kind = 'real' AND taken < target AND NOT withheld"),
    )


def create_assignment() -> None:
    """Create the table of assignments."""
    op.create_table(
        "assignment",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("task_id", sa.Integer(), nullable=False),
        sa.Column("rater_id", sa.Integer(), nullable=False),
        sa.Column("comparison", sa.Text(), nullable=False),
        sa.Column("simulated", FLAG, nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("slot", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("side_a", sa.Text(), nullable=False),
        sa.Column("leased_at", LONG, nullable=False),
        sa.Column("expires_at", LONG, nullable=False),
        sa.Column("submitted_at", LONG, nullable=True),
        sa.CheckConstraint("side_a IN ('left', 'right')", name="ck_assignment_side_a_word"),
        sa.CheckConstraint(
            "state IN ('leased', 'submitted', 'expired', 'returned')",
            name="ck_assignment_state_word",
        ),
        sa.CheckConstraint("slot IN (0, 1)", name="ck_assignment_slot_word"),
        sa.ForeignKeyConstraint(
            ["rater_id", "simulated"], ["rater.id", "rater.simulated"], name="fk_assignment_rater"
        ),
        sa.ForeignKeyConstraint(
            ["task_id", "comparison", "simulated"],
            ["task.id", "task.comparison", "task.simulated"],
            name="fk_assignment_task",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_assignment"),
        sa.UniqueConstraint(
            "rater_id", "comparison", "ordinal", name="uq_assignment_rater_id_comparison_ordinal"
        ),
        sa.UniqueConstraint("task_id", "rater_id", name="uq_assignment_task_id_rater_id"),
        sqlite_strict=True,
    )
    op.create_index(
        "ix_assignment_expiry",
        "assignment",
        ["expires_at"],
        unique=False,
        sqlite_where=sa.text("state = 'leased'"),
        postgresql_where=sa.text("state = 'leased'"),
    )
    op.create_index(
        "uq_assignment_open",
        "assignment",
        ["rater_id", "slot"],
        unique=True,
        sqlite_where=sa.text("state = 'leased'"),
        postgresql_where=sa.text("state = 'leased'"),
    )


def create_vote() -> None:
    """Create the table of votes."""
    op.create_table(
        "vote",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("assignment_id", sa.Integer(), nullable=False),
        sa.Column("question", sa.Text(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("choice", sa.Text(), nullable=False),
        sa.Column("answered_at", LONG, nullable=False),
        sa.Column("seconds", NUMBER, nullable=False),
        sa.Column("loops", sa.Integer(), nullable=False),
        sa.Column("definition_hash", sa.Text(), nullable=False),
        sa.CheckConstraint("choice IN ('a', 'b', 'tie', 'both_bad')", name="ck_vote_choice_word"),
        sa.CheckConstraint(
            "revision >= 0 AND seconds >= 0 AND loops >= 0", name="ck_vote_not_negative"
        ),
        sa.ForeignKeyConstraint(["assignment_id"], ["assignment.id"], name="fk_vote_assignment_id"),
        sa.ForeignKeyConstraint(
            ["definition_hash"], ["study.definition_hash"], name="fk_vote_definition_hash"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_vote"),
        sa.UniqueConstraint(
            "assignment_id", "question", "revision", name="uq_vote_assignment_id_question_revision"
        ),
        sqlite_strict=True,
    )
