"""A rater's progress, and how their part in a study ends (the completion code depends on it)."""

from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection, bindparam, func, select

from human_eval.collection.quotas import session_quota
from human_eval.collection.shortage import Shortage
from human_eval.definition.definition import StudyDefinition
from human_eval.storage.events import blocks, exclusions
from human_eval.storage.tables import AssignmentRow, Event

# The first four are those of `Codes`; after the others a rater has no code yet, and may come back.
Outcome = Literal[
    "done", "screened_out", "no_work_left", "technical", "stopped", "paused", "waiting", "later"
]


@dataclass(frozen=True)
class Progress:
    """How far a rater is in a session."""

    answered: int
    returned: int  # skipped, or reported as broken
    wanted: int | None  # pairs in all; None where they may answer as many as there are

    @property
    def complete(self) -> bool:
        """Whether the rater has done what a session asks for."""
        return self.answered >= (self.wanted or 1)


def read_progress(
    connection: Connection, definition: StudyDefinition, rater_id: int, *, session: str = ""
) -> Progress:
    """Count a rater's pairs in a session."""
    counts: dict[str, int] = {}
    for state, count in connection.execute(_STATES, {"rater": rater_id, "session": session}):
        counts[state] = count
    wanted = session_quota(definition)
    return Progress(counts.get("submitted", 0), counts.get("returned", 0), wanted)


def is_screened_out(connection: Connection, rater_id: int) -> bool:
    """Say whether the rater is excluded or blocked; then they are given no more pairs."""
    subject = f"rater:{rater_id}"
    if connection.execute(_EXCLUDED, {"subject": subject}).first() is None:
        return False
    excluded = any(exclusion.subject == subject for exclusion in exclusions(connection))
    return excluded or rater_id in blocks(connection)


def ending(progress: Progress, shortage: Shortage) -> Outcome:
    """Return the outcome for a rater who gets no pair.

    Only a complete session earns the code for pay.

    Args:
        shortage: why there is no pair.
    """
    if shortage == "held" and not progress.complete:
        return "waiting"
    if shortage == "day" and not progress.complete:
        return "later"
    if progress.answered == 0 and progress.returned == 0:
        return "no_work_left"
    # Who mostly skipped did not do the work; a researcher looks at it.
    if progress.answered < max(1, progress.returned):
        return "technical"
    if progress.complete:
        return "done"
    return "technical" if shortage == "closed" else "no_work_left"


def stopping(progress: Progress, shortage: Shortage | None, *, technical: bool) -> Outcome:
    """Return the outcome for a rater who stops.

    Args:
        shortage: why there is no pair for them; None if there is one.
        technical: they stop because the videos do not work.
    """
    if technical:
        return "technical"
    if shortage is None:
        return "done" if progress.complete else "stopped"
    return ending(progress, "empty" if shortage == "held" else shortage)


_STATES = (
    select(AssignmentRow.state, func.count())
    .where(
        AssignmentRow.rater_id == bindparam("rater"), AssignmentRow.session == bindparam("session")
    )
    .group_by(AssignmentRow.state)
)
_EXCLUDED = (
    select(Event.id)
    .where(Event.kind.in_(["exclude", "block"]), Event.subject == bindparam("subject"))
    .limit(1)
)
