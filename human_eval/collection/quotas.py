"""How many pairs a rater may still be given, by the quotas of the definition."""

from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection, bindparam, func, select

from human_eval.definition.definition import StudyDefinition
from human_eval.storage.tables import AssignmentRow

DAY = 86_400_000  # milliseconds


@dataclass(frozen=True)
class QuotaUse:
    """Which quotas a rater has reached."""

    reached: Literal["", "session", "day"]  # the quota that ends the session, or the day
    full: tuple[str, ...]  # comparisons of which the rater gets no more pairs in this session


def session_quota(definition: StudyDefinition) -> int | None:
    """Return how many pairs a complete session has; None if there is no limit."""
    quotas = definition.quotas
    limits = (quotas.per_study, quotas.per_comparison * len(definition.comparisons))
    return min((limit for limit in limits if limit), default=None)


def read_quota_use(
    connection: Connection, definition: StudyDefinition, rater_id: int, session: str, now: int
) -> QuotaUse:
    """Compare a rater's pairs, open or answered, with the quotas.

    Args:
        session: whose pairs count; the quota of a day counts the pairs of all sessions.
        now: Unix time, milliseconds.
    """
    quotas, limit = definition.quotas, session_quota(definition)
    if not (limit or quotas.per_day):
        return QuotaUse("", ())
    values = {"rater": rater_id, "session": session, "yesterday": now - DAY}
    rows = connection.execute(_HAD, values).all()
    if limit and sum(row.had for row in rows) >= limit:
        return QuotaUse("session", ())
    if quotas.per_day and sum(row.today for row in rows) >= quotas.per_day:
        return QuotaUse("day", ())
    per_comparison = quotas.per_comparison
    full = [row.comparison for row in rows if per_comparison and row.had >= per_comparison]
    return QuotaUse("", tuple(full))


_HAD = (
    select(
        AssignmentRow.comparison,
        func.count().filter(AssignmentRow.session == bindparam("session")).label("had"),
        func.count().filter(AssignmentRow.assigned_at > bindparam("yesterday")).label("today"),
    )
    .where(
        AssignmentRow.rater_id == bindparam("rater"),
        AssignmentRow.state.in_(["open", "submitted"]),
    )
    .group_by(AssignmentRow.comparison)
)
