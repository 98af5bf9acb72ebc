"""Assign pairs to raters: which pair comes next, on which sides, and until when.

Every function runs inside a transaction that its caller opens and commits.
"""

import random
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    bindparam,
    exists,
    func,
    insert,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.orm import aliased

from human_eval.collection.quotas import read_quota_use
from human_eval.definition.definition import StudyDefinition
from human_eval.errors import NotYours
from human_eval.storage.study_state import check_not_paused, check_open
from human_eval.storage.tables import OPEN_PAIR, AnyRow, AssignmentRow, Count, PairRow, Rater

BLOCK = 4  # assignments of one rater in one comparison; A is on the left in half of them
SWEEP = 500  # expired assignments returned at once


@dataclass(frozen=True)
class Assignment:
    """A pair given to one rater until it expires."""

    assignment_id: int
    attempt: int
    rater_id: int
    pair_id: int
    side_a: str  # left or right
    expires_at: int  # Unix time, milliseconds


def claim(
    connection: Connection,
    definition: StudyDefinition,
    rater_id: int,
    *,
    session: str = "",
    now: int,
    rng: random.Random,
    ahead: bool = False,
) -> Assignment | None:
    """Return the rater's current assignment, or assign the next pair.

    If no pair is free, a pair that another rater was given ahead is taken back for this rater.

    Args:
        session: the rater's session on a crowd platform; its pairs count towards its quota.
        ahead: return the assignment after the current one, so that its clips can load early.

    Returns:
        None if no pair is left for this rater, or a quota is reached.

    Raises:
        StudyClosed: the study is closed.
        StudyPaused: the study is paused, and the rater has no open assignment.
        NotYours: the rater does not exist or was erased.
    """
    rater = connection.execute(_LOCK_RATER, {"rater": rater_id}).one_or_none()
    if rater is None or rater.erased_at is not None:
        raise NotYours("You are not signed in to this study. Please enter it again.")
    check_open(connection)
    current = []
    for row in connection.execute(_OPEN, {"rater": rater_id}).all():
        if row.expires_at > now and row.session == session:
            current.append(row)
        else:
            release(connection, row.id, row.pair_id, "expired")
    if len(current) > ahead:
        row = current[ahead]
        return Assignment(row.id, row.attempt, rater_id, row.pair_id, row.side_a, row.expires_at)
    check_not_paused(connection)
    use = read_quota_use(connection, definition, rater_id, session, now)
    if use.reached:
        return None
    mine = {"rater": rater_id, "simulated": rater.simulated, "full": use.full or [""]}
    pair = _draw(connection, definition, mine, now, rng)
    if pair is None and not current:
        pair = _take_back(connection, mine, now)
    if pair is None:
        return None
    values = {
        "state": "open",
        "slot": 1 - current[0].slot if current else 0,
        "session": session,
        "assigned_at": now,
        "expires_at": now + 1000 * definition.assignment.lease_seconds,
    }
    return _take(connection, pair, rater, values, rng)


def find_current(connection: Connection, rater_id: int, *, now: int) -> tuple[int, int] | None:
    """Return the number and the attempt of the rater's current assignment, or None."""
    rows = connection.execute(_OPEN, {"rater": rater_id}).all()
    return next(((row.id, row.attempt) for row in rows if row.expires_at > now), None)


def release(connection: Connection, assignment_id: int, pair_id: int, state: str) -> None:
    """End an open assignment without an answer; the pair is free for another rater."""
    done = connection.execute(_RELEASE, {"assignment": assignment_id, "new_state": state})
    if done.rowcount:
        connection.execute(_COUNT, {"pair": pair_id, "change": -1})


def release_all(connection: Connection, rater_id: int, state: str = "expired") -> None:
    """End the open assignments of a rater; pairs that expired can be assigned to them again."""
    for row in connection.execute(_OPEN, {"rater": rater_id}).all():
        release(connection, row.id, row.pair_id, state)


def sweep(connection: Connection, now: int) -> int:
    """End every expired assignment and return their number."""
    rows = connection.execute(_EXPIRED, {"now": now}).all()
    # Ordered by pair, so that two sweeps never deadlock.
    for row in sorted(rows, key=lambda row: row.pair_id):
        release(connection, row.id, row.pair_id, "expired")
    return len(rows)


def _draw(
    connection: Connection,
    definition: StudyDefinition,
    mine: dict[str, Any],
    now: int,
    rng: random.Random,
) -> AnyRow | None:
    """Choose the next pair: a real one or, at the definition's rates, an attention check."""
    statement = NEXT_LISTED if definition.assignment.policy == "fixed" else _NEXT_LEAST_TAKEN
    real = _find(connection, statement, mine)
    if real is None and sweep(connection, now):
        real = _find(connection, statement, mine)
    if real is None:
        return None
    checks = definition.checks
    draw = rng.random()
    check = None
    if draw < checks.gold_share:
        golds = connection.execute(_GOLD, mine).all()
        check = rng.choice(golds) if golds else None
    elif draw < checks.gold_share + checks.mirror_share:
        mirrors = connection.execute(_MIRRORS, {**mine, "distance": checks.mirror_distance}).all()
        check = mirrors[0] if mirrors else None
    return check or real


def _take_back(connection: Connection, mine: dict[str, Any], now: int) -> AnyRow | None:
    """Free a pair that another rater has not begun, because a pair of theirs comes before it.

    Both assignments are locked: an answer to the first one begins the second.
    """
    pair = connection.execute(_GIVEN_AHEAD, {**mine, "now": now}).first()
    if pair is not None:
        release(connection, pair.assignment_id, pair.id, "expired")
    return pair


def _find(
    connection: Connection, statement: Select[*tuple[Any, ...]], mine: dict[str, Any]
) -> AnyRow | None:
    """Return an open pair, locked; None only if there is none.

    Pairs that other transactions have locked are skipped. If no other is left, wait for the outcome
    of these: a claim that fails lets its pair go, and a pair of many raters stays open.
    """
    if connection.dialect.name == "sqlite":  # whose transactions queue up
        return connection.execute(statement, mine).first()
    found = connection.execute(statement.with_for_update(skip_locked=True), mine).first()
    # A pair can become free while this one waits for another, so look again. PostgreSQL ends one
    # of two transactions that wait for each other; its caller gets StorageBusy.
    while found is None and connection.execute(statement, mine).first():
        found = connection.execute(statement.with_for_update(), mine).first()
    return found


def _take(
    connection: Connection, pair: AnyRow, rater: AnyRow, values: dict[str, Any], rng: random.Random
) -> Assignment:
    """Store the assignment. A pair that returns to the same rater keeps its sides."""
    connection.execute(_COUNT, {"pair": pair.id, "change": 1})
    expires_at = values["expires_at"]
    earlier = connection.execute(_MINE, {"rater": rater.id, "pair": pair.id}).one_or_none()
    if earlier is not None:
        attempt = earlier.attempt + 1
        connection.execute(
            update(AssignmentRow)
            .where(AssignmentRow.id == earlier.id)
            .values(**values, attempt=attempt)
        )
        return Assignment(earlier.id, attempt, rater.id, pair.id, earlier.side_a, expires_at)
    ordinal, side_a = _side(connection, pair, rater.id, rng)
    values |= {
        "pair_id": pair.id,
        "rater_id": rater.id,
        "comparison": pair.comparison,
        "simulated": rater.simulated,
        "ordinal": ordinal,
        "attempt": 1,
        "side_a": side_a,
    }
    [assignment_id] = connection.execute(_INSERT, values).one()
    return Assignment(assignment_id, 1, rater.id, pair.id, side_a, expires_at)


def _side(
    connection: Connection, pair: AnyRow, rater_id: int, rng: random.Random
) -> tuple[int, str]:
    """Return the ordinal of this assignment among the rater's in the comparison, and A's side.

    In every block of four assignments of a rater in a comparison, A is on the left in two, in
    random order. Where that leaves a choice, A goes to the side where fewer raters of this pair
    have seen it. A mirror shows its original with the sides swapped.
    """
    recent = connection.execute(_RECENT, {"rater": rater_id, "comparison": pair.comparison}).all()
    ordinal = recent[0].ordinal + 1 if recent else 0
    if pair.kind == "mirror":
        seen = connection.execute(_ORIGINAL_SIDE, {"rater": rater_id, "pair": pair.id}).scalar()
        return ordinal, "right" if seen == "left" else "left"
    block = [row.side_a for row in recent[: ordinal % BLOCK]]
    for side, other in (("left", "right"), ("right", "left")):
        if block.count(side) >= BLOCK // 2:
            return ordinal, other
    sides = connection.execute(_SIDES_OF_PAIR, {"pair": pair.id}).scalars().all()
    if sides.count("left") != sides.count("right"):
        return ordinal, min(("left", "right"), key=sides.count)
    left = BLOCK // 2 - block.count("left")
    return ordinal, "left" if rng.random() * (BLOCK - len(block)) < left else "right"


_Mine = aliased(AssignmentRow)


# Pairs that a rater may get: the quota of the comparison is not full, and the rater was never
# assigned the pair, or let it expire.
FOR_RATER: tuple[ColumnElement[bool], ...] = (
    PairRow.simulated == bindparam("simulated"),
    PairRow.comparison.not_in(bindparam("full", expanding=True)),
    ~exists().where(
        _Mine.pair_id == PairRow.id, _Mine.rater_id == bindparam("rater"), _Mine.state != "expired"
    ),
)


def _next(*order: Any) -> Select[*tuple[Any, ...]]:
    return (
        select(PairRow.id, PairRow.comparison, PairRow.kind)
        .where(text(OPEN_PAIR), *FOR_RATER)
        .order_by(*order)
        .limit(1)
    )


_COUNT = (
    update(PairRow)
    .where(PairRow.id == bindparam("pair"))
    .values(taken=PairRow.taken + bindparam("change", type_=Count()))
)
_RELEASE = (
    update(AssignmentRow)
    .where(AssignmentRow.id == bindparam("assignment"), AssignmentRow.state == "open")
    .values(state=bindparam("new_state"))
)
_INSERT = insert(AssignmentRow).returning(AssignmentRow.id)
_LOCK_RATER = (
    select(Rater.id, Rater.simulated, Rater.erased_at)
    .where(Rater.id == bindparam("rater"))
    .with_for_update()
)
_OPEN = (
    select(
        AssignmentRow.id,
        AssignmentRow.pair_id,
        AssignmentRow.attempt,
        AssignmentRow.slot,
        AssignmentRow.side_a,
        AssignmentRow.session,
        AssignmentRow.expires_at,
    )
    .where(AssignmentRow.rater_id == bindparam("rater"), AssignmentRow.state == "open")
    .order_by(AssignmentRow.assigned_at, AssignmentRow.id)
)
_EXPIRED = (
    select(AssignmentRow.id, AssignmentRow.pair_id)
    .where(AssignmentRow.state == "open", AssignmentRow.expires_at <= bindparam("now"))
    .limit(SWEEP)
    .with_for_update(skip_locked=True)
)
_NEXT_LEAST_TAKEN = _next(PairRow.taken, PairRow.order_key)
NEXT_LISTED = _next(PairRow.order_key)
_MINE = select(AssignmentRow.id, AssignmentRow.attempt, AssignmentRow.side_a).where(
    AssignmentRow.rater_id == bindparam("rater"), AssignmentRow.pair_id == bindparam("pair")
)
_RECENT = (
    select(AssignmentRow.ordinal, AssignmentRow.side_a)
    .where(
        AssignmentRow.rater_id == bindparam("rater"),
        AssignmentRow.comparison == bindparam("comparison"),
    )
    .order_by(AssignmentRow.ordinal.desc())
    .limit(BLOCK - 1)
)
_SIDES_OF_PAIR = select(AssignmentRow.side_a).where(
    AssignmentRow.pair_id == bindparam("pair"), AssignmentRow.state != "expired"
)
_Current, _Ahead = aliased(AssignmentRow), aliased(AssignmentRow)
_GIVEN_AHEAD = (
    select(PairRow.id, PairRow.comparison, PairRow.kind, _Ahead.id.label("assignment_id"))
    .join(_Ahead, _Ahead.pair_id == PairRow.id)
    .join(_Current, _Current.rater_id == _Ahead.rater_id)
    .where(
        _Ahead.state == "open",
        _Current.state == "open",
        _Current.expires_at > bindparam("now"),
        or_(
            _Current.assigned_at < _Ahead.assigned_at,
            and_(_Current.assigned_at == _Ahead.assigned_at, _Current.id < _Ahead.id),
        ),
        PairRow.kind == "real",
        ~PairRow.withheld,
        *FOR_RATER,
    )
    .order_by(_Ahead.assigned_at.desc(), _Ahead.id)
    .limit(1)
    .with_for_update(of=[_Ahead, _Current], skip_locked=True)
)
_GOLD = select(PairRow.id, PairRow.comparison, PairRow.kind).where(
    PairRow.kind.in_(["gold", "identical"]), ~PairRow.withheld, *FOR_RATER
)
_Original = aliased(PairRow)
_Earlier = aliased(AssignmentRow)
_SAME_PAIR = and_(
    _Original.comparison == PairRow.comparison,
    _Original.prompt_index == PairRow.prompt_index,
    _Original.simulated == PairRow.simulated,
    _Original.kind == "real",
)
_LATER = select(func.count()).where(
    AssignmentRow.rater_id == bindparam("rater"),
    AssignmentRow.state == "submitted",
    AssignmentRow.submitted_at > _Earlier.submitted_at,
)
_MIRRORS = (
    select(PairRow.id, PairRow.comparison, PairRow.kind)
    .join(_Original, _SAME_PAIR)
    .join(_Earlier, _Earlier.pair_id == _Original.id)
    .where(
        PairRow.kind == "mirror",
        ~PairRow.withheld,
        *FOR_RATER,
        _Earlier.rater_id == bindparam("rater"),
        _Earlier.state == "submitted",
        _LATER.correlate(_Earlier).scalar_subquery() >= bindparam("distance"),
    )
    .order_by(_Earlier.submitted_at)
    .limit(1)
)
_ORIGINAL_SIDE = (
    select(_Earlier.side_a)
    .join(_Original, _Earlier.pair_id == _Original.id)
    .join(PairRow, _SAME_PAIR)
    .where(PairRow.id == bindparam("pair"), _Earlier.rater_id == bindparam("rater"))
)
