"""Import votes collected elsewhere: all of a file, or nothing."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Connection, bindparam, func, insert, select, update

from human_eval.collection.raters import enter_pseudonym
from human_eval.definition.definition import Choice, StudyDefinition
from human_eval.errors import StudyError, list_names
from human_eval.storage import events
from human_eval.storage.study_state import check_open
from human_eval.storage.tables import AnyRow, AssignmentRow, PairRow, Rater, Vote
from human_eval.study.queries import find_settled
from human_eval.study.store import StudyStore

ACTOR = "import"  # of the events of an import


@dataclass(frozen=True, kw_only=True)
class ImportedSubmission:
    """One rater's answers to one pair, from a file."""

    provider: str
    rater: str  # as the provider knows them; stored as a keyed hash alone
    is_pseudonym: bool = False  # `rater` is a keyed hash already, as in an export of a study
    comparison: str
    prompt_index: int
    side_a: str  # left or right
    answers: Mapping[str, str]  # by question: a, b, tie or both_bad
    answered_at: datetime
    seconds: float | None  # None: unknown, stored as the planned time
    source: str  # where it came from, such as "batch.csv, line 7"
    question_seconds: Mapping[str, float] = field(default_factory=dict)  # where known one by one
    strengths: Mapping[str, int] | None = None  # by question; None: the file has none
    kind: str = "real"  # of the pair
    gold_answer: str | None = None  # of a gold pair
    loops: int = 0
    amendment: int | None = None  # how often the study had been amended; None: as often as now
    # By which the answers were excluded where they were given; None: the file does not say.
    exclusion_rules: tuple[str, ...] | None = None


@dataclass(frozen=True)
class ImportSummary:
    """What an import did."""

    added: int  # submissions
    already_there: int
    contradicting: Sequence[str] = ()  # left out: what the study has for them differs
    excluded: int = 0  # exclusions added to submissions that were there already
    differing: Sequence[str] = ()  # exclusions that one place alone has, or has revoked


@dataclass(frozen=True)
class _Stored:
    """A submission in the database."""

    number: int  # of its assignment
    rater_id: int
    is_new: bool


@dataclass(frozen=True, kw_only=True)
class _Exclusions:
    """The exclusions of a study before an import."""

    in_force: set[tuple[str, str]]  # subject and rule
    ever: set[tuple[str, str]]  # also revoked ones
    imported: Mapping[str, Sequence[events.Exclusion]]  # in force, by subject


class _Problem(Exception):
    """The reason why one submission cannot be imported."""


class _Contradiction(_Problem):
    """The rater has answered the pair otherwise."""


def import_submissions(
    store: StudyStore, submissions: Sequence[ImportedSubmission], *, keep_stored: bool = False
) -> ImportSummary:
    """Store submissions; of those that are stored already, add exclusions that are new.

    Args:
        keep_stored: leave out submissions that contradict stored ones, and list them.

    Raises:
        StudyError: submissions that the study does not take or that contradict stored ones; the
            message lists the first of them, and the database is as it was.
        StudyClosed: the study takes no more answers.
    """
    problems: list[str] = []
    contradicting: list[str] = []
    differing: list[str] = []
    added = excluded = 0
    with store.write() as connection:
        check_open(connection)
        past = _read_exclusions(connection)
        for submission in submissions:
            try:
                stored = _add(connection, store, submission)
            except _Problem as problem:
                kept = keep_stored and isinstance(problem, _Contradiction)
                (contradicting if kept else problems).append(f"{submission.source}: {problem}")
                continue
            rules: Sequence[str] = submission.exclusion_rules or ()
            if stored.is_new:
                added += 1
            else:
                rules, differences = _compare_exclusions(past, stored, submission)
                excluded += len(rules)
                differing += [f"{submission.source}: {each}" for each in differences]
            for rule in rules:
                events.record(
                    connection,
                    "exclude",
                    actor=ACTOR,
                    subject=f"assignment:{stored.number}",
                    now=store.clock(),
                    payload={"rule": rule, "evidence": {"imported": True}},
                )
        if problems:
            listed = list_names(problems, "\n  ")
            raise StudyError(
                f"{len(problems)} of {len(submissions)} submissions do not fit the study:\n  "
                f"{listed}\nNothing was imported. Correct the file, then import it again. Where a "
                "person answered a pair twice, --keep-stored counts the stored answers."
            )
        there = len(submissions) - added - len(contradicting)
        payload = {"added": added, "already_there": there, "contradicting": len(contradicting)}
        events.record(
            connection,
            "imported",
            actor=ACTOR,
            subject="study",
            now=store.clock(),
            payload={**payload, "excluded": excluded},
        )
    return ImportSummary(added, there, contradicting, excluded, differing)


def _add(connection: Connection, store: StudyStore, submission: ImportedSubmission) -> _Stored:
    """Store one submission, unless it is there already."""
    definition = store.definition
    _check(definition, submission)
    moment = round(submission.answered_at.timestamp() * 1000)
    pair = connection.execute(
        select(PairRow.id, PairRow.taken, PairRow.target).where(
            PairRow.comparison == submission.comparison,
            PairRow.prompt_index == submission.prompt_index,
            PairRow.kind == submission.kind,
            PairRow.gold_answer == submission.gold_answer
            if submission.gold_answer
            else PairRow.gold_answer.is_(None),
            ~PairRow.simulated,
        )
    ).first()
    if pair is None:
        raise _Problem(
            f"no {submission.kind} pair of {submission.comparison} for prompt "
            f"{submission.prompt_index}; ingest its clips"
        )
    provider, name = submission.provider, submission.rater
    hashed = name if submission.is_pseudonym else store.keys.pseudonym(provider, name)
    try:
        rater_id = enter_pseudonym(connection, provider, hashed, now=moment)
    except StudyError as error:
        raise _Problem(str(error)) from error
    earlier = connection.execute(_EARLIER, {"pair": pair.id, "rater": rater_id}).one_or_none()
    if earlier is not None and earlier.state == "submitted":
        _check_same(connection, earlier, submission)
        return _Stored(earlier.id, rater_id, is_new=False)
    if earlier is not None and earlier.state == "open":
        _check_over(earlier, now=store.clock())  # it counts as taken
    elif pair.target is not None and pair.taken >= pair.target:
        raise _Problem(
            f"the pair has its {pair.target} raters already; raise raters_per_pair with `amend`"
        )
    else:
        more = update(PairRow).where(PairRow.id == pair.id).values(taken=PairRow.taken + 1)
        connection.execute(more)
    number = _add_assignment(connection, submission, pair.id, rater_id, moment, earlier)
    known = submission.seconds is not None
    about = {
        "assignment_id": number,
        "revision": 0,
        "answered_at": moment,
        "seconds": submission.seconds if known else definition.pay.seconds_per_pair,
        "loops": submission.loops,
        "definition_hash": definition.first_hash,
        "amendment": (
            len(definition.earlier) if submission.amendment is None else submission.amendment
        ),
    }
    connection.execute(
        insert(Vote),
        [
            {
                **about,
                "question": question,
                "choice": choice,
                "strength": (submission.strengths or {}).get(question, 0),
                "seconds": submission.question_seconds.get(question, about["seconds"]),
            }
            for question, choice in submission.answers.items()
        ],
    )
    return _Stored(number, rater_id, is_new=True)


def _read_exclusions(connection: Connection) -> _Exclusions:
    in_force = events.exclusions(connection)
    imported: dict[str, list[events.Exclusion]] = defaultdict(list)
    for entry in in_force:
        if entry.author == ACTOR:
            imported[entry.subject].append(entry)
    return _Exclusions(
        in_force={(entry.subject, entry.rule) for entry in in_force},
        ever=find_settled(connection),
        imported=imported,
    )


def _compare_exclusions(
    past: _Exclusions, stored: _Stored, submission: ImportedSubmission
) -> tuple[list[str], list[str]]:
    """Compare the exclusions of a submission that was there already with those of the file.

    Returns:
        The rules to add, and the differences that are left, because a person decided on them in
        one place: a rule that this study has revoked, or one that it got from an earlier file.
    """
    if submission.exclusion_rules is None:
        return [], []
    subjects = f"assignment:{stored.number}", f"rater:{stored.rater_id}"
    new, differences = [], []
    for rule in submission.exclusion_rules:
        known = {(subject, rule) for subject in subjects}
        if known & past.in_force:
            continue
        if known & past.ever:
            differences.append(f"excluded by {rule!r} in the file, revoked in this study")
        else:
            new.append(rule)
    differences += [
        f"excluded by {entry.rule!r} in this study, not in the file; to count it, `screen --revoke "
        f"{entry.event_id}`"
        for entry in past.imported.get(subjects[0], ())
        if entry.rule not in submission.exclusion_rules
    ]
    return new, differences


def _add_assignment(
    connection: Connection,
    submission: ImportedSubmission,
    pair_id: int,
    rater_id: int,
    moment: int,
    earlier: AnyRow | None,
) -> int:
    """Store the assignment that the submission answers, and return its number.

    Args:
        earlier: an assignment of the pair to the rater that ended without an answer.
    """
    answered = {
        "state": "submitted",
        "session": "",
        "side_a": submission.side_a,
        "assigned_at": moment,
        "expires_at": moment,
        "submitted_at": moment,
    }
    if earlier is not None:
        again = update(AssignmentRow).where(AssignmentRow.id == earlier.id).values(answered)
        connection.execute(again)
        return earlier.id
    ordinal = connection.execute(
        select(func.coalesce(func.max(AssignmentRow.ordinal) + 1, 0)).where(
            AssignmentRow.rater_id == rater_id, AssignmentRow.comparison == submission.comparison
        )
    ).scalar_one()
    assignment = {
        **answered,
        "pair_id": pair_id,
        "rater_id": rater_id,
        "comparison": submission.comparison,
        "simulated": False,
        "ordinal": ordinal,
        "slot": 0,
        "attempt": 1,
    }
    return connection.execute(
        insert(AssignmentRow).returning(AssignmentRow.id), assignment
    ).scalar_one()


def _check(definition: StudyDefinition, submission: ImportedSubmission) -> None:
    comparisons = [entry.key for entry in definition.comparisons]
    if submission.comparison not in comparisons:
        raise _Problem(
            f"there is no comparison {submission.comparison!r}, only {', '.join(comparisons)}"
        )
    if submission.side_a not in ("left", "right"):
        raise _Problem(f"side_a is {submission.side_a!r} instead of left or right")
    if submission.answered_at.tzinfo is None:
        raise _Problem(f"the time {submission.answered_at} has no time zone")
    scales = [question.key for question in definition.questions if question.kind == "scale"]
    if scales and submission.strengths is None:
        raise _Problem(f"{scales[0]} has a scale, but the file has no strengths of preferences")
    asked = {question.key: question.choices for question in definition.questions}
    if set(submission.answers) != set(asked):
        raise _Problem(
            f"answers {sorted(submission.answers)} instead of the questions {sorted(asked)}"
        )
    for key, choice in submission.answers.items():
        if choice not in asked[key]:
            raise _Problem(
                f"{choice!r} is not an answer to {key}; it takes {', '.join(asked[key])}"
            )
        strength = (submission.strengths or {}).get(key, 0)
        side = {"a": "left", "b": "right"}.get(choice, choice)  # both sides have equal strengths
        if Choice(side, strength) not in definition.question(key).offered:
            raise _Problem(f"{choice!r} of strength {strength} is not an answer to {key}")
    if submission.seconds is not None and not 0 <= submission.seconds < 10**9:
        raise _Problem(f"{submission.seconds} seconds are not possible")


def _check_over(assignment: AnyRow, *, now: int) -> None:
    """Refuse an answer to a pair that its rater has open in this study."""
    if assignment.expires_at > now:
        minutes = math.ceil((assignment.expires_at - now) / 60_000)
        raise _Problem(
            "this rater has the pair open in this study and may still answer it here; import the "
            f"file again in {minutes} min"
        )


def _check_same(connection: Connection, assignment: AnyRow, submission: ImportedSubmission) -> None:
    """Refuse a submission that differs from the stored answers of its assignment."""
    answers = (
        select(Vote.question, Vote.choice, Vote.strength)
        .where(Vote.assignment_id == assignment.id)
        .order_by(Vote.revision)
    )
    stored = {row.question: (row.choice, row.strength) for row in connection.execute(answers)}
    given = {
        question: (choice, (submission.strengths or {}).get(question, 0))
        for question, choice in submission.answers.items()
    }
    if (stored, assignment.side_a) != (given, submission.side_a):
        shown = {question: choice for question, (choice, _) in stored.items()}
        raise _Contradiction(f"this rater's stored answers to the pair differ: {shown}")


# The rater is locked too, because a claim locks the rater before it assigns a pair again.
_EARLIER = (
    select(AssignmentRow.id, AssignmentRow.state, AssignmentRow.side_a, AssignmentRow.expires_at)
    .join(Rater, Rater.id == AssignmentRow.rater_id)
    .where(AssignmentRow.pair_id == bindparam("pair"), AssignmentRow.rater_id == bindparam("rater"))
    .with_for_update()
)
