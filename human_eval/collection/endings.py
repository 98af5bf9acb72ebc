"""How each rater's part in the study ended, as the rater was told: it decides about their pay."""

import json

from sqlalchemy import Connection, bindparam, select

from human_eval.storage.events import record
from human_eval.storage.tables import Event


def record_ending(connection: Connection, rater_id: int, outcome: str, *, now: int) -> None:
    """Store the outcome that a rater is told, unless it is the last one stored."""
    actor = f"rater:{rater_id}"
    last = connection.execute(_LAST, {"actor": actor}).scalar()
    if last is None or json.loads(last)["outcome"] != outcome:
        payload = {"outcome": outcome}
        record(connection, "ended", actor=actor, subject="study", now=now, payload=payload)


def read_endings(connection: Connection) -> dict[int, tuple[str, int]]:
    """Return the last outcome of each rater and its time, by number of the rater.

    A rater who was told "done" stays so when a later decision screens them out.
    """
    found: dict[int, tuple[str, int]] = {}
    for row in connection.execute(_ENDINGS):
        number, outcome = int(row.actor.removeprefix("rater:")), json.loads(row.payload)["outcome"]
        if outcome != "screened_out" or found.get(number, ("", 0))[0] != "done":
            found[number] = outcome, row.at
    return found


_ENDINGS = (
    select(Event.actor, Event.payload, Event.at)
    .where(Event.kind.in_(["ended", "stopped"]))
    .order_by(Event.id)
)
_LAST = (
    select(Event.payload)
    .where(Event.kind.in_(["ended", "stopped"]), Event.actor == bindparam("actor"))
    .order_by(Event.id.desc())
    .limit(1)
)
