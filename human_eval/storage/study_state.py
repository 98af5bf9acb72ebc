"""The state of a study: open, paused or closed.

A closed study takes no answers. A paused one assigns no new pairs, but takes the answers to pairs
that are assigned.
"""

from typing import Literal

from sqlalchemy import Connection, select, update

from human_eval.errors import StudyClosed, StudyError, StudyPaused
from human_eval.storage.events import record
from human_eval.storage.tables import Event, Study

State = Literal["open", "paused", "closed"]

CLOSED_AT = select(Study.closed_at).scalar_subquery()  # for a statement that needs more than it
CLOSED_MESSAGE = "The study is closed. Answers that were sent before are stored."
PAUSED_MESSAGE = "The study is paused. Your answers are stored; please come back later."


def read_state(connection: Connection) -> State:
    """Return the state of the study."""
    if is_closed(connection):
        return "closed"
    return "paused" if is_paused(connection) else "open"


def is_closed(connection: Connection) -> bool:
    """Return whether the study is closed."""
    return connection.execute(select(CLOSED_AT)).scalar() is not None


def is_paused(connection: Connection) -> bool:
    """Return whether the study is paused, whether or not it is closed as well."""
    return connection.execute(_LAST_CHANGE).scalar() == "paused"


def check_open(connection: Connection) -> None:
    """Raise `StudyClosed` if the study is closed."""
    if is_closed(connection):
        raise StudyClosed(CLOSED_MESSAGE)


def check_not_paused(connection: Connection) -> None:
    """Raise `StudyPaused` if the study is paused."""
    if is_paused(connection):
        raise StudyPaused(PAUSED_MESSAGE)


def set_closed(connection: Connection, closed: bool, *, author: str, now: int) -> None:
    """Close the study or open it again.

    Raises:
        StudyError: it is already so.
    """
    if is_closed(connection) == closed:
        raise StudyError(f"The study is already {'closed' if closed else 'open'}.")
    connection.execute(update(Study).values(closed_at=now if closed else None))
    kind = "closed" if closed else "reopened"
    record(connection, kind, actor=author, subject="study", now=now)


def set_paused(connection: Connection, paused: bool, *, author: str, now: int) -> None:
    """Pause the study or resume it.

    Raises:
        StudyError: it is already so.
    """
    if is_paused(connection) == paused:
        raise StudyError(f"The study is {'already' if paused else 'not'} paused.")
    kind = "paused" if paused else "resumed"
    record(connection, kind, actor=author, subject="study", now=now)


_LAST_CHANGE = (
    select(Event.kind)
    .where(Event.kind.in_(["paused", "resumed"]))
    .order_by(Event.id.desc())
    .limit(1)
)
