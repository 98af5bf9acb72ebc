"""Queries over a whole study: votes and pairs as tables, counts, progress and defects."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pandas as pd
from sqlalchemy import Connection, aggregate_order_by, bindparam, case, func, select
from sqlalchemy.orm import aliased

from human_eval.definition.definition import StudyDefinition
from human_eval.statistics.votes import COLUMNS
from human_eval.storage.database import driver_errors
from human_eval.storage.events import Exclusion, exclusions
from human_eval.storage.study_state import State, read_state
from human_eval.storage.tables import AssignmentRow, ClipRow, Event, PairRow, PromptRow, Rater, Vote
from human_eval.study.store import StudyStore


@dataclass(frozen=True)
class StudyProgress:
    """How far a study is."""

    state: State
    comparisons: pd.DataFrame  # columns comparison, pairs, full, taken, wanted, withheld
    assignments: dict[str, int]  # by state
    raters: int
    events: dict[str, int]  # by kind


def read_votes(
    store: StudyStore, as_of: datetime | None = None, *, simulated: bool = False
) -> pd.DataFrame:
    """Return the votes that count, in the order of arrival, with `statistics.votes.COLUMNS`.

    Args:
        as_of: leaves out later answers and exclusions.
        simulated: return the votes of simulated raters instead of those of people.
    """
    moment = None if as_of is None else int(1000 * as_of.timestamp())
    values = {"as_of": moment or 2**62, "simulated": simulated}
    with store.read() as connection:
        votes = _frame(connection, _VOTES, values).sort_values(["revision", "vote_id"])
        assignments = _frame(connection, _SUBMITTED, values).set_index("assignment_id")
        pairs = _frame(connection, _PAIR_FACTS, values).set_index("task_id")
        raters = _frame(connection, _RATERS, values).set_index("rater_id")
        _mark_excluded(assignments, exclusions(connection, moment))
    votes = votes.drop_duplicates(["assignment_id", "question"], keep="last")
    _add_systems(pairs, store.definition)
    words = ["comparison", "system_a", "system_b", "prompt", "category", "kind", "gold_answer"]
    pairs[words] = pairs[words].astype("category")
    raters["rater"] = raters["rater"].astype("category")

    frame = votes.sort_values("vote_id").join(assignments, on="assignment_id")
    frame = frame.join(pairs, on="task_id").join(raters, on="rater_id")
    frame["simulated"] = simulated
    hashes = [definition.hash for definition in store.definition.versions]
    frame["definition_hash"] = frame["amendment"].map(dict(enumerate(hashes)))
    words = [name for name, kind in COLUMNS.items() if kind.startswith("text")]
    frame[words] = frame[words].astype("str")
    frame["answered_at"] = pd.to_datetime(frame["answered_at"], unit="ms", utc=True)
    return frame[list(COLUMNS)].reset_index(drop=True)


def _frame(connection: Connection, statement: Any, values: Mapping[str, Any]) -> pd.DataFrame:
    result = connection.execute(statement, values)
    # The driver's rows: converting them to SQLAlchemy's doubles the time.
    driver = connection.dialect.loaded_dbapi
    assert result.cursor is not None and driver is not None
    with driver_errors(driver):  # SQLite reads pages, perhaps damaged ones, only now
        rows = result.cursor.fetchall()
    return pd.DataFrame(rows, columns=list(result.keys()))


def _add_systems(pairs: pd.DataFrame, definition: StudyDefinition) -> None:
    systems = {entry.key: entry for entry in definition.comparisons}
    place = pairs.columns.get_loc("comparison")
    pairs.insert(place + 1, "system_a", [systems[key].a for key in pairs["comparison"]])
    pairs.insert(place + 2, "system_b", [systems[key].b for key in pairs["comparison"]])


def _mark_excluded(assignments: pd.DataFrame, in_force: list[Exclusion]) -> None:
    """Add whether each assignment is excluded, and by which rules."""
    rules: dict[str, list[str]] = {}
    for exclusion in in_force:
        rules.setdefault(exclusion.subject, []).append(exclusion.rule)
    by_rater = assignments.groupby("rater_id").groups
    covered = {
        **{f"rater:{number}": numbers for number, numbers in by_rater.items()},
        **{subject: [_number(subject)] for subject in rules if subject.startswith("assignment:")},
    }
    found: dict[int, list[str]] = {}
    for subject, applied in rules.items():
        for number in covered.get(subject, []):
            found.setdefault(number, []).extend(applied)
    joined = {number: ";".join(applied) for number, applied in found.items()}
    assignments["exclusion_rule"] = assignments.index.map(joined.get).astype("object")
    assignments["excluded"] = assignments["exclusion_rule"].notna()


def read_pairs(store: StudyStore, *, simulated: bool = False) -> pd.DataFrame:
    """Return one row per pair, with the file names of its clips in the media folder."""
    with store.read() as connection:
        pairs = _frame(connection, _PAIRS, {"simulated": simulated})
    _add_systems(pairs, store.definition)
    return pairs


def read_planned_pairs(store: StudyStore, *, simulated: bool = False) -> pd.DataFrame:
    """Return the real pairs that raters can answer: columns comparison, prompt_index, raters."""
    with store.read() as connection:
        return _frame(connection, _PLANNED, {"simulated": simulated})


def count_answers(store: StudyStore, *, simulated: bool = False) -> pd.DataFrame:
    """Count the answers to real pairs in the database, which is quick for a study of any size.

    Returns:
        Columns comparison, question, choice, side_a, excluded, count.
    """
    with store.read() as connection:
        subjects = [entry.subject for entry in exclusions(connection)]
        raters = [_number(subject) for subject in subjects if subject.startswith("rater:")]
        single = [_number(subject) for subject in subjects if subject.startswith("assignment:")]
        values = {"simulated": simulated, "raters": raters or [-1], "assignments": single or [-1]}
        patterns = _frame(connection, _PATTERNS, values)
    keys = ["comparison", "question", "choice", "side_a", "excluded"]
    if patterns.empty:
        return pd.DataFrame(columns=[*keys, "count"])
    # Of several answers to one question, dict() keeps the last.
    answers = [dict(part.split(":") for part in text.split(";")) for text in patterns["answers"]]
    rows = patterns.assign(answer=[list(given.items()) for given in answers]).explode("answer")
    rows["question"] = rows["answer"].str[0]
    rows["choice"] = rows["answer"].str[1]
    return rows.groupby(keys)["count"].sum().reset_index()


def _number(subject: str) -> int:
    return int(subject.partition(":")[2])


def read_study_progress(store: StudyStore, *, simulated: bool = False) -> StudyProgress:
    """Count pairs, assignments, raters and events."""
    values = {"simulated": simulated}
    with store.read() as connection:
        return StudyProgress(
            state=read_state(connection),
            comparisons=_frame(connection, _PROGRESS, values),
            assignments=_count(connection, _STATES, values),
            raters=connection.execute(_COUNT_RATERS, values).scalar_one(),
            events=_count(connection, _KINDS, {}),
        )


def _count(connection: Connection, statement: Any, values: Mapping[str, Any]) -> dict[str, int]:
    return {name: int(count) for name, count in connection.execute(statement, values)}


def find_settled(connection: Connection) -> set[tuple[str, str]]:
    """Return the subject and rule of every exclusion ever made, including revoked ones.

    `screen --apply` excludes none of them again: a person has decided.
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
    inconsistent = select(AssignmentRow.id, AssignmentRow.state).where(
        case((AssignmentRow.state == "submitted", ~answered), else_=answered)
    )
    defects += [
        f"assignment {number}: {state} {'without' if state == 'submitted' else 'with'} answers"
        for number, state in connection.execute(inconsistent)
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
        Vote.strength,
        Vote.answered_at,
        Vote.seconds,
        Vote.loops,
        Vote.amendment,
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
_PLANNED = (
    select(PairRow.comparison, PairRow.prompt_index, PairRow.target.label("raters"))
    .where(PairRow.simulated == bindparam("simulated"), PairRow.kind == "real", ~PairRow.withheld)
    .order_by(PairRow.comparison, PairRow.prompt_index)
)
_SHOWN = (
    select(
        AssignmentRow.id,
        AssignmentRow.comparison,
        AssignmentRow.side_a,
        case(
            (
                AssignmentRow.rater_id.in_(bindparam("raters", expanding=True))
                | AssignmentRow.id.in_(bindparam("assignments", expanding=True)),
                1,
            ),
            else_=0,
        ).label("excluded"),
    )
    .join(PairRow, PairRow.id == AssignmentRow.pair_id)
    .where(PairRow.kind == "real", AssignmentRow.simulated == bindparam("simulated"))
    .subquery()
)
# One text for all answers of an assignment, such as "Q1:a;Q2:b", ordered by revision. A million
# votes have few different texts, and counting texts needs no sorting of votes.
_ANSWERS = (
    select(
        Vote.assignment_id,
        aggregate_order_by(
            func.aggregate_strings(Vote.question + ":" + Vote.choice, ";"), Vote.revision
        ).label("answers"),
    )
    .group_by(Vote.assignment_id)
    .subquery()
)
_GROUPS = (_SHOWN.c.comparison, _SHOWN.c.side_a, _SHOWN.c.excluded, _ANSWERS.c.answers)
_PATTERNS = (
    select(*_GROUPS, func.count().label("count"))
    .join(_SHOWN, _SHOWN.c.id == _ANSWERS.c.assignment_id)
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
_COUNT_RATERS = select(func.count(Rater.id)).where(Rater.simulated == bindparam("simulated"))
_KINDS = select(Event.kind, func.sum(Event.count)).group_by(Event.kind)
_STATES = (
    select(AssignmentRow.state, func.count())
    .where(AssignmentRow.simulated == bindparam("simulated"))
    .group_by(AssignmentRow.state)
)
