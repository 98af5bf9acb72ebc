"""Why a rater gets no pair."""

from typing import Literal

from sqlalchemy import Connection, select

from human_eval.collection.assignment import FOR_RATER, NEXT_LISTED
from human_eval.collection.quotas import read_quota_use
from human_eval.definition.definition import StudyDefinition
from human_eval.storage.study_state import is_closed
from human_eval.storage.tables import AssignmentRow, PairRow, Rater

# The session's or the day's quota is reached; the other raters may still give a pair back; the
# rater has had every pair that wants more answers; the study is closed.
Shortage = Literal["session", "day", "held", "empty", "closed"]


def find_shortage(
    connection: Connection, definition: StudyDefinition, rater_id: int, *, session: str, now: int
) -> Shortage | None:
    """Return why the rater gets no further pair; None if there is one."""
    if is_closed(connection):
        return "closed"
    use = read_quota_use(connection, definition, rater_id, session, now)
    if use.reached:
        return use.reached
    simulated = connection.execute(select(Rater.simulated).where(Rater.id == rater_id)).scalar()
    mine = {"rater": rater_id, "simulated": simulated, "full": use.full or [""]}
    if connection.execute(NEXT_LISTED, mine).first():
        return None
    return "held" if connection.execute(_HELD, mine).first() else "empty"


# It starts from the open assignments, which are few.
_HELD = (
    select(AssignmentRow.id)
    .join(PairRow, PairRow.id == AssignmentRow.pair_id)
    .where(AssignmentRow.state == "open", PairRow.kind == "real", ~PairRow.withheld, *FOR_RATER)
    .limit(1)
)
