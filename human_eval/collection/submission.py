"""Submissions: a rater's answers to an assignment are stored once, however often they are sent.

A rater can also return an assignment without answers.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection, bindparam, func, insert, select, update

from human_eval.collection.assignment import release
from human_eval.definition.definition import Choice, StudyDefinition
from human_eval.errors import NotAcceptable, NotYours, StudyClosed, TooLate
from human_eval.storage.events import record
from human_eval.storage.study_state import CLOSED_AT, CLOSED_MESSAGE
from human_eval.storage.tables import AnyRow, AssignmentRow, ClipRow, Event, PairRow, Vote

MAX_LOOPS = 10_000
MAX_REVISIONS = 5
REPORTS_TO_WITHHOLD = 3  # by different raters

_Stored = tuple[str, int]  # choice in terms of systems, and its strength
Reason = Literal["broken", "skipped"]
Detail = Literal["", "not_playing", "damaged", "prompt_unclear", "disturbing", "other"]


@dataclass(frozen=True)
class Answer:
    """A rater's answer to one question."""

    shown: str  # left, right, tie or both_bad
    seconds: float  # from both clips ready to the answer
    strength: int = 0  # of a preference on a scale


@dataclass(frozen=True)
class Submission:
    """A rater's answers to all questions of one assignment, as they arrived."""

    assignment_id: int
    attempt: int
    rater_id: int
    answers: Mapping[str, Answer]  # by question
    loops: int  # complete loops of both clips
    revision: int = 0


@dataclass(frozen=True)
class Receipt:
    """Confirms that the answers are stored."""

    assignment_id: int
    revision: int
    answers: dict[str, str]  # by question: left, right, tie or both_bad, as stored
    duplicate: bool  # the answers were stored before


def submit(
    connection: Connection, definition: StudyDefinition, submission: Submission, *, now: int
) -> Receipt:
    """Store the answers to an assignment, unless the same answers are stored already.

    Raises:
        NotYours: the assignment belongs to another rater.
        NotAcceptable: the study does not take such a question, choice, time or number of loops.
        TooLate: the assignment has expired, or other answers are stored and final.
        StudyClosed: the study is closed.
    """
    row = connection.execute(_ASSIGNMENT, {"assignment": submission.assignment_id}).one_or_none()
    if row is None or row.rater_id != submission.rater_id:
        raise NotYours("This pair is not assigned to you. Reload the page.")
    _check_answers(definition, submission)
    choices = {key: _choice(entry, row.side_a) for key, entry in submission.answers.items()}
    if row.state == "submitted":
        return _resubmit(connection, definition, submission, row, choices, now)
    if row.state != "open" or row.expires_at <= now or row.attempt != submission.attempt:
        raise TooLate("The time for this pair is over. Please go on with the next pair.")
    if submission.revision != 0:
        raise NotAcceptable("There is no earlier answer to revise. Reload the page.")
    _store(connection, definition, submission, row, choices, now)
    connection.execute(_FINISH, {"assignment": row.id, "now": now})
    return _receipt(row, submission.revision, choices, duplicate=False)


def give_back(
    connection: Connection,
    rater_id: int,
    assignment_id: int,
    reason: Reason,
    *,
    now: int,
    detail: Detail = "",
) -> None:
    """Return an assignment without answers. The rater never gets the pair again; others do.

    A pair that three raters report as broken is withheld until a researcher releases it.

    Raises:
        NotYours: the assignment belongs to another rater.
        TooLate: it is not open.
    """
    row = connection.execute(_ASSIGNMENT, {"assignment": assignment_id}).one_or_none()
    if row is None or row.rater_id != rater_id:
        raise NotYours("This pair is not assigned to you. Reload the page.")
    if row.state != "open":
        raise TooLate(
            "This pair is no longer open: its time is over, or it was answered elsewhere."
        )
    release(connection, assignment_id, row.pair_id, "returned")
    subject = f"pair:{row.pair_id}"
    payload = {"detail": detail} if detail else {}
    record(connection, reason, actor=f"rater:{rater_id}", subject=subject, now=now, payload=payload)
    reports = connection.execute(_REPORTS, {"subject": subject}).scalar_one()
    if reason == "broken" and reports >= REPORTS_TO_WITHHOLD:
        connection.execute(update(PairRow).where(PairRow.id == row.pair_id).values(withheld=True))
        record(connection, "withheld", actor="service", subject=subject, now=now)


def _resubmit(
    connection: Connection,
    definition: StudyDefinition,
    submission: Submission,
    row: AnyRow,
    choices: dict[str, _Stored],
    now: int,
) -> Receipt:
    """Handle answers to an assignment that has answers: the same ones again, or a revision."""
    stored: dict[str, _Stored] = {}
    newest = 0
    for vote in connection.execute(_STORED, {"assignment": row.id}):
        # Ordered by revision: the last one counts.
        stored[vote.question] = vote.choice, vote.strength
        newest = vote.revision
    if stored == choices and submission.revision <= newest:
        return _receipt(row, newest, stored, duplicate=True)
    late = now > row.submitted_at + 1000 * definition.assignment.undo_seconds
    if submission.revision != newest + 1 or submission.revision > MAX_REVISIONS or late:
        raise TooLate("Your first answers are stored and final. Please go on with the next pair.")
    _store(connection, definition, submission, row, choices, now)
    return _receipt(row, submission.revision, choices, duplicate=False)


def _store(
    connection: Connection,
    definition: StudyDefinition,
    submission: Submission,
    row: AnyRow,
    choices: dict[str, _Stored],
    now: int,
) -> None:
    if row.closed_at is not None:
        raise StudyClosed(CLOSED_MESSAGE)
    if row.state == "open":
        _check_viewing(connection, definition, submission, row, now)
    votes = [
        {
            "assignment_id": row.id,
            "question": question,
            "revision": submission.revision,
            "choice": choice,
            "strength": strength,
            "answered_at": now,
            "seconds": float(submission.answers[question].seconds),
            "loops": submission.loops,
            "definition_hash": definition.first_hash,
            "amendment": len(definition.earlier),
        }
        for question, (choice, strength) in choices.items()
    ]
    connection.execute(_INSERT, votes)


def _check_answers(definition: StudyDefinition, submission: Submission) -> None:
    asked = {question.key: question for question in definition.questions}
    if set(submission.answers) != set(asked):
        raise NotAcceptable("Please answer every question of this pair.")
    if not 0 <= submission.loops <= MAX_LOOPS or not 0 <= submission.revision <= MAX_REVISIONS:
        raise NotAcceptable("The number of loops or revisions is not valid. Reload the page.")
    for key, answer in submission.answers.items():
        if Choice(answer.shown, answer.strength) not in asked[key].offered:
            raise NotAcceptable(
                "Question {question} does not take this answer. Reload the page.", question=key
            )
        limit = definition.assignment.lease_seconds
        if not (math.isfinite(answer.seconds) and 0 <= answer.seconds <= limit):
            raise NotAcceptable(
                "The answering time of question {question} is not valid. Reload the page.",
                question=key,
            )


def _check_viewing(
    connection: Connection,
    definition: StudyDefinition,
    submission: Submission,
    row: AnyRow,
    now: int,
) -> None:
    """Refuse answers that arrive before the clips can have been watched, one pair at a time."""
    viewing = definition.viewing
    needed = viewing.min_loops * max(viewing.clip_seconds, row.frames / row.fps)
    since = row.assigned_at
    if needed:
        previous = connection.execute(_PREVIOUS, {"rater": row.rater_id}).scalar()
        since = max(since, previous or 0)
    if submission.loops < viewing.min_loops or now - since < 1000 * needed:
        raise NotAcceptable(
            "Please watch both videos to the end first. Required loops: {count}.",
            count=viewing.min_loops,
        )


def _choice(answer: Answer, side_a: str) -> _Stored:
    """Return the system (a or b) in place of the side; a tie stays as it is."""
    if answer.shown not in ("left", "right"):
        return answer.shown, answer.strength
    return "a" if answer.shown == side_a else "b", answer.strength


def _receipt(
    row: AnyRow, revision: int, choices: Mapping[str, _Stored], *, duplicate: bool
) -> Receipt:
    sides = {"a": row.side_a, "b": "right" if row.side_a == "left" else "left"}
    shown = {key: sides.get(choice, choice) for key, (choice, _) in choices.items()}
    return Receipt(row.id, revision, shown, duplicate)


_INSERT = insert(Vote)
_FINISH = (
    update(AssignmentRow)
    .where(AssignmentRow.id == bindparam("assignment"))
    .values(state="submitted", submitted_at=bindparam("now"))
)
_ASSIGNMENT = (
    select(
        AssignmentRow.id,
        AssignmentRow.pair_id,
        AssignmentRow.rater_id,
        AssignmentRow.state,
        AssignmentRow.attempt,
        AssignmentRow.side_a,
        AssignmentRow.assigned_at,
        AssignmentRow.expires_at,
        AssignmentRow.submitted_at,
        ClipRow.frames,
        ClipRow.fps,
        CLOSED_AT.label("closed_at"),
    )
    .join(PairRow, PairRow.id == AssignmentRow.pair_id)
    .join(ClipRow, ClipRow.id == PairRow.clip_a)  # both clips have the same shape
    .where(AssignmentRow.id == bindparam("assignment"))
    .with_for_update(of=AssignmentRow)
)
_PREVIOUS = select(func.max(AssignmentRow.submitted_at)).where(
    AssignmentRow.rater_id == bindparam("rater"), AssignmentRow.state == "submitted"
)
_STORED = (
    select(Vote.question, Vote.choice, Vote.strength, Vote.revision)
    .where(Vote.assignment_id == bindparam("assignment"))
    .order_by(Vote.revision)
)
# Raters who reported a pair since a researcher last released it.
_REPORTS = select(func.count(Event.actor.distinct())).where(
    Event.kind == "broken",
    Event.subject == bindparam("subject"),
    Event.id
    > select(func.coalesce(func.max(Event.id), 0))
    .where(Event.kind == "released", Event.subject == bindparam("subject"))
    .scalar_subquery(),
)
