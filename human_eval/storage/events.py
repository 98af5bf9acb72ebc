"""What happened to a study besides votes: rows that are only ever added.

An exclusion is such a row: it names a rater or an assignment, a rule, the evidence and an author. A
later row can revoke it. Votes never change by it; analyses read both and show results with and
without.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select

from human_eval.errors import StudyError
from human_eval.storage.tables import Event


@dataclass(frozen=True)
class Exclusion:
    """An exclusion in force."""

    event_id: int
    subject: str  # rater:12 or assignment:34
    rule: str
    evidence: Mapping[str, Any]
    author: str
    at: int  # Unix time, milliseconds


def record(
    connection: Connection,
    kind: str,
    *,
    actor: str,
    subject: str,
    now: int,
    payload: Mapping[str, Any] | None = None,
    count: int = 1,
) -> int:
    """Add an event and return its number."""
    values = {
        "at": now,
        "actor": actor,
        "kind": kind,
        "subject": subject,
        "payload": json.dumps(payload or {}, sort_keys=True),
        "count": count,
    }
    return connection.execute(_INSERT, values).scalar_one()


def exclude(
    connection: Connection,
    subject: str,
    *,
    rule: str,
    evidence: Mapping[str, Any],
    author: str,
    now: int,
) -> int:
    """Exclude a rater's or a turn's answers from analyses, and return the event's number.

    Raises:
        StudyError: that rule excludes them already.
    """
    for exclusion in exclusions(connection):
        if (exclusion.subject, exclusion.rule) == (subject, rule):
            raise StudyError(
                f"Expected {subject} not to be excluded by {rule!r} yet, got event "
                f"{exclusion.event_id}. Revoke that one first."
            )
    payload = {"rule": rule, "evidence": dict(evidence)}
    return record(connection, "exclude", actor=author, subject=subject, now=now, payload=payload)


def revoke(connection: Connection, event_id: int, *, author: str, reason: str, now: int) -> int:
    """Take an exclusion back, and return the number of the event that does.

    Raises:
        StudyError: there is no such exclusion in force.
    """
    known = [exclusion.event_id for exclusion in exclusions(connection)]
    if event_id not in known:
        raise StudyError(
            f"Expected the number of an exclusion in force ({known}), got {event_id}. "
            "`screen` lists them."
        )
    payload = {"reason": reason}
    return record(
        connection, "revoke", actor=author, subject=f"event:{event_id}", now=now, payload=payload
    )


def exclusions(connection: Connection, as_of: int | None = None) -> list[Exclusion]:
    """Return the exclusions in force, now or at a time, oldest first."""
    found: dict[int, Exclusion] = {}
    for row in connection.execute(_EXCLUSIONS, {"as_of": as_of or 2**62}):
        if row.kind == "revoke":
            found.pop(int(row.subject.removeprefix("event:")), None)
            continue
        payload = json.loads(row.payload)
        found[row.id] = Exclusion(
            row.id, row.subject, payload["rule"], payload["evidence"], row.actor, row.at
        )
    return list(found.values())


_INSERT = insert(Event).returning(Event.id)
_EXCLUSIONS = (
    select(Event)
    .with_only_columns(Event.id, Event.at, Event.actor, Event.kind, Event.subject, Event.payload)
    .where(Event.kind.in_(["exclude", "revoke"]), Event.at <= bindparam("as_of"))
    .order_by(Event.id)
)
