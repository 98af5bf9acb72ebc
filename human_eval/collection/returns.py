"""Pairs that a rater hands back unanswered, and pairs withheld because too many did."""

from typing import Literal

from sqlalchemy import Connection, func, select, update

from human_eval.collection.assignment import release
from human_eval.errors import NotYours
from human_eval.storage.events import record
from human_eval.storage.tables import AssignmentRow, Event, PairRow

Reason = Literal["broken", "skipped"]
Detail = Literal["", "not_playing", "damaged", "prompt_unclear", "disturbing", "other"]
REPORTS_TO_WITHHOLD = 3  # by different raters


def give_back(
    connection: Connection,
    rater_id: int,
    assignment_id: int,
    reason: Reason,
    *,
    now: int,
    detail: Detail = "",
) -> None:
    """Hand a pair back; somebody else takes it, and this rater never sees it again.

    A pair that three raters report as broken is withheld until a researcher looks at it.

    Raises:
        NotYours: it is not this rater's, or not open.
    """
    turn = connection.execute(
        select(AssignmentRow.pair_id, AssignmentRow.state, AssignmentRow.rater_id)
        .where(AssignmentRow.id == assignment_id)
        .with_for_update()
    ).one_or_none()
    if turn is None or turn.rater_id != rater_id or turn.state != "open":
        raise NotYours("Expected your own open pair, got another one. Reload the page.")
    release(connection, assignment_id, turn.pair_id, "returned")
    subject = f"pair:{turn.pair_id}"
    actor = f"rater:{rater_id}"
    payload = {"detail": detail} if detail else {}
    record(connection, reason, actor=actor, subject=subject, now=now, payload=payload)
    if reason == "broken" and _reports(connection, subject) >= REPORTS_TO_WITHHOLD:
        connection.execute(update(PairRow).where(PairRow.id == turn.pair_id).values(withheld=True))
        record(connection, "withheld", actor="service", subject=subject, now=now)


def _reports(connection: Connection, subject: str) -> int:
    """Count who reported a pair since a researcher last looked at it and let it go on."""
    released = select(func.coalesce(func.max(Event.id), 0)).where(
        Event.kind == "released", Event.subject == subject
    )
    return connection.execute(
        select(func.count(Event.actor.distinct())).where(
            Event.kind == "broken",
            Event.subject == subject,
            Event.id > released.scalar_subquery(),
        )
    ).scalar_one()
