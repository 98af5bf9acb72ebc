"""How many pairs a rater may still be given, by the quotas of the definition."""

import tomllib
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection, bindparam, func, select

from human_eval.definition.definition import StudyDefinition, parse_definition
from human_eval.statistics.votes import BUSY
from human_eval.storage.tables import AssignmentRow

DAY = 86_400_000  # milliseconds
FEW_ANSWERS = 100  # of a comparison; below, a few raters may be all there are


@dataclass(frozen=True)
class QuotaUse:
    """Which quotas a rater has reached."""

    reached: Literal["", "session", "day"]  # the quota that ends the session, or the day
    full: tuple[str, ...]  # comparisons of which the rater gets no more pairs in this session


def add_default_quota(definition: StudyDefinition, prompts: int) -> StudyDefinition:
    """Return the definition of a new study with a quota for each comparison, if it sets no quotas.

    No rater then gives more than 15 % of a comparison's answers, the share above which its
    intervals become too wide to be of use, see `human_eval.statistics.votes.BUSY`. Attention
    checks count towards the quota. None is added where a comparison has fewer than 100 answers, or
    where no rater can give as many, because each gets a pair once.
    """
    answers = prompts * definition.raters_per_pair
    most = int(BUSY * answers)
    if "quotas" in tomllib.loads(definition.source) or answers < FEW_ANSWERS or most >= prompts:
        return definition
    table = (
        f"\n[quotas]  # added by `create`: a rater gives at most {BUSY:.0%} of a comparison's "
        f"answers\nper_comparison = {most}\n"
    )
    return parse_definition(definition.source.rstrip("\n") + "\n" + table)


def describe_quotas(definition: StudyDefinition) -> str:
    """Return how many pairs a rater gets at most, as a sentence; "" without quotas."""
    quotas = definition.quotas
    limits = {
        "in a session": quotas.per_study,
        "of a comparison": quotas.per_comparison,
        "a day": quotas.per_day,
    }
    parts = [f"{limit:,} pairs {what}" for what, limit in limits.items() if limit]
    return f"A rater gets at most {', '.join(parts)}." if parts else ""


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
        AssignmentRow.rater_id == bindparam("rater"), AssignmentRow.state.in_(["open", "submitted"])
    )
    .group_by(AssignmentRow.comparison)
)
