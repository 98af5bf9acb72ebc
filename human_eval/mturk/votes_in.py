"""Answers that were given elsewhere: all of them go in, or none does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, func, insert, select, update

from human_eval.collection.raters import enter
from human_eval.definition.definition import StudyDefinition
from human_eval.errors import StudyError
from human_eval.storage import events
from human_eval.storage.study_state import check_open
from human_eval.storage.tables import AssignmentRow, PairRow, Vote
from human_eval.study.store import StudyStore

MAX_PROBLEMS = 20  # listed in a message


@dataclass(frozen=True, kw_only=True)
class ImportedSubmission:
    """One rater's answers to one pair, from a file."""

    provider: str
    rater: str  # as the provider knows them; stored as a keyed hash alone
    comparison: str
    prompt_index: int
    side_a: str  # left or right
    answers: Mapping[str, str]  # by question: a, b, tie or both_bad
    answered_at: datetime
    seconds: float | None  # None: unknown, stored as the planned time
    source: str  # where it came from, such as "batch.csv, line 7"


@dataclass(frozen=True)
class ImportSummary:
    """What an import did."""

    added: int  # ballots
    already_there: int


class _Problem(Exception):
    """What is wrong with one ballot."""


def import_submissions(store: StudyStore, ballots: Sequence[ImportedSubmission]) -> ImportSummary:
    """Store ballots; those that are stored already are left alone.

    Raises:
        StudyError: ballots that the study does not take or that contradict stored ones; the
            message lists the first of them, and the database is as it was.
        StudyClosed: the study takes no more answers.
    """
    problems: list[str] = []
    added = 0
    with store.write() as connection:
        check_open(connection)
        for ballot in ballots:
            try:
                added += _add(connection, store, ballot)
            except _Problem as problem:
                problems.append(f"{ballot.source}: {problem}")
        if problems:
            listed = "\n  ".join(problems[:MAX_PROBLEMS])
            raise StudyError(
                f"Expected {len(ballots)} ballots that fit the study, got {len(problems)} that do "
                f"not:\n  {listed}\nNothing was imported. Correct the file, then import it again."
            )
        payload = {"added": added, "already_there": len(ballots) - added}
        events.record(
            connection,
            "imported",
            actor="import",
            subject="study",
            now=store.clock(),
            payload=payload,
        )
    return ImportSummary(added, len(ballots) - added)


def _add(connection: Connection, store: StudyStore, ballot: ImportedSubmission) -> bool:
    """Store one ballot; return whether it is new."""
    definition = store.definition
    _check(definition, ballot)
    moment = int(ballot.answered_at.timestamp() * 1000)
    pair = connection.execute(
        select(PairRow.id, PairRow.taken, PairRow.target).where(
            PairRow.comparison == ballot.comparison,
            PairRow.prompt_index == ballot.prompt_index,
            PairRow.kind == "real",
            ~PairRow.simulated,
        )
    ).one_or_none()
    if pair is None:
        raise _Problem(
            f"no pair of {ballot.comparison} for prompt {ballot.prompt_index}; ingest its clips"
        )
    try:
        rater_id = enter(connection, store.keys, ballot.provider, ballot.rater, now=moment)
    except StudyError as error:
        raise _Problem(str(error)) from error
    if _is_there(connection, pair.id, rater_id, ballot):
        return False
    if pair.taken >= pair.target:
        raise _Problem(f"the pair has its {pair.target} raters already")
    connection.execute(update(PairRow).where(PairRow.id == pair.id).values(taken=PairRow.taken + 1))
    number = _add_turn(connection, ballot, pair.id, rater_id, moment)
    known = ballot.seconds is not None
    about = {
        "assignment_id": number,
        "revision": 0,
        "answered_at": moment,
        "seconds": ballot.seconds if known else definition.pay.seconds_per_pair,
        "loops": 0,
        "definition_hash": definition.hash,
    }
    connection.execute(
        insert(Vote),
        [
            {**about, "question": question, "choice": choice}
            for question, choice in ballot.answers.items()
        ],
    )
    return True


def _add_turn(
    connection: Connection, ballot: ImportedSubmission, pair_id: int, rater_id: int, moment: int
) -> int:
    """Store the turn that the ballot answers, and return its number."""
    ordinal = connection.execute(
        select(func.coalesce(func.max(AssignmentRow.ordinal) + 1, 0)).where(
            AssignmentRow.rater_id == rater_id, AssignmentRow.comparison == ballot.comparison
        )
    ).scalar_one()
    turn = {
        "pair_id": pair_id,
        "rater_id": rater_id,
        "comparison": ballot.comparison,
        "simulated": False,
        "ordinal": ordinal,
        "slot": 0,
        "state": "submitted",
        "attempt": 1,
        "side_a": ballot.side_a,
        "assigned_at": moment,
        "expires_at": moment,
        "submitted_at": moment,
    }
    return connection.execute(insert(AssignmentRow).returning(AssignmentRow.id), turn).scalar_one()


def _check(definition: StudyDefinition, ballot: ImportedSubmission) -> None:
    comparisons = [entry.key for entry in definition.comparisons]
    if ballot.comparison not in comparisons:
        raise _Problem(f"expected a comparison from {comparisons}, got {ballot.comparison!r}")
    if ballot.side_a not in ("left", "right"):
        raise _Problem(f"expected side_a to be left or right, got {ballot.side_a!r}")
    if ballot.answered_at.tzinfo is None:
        raise _Problem(f"expected a time with its zone, got {ballot.answered_at}")
    asked = {question.key: question.choices for question in definition.questions}
    if set(ballot.answers) != set(asked):
        raise _Problem(f"expected answers to {sorted(asked)}, got {sorted(ballot.answers)}")
    for key, choice in ballot.answers.items():
        if choice not in asked[key]:
            raise _Problem(f"expected {key} from {list(asked[key])}, got {choice!r}")
    if ballot.seconds is not None and not 0 <= ballot.seconds < 10**9:
        raise _Problem(f"expected seconds of 0 or more, got {ballot.seconds}")


def _is_there(
    connection: Connection, pair_id: int, rater_id: int, ballot: ImportedSubmission
) -> bool:
    """Say whether the same ballot is stored."""
    turn = connection.execute(
        select(AssignmentRow.id, AssignmentRow.state, AssignmentRow.side_a).where(
            AssignmentRow.pair_id == pair_id, AssignmentRow.rater_id == rater_id
        )
    ).one_or_none()
    if turn is None:
        return False
    answers = (
        select(Vote.question, Vote.choice)
        .where(Vote.assignment_id == turn.id)
        .order_by(Vote.revision)
    )
    stored = {question: choice for question, choice in connection.execute(answers)}
    if turn.state == "submitted" and (stored, turn.side_a) == (
        dict(ballot.answers),
        ballot.side_a,
    ):
        return True
    raise _Problem(f"this rater's stored answers to the pair differ: {stored or turn.state}")
