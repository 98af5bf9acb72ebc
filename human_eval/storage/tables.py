"""The tables of a study. Constraints and triggers forbid what must never happen.

study       one row: the frozen definition
prompt      the texts that the systems made videos of
clip        one video file of one system and prompt, under a random name
pair        two clips to compare: real pairs `target` times, checks without limit
rater       a person or a simulated rater, under a pseudonym
assignment  one pair given to one rater: open, then submitted, expired or returned
vote        one answer to one question of an assignment; rows are never changed
event       everything else that happens: exclusions, refused requests, erasures

Times are whole milliseconds since 1970, UTC.
"""

from typing import Any

from sqlalchemy import (
    REAL,
    BigInteger,
    Boolean,
    CheckConstraint,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    Row,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeEngine

AnyRow = Row[*tuple[Any, ...]]

# SQLite's STRICT tables accept few type names.
Count = Integer
Long = BigInteger().with_variant(Integer(), "sqlite")
Number: TypeEngine[float] = Double().with_variant(REAL(), "sqlite")
Flag = Boolean(create_constraint=False).with_variant(Integer(), "sqlite")
STRICT = {"sqlite_strict": True}

STATES = ("open", "submitted", "expired", "returned")
# A query uses the index ix_pair_next only if it repeats this condition word for word.
OPEN_PAIR = "kind = 'real' AND taken < target AND NOT withheld"
KINDS = ("real", "gold", "mirror", "identical")


def _words(column: str, words: tuple[str, ...]) -> CheckConstraint:
    listed = ", ".join(f"'{word}'" for word in words)
    return CheckConstraint(f"{column} IN ({listed})", name=f"{column}_word")


class Base(DeclarativeBase):
    """Every constraint has a name, so that a migration can drop it."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Study(Base):
    """The study of this database, in one row. Its first definition never changes.

    Later ones are events of the kind "amended".
    """

    __tablename__ = "study"
    __table_args__ = (CheckConstraint("id = 1", name="only_one"), STRICT)

    id: Mapped[int] = mapped_column(Count, primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    definition: Mapped[str] = mapped_column(Text)  # TOML
    definition_hash: Mapped[str] = mapped_column(Text, unique=True)
    created_at: Mapped[int] = mapped_column(Long)
    closed_at: Mapped[int | None] = mapped_column(Long)  # set while the study is closed
    erasing: Mapped[bool] = mapped_column(Flag, default=False)  # permits `erase` to delete votes


class PromptRow(Base):
    """A prompt, by its index in the study's list."""

    __tablename__ = "prompt"
    __table_args__ = (STRICT,)

    prompt_index: Mapped[int] = mapped_column(Count, primary_key=True, autoincrement=False)
    text: Mapped[str] = mapped_column(Text)  # verbatim; the statistics cluster by it
    display: Mapped[str] = mapped_column(Text)  # as raters read it
    category: Mapped[str] = mapped_column(Text)


class ClipRow(Base):
    """A video. `variant` is empty, or names the recipe that degraded it for an attention check."""

    __tablename__ = "clip"
    __table_args__ = (
        UniqueConstraint("system", "prompt_index", "variant"),
        _words("status", ("ok", "quarantined")),
        STRICT,
    )

    id: Mapped[int] = mapped_column(Count, primary_key=True)
    system: Mapped[str] = mapped_column(Text)
    prompt_index: Mapped[int] = mapped_column(ForeignKey("prompt.prompt_index"))
    variant: Mapped[str] = mapped_column(Text, default="")
    seed: Mapped[int | None] = mapped_column(Long)
    source_sha256: Mapped[str] = mapped_column(Text)
    stored_name: Mapped[str] = mapped_column(Text, unique=True)  # inside the media folder
    sha256: Mapped[str] = mapped_column(Text)
    width: Mapped[int] = mapped_column(Count)
    height: Mapped[int] = mapped_column(Count)
    fps: Mapped[float] = mapped_column(Number)
    frames: Mapped[int] = mapped_column(Count)
    bytes: Mapped[int] = mapped_column(Long)
    status: Mapped[str] = mapped_column(Text)
    reason: Mapped[str] = mapped_column(Text, default="")


class PairRow(Base):
    """A pair. Simulated raters have pairs of their own, never those of people."""

    __tablename__ = "pair"
    __table_args__ = (
        UniqueConstraint("comparison", "prompt_index", "kind", "variant", "simulated"),
        UniqueConstraint("id", "comparison", "simulated"),
        CheckConstraint("taken >= 0 AND (target IS NULL OR taken <= target)", name="quota"),
        CheckConstraint("(kind = 'real') = (target IS NOT NULL)", name="only_real_has_quota"),
        CheckConstraint("gold_answer IS NULL OR gold_answer IN ('a', 'b')", name="gold_word"),
        _words("kind", KINDS),
        Index(
            "ix_pair_next",
            "simulated",
            "taken",
            "order_key",
            sqlite_where=text(OPEN_PAIR),
            postgresql_where=text(OPEN_PAIR),
        ),
        STRICT,
    )

    id: Mapped[int] = mapped_column(Count, primary_key=True)
    comparison: Mapped[str] = mapped_column(Text)
    prompt_index: Mapped[int] = mapped_column(ForeignKey("prompt.prompt_index"))
    kind: Mapped[str] = mapped_column(Text)
    variant: Mapped[str] = mapped_column(Text, default="")  # of an attention check: its recipe
    simulated: Mapped[bool] = mapped_column(Flag)
    clip_a: Mapped[int] = mapped_column(ForeignKey("clip.id"))
    clip_b: Mapped[int] = mapped_column(ForeignKey("clip.id"))
    gold_answer: Mapped[str | None] = mapped_column(Text)
    target: Mapped[int | None] = mapped_column(Count)  # raters wanted
    taken: Mapped[int] = mapped_column(Count, default=0)  # open or submitted
    order_key: Mapped[int] = mapped_column(Long)  # random, or the position in a fixed list
    withheld: Mapped[bool] = mapped_column(Flag, default=False)  # reported as broken too often


class Rater(Base):
    """A rater. Their name at the provider is stored only as a keyed hash, the pseudonym."""

    __tablename__ = "rater"
    __table_args__ = (
        UniqueConstraint("provider", "pseudonym"),
        UniqueConstraint("id", "simulated"),
        STRICT,
    )

    id: Mapped[int] = mapped_column(Count, primary_key=True)
    provider: Mapped[str] = mapped_column(Text)
    pseudonym: Mapped[str] = mapped_column(Text)
    simulated: Mapped[bool] = mapped_column(Flag)
    created_at: Mapped[int] = mapped_column(Long)
    consented_at: Mapped[int | None] = mapped_column(Long)
    erased_at: Mapped[int | None] = mapped_column(Long)


class AssignmentRow(Base):
    """A pair given to a rater, at most once. At most two are open at a time, one of them ahead."""

    __tablename__ = "assignment"
    __table_args__ = (
        ForeignKeyConstraint(
            ["pair_id", "comparison", "simulated"],
            ["pair.id", "pair.comparison", "pair.simulated"],
            name="fk_assignment_pair",
        ),
        ForeignKeyConstraint(
            ["rater_id", "simulated"], ["rater.id", "rater.simulated"], name="fk_assignment_rater"
        ),
        UniqueConstraint("pair_id", "rater_id"),
        UniqueConstraint("rater_id", "comparison", "ordinal"),
        Index(
            "uq_assignment_open",
            "rater_id",
            "slot",
            unique=True,
            sqlite_where=text("state = 'open'"),
            postgresql_where=text("state = 'open'"),
        ),
        Index(
            "ix_assignment_expiry",
            "expires_at",
            sqlite_where=text("state = 'open'"),
            postgresql_where=text("state = 'open'"),
        ),
        _words("state", STATES),
        _words("side_a", ("left", "right")),
        CheckConstraint("slot IN (0, 1)", name="slot_word"),
        STRICT,
    )

    id: Mapped[int] = mapped_column(Count, primary_key=True)
    pair_id: Mapped[int] = mapped_column(Count)
    rater_id: Mapped[int] = mapped_column(Count)
    comparison: Mapped[str] = mapped_column(Text)
    simulated: Mapped[bool] = mapped_column(Flag)
    ordinal: Mapped[int] = mapped_column(Count)  # this rater's n-th of this comparison, from 0
    slot: Mapped[int] = mapped_column(Count)  # 0 or 1 while open
    state: Mapped[str] = mapped_column(Text)
    # Keyed hash of the rater's session on a crowd platform, whose quota it counts towards.
    session: Mapped[str] = mapped_column(Text, default="", server_default="")
    attempt: Mapped[int] = mapped_column(Count)  # 1, and one more each time it is assigned again
    side_a: Mapped[str] = mapped_column(Text)
    assigned_at: Mapped[int] = mapped_column(Long)
    expires_at: Mapped[int] = mapped_column(Long)
    submitted_at: Mapped[int | None] = mapped_column(Long)


class Vote(Base):
    """An answer. A revision is another row; the last one counts."""

    __tablename__ = "vote"
    __table_args__ = (
        UniqueConstraint("assignment_id", "question", "revision"),
        _words("choice", ("a", "b", "tie", "both_bad")),
        CheckConstraint("strength IN (0, 1, 2)", name="strength_known"),
        CheckConstraint("revision >= 0 AND seconds >= 0 AND loops >= 0", name="not_negative"),
        STRICT,
    )

    id: Mapped[int] = mapped_column(Count, primary_key=True)
    assignment_id: Mapped[int] = mapped_column(ForeignKey("assignment.id"))
    question: Mapped[str] = mapped_column(Text)
    revision: Mapped[int] = mapped_column(Count)
    choice: Mapped[str] = mapped_column(Text)
    strength: Mapped[int] = mapped_column(Count, default=0, server_default=text("0"))  # on a scale
    answered_at: Mapped[int] = mapped_column(Long)
    seconds: Mapped[float] = mapped_column(Number)  # from both clips ready to the answer
    loops: Mapped[int] = mapped_column(Count)  # complete loops of both clips
    definition_hash: Mapped[str] = mapped_column(ForeignKey("study.definition_hash"))
    # How often the study had been amended when the vote was given.
    amendment: Mapped[int] = mapped_column(Count, default=0, server_default="0")


class Event(Base):
    """Something that happened. Rows are never changed."""

    __tablename__ = "event"
    __table_args__ = (CheckConstraint("count > 0", name="counted"), STRICT)

    id: Mapped[int] = mapped_column(Count, primary_key=True)
    at: Mapped[int] = mapped_column(Long)
    actor: Mapped[str] = mapped_column(Text)  # rater:12, service, or a researcher's name
    kind: Mapped[str] = mapped_column(Text, index=True)
    subject: Mapped[str] = mapped_column(Text)  # rater:12, assignment:34, pair:56, event:78, study
    payload: Mapped[str] = mapped_column(Text)  # JSON
    count: Mapped[int] = mapped_column(Count, default=1)  # of equal events within one second
