"""The figures of the dashboard: counts, raters and checks of them, storage, events."""

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pandas as pd
from sqlalchemy import func, select

from human_eval.collection.raters import find_rater
from human_eval.reporting.live_results import is_published
from human_eval.storage.events import Exclusion, blocks, exclusions
from human_eval.storage.tables import AssignmentRow, Event
from human_eval.study.backup import list_backups
from human_eval.study.queries import count_answers, find_settled, read_study_progress, read_votes
from human_eval.study.rater_table import tabulate_raters
from human_eval.study.store import StudyStore

LATEST = 20  # events shown
LATEST_RATERS = 100  # raters shown
DECISIONS = ("closed", "reopened", "paused", "resumed", "published", "withdrawn", "exclude")
PAY = ("block", "unblock", "bonus")
SHOWN = (*DECISIONS, *PAY, "revoke", "released", "withheld", "erased", "restored", "backed_up")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The votes on one question of one comparison."""

    comparison: str
    question: str
    primary: bool
    votes: int
    a: int
    b: int
    ties: int
    excluded: int


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How far the study is; fast for a study of any size."""

    state: str  # "open", "paused" or "closed"
    published: bool
    comparisons: list[dict[str, Any]]
    cells: list[Cell]
    assignments: dict[str, int]  # by state
    raters: int
    refusals: int  # requests refused
    last_answer: str  # UTC, or "never"


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A rater who fails a screening rule."""

    rater: str
    subject: str  # "rater:NUMBER"
    rule: str
    evidence: str
    in_force: bool  # the rater is excluded by this rule
    revoked: bool  # they were, and a researcher revoked the exclusion


@dataclass(frozen=True, kw_only=True)
class RaterChecks:
    """What the votes show about the raters."""

    proposals: list[Proposal]
    exclusions: list[Exclusion]
    consistency: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class RaterList:
    """Who did what."""

    total: int
    newest: list[dict[str, Any]]  # rows of `tabulate_raters`, and whether the rater is blocked


@dataclass(frozen=True, kw_only=True)
class Storage:
    """The state of the database and its backups."""

    database: str  # "SQLite" or "PostgreSQL"
    megabytes: float | None  # of the SQLite files
    free_gigabytes: float
    backups: int
    last_backup: str


def read_counts(store: StudyStore) -> Counts:
    """Count pairs, assignments and votes in the database."""
    definition = store.definition
    progress, counts = read_study_progress(store), count_answers(store)
    with store.read() as connection:
        published = is_published(connection)
        newest = connection.execute(
            select(func.max(AssignmentRow.submitted_at)).where(~AssignmentRow.simulated)
        ).scalar()
    titles = {entry.key: entry.title for entry in definition.systems}
    rows = {row["comparison"]: row for row in progress.comparisons.to_dict("records")}
    comparisons = [
        {**rows.get(entry.key, _NOTHING), "key": entry.key}
        | {"title_a": titles[entry.a], "title_b": titles[entry.b]}
        for entry in definition.comparisons
    ]
    return Counts(
        state=progress.state,
        published=published,
        comparisons=comparisons,
        cells=[
            _count_cell(counts, comparison.key, question.key, question.primary)
            for comparison in definition.comparisons
            for question in definition.questions
        ],
        assignments=progress.assignments,
        raters=progress.raters,
        refusals=progress.events.get("refused", 0),
        last_answer=show_time(newest),
    )


def _count_cell(tally: pd.DataFrame, comparison: str, question: str, primary: bool) -> Cell:
    cell = tally[(tally["comparison"] == comparison) & (tally["question"] == question)]
    kept = cell[cell["excluded"] == 0].groupby("choice")["count"].sum()
    return Cell(
        comparison=comparison,
        question=question,
        primary=primary,
        votes=int(kept.sum()),
        a=int(kept.get("a", 0)),
        b=int(kept.get("b", 0)),
        ties=int(kept.get("tie", 0) + kept.get("both_bad", 0)),
        excluded=int(cell[cell["excluded"] != 0]["count"].sum()),
    )


def read_rater_checks(store: StudyStore) -> RaterChecks:
    """Screen the raters; reads every vote."""
    from human_eval.statistics.screening import consistency, screen  # takes seconds to import

    votes = read_votes(store)
    proposed = screen(votes, store.definition)
    with store.read() as connection:
        in_force, settled = exclusions(connection), find_settled(connection)
        subjects = [f"rater:{find_rater(connection, rater)}" for rater in proposed["rater"]]
    known = {(entry.subject, entry.rule) for entry in in_force}
    return RaterChecks(
        proposals=[
            Proposal(
                rater=row["rater"],
                subject=subject,
                rule=row["rule"],
                evidence=", ".join(f"{name} {value}" for name, value in row["evidence"].items()),
                in_force=(subject, row["rule"]) in known,
                revoked=(subject, row["rule"]) in settled - known,
            )
            for subject, row in zip(subjects, proposed.to_dict("records"), strict=True)
        ],
        exclusions=in_force,
        consistency=consistency(votes).to_dict("records"),
    )


def read_raters(store: StudyStore) -> RaterList:
    """List the raters who entered last, newest first."""
    table = tabulate_raters(store)
    with store.read() as connection:
        blocked = set(blocks(connection))
    rows = table.tail(LATEST_RATERS)[::-1].to_dict("records")
    return RaterList(
        total=len(table),
        newest=[{**row, "blocked": row["rater_number"] in blocked} for row in rows],
    )


def read_storage(store: StudyStore) -> Storage:
    """Describe the database and its backups."""
    sqlite = store.database.is_sqlite
    files = list(store.folder.glob("study.db*")) if sqlite else []
    backups = list_backups(store)
    return Storage(
        database="SQLite" if sqlite else "PostgreSQL",
        megabytes=sum(file.stat().st_size for file in files) / 2**20 if sqlite else None,
        free_gigabytes=shutil.disk_usage(store.folder).free / 2**30,
        backups=len(backups),
        last_backup=show_time(round(1000 * backups[-1].stat().st_mtime) if backups else None),
    )


def read_events(store: StudyStore) -> list[dict[str, str]]:
    """Return the latest decisions and changes, newest first."""
    newest = (
        select(Event.at, Event.actor, Event.kind, Event.subject)
        .where(Event.kind.in_(SHOWN))
        .order_by(Event.id.desc())
        .limit(LATEST)
    )
    with store.read() as connection:
        rows = connection.execute(newest).all()
    return [
        {"at": show_time(row.at), "actor": row.actor, "kind": row.kind, "subject": row.subject}
        for row in rows
    ]


def show_time(moment: int | None) -> str:
    """Format a Unix time in milliseconds; None is "never"."""
    if moment is None:
        return "never"
    return datetime.fromtimestamp(moment / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


_NOTHING = {"pairs": 0, "full": 0, "taken": 0, "wanted": 0, "withheld": 0}
