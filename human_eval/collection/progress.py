"""A rater's progress, and how their part in a study ends (the completion code depends on it)."""

from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection, bindparam, func, select

from human_eval.definition.definition import StudyDefinition
from human_eval.storage.events import blocks, exclusions
from human_eval.storage.tables import AssignmentRow, Event

# The first four are those of `Codes`; after the others a rater has no code yet, and may come back.
Outcome = Literal["done", "screened_out", "no_work_left", "technical", "stopped", "paused"]


@dataclass(frozen=True)
class Progress:
    """How far a rater is."""

    answered: int
    returned: int  # skipped, or reported as broken
    wanted: int | None  # pairs in all; None where they may answer as many as there are


def read_progress(connection: Connection, definition: StudyDefinition, rater_id: int) -> Progress:
    """Count a rater's pairs."""
    counts: dict[str, int] = {}
    for state, count in connection.execute(_STATES, {"rater": rater_id}):
        counts[state] = count
    wanted = definition.quotas.per_study or None
    return Progress(counts.get("submitted", 0), counts.get("returned", 0), wanted)


def is_screened_out(connection: Connection, rater_id: int) -> bool:
    """Say whether the rater is excluded or blocked; then they are given no more pairs."""
    subject = f"rater:{rater_id}"
    if connection.execute(_EXCLUDED, {"subject": subject}).first() is None:
        return False
    excluded = any(exclusion.subject == subject for exclusion in exclusions(connection))
    return excluded or rater_id in blocks(connection)


def ending(progress: Progress, *, closed: bool = False) -> Outcome:
    """Return how it ends for a rater for whom no pair is left.

    Args:
        closed: the study ended, not the pairs.
    """
    if progress.answered == 0 and progress.returned == 0:
        return "no_work_left"
    if closed and progress.wanted is not None and progress.answered < progress.wanted:
        return "technical"
    # Who mostly skipped did not do the work; a researcher looks at it.
    return "done" if progress.answered >= max(1, progress.returned) else "technical"


def stopping(progress: Progress, *, technical: bool) -> Outcome:
    """Return how it ends for a rater who stops although pairs are left."""
    if technical:
        return "technical"
    return "done" if progress.wanted is None and progress.answered else "stopped"


_STATES = (
    select(AssignmentRow.state, func.count())
    .where(AssignmentRow.rater_id == bindparam("rater"))
    .group_by(AssignmentRow.state)
)
_EXCLUDED = (
    select(Event.id)
    .where(Event.kind.in_(["exclude", "block"]), Event.subject == bindparam("subject"))
    .limit(1)
)
