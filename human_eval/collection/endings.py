"""The outcome that each rater was shown at the end. It determines the rater's pay."""

import json
from collections import defaultdict

from sqlalchemy import Connection, bindparam, select

from human_eval.storage.events import record
from human_eval.storage.tables import Event


def record_ending(
    connection: Connection, rater_id: int, outcome: str, *, session: str, now: int
) -> None:
    """Store the outcome that a rater is told, unless it is the last one stored.

    Args:
        session: keyed hash of their session on a platform; empty if it has none.
    """
    actor, payload = f"rater:{rater_id}", {"outcome": outcome, "session": session}
    last = connection.execute(_LAST, {"actor": actor}).scalar()
    if last is None or json.loads(last) != payload:
        record(connection, "ended", actor=actor, subject="study", now=now, payload=payload)


def read_endings(connection: Connection) -> dict[int, tuple[str, int]]:
    """Return the last outcome of each rater and its time, by number of the rater.

    A later decision to screen out a rater does not change the outcome "done".
    """
    found: dict[int, tuple[str, int]] = {}
    for row in connection.execute(_ENDINGS):
        number, outcome = int(row.actor.removeprefix("rater:")), json.loads(row.payload)["outcome"]
        if outcome != "screened_out" or found.get(number, ("", 0))[0] != "done":
            found[number] = outcome, row.at
    return found


def read_told_outcomes(connection: Connection) -> dict[int, dict[str, set[str]]]:
    """Return the outcomes that each rater was told in each session, by number and session.

    A session in which they were told none has an empty set. Outcomes that were stored without
    their session are those of the session "".
    """
    told: dict[int, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for row in connection.execute(_SESSIONS):
        payload = json.loads(row.payload)
        outcomes = told[int(row.actor.removeprefix("rater:"))][payload.get("session", "")]
        outcomes |= {payload["outcome"]} if "outcome" in payload else set()
    return told


_ENDINGS = (
    select(Event.actor, Event.payload, Event.at)
    .where(Event.kind.in_(["ended", "stopped"]))
    .order_by(Event.id)
)
_SESSIONS = select(Event.actor, Event.payload).where(
    Event.kind.in_(["entered", "ended", "stopped"]), Event.actor.like("rater:%")
)
_LAST = (
    select(Event.payload)
    .where(Event.kind.in_(["ended", "stopped"]), Event.actor == bindparam("actor"))
    .order_by(Event.id.desc())
    .limit(1)
)
