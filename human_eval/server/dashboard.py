"""What a researcher sees of a running study: counts, raters, quality, quarantine, storage."""

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pandas as pd
from sqlalchemy import Connection, func, select

from human_eval.collection.assignment import is_paused
from human_eval.collection.quarantine import RefusedClip, WithheldPair, list_refused, list_withheld
from human_eval.reporting.live_results import is_published
from human_eval.storage.events import Exclusion, exclusions
from human_eval.storage.tables import AssignmentRow, Event, Rater
from human_eval.study.backup import list_backups
from human_eval.study.queries import find_settled
from human_eval.study.store import StudyStore

LATEST = 20  # events shown
BY_PERSON = ("closed", "reopened", "paused", "resumed", "published", "withdrawn", "exclude")
NOTED = (*BY_PERSON, "revoke", "released", "withheld", "erased", "restored", "backed_up")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The answers to one question about one comparison."""

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
    """How far the study is, quick to tell at any size."""

    state: str  # "open", "paused" or "closed"
    published: bool
    comparisons: list[dict[str, Any]]
    cells: list[Cell]
    assignments: dict[str, int]  # by state
    raters: int
    refusals: int  # requests turned away
    last_answer: str  # UTC, or "never"


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A rater that a rule speaks against."""

    rater: str
    subject: str
    rule: str
    evidence: str
    in_force: bool
    revoked: bool  # somebody has excluded the rater by this rule, and taken that back


@dataclass(frozen=True, kw_only=True)
class Quality:
    """What the answers tell about the raters."""

    proposals: list[Proposal]
    exclusions: list[Exclusion]
    consistency: list[dict[str, Any]]
    withheld: list[WithheldPair]
    refused: list[RefusedClip]


@dataclass(frozen=True, kw_only=True)
class Storage:
    """Where the answers lie, and how that is."""

    database: str  # "SQLite" or "PostgreSQL"
    megabytes: float | None  # of the SQLite files
    free_gigabytes: float
    backups: int
    last_backup: str


def read_counts(store: StudyStore) -> Counts:
    """Count; every number comes from the database itself."""
    definition = store.definition
    progress, tally = store.progress(), store.tally()
    with store.read() as connection:
        paused, published = is_paused(connection), is_published(connection)
        newest = connection.execute(
            select(func.max(AssignmentRow.submitted_at)).where(~AssignmentRow.simulated)
        ).scalar()
    titles = {entry.key: entry.title for entry in definition.systems}
    rows = {row["comparison"]: row for row in progress["comparisons"].to_dict("records")}
    comparisons = [
        {**rows.get(entry.key, _NOTHING), "key": entry.key}
        | {"title_a": titles[entry.a], "title_b": titles[entry.b]}
        for entry in definition.comparisons
    ]
    closed = progress["closed_at"] is not None
    return Counts(
        state="closed" if closed else "paused" if paused else "open",
        published=published,
        comparisons=comparisons,
        cells=[
            _count_cell(tally, comparison.key, question.key, question.primary)
            for comparison in definition.comparisons
            for question in definition.questions
        ],
        assignments=progress["assignments"],
        raters=progress["raters"],
        refusals=progress["events"].get("refused", 0),
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


def read_quality(store: StudyStore) -> Quality:
    """Screen the raters; reads every answer."""
    from human_eval.statistics.screening import (  # takes seconds to import
        consistency,
        screen,
    )

    votes = store.votes()
    proposed = screen(votes, store.definition)
    with store.read() as connection:
        in_force, settled = exclusions(connection), find_settled(connection)
        numbers = _rater_numbers(connection, list(proposed["rater"]))
        withheld, refused = list_withheld(connection), list_refused(connection)
    known = {(entry.subject, entry.rule) for entry in in_force}
    revoked = settled - known
    proposals = []
    for row in proposed.to_dict("records"):
        subject = f"rater:{numbers[row['rater']]}"
        proposals.append(
            Proposal(
                rater=row["rater"],
                subject=subject,
                rule=row["rule"],
                evidence=", ".join(f"{name} {value}" for name, value in row["evidence"].items()),
                in_force=(subject, row["rule"]) in known,
                revoked=(subject, row["rule"]) in revoked,
            )
        )
    return Quality(
        proposals=proposals,
        exclusions=in_force,
        consistency=consistency(votes).to_dict("records"),
        withheld=withheld,
        refused=refused,
    )


def _rater_numbers(connection: Connection, pseudonyms: list[str]) -> dict[str, int]:
    rows = connection.execute(
        select(Rater.pseudonym, Rater.id).where(Rater.pseudonym.in_(pseudonyms))
    )
    return {str(pseudonym): int(number) for pseudonym, number in rows}


def read_storage(store: StudyStore) -> Storage:
    """Say where the answers lie."""
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
    """Return what was last decided or done, newest first."""
    newest = (
        select(Event.at, Event.actor, Event.kind, Event.subject)
        .where(Event.kind.in_(NOTED))
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
    """Return a time in milliseconds as people read it."""
    if moment is None:
        return "never"
    return datetime.fromtimestamp(moment / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


_NOTHING = {"pairs": 0, "full": 0, "taken": 0, "wanted": 0, "withheld": 0}
