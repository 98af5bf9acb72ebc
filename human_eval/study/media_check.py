"""Compare the files of the clips with the database, and make missing ones again.

The clips are files beside the database, so a study can be moved or restored without them.
"""

import hashlib
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sqlalchemy import select, update

from human_eval.clips.ingest import Clip
from human_eval.clips.media import read_footage, write_footage
from human_eval.clips.sources import Source
from human_eval.collection.pairs import list_clips
from human_eval.errors import list_names
from human_eval.storage.events import record
from human_eval.storage.tables import ClipRow
from human_eval.study.attention_checks import spoil
from human_eval.study.store import StudyStore


@dataclass(frozen=True, kw_only=True)
class LostClip:
    """A clip of the database without its file."""

    clip_id: int
    system: str
    prompt_index: int
    variant: str  # empty, or how the clip was spoiled for an attention check
    problem: Literal["missing", "damaged"]

    def __str__(self) -> str:
        spoiled = f" ({self.variant})" if self.variant else ""
        return f"{self.system} {self.prompt_index:04d}{spoiled}, {self.problem}"


def find_lost_clips(store: StudyStore, *, read: bool = False) -> list[LostClip]:
    """Return the clips whose files are missing or differ from the database.

    Args:
        read: read every file and compare its SHA-256, instead of its size alone.
    """
    with store.read() as connection:
        rows = connection.execute(_CLIPS).all()
    return [
        LostClip(
            clip_id=row.id,
            system=row.system,
            prompt_index=row.prompt_index,
            variant=row.variant,
            problem=problem,
        )
        for row in rows
        if (problem := _problem_of(store.media / row.stored_name, row.bytes, row.sha256, read))
    ]


def _problem_of(
    path: Path, size: int, sha256: str, read: bool
) -> Literal["", "missing", "damaged"]:
    if not path.is_file():
        return "missing"
    if path.stat().st_size != size or not os.access(path, os.R_OK):
        return "damaged"
    if read:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                return "damaged"
    return ""


def describe_lost(lost: Sequence[LostClip]) -> str:
    """Return how many clips are lost, and what to do. Names no system: raters may read it."""
    return (
        f"{len(lost):,} {'clip is' if len(lost) == 1 else 'clips are'} missing from the media "
        "folder or damaged; raters cannot watch their pairs. Copy the study's media folder back, "
        "or run `ingest` with the original clips."
    )


def name_lost(lost: Sequence[LostClip]) -> str:
    """Return `describe_lost` with the names of the clips, for researchers."""
    return f"{describe_lost(lost)} They are: {list_names([str(clip) for clip in lost], '; ')}."


def remake_clips(store: StudyStore, sources: Iterable[Source]) -> Iterator[LostClip]:
    """Make the lost clips again from sources equal to those ingested, and yield each.

    A clip keeps its name, shape and pairs. Its bytes can differ if the libraries of video have
    changed, so its hash and size are stored anew with an event. Spoiled clips are spoiled again by
    their recipe.

    Args:
        sources: files that `ingest` has found to be those it knows.
    """
    with store.read() as connection:
        known = {(clip.system, clip.prompt_index): clip for clip in list_clips(connection)}
    files = {(source.system, source.prompt_index): source.path for source in sources}
    lost = find_lost_clips(store, read=True)
    gone = {(clip.system, clip.prompt_index) for clip in lost if not clip.variant}
    for clip in sorted(lost, key=lambda clip: bool(clip.variant)):  # the originals first
        place = clip.system, clip.prompt_index
        if clip.variant and place not in gone:
            _remake_spoiled(store, clip, known[place])
        elif not clip.variant and place in files:
            _remake(store, clip, known[place], files[place])
            gone.discard(place)
        else:
            continue
        yield clip


def _remake(store: StudyStore, lost: LostClip, clip: Clip, source: Path) -> None:
    path = store.media / clip.stored_name
    digest = write_footage(read_footage(source).fit(clip.shape), path)
    _store(store, lost, digest, path.stat().st_size)


def _remake_spoiled(store: StudyStore, lost: LostClip, original: Clip) -> None:
    with store.read() as connection:
        name = connection.execute(select(ClipRow.stored_name).where(ClipRow.id == lost.clip_id))
        path = store.media / name.scalar_one()
    spoiled = spoil(original, lost.variant, store.media, random.Random(store.rng.random()))
    (store.media / spoiled.stored_name).replace(path)
    _store(store, lost, spoiled.sha256, spoiled.bytes)


def _store(store: StudyStore, lost: LostClip, sha256: str, size: int) -> None:
    about = {"sha256": sha256, "bytes": size}
    with store.write() as connection:
        connection.execute(update(ClipRow).where(ClipRow.id == lost.clip_id).values(**about))
        record(
            connection,
            "clip_remade",
            actor="ingest",
            subject=f"clip:{lost.system}/{lost.prompt_index}",
            now=store.clock(),
            payload={**about, "variant": lost.variant},
        )


_CLIPS = (
    select(
        ClipRow.id,
        ClipRow.system,
        ClipRow.prompt_index,
        ClipRow.variant,
        ClipRow.stored_name,
        ClipRow.sha256,
        ClipRow.bytes,
    )
    .where(ClipRow.status == "ok")
    .order_by(ClipRow.system, ClipRow.prompt_index, ClipRow.variant)
)
