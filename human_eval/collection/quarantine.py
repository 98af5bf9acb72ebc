"""Pairs withheld after reports, and clips refused by `ingest`: neither is shown to raters."""

import json
from dataclasses import dataclass

from sqlalchemy import Connection, func, select, update

from human_eval.errors import StudyError
from human_eval.storage.events import record
from human_eval.storage.tables import ClipRow, Event, PairRow, PromptRow


@dataclass(frozen=True)
class WithheldPair:
    """A pair that too many raters reported as broken."""

    pair_id: int
    comparison: str
    prompt: str
    clip_a: int  # number of the clip
    clip_b: int
    reports: int


@dataclass(frozen=True)
class RefusedClip:
    """A file that did not become a clip."""

    system: str
    prompt_index: int
    reason: str


def list_withheld(connection: Connection) -> list[WithheldPair]:
    """Return the pairs that a researcher has to check."""
    return [WithheldPair(*row) for row in connection.execute(_WITHHELD)]


def list_refused(connection: Connection) -> list[RefusedClip]:
    """Return the clips that `ingest` refused and that are still missing, with the reasons."""
    refused = {}
    for payload in connection.execute(_REFUSALS).scalars():
        clip = RefusedClip(**json.loads(payload))
        refused[clip.system, clip.prompt_index] = clip  # the last refusal counts
    stored = {(system, index) for system, index in connection.execute(_STORED)}
    return [refused[place] for place in sorted(refused.keys() - stored)]


def release_pair(connection: Connection, pair_id: int, *, author: str, now: int) -> None:
    """Assign a withheld pair again; earlier reports no longer count.

    Raises:
        StudyError: it is not withheld.
    """
    withheld = connection.execute(select(PairRow.withheld).where(PairRow.id == pair_id)).scalar()
    if not withheld:
        raise StudyError(f"Pair {pair_id} is not withheld. Reload the page.")
    connection.execute(update(PairRow).where(PairRow.id == pair_id).values(withheld=False))
    record(connection, "released", actor=author, subject=f"pair:{pair_id}", now=now)


def clip_name(connection: Connection, clip_id: int) -> str:
    """Return the name of a clip in the media folder.

    Raises:
        StudyError: there is no such clip.
    """
    name = connection.execute(select(ClipRow.stored_name).where(ClipRow.id == clip_id)).scalar()
    if name is None:
        raise StudyError(f"There is no clip {clip_id}. Reload the page.")
    return str(name)


_REPORTS = (
    select(func.count(Event.actor.distinct()))
    .where(Event.kind == "broken", Event.subject == func.concat("pair:", PairRow.id))
    .correlate(PairRow)
    .scalar_subquery()
)
_WITHHELD = (
    select(
        PairRow.id, PairRow.comparison, PromptRow.display, PairRow.clip_a, PairRow.clip_b, _REPORTS
    )
    .join(PromptRow, PromptRow.prompt_index == PairRow.prompt_index)
    .where(PairRow.withheld)
    .order_by(PairRow.id)
)
_REFUSALS = select(Event.payload).where(Event.kind == "clip_refused").order_by(Event.id)
_STORED = select(ClipRow.system, ClipRow.prompt_index).where(ClipRow.variant == "")
