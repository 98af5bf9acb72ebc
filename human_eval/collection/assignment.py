"""Handing out pairs: who sees which one next, on which side, and for how long it is theirs.

Every function here runs inside a transaction that its caller opens and commits.
"""

import random
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    Connection,
    Select,
    and_,
    bindparam,
    exists,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.orm import aliased

from human_eval.definition.definition import StudyDefinition
from human_eval.errors import NotYours, StudyClosed, StudyPaused
from human_eval.storage.tables import (
    OPEN_PAIR,
    AnyRow,
    AssignmentRow,
    Count,
    Event,
    PairRow,
    Rater,
    Study,
)

BLOCK = 4  # turns of one rater at one comparison; within each, A is on the left in half
DAY = 86_400_000  # milliseconds
SWEEP = 500  # expired leases returned at once


@dataclass(frozen=True)
class Assignment:
    """A pair that is one rater's to answer until it expires."""

    assignment_id: int
    attempt: int
    rater_id: int
    task_id: int
    side_a: str  # left or right
    expires_at: int  # Unix time, milliseconds


def claim(
    connection: Connection,
    definition: StudyDefinition,
    rater_id: int,
    *,
    now: int,
    rng: random.Random,
    ahead: bool = False,
) -> Assignment | None:
    """Return the pair that the rater is to answer, the same one until it is answered.

    Args:
        ahead: return the pair after that one, so that its clips can load in the meantime.

    Returns:
        None if nothing is left for this rater, now or because of a quota.

    Raises:
        StudyClosed: the study takes no more answers.
        StudyPaused: it hands out no new pairs for now.
        NotYours: there is no such rater, or they were erased.
    """
    rater = connection.execute(_LOCK_RATER, {"rater": rater_id}).one_or_none()
    if rater is None or rater.erased_at is not None:
        raise NotYours(f"Expected a rater of this study, got number {rater_id}. Enter again.")
    check_open(connection)
    leases = connection.execute(_OPEN, {"rater": rater_id}).all()
    live = [lease for lease in leases if lease.expires_at > now]
    for lease in leases:
        if lease not in live:
            release(connection, lease.id, lease.task_id, "expired")
    if len(live) > ahead:
        return _lease(live[ahead], rater_id)
    check_running(connection)
    task = _draw(connection, definition, rater, now, rng)
    if task is None:
        return None
    slot = 1 - live[0].slot if live else 0
    expires_at = now + 1000 * definition.assignment.lease_seconds
    return _take(connection, task, rater, slot, now, expires_at, rng)


def check_open(connection: Connection) -> None:
    """Refuse a study that was closed.

    Raises:
        StudyClosed: as said.
    """
    if connection.execute(_CLOSED_AT).scalar_one() is not None:
        raise StudyClosed(
            "Expected an open study, got one that is closed. "
            "Its answers are kept; `close --reopen` opens it again."
        )


def check_running(connection: Connection) -> None:
    """Refuse to hand out new pairs while a researcher has paused the study.

    Raises:
        StudyPaused: as said.
    """
    if is_paused(connection):
        raise StudyPaused(
            "Expected a study that hands out pairs, got one that is paused. Come back later; "
            "what you have answered is stored."
        )


def is_paused(connection: Connection) -> bool:
    """Tell whether a researcher has paused the study and nobody has resumed it."""
    return connection.execute(_PAUSED).scalar() == "paused"


def release(connection: Connection, assignment_id: int, task_id: int, state: str) -> None:
    """Give a leased pair back; somebody else may have its place."""
    done = connection.execute(_RELEASE, {"assignment": assignment_id, "new_state": state})
    if done.rowcount:
        connection.execute(_COUNT, {"task": task_id, "change": -1})


def release_all(connection: Connection, rater_id: int) -> None:
    """Give back what a rater who leaves has not answered; it is theirs again if they return."""
    for lease in connection.execute(_OPEN, {"rater": rater_id}).all():
        release(connection, lease.id, lease.task_id, "expired")


def sweep(connection: Connection, now: int) -> int:
    """Give back every lease that has expired, and return their number."""
    rows = connection.execute(_EXPIRED, {"now": now}).all()
    # In the order of tasks, so that two sweeps never wait for each other.
    for row in sorted(rows, key=lambda row: row.task_id):
        release(connection, row.id, row.task_id, "expired")
    return len(rows)


def _draw(
    connection: Connection,
    definition: StudyDefinition,
    rater: AnyRow,
    now: int,
    rng: random.Random,
) -> AnyRow | None:
    """Choose the next task: a real one, or in its place a check now and then."""
    full = _comparisons_at_quota(connection, definition, rater.id, now)
    if full is None:
        return None
    statement = _NEXT_LISTED if definition.assignment.policy == "fixed" else _NEXT_LEAST_TAKEN
    mine = {"rater": rater.id, "simulated": rater.simulated, "full": full or [""]}
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


def _find(
    connection: Connection, statement: Select[*tuple[Any, ...]], mine: dict[str, Any]
) -> AnyRow | None:
    """Return an open task, locked; None only if there is none.

    Tasks that other claims hold are passed over. If no other is left, wait to see what becomes of
    those: a claim that fails lets its task go, and a pair of many raters stays open.
    """
    if connection.dialect.name == "sqlite":  # whose transactions queue up
        return connection.execute(statement, mine).first()
    found = connection.execute(statement.with_for_update(skip_locked=True), mine).first()
    # A task can become open while we wait for another, so look again. Should two transactions
    # wait for each other, PostgreSQL ends one, which is StorageBusy.
    while found is None and connection.execute(statement, mine).first():
        found = connection.execute(statement.with_for_update(), mine).first()
    return found


def _comparisons_at_quota(
    connection: Connection, definition: StudyDefinition, rater_id: int, now: int
) -> list[str] | None:
    """Return the comparisons of which this rater has had enough; None means of all."""
    quotas = definition.quotas
    if not (quotas.per_study or quotas.per_comparison or quotas.per_day):
        return []
    rows = connection.execute(_HAD, {"rater": rater_id, "yesterday": now - DAY}).all()
    if quotas.per_study and sum(row.had for row in rows) >= quotas.per_study:
        return None
    if quotas.per_day and sum(row.today for row in rows) >= quotas.per_day:
        return None
    limit = quotas.per_comparison
    full = [row.comparison for row in rows if limit and row.had >= limit]
    return full if len(full) < len(definition.comparisons) else None


def _take(
    connection: Connection,
    task: AnyRow,
    rater: AnyRow,
    slot: int,
    now: int,
    expires_at: int,
    rng: random.Random,
) -> Assignment:
    """Write the lease down. A pair that returned to the same rater keeps its sides."""
    connection.execute(_COUNT, {"task": task.id, "change": 1})
    again = connection.execute(_MINE, {"rater": rater.id, "task": task.id}).one_or_none()
    fresh = {"state": "leased", "slot": slot, "leased_at": now, "expires_at": expires_at}
    if again is not None:
        attempt = again.attempt + 1
        connection.execute(
            update(AssignmentRow)
            .where(AssignmentRow.id == again.id)
            .values(**fresh, attempt=attempt)
        )
        return Assignment(again.id, attempt, rater.id, task.id, again.side_a, expires_at)
    ordinal, side_a = _side(connection, task, rater.id, rng)
    values = {
        "task_id": task.id,
        "rater_id": rater.id,
        "comparison": task.comparison,
        "simulated": rater.simulated,
        "ordinal": ordinal,
        "attempt": 1,
        "side_a": side_a,
        **fresh,
    }
    [assignment_id] = connection.execute(_INSERT, values).one()
    return Assignment(assignment_id, 1, rater.id, task.id, side_a, expires_at)


def _side(
    connection: Connection, task: AnyRow, rater_id: int, rng: random.Random
) -> tuple[int, str]:
    """Return the rater's how-manieth turn at the comparison this is, and the side of A.

    Of every four turns of a rater at a comparison, A is on the left in two, in random order. Where
    that leaves a choice, A goes where fewer raters of this pair have seen it.
    """
    recent = connection.execute(_RECENT, {"rater": rater_id, "comparison": task.comparison}).all()
    ordinal = recent[0].ordinal + 1 if recent else 0
    if task.kind == "mirror":
        seen = connection.execute(_ORIGINAL_SIDE, {"rater": rater_id, "task": task.id}).scalar()
        return ordinal, "right" if seen == "left" else "left"
    block = [turn.side_a for turn in recent[: ordinal % BLOCK]]
    for side, other in (("left", "right"), ("right", "left")):
        if block.count(side) >= BLOCK // 2:
            return ordinal, other
    sides = connection.execute(_SIDES_OF_PAIR, {"task": task.id}).scalars().all()
    if sides.count("left") != sides.count("right"):
        return ordinal, min(("left", "right"), key=sides.count)
    left = BLOCK // 2 - block.count("left")
    return ordinal, "left" if rng.random() * (BLOCK - len(block)) < left else "right"


def _lease(row: AnyRow, rater_id: int) -> Assignment:
    return Assignment(row.id, row.attempt, rater_id, row.task_id, row.side_a, row.expires_at)


def _unseen(alias: Any = AssignmentRow) -> Any:
    """The rater has had no turn at the task, or let it expire."""
    return ~exists().where(
        alias.task_id == PairRow.id, alias.rater_id == bindparam("rater"), alias.state != "expired"
    )


def _next(*order: Any) -> Select[*tuple[Any, ...]]:
    return (
        select(PairRow.id, PairRow.comparison, PairRow.kind)
        .where(
            PairRow.simulated == bindparam("simulated"),
            text(OPEN_PAIR),
            PairRow.comparison.not_in(bindparam("full", expanding=True)),
            _unseen(),
        )
        .order_by(*order)
        .limit(1)
    )


_CLOSED_AT = select(Study.closed_at)
_PAUSED = (
    select(Event.kind)
    .where(Event.kind.in_(["paused", "resumed"]))
    .order_by(Event.id.desc())
    .limit(1)
)
_COUNT = (
    update(PairRow)
    .where(PairRow.id == bindparam("task"))
    .values(taken=PairRow.taken + bindparam("change", type_=Count()))
)
_RELEASE = (
    update(AssignmentRow)
    .where(AssignmentRow.id == bindparam("assignment"), AssignmentRow.state == "leased")
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
        AssignmentRow.task_id,
        AssignmentRow.attempt,
        AssignmentRow.slot,
        AssignmentRow.side_a,
        AssignmentRow.expires_at,
    )
    .where(AssignmentRow.rater_id == bindparam("rater"), AssignmentRow.state == "leased")
    .order_by(AssignmentRow.leased_at, AssignmentRow.id)
)
_EXPIRED = (
    select(AssignmentRow.id, AssignmentRow.task_id)
    .where(AssignmentRow.state == "leased", AssignmentRow.expires_at <= bindparam("now"))
    .limit(SWEEP)
    .with_for_update(skip_locked=True)
)
_NEXT_LEAST_TAKEN = _next(PairRow.taken, PairRow.order_key)
_NEXT_LISTED = _next(PairRow.order_key)
_MINE = select(AssignmentRow.id, AssignmentRow.attempt, AssignmentRow.side_a).where(
    AssignmentRow.rater_id == bindparam("rater"), AssignmentRow.task_id == bindparam("task")
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
    AssignmentRow.task_id == bindparam("task"), AssignmentRow.state != "expired"
)
_HAD = (
    select(
        AssignmentRow.comparison,
        func.count().label("had"),
        func.count().filter(AssignmentRow.leased_at > bindparam("yesterday")).label("today"),
    )
    .where(
        AssignmentRow.rater_id == bindparam("rater"),
        AssignmentRow.state.in_(["leased", "submitted"]),
    )
    .group_by(AssignmentRow.comparison)
)
_GOLD = select(PairRow.id, PairRow.comparison, PairRow.kind).where(
    PairRow.kind.in_(["gold", "identical"]),
    PairRow.simulated == bindparam("simulated"),
    ~PairRow.withheld,
    PairRow.comparison.not_in(bindparam("full", expanding=True)),
    _unseen(),
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
    .join(_Earlier, _Earlier.task_id == _Original.id)
    .where(
        PairRow.kind == "mirror",
        ~PairRow.withheld,
        PairRow.simulated == bindparam("simulated"),
        PairRow.comparison.not_in(bindparam("full", expanding=True)),
        _Earlier.rater_id == bindparam("rater"),
        _Earlier.state == "submitted",
        _LATER.correlate(_Earlier).scalar_subquery() >= bindparam("distance"),
        ~exists().where(
            AssignmentRow.task_id == PairRow.id,
            AssignmentRow.rater_id == bindparam("rater"),
            AssignmentRow.state != "expired",
        ),
    )
    .order_by(_Earlier.submitted_at)
    .limit(1)
)
_ORIGINAL_SIDE = (
    select(_Earlier.side_a)
    .join(_Original, _Earlier.task_id == _Original.id)
    .join(PairRow, _SAME_PAIR)
    .where(PairRow.id == bindparam("task"), _Earlier.rater_id == bindparam("rater"))
)
