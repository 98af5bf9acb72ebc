"""Taking answers: one receipt for one turn, however often it is sent."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, func, insert, select, update

from human_eval.collection.assignment import check_open
from human_eval.definition.definition import Question, StudyDefinition
from human_eval.errors import NotAcceptable, NotYours, TooLate
from human_eval.storage.tables import AnyRow, AssignmentRow, Vote

SHOWN = ("left", "right", "tie", "both_bad")  # what a rater may say; systems are our business
MAX_LOOPS = 10_000
MAX_REVISIONS = 5


@dataclass(frozen=True)
class Answer:
    """What a rater says to one question."""

    shown: str  # one of SHOWN
    seconds: float  # from both clips ready to the answer


@dataclass(frozen=True)
class Submission:
    """A turn's answers, as they came in."""

    assignment_id: int
    attempt: int
    rater_id: int
    answers: Mapping[str, Answer]  # by question
    loops: int
    revision: int = 0


@dataclass(frozen=True)
class Receipt:
    """Proof that the answers are stored."""

    assignment_id: int
    revision: int
    answers: dict[str, str]  # by question: one of SHOWN, as stored
    duplicate: bool  # it was stored before


def submit(
    connection: Connection,
    definition: StudyDefinition,
    ballot: Submission,
    *,
    now: int,
    clip_seconds: float = 0.0,
) -> Receipt:
    """Store the answers of a turn, or find them stored.

    Args:
        clip_seconds: how long the clips last, if that is known; answers that came too soon to have
            seen the loops the study wants are refused.

    Raises:
        NotYours: the turn is another rater's or another attempt's.
        NotAcceptable: a question, choice, time or loop count that the study does not take.
        TooLate: the lease has ended, or other answers are stored and can no longer be revised.
        StudyClosed: the study takes no more answers.
    """
    turn = connection.execute(_TURN, {"assignment": ballot.assignment_id}).one_or_none()
    if turn is None or turn.rater_id != ballot.rater_id:
        raise NotYours("Expected your own pair, got another rater's. Reload the page.")
    _check_answers(definition, ballot)
    choices = {key: _choice(answer.shown, turn.side_a) for key, answer in ballot.answers.items()}
    if turn.state == "submitted":
        return _again(connection, definition, ballot, turn, choices, now)
    if turn.state != "open" or turn.expires_at <= now or turn.attempt != ballot.attempt:
        raise TooLate("Expected an answer within its time, got it later. Take the next pair.")
    if ballot.revision != 0:
        raise NotAcceptable("Expected a first answer, got a revision. Reload the page.")
    check_open(connection)
    _check_viewing(connection, definition, ballot, turn, now, clip_seconds)
    _store(connection, definition, ballot, choices, now)
    connection.execute(_FINISH, {"assignment": turn.id, "now": now})
    return _receipt(ballot, turn, choices, duplicate=False)


def _again(
    connection: Connection,
    definition: StudyDefinition,
    ballot: Submission,
    turn: AnyRow,
    choices: dict[str, str],
    now: int,
) -> Receipt:
    """Answer for a turn that has answers: a retry, a revision, or neither."""
    stored: dict[str, str] = {}
    newest = 0
    for row in connection.execute(_STORED, {"assignment": turn.id}):
        stored[row.question] = row.choice  # in the order of revisions
        newest = row.revision
    if stored == choices and ballot.revision <= newest:
        return _receipt(ballot, turn, stored, duplicate=True, revision=newest)
    late = now > turn.submitted_at + 1000 * definition.assignment.undo_seconds
    if ballot.revision != newest + 1 or ballot.revision > MAX_REVISIONS or late:
        raise TooLate(
            f"Expected the answers that are stored ({_shown(stored, turn.side_a)}), got others. "
            "The first ones count; take the next pair."
        )
    check_open(connection)
    _store(connection, definition, ballot, choices, now)
    return _receipt(ballot, turn, choices, duplicate=False)


def _store(
    connection: Connection,
    definition: StudyDefinition,
    ballot: Submission,
    choices: dict[str, str],
    now: int,
) -> None:
    rows = [
        {
            "assignment_id": ballot.assignment_id,
            "question": question,
            "revision": ballot.revision,
            "choice": choice,
            "answered_at": now,
            "seconds": float(ballot.answers[question].seconds),
            "loops": ballot.loops,
            "definition_hash": definition.hash,
        }
        for question, choice in choices.items()
    ]
    connection.execute(_INSERT, rows)


def _check_answers(definition: StudyDefinition, ballot: Submission) -> None:
    asked = {question.key: question for question in definition.questions}
    if set(ballot.answers) != set(asked):
        raise NotAcceptable(
            f"Expected answers to {sorted(asked)}, got {sorted(ballot.answers)!r}. "
            "Answer every question, and no other."
        )
    if not 0 <= ballot.loops <= MAX_LOOPS or not 0 <= ballot.revision <= MAX_REVISIONS:
        raise NotAcceptable(
            f"Expected 0 to {MAX_LOOPS} loops and 0 to {MAX_REVISIONS} revisions, got "
            f"{ballot.loops} and {ballot.revision}. Reload the page."
        )
    for key, answer in ballot.answers.items():
        allowed = shown_choices(asked[key])
        if answer.shown not in allowed:
            raise NotAcceptable(
                f"Expected {key} to be one of {list(allowed)}, got {answer.shown!r}. Choose again."
            )
        limit = definition.assignment.lease_seconds
        if not (math.isfinite(answer.seconds) and 0 <= answer.seconds <= limit):
            raise NotAcceptable(
                f"Expected 0 to {limit} seconds for {key}, got {answer.seconds}. Reload the page."
            )


def shown_choices(question: Question) -> tuple[str, ...]:
    """Return what a rater may answer to the question, in terms of what they see."""
    return SHOWN[: len(question.choices)]


def _check_viewing(
    connection: Connection,
    definition: StudyDefinition,
    ballot: Submission,
    turn: AnyRow,
    now: int,
    clip_seconds: float,
) -> None:
    """Refuse an answer sooner than the clips can have been seen: one watches one pair at a time."""
    viewing = definition.viewing
    needed = viewing.min_loops * max(viewing.clip_seconds, clip_seconds)
    since = turn.assigned_at
    if needed:
        previous = connection.execute(_PREVIOUS, {"rater": turn.rater_id}).scalar()
        since = max(since, previous or 0)
    if ballot.loops < viewing.min_loops or now - since < 1000 * needed:
        raise NotAcceptable(
            f"Expected {viewing.min_loops} complete loops of both clips, got {ballot.loops} in "
            f"{(now - since) / 1000:.1f} seconds. Watch them first."
        )


def _choice(shown: str, side_a: str) -> str:
    """Turn a side into a system; ties are neither."""
    if shown not in ("left", "right"):
        return shown
    return "a" if shown == side_a else "b"


def _shown(choices: Mapping[str, str], side_a: str) -> dict[str, str]:
    other = "right" if side_a == "left" else "left"
    return {key: {"a": side_a, "b": other}.get(choice, choice) for key, choice in choices.items()}


def _receipt(
    ballot: Submission,
    turn: AnyRow,
    choices: Mapping[str, str],
    *,
    duplicate: bool,
    revision: int | None = None,
) -> Receipt:
    number = ballot.revision if revision is None else revision
    return Receipt(turn.id, number, _shown(choices, turn.side_a), duplicate)


_INSERT = insert(Vote)
_FINISH = (
    update(AssignmentRow)
    .where(AssignmentRow.id == bindparam("assignment"))
    .values(state="submitted", submitted_at=bindparam("now"))
)
_TURN = (
    select(
        AssignmentRow.id,
        AssignmentRow.rater_id,
        AssignmentRow.state,
        AssignmentRow.attempt,
        AssignmentRow.side_a,
        AssignmentRow.assigned_at,
        AssignmentRow.expires_at,
        AssignmentRow.submitted_at,
    )
    .where(AssignmentRow.id == bindparam("assignment"))
    .with_for_update()
)
_PREVIOUS = select(func.max(AssignmentRow.submitted_at)).where(
    AssignmentRow.rater_id == bindparam("rater"), AssignmentRow.state == "submitted"
)
_STORED = (
    select(Vote.question, Vote.choice, Vote.revision)
    .where(Vote.assignment_id == bindparam("assignment"))
    .order_by(Vote.revision)
)
