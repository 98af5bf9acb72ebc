"""What is stored, as tables for analysis: votes, pairs, tallies and progress."""

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd
from sqlalchemy import Connection, aggregate_order_by, bindparam, case, func, select
from sqlalchemy.orm import aliased

from human_eval.definition.definition import StudyDefinition
from human_eval.statistics.votes import COLUMNS
from human_eval.storage.events import Exclusion, exclusions
from human_eval.storage.tables import (
    AssignmentRow,
    ClipRow,
    Event,
    PairRow,
    PromptRow,
    Rater,
    Study,
    Vote,
)


def read_votes(
    connection: Connection,
    definition: StudyDefinition,
    *,
    as_of: int | None = None,
    simulated: bool = False,
) -> pd.DataFrame:
    """Return one row per current answer, in the order they came, as in `statistics.votes`.

    Args:
        as_of: Unix time in milliseconds; later answers and exclusions are left out.
        simulated: the answers of simulated raters instead of those of people.
    """
    times = {"as_of": as_of or 2**62, "simulated": simulated}
    votes = _frame(connection, _VOTES, times).sort_values(["revision", "vote_id"])
    votes = votes.drop_duplicates(["assignment_id", "question"], keep="last")
    turns = _frame(connection, _SUBMITTED, times).set_index("assignment_id")
    pairs = _frame(connection, _PAIR_FACTS, times).set_index("task_id")
    raters = _frame(connection, _RATERS, times).set_index("rater_id")
    systems = {entry.key: (entry.a, entry.b) for entry in definition.comparisons}
    pairs["system_a"] = [systems[key][0] for key in pairs["comparison"]]
    pairs["system_b"] = [systems[key][1] for key in pairs["comparison"]]
    _mark_excluded(turns, exclusions(connection, as_of))
    words = ["comparison", "system_a", "system_b", "prompt", "category", "kind", "gold_answer"]
    pairs[words] = pairs[words].astype("category")
    raters["rater"] = raters["rater"].astype("category")

    frame = votes.sort_values("vote_id").join(turns, on="assignment_id")
    frame = frame.join(pairs, on="task_id").join(raters, on="rater_id")
    frame["simulated"] = simulated
    # The database lets no other hash in: a foreign key leads to the study's own.
    frame["definition_hash"] = definition.hash
    words = [name for name, kind in COLUMNS.items() if kind.startswith("text")]
    frame[words] = frame[words].astype("str")
    frame["answered_at"] = pd.to_datetime(frame["answered_at"], unit="ms", utc=True)
    return frame[list(COLUMNS)].reset_index(drop=True)


def _frame(connection: Connection, statement: Any, values: Mapping[str, Any]) -> pd.DataFrame:
    result = connection.execute(statement, values)
    # The driver's own rows: SQLAlchemy's take as long again to make as all of them to fetch.
    assert result.cursor is not None
    return pd.DataFrame(result.cursor.fetchall(), columns=list(result.keys()))


def _mark_excluded(turns: pd.DataFrame, in_force: list[Exclusion]) -> None:
    """Say of every turn whether it is excluded, and by which rules."""
    rules: dict[str, list[str]] = {}
    for exclusion in in_force:
        rules.setdefault(exclusion.subject, []).append(exclusion.rule)
    places = {
        **{f"rater:{number}": rows for number, rows in turns.groupby("rater_id").groups.items()},
        **{subject: [_number(subject)] for subject in rules if subject.startswith("assignment:")},
    }
    found: dict[int, list[str]] = {}
    for subject, applied in rules.items():
        for turn in places.get(subject, []):
            found.setdefault(turn, []).extend(applied)
    joined = {turn: ";".join(applied) for turn, applied in found.items()}
    turns["exclusion_rule"] = turns.index.map(joined.get).astype("object")
    turns["excluded"] = turns["exclusion_rule"].notna()


def read_pairs(
    connection: Connection, definition: StudyDefinition, *, simulated: bool = False
) -> pd.DataFrame:
    """Return one row per pair, with the names of its clips below the media folder."""
    pairs = _frame(connection, _PAIRS, {"simulated": simulated})
    systems = {entry.key: entry for entry in definition.comparisons}
    pairs.insert(2, "system_a", [systems[key].a for key in pairs["comparison"]])
    pairs.insert(3, "system_b", [systems[key].b for key in pairs["comparison"]])
    return pairs


def tally(connection: Connection, *, simulated: bool = False) -> pd.DataFrame:
    """Count the current answers on real pairs in the database itself: quick at any size.

    Returns:
        Columns comparison, question, choice, side_a, excluded, count.
    """
    excluded = exclusions(connection)
    raters = [_number(entry.subject) for entry in excluded if entry.subject.startswith("rater:")]
    turns = [_number(entry.subject) for entry in excluded if entry.subject.startswith("assig")]
    values = {"simulated": simulated, "raters": raters or [-1], "turns": turns or [-1]}
    keys = ["comparison", "question", "choice", "side_a", "excluded"]
    patterns = _frame(connection, _PATTERNS, values)
    if patterns.empty:
        return pd.DataFrame(columns=[*keys, "count"])
    # Of two answers to one question the later one stands.
    answers = [dict(answer.split(":") for answer in told.split(";")) for told in patterns["told"]]
    rows = patterns.assign(answer=[list(given.items()) for given in answers]).explode("answer")
    rows["question"] = rows["answer"].str[0]
    rows["choice"] = rows["answer"].str[1]
    return rows.groupby(keys)["count"].sum().reset_index()


def _number(subject: str) -> int:
    return int(subject.partition(":")[2])


def progress(connection: Connection, *, simulated: bool = False) -> dict[str, Any]:
    """Return how far the study is: pairs, assignments, raters, events and exclusions, by name."""
    values = {"simulated": simulated}
    comparisons = _frame(connection, _PROGRESS, values)
    assignments = {state: count for state, count in connection.execute(_STATES, values)}
    raters = connection.execute(
        select(func.count()).where(Rater.simulated == simulated)
    ).scalar_one()
    study = connection.execute(select(Study.__table__)).one()
    kinds = connection.execute(select(Event.kind, func.sum(Event.count)).group_by(Event.kind))
    return {
        "name": study.name,
        "definition_hash": study.definition_hash,
        "created_at": study.created_at,
        "closed_at": study.closed_at,
        "comparisons": comparisons,
        "assignments": assignments,
        "raters": raters,
        "events": {kind: int(count) for kind, count in kinds},
        "excluded": [entry.subject for entry in exclusions(connection)],
    }


def find_settled(connection: Connection) -> set[tuple[str, str]]:
    """Return whom, and by which rule, somebody has excluded already.

    Their decision stands, and so does its revocation: neither is made again without a person.
    """
    past = select(Event.subject, Event.payload).where(Event.kind == "exclude")
    return {(row.subject, json.loads(row.payload)["rule"]) for row in connection.execute(past)}


def list_defects(connection: Connection) -> list[str]:
    """Check what no constraint can: counters against rows, and the file of an SQLite database.

    Returns:
        What is wrong; empty for a sound database.
    """
    held = (
        select(func.count())
        .where(AssignmentRow.pair_id == PairRow.id, AssignmentRow.state.in_(["open", "submitted"]))
        .correlate(PairRow)
        .scalar_subquery()
    )
    wrong = connection.execute(select(PairRow.id, PairRow.taken, held).where(PairRow.taken != held))
    defects = [f"pair {pair}: taken {taken}, assignments {count}" for pair, taken, count in wrong]
    answered = (
        select(Vote.id)
        .where(Vote.assignment_id == AssignmentRow.id)
        .correlate(AssignmentRow)
        .exists()
    )
    odd = select(AssignmentRow.id, AssignmentRow.state).where(
        case((AssignmentRow.state == "submitted", ~answered), else_=answered)
    )
    defects += [
        f"assignment {turn}: {state} {'without' if state == 'submitted' else 'with'} answers"
        for turn, state in connection.execute(odd)
    ]
    return defects + list_damage(connection)


def list_damage(connection: Connection) -> list[str]:
    """Check the pages and foreign keys of an SQLite database, whatever its tables.

    Returns:
        What is wrong; empty for a sound database, and for PostgreSQL, which checks its own.
    """
    damage: list[str] = []
    if connection.dialect.name == "sqlite":
        lines = [str(line) for [line] in connection.exec_driver_sql("PRAGMA integrity_check")]
        damage += [line for line in lines if line != "ok"]
        strays = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
        damage += [f"{row[0]} row {row[1]}: no such {row[2]}" for row in strays]
    return damage


_VOTES = (
    select(
        Vote.id.label("vote_id"),
        Vote.assignment_id,
        Vote.question,
        Vote.revision,
        Vote.choice,
        Vote.answered_at,
        Vote.seconds,
        Vote.loops,
    )
    .join(AssignmentRow, AssignmentRow.id == Vote.assignment_id)
    .where(
        AssignmentRow.simulated == bindparam("simulated"), Vote.answered_at <= bindparam("as_of")
    )
)
_SUBMITTED = select(
    AssignmentRow.id.label("assignment_id"),
    AssignmentRow.pair_id.label("task_id"),  # as exported files name it
    AssignmentRow.rater_id,
    AssignmentRow.side_a,
).where(AssignmentRow.simulated == bindparam("simulated"), AssignmentRow.state == "submitted")
_PAIR_FACTS = (
    select(
        PairRow.id.label("task_id"),
        PairRow.comparison,
        PairRow.prompt_index,
        PromptRow.text.label("prompt"),
        PromptRow.category,
        PairRow.kind,
        PairRow.gold_answer,
    )
    .join(PromptRow, PromptRow.prompt_index == PairRow.prompt_index)
    .where(PairRow.simulated == bindparam("simulated"))
)
_RATERS = select(Rater.id.label("rater_id"), Rater.pseudonym.label("rater"), Rater.provider).where(
    Rater.simulated == bindparam("simulated")
)
_ClipA, _ClipB = aliased(ClipRow), aliased(ClipRow)
_PAIRS = (
    select(
        PairRow.id.label("task_id"),
        PairRow.comparison,
        PairRow.prompt_index,
        PromptRow.text.label("prompt"),
        PromptRow.category,
        PairRow.kind,
        PairRow.target,
        PairRow.taken,
        _ClipA.stored_name.label("clip_a"),
        _ClipB.stored_name.label("clip_b"),
    )
    .join(PromptRow, PromptRow.prompt_index == PairRow.prompt_index)
    .join(_ClipA, _ClipA.id == PairRow.clip_a)
    .join(_ClipB, _ClipB.id == PairRow.clip_b)
    .where(PairRow.simulated == bindparam("simulated"))
    .order_by(PairRow.id)
)
_SHOWN = (
    select(
        AssignmentRow.id,
        AssignmentRow.comparison,
        AssignmentRow.side_a,
        case(
            (
                AssignmentRow.rater_id.in_(bindparam("raters", expanding=True))
                | AssignmentRow.id.in_(bindparam("turns", expanding=True)),
                1,
            ),
            else_=0,
        ).label("excluded"),
    )
    .join(PairRow, PairRow.id == AssignmentRow.pair_id)
    .where(PairRow.kind == "real", AssignmentRow.simulated == bindparam("simulated"))
    .subquery()
)
# One text for all answers of a turn, such as "Q1:a;Q2:b", in the order of revisions: the answers of
# a million votes are few different texts, and counting those needs no sorting of votes.
_TOLD = (
    select(
        Vote.assignment_id,
        aggregate_order_by(
            func.aggregate_strings(Vote.question + ":" + Vote.choice, ";"), Vote.revision
        ).label("told"),
    )
    .group_by(Vote.assignment_id)
    .subquery()
)
_GROUPS = (_SHOWN.c.comparison, _SHOWN.c.side_a, _SHOWN.c.excluded, _TOLD.c.told)
_PATTERNS = (
    select(*_GROUPS, func.count().label("count"))
    .join(_SHOWN, _SHOWN.c.id == _TOLD.c.assignment_id)
    .group_by(*_GROUPS)
)
_PROGRESS = (
    select(
        PairRow.comparison,
        func.count().label("pairs"),
        func.sum(case((PairRow.taken >= PairRow.target, 1), else_=0)).label("full"),
        func.sum(PairRow.taken).label("taken"),
        func.sum(PairRow.target).label("wanted"),
        func.sum(case((PairRow.withheld, 1), else_=0)).label("withheld"),
    )
    .where(PairRow.kind == "real", PairRow.simulated == bindparam("simulated"))
    .group_by(PairRow.comparison)
    .order_by(PairRow.comparison)
)
_STATES = (
    select(AssignmentRow.state, func.count())
    .where(AssignmentRow.simulated == bindparam("simulated"))
    .group_by(AssignmentRow.state)
)
