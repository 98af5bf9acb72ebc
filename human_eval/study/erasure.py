"""Erase a rater on request, or a whole simulation."""

import secrets
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, delete, select, update

from human_eval.collection.assignment import release_all
from human_eval.errors import StudyError
from human_eval.storage.events import blocks, exclusions, record, revoke, unblock
from human_eval.storage.tables import AssignmentRow, PairRow, Rater, Study, Vote
from human_eval.study.store import StudyStore

ERASED = "erased"  # the reason of decisions that end with what they were about


@dataclass(frozen=True)
class Erasure:
    """What was erased."""

    raters: int
    assignments_deleted: int  # with their answers; kept answers lose the link to the person


def erase_rater(store: StudyStore, provider: str, name: str) -> Erasure:
    """Delete a rater's pseudonym and, if the consent text promises it, their answers.

    Backups still hold the rater: the caller replaces them with
    `human_eval.study.backup.replace_backups` and lists other files with `list_leftovers`.

    Raises:
        StudyError: there is no such rater.
    """
    pseudonym = store.keys.pseudonym(provider, name)
    now = store.clock()
    with store.write() as connection:
        number = connection.execute(
            select(Rater.id)
            .where(Rater.provider == provider, Rater.pseudonym == pseudonym)
            .with_for_update()  # no pair is assigned to the rater meanwhile
        ).scalar()
        if number is None:
            raise StudyError(
                f"The study has no rater {name!r} of the provider {provider!r}. Check both; names "
                "are case-sensitive."
            )
        mine = select(AssignmentRow.id).where(AssignmentRow.rater_id == number)
        connection.execute(mine.with_for_update()).all()  # nor is an answer stored or revised
        release_all(connection, number, "returned")
        deleted = 0
        if store.definition.consent.on_erase == "delete":
            _free_pairs(connection, number)
            deleted = _delete_assignments(connection, [number], now)
        connection.execute(
            update(Rater)
            .where(Rater.id == number)
            .values(pseudonym=f"erased-{secrets.token_hex(8)}", erased_at=now)
        )
        payload = {"assignments_deleted": deleted}
        subject = f"rater:{number}"
        record(connection, "erased", actor="erase", subject=subject, now=now, payload=payload)
    return Erasure(1, deleted)


def list_leftovers(store: StudyStore) -> list[Path]:
    """Return the files in the study's folder that may still hold an erased rater, except backups.

    They are not deleted: a damaged database may be the only copy of other raters' answers, and a
    report may have been published.
    """
    written = [store.folder / name for name in ("export", "report")]
    return [
        *(path for path in written if path.exists()),
        *sorted(store.folder.glob("study.db.damaged-*")),
    ]


def erase_simulation(store: StudyStore) -> Erasure:
    """Delete every simulated rater, pair and answer."""
    now = store.clock()
    with store.write() as connection:
        raters = connection.execute(select(Rater.id).where(Rater.simulated)).scalars().all()
        deleted = _delete_assignments(connection, raters, now)
        _revoke_exclusions(connection, "rater", set(raters), now)
        for number in blocks(connection).keys() & set(raters):
            unblock(connection, number, reason=ERASED, author="erase", now=now)
        connection.execute(delete(PairRow).where(PairRow.simulated))
        connection.execute(delete(Rater).where(Rater.simulated))
        payload = {"raters": len(raters), "assignments_deleted": deleted}
        kind = "erased_simulation"
        record(connection, kind, actor="erase", subject="study", now=now, payload=payload)
    return Erasure(len(raters), deleted)


def _free_pairs(connection: Connection, rater_id: int) -> None:
    """Make the pairs that the rater answered available to others."""
    answered = select(AssignmentRow.pair_id).where(
        AssignmentRow.rater_id == rater_id, AssignmentRow.state == "submitted"
    )
    for pair_id in sorted(connection.execute(answered).scalars()):
        connection.execute(
            update(PairRow).where(PairRow.id == pair_id).values(taken=PairRow.taken - 1)
        )


def _delete_assignments(connection: Connection, raters: Sequence[int], now: int) -> int:
    mine = select(AssignmentRow.id).where(AssignmentRow.rater_id.in_(raters))
    _revoke_exclusions(connection, "assignment", set(connection.execute(mine).scalars()), now)
    connection.execute(update(Study).values(erasing=True))
    connection.execute(delete(Vote).where(Vote.assignment_id.in_(mine)))
    connection.execute(update(Study).values(erasing=False))
    return connection.execute(
        delete(AssignmentRow).where(AssignmentRow.rater_id.in_(raters))
    ).rowcount


def _revoke_exclusions(connection: Connection, kind: str, numbers: Set[int], now: int) -> None:
    """Revoke the exclusions of deleted rows: SQLite gives their numbers to new ones."""
    deleted = {f"{kind}:{number}" for number in numbers}
    for exclusion in exclusions(connection):
        if exclusion.subject in deleted:
            revoke(connection, exclusion.event_id, author="erase", reason=ERASED, now=now)
