"""Forgetting: a rater who asks for it, or a simulation that has served its purpose."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, delete, select, update

from human_eval.collection.assignment import release
from human_eval.errors import StudyError
from human_eval.storage import events
from human_eval.storage.tables import AssignmentRow, PairRow, Rater, Study, Vote
from human_eval.study.store import StudyStore


@dataclass(frozen=True)
class Erasure:
    """What was forgotten."""

    raters: int
    turns_deleted: int  # with their answers; kept ones belong to nobody from here on


def erase_rater(store: StudyStore, provider: str, name: str) -> Erasure:
    """Cut the link between a person and their answers, or delete both, as consent says.

    Copies of the database still know the rater: the caller removes them
    (`human_eval.study.backup.replace_backups`), and tells of the others (`list_leftovers`).

    Raises:
        StudyError: there is no such rater.
    """
    pseudonym = store.keys.pseudonym(provider, name)
    now = store.clock()
    with store.write() as connection:
        number = connection.execute(
            select(Rater.id).where(Rater.provider == provider, Rater.pseudonym == pseudonym)
        ).scalar()
        if number is None:
            raise StudyError(
                f"Expected a rater of {provider!r} that the study knows, got {name!r}. "
                "Check both; names are case-sensitive."
            )
        for turn in connection.execute(
            select(AssignmentRow.id, AssignmentRow.pair_id).where(
                AssignmentRow.rater_id == number, AssignmentRow.state == "open"
            )
        ).all():
            release(connection, turn.id, turn.pair_id, "returned")
        deleted = 0
        if store.definition.consent.on_erase == "delete":
            _free_places(connection, number)
            deleted = _delete_turns(connection, [number])
        connection.execute(
            update(Rater)
            .where(Rater.id == number)
            .values(pseudonym=f"erased-{secrets.token_hex(8)}", erased_at=now)
        )
        payload = {"turns_deleted": deleted}
        subject = f"rater:{number}"
        events.record(
            connection, "erased", actor="erase", subject=subject, now=now, payload=payload
        )
    return Erasure(1, deleted)


def list_leftovers(store: StudyStore) -> list[Path]:
    """Return what in the study's folder, backups aside, may still know a rater who was erased.

    Nothing of it is removed: a damaged database may be the only copy of somebody's answers, and a
    report may have been published.
    """
    written = [store.folder / name for name in ("export", "report")]
    return [
        *(path for path in written if path.exists()),
        *sorted(store.folder.glob("study.db.damaged-*")),
    ]


def erase_simulation(store: StudyStore) -> Erasure:
    """Delete every simulated rater, pair and answer."""
    with store.write() as connection:
        raters = connection.execute(select(Rater.id).where(Rater.simulated)).scalars().all()
        deleted = _delete_turns(connection, raters)
        connection.execute(delete(PairRow).where(PairRow.simulated))
        connection.execute(delete(Rater).where(Rater.simulated))
        payload = {"raters": len(raters), "turns_deleted": deleted}
        events.record(
            connection,
            "erased_simulation",
            actor="erase",
            subject="study",
            now=store.clock(),
            payload=payload,
        )
    return Erasure(len(raters), deleted)


def _free_places(connection: Connection, rater_id: int) -> None:
    """Let others answer the pairs whose answers are about to go."""
    held = connection.execute(
        select(AssignmentRow.pair_id).where(
            AssignmentRow.rater_id == rater_id, AssignmentRow.state == "submitted"
        )
    )
    for pair_id in sorted(held.scalars()):
        connection.execute(
            update(PairRow).where(PairRow.id == pair_id).values(taken=PairRow.taken - 1)
        )


def _delete_turns(connection: Connection, raters: Sequence[int]) -> int:
    mine = select(AssignmentRow.id).where(AssignmentRow.rater_id.in_(raters))
    connection.execute(update(Study).values(erasing=True))
    connection.execute(delete(Vote).where(Vote.assignment_id.in_(mine)))
    connection.execute(update(Study).values(erasing=False))
    return connection.execute(
        delete(AssignmentRow).where(AssignmentRow.rater_id.in_(raters))
    ).rowcount
