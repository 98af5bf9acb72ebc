"""Who did what: one row for each rater, to decide about pay and exclusion."""

import json
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pandas as pd
from sqlalchemy import Connection, bindparam, case, func, select
from sqlalchemy.orm import aliased

from human_eval.collection.endings import read_endings, read_told_outcomes
from human_eval.collection.quotas import session_quota
from human_eval.definition.definition import StudyDefinition
from human_eval.storage.events import blocks, exclusions
from human_eval.storage.tables import AssignmentRow, Event, PairRow, Rater, Vote
from human_eval.study.store import StudyStore

MINUTE = 60_000  # milliseconds


def tabulate_raters(store: StudyStore, *, simulated: bool = False) -> pd.DataFrame:
    """Tabulate the raters in the order in which they entered.

    Returns:
        Columns rater_number; rater, the pseudonym; provider; entered (UTC); pairs, answered ones
        with attention checks; sessions_done, complete ones; minutes from being given a pair to
        answering it, without overlaps; gold_right and gold_asked, on the primary question;
        returned, pairs skipped or reported; outcome, of the last session; its completion code;
        decision, exclusions and blocks in force; bonus, paid by earlier files.
    """
    values = {"simulated": simulated, "primary": store.definition.primary.key}
    with store.read() as connection:
        raters = connection.execute(_RATERS, values).all()
        endings, bonuses = read_endings(connection), read_bonuses(connection)
        decisions = _read_decisions(connection)
        minutes = _count_minutes(connection, values)
        complete = _read_complete(connection, store.definition, values)
        gold = {row.rater_id: row for row in connection.execute(_GOLD, values)}
        counts = {row.rater_id: row for row in connection.execute(_COUNTS, values)}
    rows = []
    for rater in raters:
        number, count, checked = rater.id, counts.get(rater.id), gold.get(rater.id)
        pairs = count.pairs if count else 0
        told = endings.get(number)
        if told and count and (count.last_pair or 0) > told[1]:
            told = None  # they went on
        last_done = pairs > 0 and complete[number][-1]
        outcome = _outcome(rater.erased_at, pairs, last_done, decisions[number], told)
        rows.append(
            {
                "rater_number": number,
                "rater": rater.pseudonym,
                "provider": rater.provider,
                "entered": _show_time(rater.created_at),
                "pairs": pairs,
                # Older versions stored the outcome without its session.
                "sessions_done": max(sum(complete[number]), int(outcome == "done")),
                "minutes": round(minutes[number] / MINUTE, 1),
                "gold_right": checked.right if checked else 0,
                "gold_asked": checked.asked if checked else 0,
                "returned": count.returned if count else 0,
                "outcome": outcome,
                "code": getattr(store.definition.codes, outcome, ""),
                "decision": "; ".join(decisions[number]),
                "bonus": bonuses.get(number, Decimal(0)),
            }
        )
    return pd.DataFrame(rows, columns=COLUMNS)


def read_bonuses(connection: Connection) -> dict[int, Decimal]:
    """Return the sum of the bonuses in files so far, by number of the rater."""
    sums: dict[int, Decimal] = defaultdict(Decimal)
    for row in connection.execute(select(Event.subject, Event.payload).where(_IS_BONUS)):
        sums[int(row.subject.removeprefix("rater:"))] += Decimal(json.loads(row.payload)["amount"])
    return dict(sums)


def _outcome(
    erased_at: int | None,
    pairs: int,
    last_done: bool,
    decisions: Sequence[str],
    told: tuple[str, int] | None,
) -> str:
    """Return how a rater's part ended, as they were or will be told, or why it has not ended.

    Args:
        last_done: whether the session of their last pair is complete.
    """
    if erased_at is not None:
        return "erased"
    if told:
        return told[0]
    if decisions:
        return "screened_out"
    if last_done:
        return "done"
    return "unfinished" if pairs else "entered"


def _read_complete(
    connection: Connection, definition: StudyDefinition, values: dict[str, Any]
) -> dict[int, list[bool]]:
    """Say for each session of each rater whether it is complete, the last one last.

    A session is complete if the server told the rater "done", or if the rater answered as many
    pairs as the definition required at the time of the last answer. Later amendments of the quotas
    do not change it.
    """
    told = read_told_outcomes(connection)
    quotas = [session_quota(version) for version in definition.versions]
    complete: dict[int, list[bool]] = defaultdict(list)
    for row in connection.execute(_SESSIONS, values):
        quota = quotas[row.amendment]
        full = quota is not None and row.pairs >= quota
        complete[row.rater_id].append(full or "done" in told[row.rater_id][row.session])
    return complete


def _read_decisions(connection: Connection) -> dict[int, list[str]]:
    found: dict[int, list[str]] = defaultdict(list)
    for entry in exclusions(connection):
        kind, _, number = entry.subject.partition(":")
        if kind == "rater":
            why = entry.evidence.get("reason")
            rule = f"{entry.rule}, {why}" if why else entry.rule
            found[int(number)].append(f"excluded: {rule} (event {entry.event_id})")
    for rater, reason in blocks(connection).items():
        found[rater].append(f"blocked: {reason}")
    return found


def _count_minutes(connection: Connection, values: dict[str, Any]) -> dict[int, int]:
    """Return the milliseconds that raters worked; a pair loaded ahead counts from the last one."""
    worked: dict[int, int] = defaultdict(int)
    until: dict[int, int] = {}
    for row in connection.execute(_TIMES, values):
        start = max(row.assigned_at, until.get(row.rater_id, 0))
        worked[row.rater_id] += max(0, row.submitted_at - start)
        until[row.rater_id] = row.submitted_at
    return worked


def _show_time(moment: int) -> str:
    return datetime.fromtimestamp(moment / 1000, UTC).strftime("%Y-%m-%d %H:%M")


COLUMNS = [
    *["rater_number", "rater", "provider", "entered", "pairs", "sessions_done", "minutes"],
    *["gold_right", "gold_asked", "returned", "outcome", "code", "decision", "bonus"],
]
_IS_BONUS = Event.kind == "bonus"
_RATERS = (
    select(Rater.id, Rater.pseudonym, Rater.provider, Rater.created_at, Rater.erased_at)
    .where(Rater.simulated == bindparam("simulated"))
    .order_by(Rater.id)
)
_COUNTS = (
    select(
        AssignmentRow.rater_id,
        func.sum(case((AssignmentRow.state == "submitted", 1), else_=0)).label("pairs"),
        func.sum(case((AssignmentRow.state == "returned", 1), else_=0)).label("returned"),
        func.max(AssignmentRow.submitted_at).label("last_pair"),
    )
    .where(AssignmentRow.simulated == bindparam("simulated"))
    .group_by(AssignmentRow.rater_id)
)
_SESSIONS = (
    select(
        AssignmentRow.rater_id,
        AssignmentRow.session,
        func.count(AssignmentRow.id.distinct()).label("pairs"),
        func.max(Vote.amendment).label("amendment"),
    )
    .join(Vote, Vote.assignment_id == AssignmentRow.id)
    .where(AssignmentRow.simulated == bindparam("simulated"), AssignmentRow.state == "submitted")
    .group_by(AssignmentRow.rater_id, AssignmentRow.session)
    .order_by(func.max(AssignmentRow.submitted_at))
)
_TIMES = (
    select(AssignmentRow.rater_id, AssignmentRow.assigned_at, AssignmentRow.submitted_at)
    .where(AssignmentRow.simulated == bindparam("simulated"), AssignmentRow.state == "submitted")
    .order_by(AssignmentRow.rater_id, AssignmentRow.submitted_at)
)
_Later = aliased(Vote)
_LAST_REVISION = (
    select(func.max(_Later.revision))
    .where(_Later.assignment_id == Vote.assignment_id, _Later.question == Vote.question)
    .scalar_subquery()
)
_GOLD = (
    select(
        AssignmentRow.rater_id,
        func.count().label("asked"),
        func.sum(case((Vote.choice == PairRow.gold_answer, 1), else_=0)).label("right"),
    )
    .join(PairRow, PairRow.id == AssignmentRow.pair_id)
    .join(Vote, Vote.assignment_id == AssignmentRow.id)
    .where(
        PairRow.kind == "gold",
        PairRow.simulated == bindparam("simulated"),
        Vote.question == bindparam("primary"),
        Vote.revision == _LAST_REVISION,
    )
    .group_by(AssignmentRow.rater_id)
)
