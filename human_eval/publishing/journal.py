"""The journal of a server: its votes and decisions as JSON lines, which other databases take in.

Several databases begin as copies of one snapshot. Each writes what it adds into files of its own,
which never change, and takes in the files of the others. A line names pairs by number, because the
snapshot fixed them, and raters by pseudonym, because each database counts its own.

Two kinds of events, stored in the same transaction, say which rows came from elsewhere:

replica  this database is a server of its own, from these rows on
merged   these rows were taken in from the journal of another
"""

import json
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from human_eval.collection.raters import enter_pseudonym
from human_eval.errors import StudyError
from human_eval.storage.events import record
from human_eval.storage.tables import AnyRow, AssignmentRow, Event, PairRow, Rater, Study, Vote

FOLDER = "journal"
FILE = re.compile(rf"{FOLDER}/([0-9a-f]{{16}})/(\d{{10}})-(\d{{10}})\.jsonl")
# Events that say what happened to raters and pairs, and what researchers decided.
JOURNALLED = (
    *("entered", "ended", "stopped", "broken", "skipped", "withheld", "released"),
    *("exclude", "revoke", "block", "unblock", "bonus"),
    *("closed", "reopened", "paused", "resumed", "published", "withdrawn"),
)
_ASSIGNMENT = ("comparison", "session", "attempt", "side_a", "assigned_at", "submitted_at")
_VOTE = ("question", "revision", "choice", "strength", "answered_at", "seconds", "loops")


@dataclass(frozen=True, order=True)
class Position:
    """How far a journal goes: the numbers of the last vote and the last event it covers."""

    votes: int = 0
    events: int = 0


@dataclass(frozen=True, order=True)
class JournalFile:
    """The name of a file of a journal. Each continues where the one before it ends."""

    replica: str
    end: Position

    @property
    def path(self) -> str:
        """The path in the data set."""
        name = f"{self.end.votes:010d}-{self.end.events:010d}.jsonl"
        return f"{FOLDER}/{self.replica}/{name}"


@dataclass(frozen=True)
class Origin:
    """Which rows of a database were made there."""

    replica: str  # empty for a study that is no server, such as the researcher's
    start: Position  # of its own rows
    merged: Mapping[str, Position]  # up to where the journals of others were taken in
    foreign: tuple[tuple[Position, Position], ...]  # rows that came from them: after, up to
    # Numbers here of exclusions that came from them, by replica and number there.
    exclusions: Mapping[tuple[str, int], int]


@dataclass
class Merged:
    """What a journal added."""

    submissions: int = 0
    contradicting: int = 0  # left out: the rater's stored answers to the pair differ
    exclusions: dict[str, int] = field(default_factory=dict)


class MissingRow(StudyError):
    """A line is about a row of a third server, whose journal has to be taken in first."""


def parse_path(path: str) -> JournalFile | None:
    """Parse a path of the data set as that of a journal file; return None if it is another file."""
    match = FILE.fullmatch(path)
    if match is None:
        return None
    return JournalFile(match[1], Position(int(match[2]), int(match[3])))


def start_replica(connection: Connection, *, now: int) -> Origin:
    """Make this database a server of its own, with a journal that begins here."""
    start = read_position(connection)
    payload = {"replica": secrets.token_hex(8), "start": [start.votes, start.events]}
    record(connection, "replica", actor="service", subject="study", now=now, payload=payload)
    return read_origin(connection)


def read_position(connection: Connection) -> Position:
    """Return the numbers of the last vote and the last event."""
    votes = connection.execute(select(func.max(Vote.id))).scalar() or 0
    return Position(votes, connection.execute(select(func.max(Event.id))).scalar() or 0)


def read_origin(connection: Connection) -> Origin:
    """Return which rows of this database are its own."""
    replica, start = "", Position()
    merged: dict[str, Position] = {}
    foreign: list[tuple[Position, Position]] = []
    exclusions: dict[tuple[str, int], int] = {}
    rows = select(Event.kind, Event.payload).where(Event.kind.in_(["replica", "merged"]))
    for row in connection.execute(rows.order_by(Event.id)):
        payload = json.loads(row.payload)
        if row.kind == "replica":
            replica, start = payload["replica"], Position(*payload["start"])
            foreign.clear()  # rows up to here are not its own, and erased ones leave their numbers
            continue
        merged[payload["replica"]] = Position(*payload["end"])
        foreign.append((Position(*payload["after"]), Position(*payload["up_to"])))
        for number, here in payload["exclusions"].items():
            exclusions[payload["replica"], int(number)] = here
    return Origin(replica, start, merged, tuple(foreign), exclusions)


def read_news(connection: Connection, origin: Origin, since: Position) -> tuple[Position, bytes]:
    """Return the lines about all own rows after a position, and the position they reach.

    Votes of simulated raters are no part of a journal.
    """
    end = read_position(connection)
    own_votes = _own(origin, since, "votes")
    own_events = _own(origin, since, "events")
    lines = [
        {"vote": row.id, **_fields(row, _VOTE), "amendment": row.amendment}
        | {"pair": row.pair_id, **_fields(row, _ASSIGNMENT), "rater": _name_rater(row)}
        for row in connection.execute(_VOTES.where(Vote.id > since.votes, Vote.id <= end.votes))
        if own_votes(row.id)
    ]
    events = _EVENTS.where(Event.id > since.events, Event.id <= end.events)
    for row in connection.execute(events).all():
        if own_events(row.id):
            line = {"event": row.id, "at": row.at, "kind": row.kind, "count": row.count}
            line["payload"] = json.loads(row.payload)
            for name in ("actor", "subject"):
                line[name] = _name_thing(connection, origin, getattr(row, name))
            lines.append(line)
    text = "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines)
    return end, text.encode()


def _own(origin: Origin, since: Position, kind: str) -> Any:
    ranges = [(getattr(after, kind), getattr(up_to, kind)) for after, up_to in origin.foreign]
    first = max(getattr(since, kind), getattr(origin.start, kind))
    return lambda number: number > first and not any(a < number <= b for a, b in ranges)


def _fields(row: AnyRow, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in names}


def _name_rater(row: AnyRow) -> list[Any]:
    return [row.provider, row.pseudonym, row.created_at, row.consented_at is not None]


def _name_thing(connection: Connection, origin: Origin, text: str) -> Any:
    """Return an actor or a subject in words that mean the same in every database."""
    kind, separator, number = text.partition(":")
    if not separator or not number.isdigit():
        return text
    if kind == "rater":
        row = connection.execute(_RATER.where(Rater.id == int(number))).one_or_none()
        return {"rater": _name_rater(row)} if row else text
    if kind == "assignment":
        found = _RATER.add_columns(AssignmentRow.pair_id).join(
            AssignmentRow, AssignmentRow.rater_id == Rater.id
        )
        row = connection.execute(found.where(AssignmentRow.id == int(number))).one_or_none()
        return {"rater": _name_rater(row), "pair": row.pair_id} if row else text
    if kind == "event" and int(number) > origin.start.events:
        for (replica, there), here in origin.exclusions.items():
            if here == int(number):
                return {"event": there, "replica": replica}
        return {"event": int(number), "replica": origin.replica}
    return text


def merge(
    connection: Connection, file: JournalFile, content: bytes, *, now: int, actor: str = "service"
) -> Merged:
    """Take in a file of another server's journal: its votes once, its decisions in order.

    Files of one server are taken in by their order. What was taken in before is skipped.

    Raises:
        MissingRow: the journal of another server has to be taken in first.
        StudyError: the file is damaged, or is about another study.
    """
    origin, before, done = read_origin(connection), read_position(connection), Merged()
    known = origin.merged.get(file.replica, Position())
    if file.replica == origin.replica or file.end <= known:
        return done
    exclusions = dict(origin.exclusions)
    try:
        for text in content.decode().splitlines():
            line = json.loads(text)
            if line.get("vote", 0) > known.votes:
                _merge_vote(connection, line, done)
            elif line.get("event", 0) > known.events:
                number = _merge_event(connection, origin, exclusions, line)
                if line["kind"] == "exclude":
                    exclusions[file.replica, line["event"]] = number
                    done.exclusions[str(line["event"])] = number
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StudyError(
            f"{file.path} is damaged ({error!r}). Nothing of it was taken in."
        ) from error
    after = read_position(connection)
    payload = {
        "replica": file.replica,
        "end": [file.end.votes, file.end.events],
        "after": [before.votes, before.events],
        "up_to": [after.votes, after.events],
        "exclusions": done.exclusions,
        "contradicting": done.contradicting,
    }
    record(connection, "merged", actor=actor, subject="study", now=now, payload=payload)
    return done


def _merge_vote(connection: Connection, line: dict[str, Any], done: Merged) -> None:
    comparison = select(PairRow.comparison).where(PairRow.id == line["pair"], ~PairRow.simulated)
    if connection.execute(comparison).scalar() != line["comparison"]:
        raise StudyError(
            f"The journal has a vote on pair {line['pair']} of {line['comparison']}, which this "
            "study does not have. It belongs to another study."
        )
    rater_id = _enter(connection, line["rater"])
    assignment = connection.execute(
        select(AssignmentRow.__table__).where(
            AssignmentRow.pair_id == line["pair"], AssignmentRow.rater_id == rater_id
        )
    ).one_or_none()
    if assignment is None or assignment.state != "submitted":
        number = _submit(connection, line, rater_id, assignment)
        done.submissions += 1
    elif any(getattr(assignment, name) != line[name] for name in _ASSIGNMENT):
        done.contradicting += line["revision"] == 0
        return
    else:
        number = assignment.id
    stored = select(Vote.id).where(
        Vote.assignment_id == number,
        Vote.question == line["question"],
        Vote.revision == line["revision"],
    )
    if connection.execute(stored).first() is None:
        values = {name: line[name] for name in (*_VOTE, "amendment")}
        first = connection.execute(select(Study.definition_hash)).scalar_one()
        values |= {"assignment_id": number, "definition_hash": first}
        connection.execute(insert(Vote), values)


def _enter(connection: Connection, rater: list[Any]) -> int:
    provider, pseudonym, created_at, consented = rater
    return enter_pseudonym(
        connection, str(provider), str(pseudonym), now=int(created_at), consented=bool(consented)
    )


def _submit(
    connection: Connection, line: dict[str, Any], rater_id: int, open_row: AnyRow | None
) -> int:
    """Store a submitted assignment. It counts even where the pair has all its raters already."""
    values = {name: line[name] for name in _ASSIGNMENT} | {"state": "submitted", "slot": 0}
    if open_row is None or open_row.state != "open":  # an open one is counted
        taken = PairRow.taken + 1
        target = func.max if connection.dialect.name == "sqlite" else func.greatest
        more = {"taken": taken, "target": target(PairRow.target, taken)}
        connection.execute(update(PairRow).where(PairRow.id == line["pair"]).values(more))
    if open_row is not None:
        known = AssignmentRow.id == open_row.id
        connection.execute(update(AssignmentRow).where(known).values(values))
        return int(open_row.id)
    mine = AssignmentRow.rater_id == rater_id, AssignmentRow.comparison == line["comparison"]
    ordinal = select(func.coalesce(func.max(AssignmentRow.ordinal) + 1, 0)).where(*mine)
    values |= {
        "pair_id": line["pair"],
        "rater_id": rater_id,
        "simulated": False,
        "ordinal": connection.execute(ordinal).scalar_one(),
        "expires_at": line["submitted_at"],
    }
    added = insert(AssignmentRow).returning(AssignmentRow.id)
    return connection.execute(added, values).scalar_one()


def _merge_event(
    connection: Connection,
    origin: Origin,
    exclusions: Mapping[tuple[str, int], int],
    line: dict[str, Any],
) -> int:
    kind, at = line["kind"], line["at"]
    if kind not in JOURNALLED:
        raise StudyError(f"The journal has an event {kind!r}, which this program does not know.")
    actor, subject = (
        _find_thing(connection, origin, exclusions, line[name]) for name in ("actor", "subject")
    )
    if kind in ("closed", "reopened"):
        connection.execute(update(Study).values(closed_at=at if kind == "closed" else None))
    if kind in ("withheld", "released"):
        pair = PairRow.id == int(subject.removeprefix("pair:"))
        connection.execute(update(PairRow).where(pair).values(withheld=kind == "withheld"))
    return record(
        connection,
        kind,
        actor=actor,
        subject=subject,
        now=at,
        payload=line["payload"],
        count=line["count"],
    )


def _find_thing(
    connection: Connection, origin: Origin, exclusions: Mapping[tuple[str, int], int], named: Any
) -> str:
    """Return an actor or a subject with its number in this database."""
    if isinstance(named, str):
        return named
    if "event" in named:
        if named["replica"] == origin.replica:
            return f"event:{named['event']}"
        here = exclusions.get((named["replica"], named["event"]))
        if here is None:
            raise MissingRow(f"The exclusion {named} is in a journal that was not taken in yet.")
        return f"event:{here}"
    rater_id = _enter(connection, named["rater"])
    if "pair" not in named:
        return f"rater:{rater_id}"
    found = select(AssignmentRow.id).where(
        AssignmentRow.pair_id == named["pair"], AssignmentRow.rater_id == rater_id
    )
    number = connection.execute(found).scalar()
    if number is None:
        raise MissingRow(f"The answers {named} are in a journal that was not taken in yet.")
    return f"assignment:{number}"


_VOTES = (
    select(
        Vote.id,
        *(getattr(Vote, name) for name in (*_VOTE, "amendment")),
        AssignmentRow.pair_id,
        *(getattr(AssignmentRow, name) for name in _ASSIGNMENT),
        Rater.provider,
        Rater.pseudonym,
        Rater.created_at,
        Rater.consented_at,
    )
    .join(AssignmentRow, AssignmentRow.id == Vote.assignment_id)
    .join(Rater, Rater.id == AssignmentRow.rater_id)
    .where(~AssignmentRow.simulated)
    .order_by(Vote.id)
)
_EVENTS = select(Event.__table__).where(Event.kind.in_(JOURNALLED)).order_by(Event.id)
_RATER = select(Rater.provider, Rater.pseudonym, Rater.created_at, Rater.consented_at)
