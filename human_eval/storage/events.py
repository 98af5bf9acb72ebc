"""Events: everything that happens to a study besides votes, in rows that never change.

An exclusion is an event that names a rater or an assignment, a rule, the evidence and an author; a
later event can revoke it. It changes no vote: analyses read both and report results with and
without the excluded votes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select

from human_eval.errors import StudyError
from human_eval.storage.tables import Event

BY_HAND = "by hand"  # the rule of an exclusion that a researcher decided without a rule
MAX_REASON = 500  # characters


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
    """Exclude the votes of a rater or an assignment from analyses, and return the event's number.

    Raises:
        StudyError: the same rule excludes them already.
    """
    for exclusion in exclusions(connection):
        if (exclusion.subject, exclusion.rule) == (subject, rule):
            raise StudyError(
                f"Event {exclusion.event_id} already excludes {subject} by the rule {rule!r}. "
                "Revoke it first."
            )
    payload = {"rule": rule, "evidence": dict(evidence)}
    return record(connection, "exclude", actor=author, subject=subject, now=now, payload=payload)


def revoke(connection: Connection, event_id: int, *, author: str, reason: str, now: int) -> int:
    """Revoke an exclusion, and return the number of the new event.

    Raises:
        StudyError: no exclusion in force has that number.
    """
    known = [exclusion.event_id for exclusion in exclusions(connection)]
    if event_id not in known:
        raise StudyError(
            f"Event {event_id} is not an exclusion in force; those are {known or 'none'}. "
            "`screen` lists them."
        )
    payload = {"reason": reason}
    return record(
        connection, "revoke", actor=author, subject=f"event:{event_id}", now=now, payload=payload
    )


def exclude_by_hand(
    connection: Connection, rater_id: int, *, reason: str, author: str, now: int
) -> int:
    """Exclude a rater by a researcher's own decision, and return the event's number.

    Raises:
        StudyError: there is no reason, or the rater is excluded by hand already.
    """
    return exclude(
        connection,
        f"rater:{rater_id}",
        rule=BY_HAND,
        evidence={"reason": _check_reason(reason)},
        author=author,
        now=now,
    )


def block(connection: Connection, rater_id: int, *, reason: str, author: str, now: int) -> int:
    """Give a rater no more pairs; their votes still count. Return the event's number.

    Raises:
        StudyError: there is no reason, or the rater is blocked already.
    """
    if rater_id in blocks(connection):
        raise StudyError("This rater is blocked already.")
    payload = {"reason": _check_reason(reason)}
    subject = f"rater:{rater_id}"
    return record(connection, "block", actor=author, subject=subject, now=now, payload=payload)


def unblock(connection: Connection, rater_id: int, *, reason: str, author: str, now: int) -> int:
    """Give a blocked rater pairs again, and return the event's number.

    Raises:
        StudyError: there is no reason, or the rater is not blocked.
    """
    if rater_id not in blocks(connection):
        raise StudyError("This rater is not blocked. `raters` lists those who are.")
    payload = {"reason": _check_reason(reason)}
    subject = f"rater:{rater_id}"
    return record(connection, "unblock", actor=author, subject=subject, now=now, payload=payload)


def blocks(connection: Connection) -> dict[int, str]:
    """Return the reasons of the blocks in force, by number of the rater."""
    found: dict[int, str] = {}
    for row in connection.execute(_BLOCKS):
        number = int(row.subject.removeprefix("rater:"))
        if row.kind == "unblock":
            found.pop(number, None)
        else:
            found[number] = json.loads(row.payload)["reason"]
    return found


def _check_reason(reason: str) -> str:
    """Return the reason without blanks around it, or refuse an empty one."""
    if not reason.strip():
        raise StudyError("Please give a reason; it is stored with the decision.")
    if len(reason.strip()) > MAX_REASON:
        raise StudyError(f"The reason has more than {MAX_REASON} characters. Shorten it.")
    return reason.strip()


def exclusions(connection: Connection, as_of: int | None = None) -> list[Exclusion]:
    """Return the exclusions in force, oldest first.

    Args:
        as_of: Unix time in milliseconds; now by default.
    """
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


_BLOCKS = (
    select(Event.kind, Event.subject, Event.payload)
    .where(Event.kind.in_(["block", "unblock"]))
    .order_by(Event.id)
)
_INSERT = insert(Event).returning(Event.id)
_EXCLUSIONS = (
    select(Event)
    .with_only_columns(Event.id, Event.at, Event.actor, Event.kind, Event.subject, Event.payload)
    .where(Event.kind.in_(["exclude", "revoke"]), Event.at <= bindparam("as_of"))
    .order_by(Event.id)
)
