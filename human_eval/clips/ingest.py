"""Ingest clips: decode, check, bring to one shape, re-encode and rename them.

This removes whatever could reveal the system to a rater: differences in size, rate and length,
codec, metadata, sound and file name.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from human_eval.clips.media import Footage, Shape, read_footage, store_footage
from human_eval.clips.sources import Source
from human_eval.definition.definition import StudyDefinition
from human_eval.definition.prompts import Prompt
from human_eval.errors import StudyError, list_names

MAX_STRETCH = 0.01  # by which the aspect ratios of a pair may differ

Progress = Callable[[int, int, str], None]  # clips done, clips in all, what is being done
Place = tuple[str, int]  # system, prompt index
GroupKey = tuple[int, int]  # prompt index, number of a set of systems linked by comparisons


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A clip of a study, or the reason why a file did not become one."""

    system: str
    prompt_index: int
    prompt: str  # verbatim
    seed: int | None
    source_sha256: str
    stored_name: str  # random, in the media folder
    sha256: str
    width: int = 0  # pixels
    height: int = 0
    fps: float = 0.0
    frames: int = 0
    bytes: int = 0
    status: Literal["ok", "quarantined"] = "ok"
    reason: str = ""  # why it is quarantined

    @property
    def shape(self) -> Shape:
        return Shape(self.width, self.height, _rate(self.fps), self.frames)


_Entry = TypeVar("_Entry", Source, Clip)


def _rate(fps: float) -> Fraction:
    return Fraction(fps).limit_denominator(1001)


@dataclass(eq=False)
class _Candidate:
    """A source that is being ingested."""

    source: Source
    sha256: str
    footage: Footage | None = None
    refusal: str = ""


def ingest(
    sources: Sequence[Source],
    prompts: Sequence[Prompt],
    definition: StudyDefinition,
    media_folder: Path,
    *,
    known: Mapping[Place, Clip],
    partial: bool = False,
    progress: Progress = lambda done, total, what: None,
) -> Iterator[Clip]:
    """Yield a clip for every source that is not known yet, once its file is on disk.

    Clips that can be paired get one size, rate and length. If they differ, the definition's
    `equalise` decides whether all shrink to the smallest or those that differ are quarantined.
    Known clips stay as they are, and new ones get their shape. An interrupted run can be repeated:
    it continues where it stopped.

    Args:
        known: the clips that earlier runs have yielded.
        partial: continue although clips are missing.

    Raises:
        StudyError: the study has no such system or prompt, a clip is missing and `partial` is not
            set, or the file of a known clip has changed.
    """
    texts = {prompt.index: prompt.text for prompt in prompts}
    _check_sources(sources, texts, definition)
    absent = missing_clips(sources, prompts, definition, known)
    if absent and not partial:
        raise StudyError(
            f"These clips are missing: {list_names(absent)}. Make them, or continue without them "
            "with --partial."
        )
    media_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for leftover in media_folder.glob(".*.mp4"):
        leftover.unlink()  # written by a run that was killed
    done = 0
    known_groups = _group(known.values(), definition)
    for key, group in _group(sources, definition).items():
        index, _ = key
        progress(done, len(sources), f"prompt {index}")
        stored = known_groups.get(key, [])
        yield from _ingest_group(group, stored, texts[index], definition, media_folder)
        done += len(group)
    progress(done, len(sources), "done")


def missing_clips(
    sources: Iterable[Source],
    prompts: Sequence[Prompt],
    definition: StudyDefinition,
    known: Mapping[Place, Clip] | None = None,
) -> list[str]:
    """Return the clips that a complete study still lacks, as "SYSTEM 0012"."""
    there = {(source.system, source.prompt_index) for source in sources} | set(known or {})
    used = {key for comparison in definition.comparisons for key in (comparison.a, comparison.b)}
    return [
        f"{system.key} {prompt.index:04d}"
        for system in definition.systems
        for prompt in prompts
        if system.key in used and (system.key, prompt.index) not in there
    ]


def _check_sources(
    sources: Sequence[Source], texts: Mapping[int, str], definition: StudyDefinition
) -> None:
    for source in sources:
        definition.system(source.system)
        if source.prompt_index not in texts:
            raise StudyError(
                f"{source.path} belongs to prompt {source.prompt_index}, which the study does not "
                "have. Check the numbers of the files."
            )
    counts = Counter((source.system, source.prompt_index) for source in sources)
    for (system, index), count in counts.items():
        if count > 1:
            raise StudyError(f"{system} has {count} clips for prompt {index}. Keep one.")


def _group(entries: Iterable[_Entry], definition: StudyDefinition) -> dict[GroupKey, list[_Entry]]:
    """Group sources or clips by prompt and by sets of systems that comparisons link."""
    keys = [system.key for system in definition.systems]
    place = {key: number for number, key in enumerate(keys)}
    rows = [place[comparison.a] for comparison in definition.comparisons]
    columns = [place[comparison.b] for comparison in definition.comparisons]
    links = coo_array((np.ones(len(rows)), (rows, columns)), shape=(len(keys), len(keys)))
    _, linked_set = connected_components(links, directed=False)
    groups: dict[GroupKey, list[_Entry]] = defaultdict(list)
    for entry in entries:
        groups[entry.prompt_index, int(linked_set[place[entry.system]])].append(entry)
    return {key: groups[key] for key in sorted(groups)}


def _ingest_group(
    group: Sequence[Source],
    stored: Sequence[Clip],
    text: str,
    definition: StudyDefinition,
    folder: Path,
) -> Iterator[Clip]:
    """Ingest the sources of one group; `stored` are its clips from earlier runs."""
    known = {clip.system: clip for clip in stored}
    candidates = [_read(source) for source in group]
    fresh = [
        candidate
        for candidate in candidates
        if not _is_known(candidate, known.get(candidate.source.system))
    ]
    if not fresh:
        return
    for candidate in fresh:
        _open(candidate)
    if definition.match_seeds:
        _refuse_seeds(fresh, stored)
    shape = _common_shape(fresh, stored, equalise=definition.equalise)
    for candidate in fresh:
        yield _store(candidate, shape, text, folder)


def _read(source: Source) -> _Candidate:
    try:
        with source.path.open("rb") as file:
            return _Candidate(source, hashlib.file_digest(file, "sha256").hexdigest())
    except OSError as error:
        return _Candidate(source, "", refusal=f"The file cannot be read: {error.strerror}.")


def _is_known(candidate: _Candidate, clip: Clip | None) -> bool:
    source = candidate.source
    if clip is None or clip.status == "quarantined":
        return False
    if candidate.sha256 != clip.source_sha256:
        raise StudyError(
            f"{source.path} has changed since it was ingested. Restore the former file, or create "
            "a new version of the study for the new clips."
        )
    return True


def _open(candidate: _Candidate) -> None:
    expected = candidate.source.sha256
    if candidate.refusal:
        return
    if expected and expected != candidate.sha256:
        candidate.refusal = (
            f"The SHA-256 of the file is {candidate.sha256[:16]}, but its manifest has "
            f"{expected[:16]}. The file was damaged or replaced; make it again."
        )
        return
    try:
        candidate.footage = read_footage(candidate.source.path)
    except StudyError as error:
        candidate.refusal = str(error)


def _refuse_seeds(fresh: Sequence[_Candidate], stored: Sequence[Clip]) -> None:
    """Refuse clips with differing seeds; a clip of unknown seed fits all."""
    seeds = {candidate.source.seed for candidate in fresh} | {clip.seed for clip in stored}
    seeds.discard(None)
    if len(seeds) < 2:
        return
    _refuse(
        fresh,
        f"The clips of this prompt have different seeds: {', '.join(sorted(map(str, seeds)))}. "
        "Make the clips from one seed, or set match_seeds = false in the study.",
    )


def _refuse(candidates: Iterable[_Candidate], reason: str) -> None:
    """Refuse candidates that are not refused for another reason."""
    for candidate in candidates:
        candidate.refusal = candidate.refusal or reason


def _list_shapes(shapes: Mapping[str, Shape]) -> str:
    return "; ".join(f"{system}: {shape}" for system, shape in sorted(shapes.items()))


def _common_shape(
    fresh: Sequence[_Candidate], stored: Sequence[Clip], *, equalise: bool
) -> Shape | None:
    """Choose the shape of a group; refuse the candidates that cannot get it."""
    chosen = {clip.system: clip.shape for clip in stored if clip.status == "ok"}
    shapes = {
        candidate.source.system: candidate.footage.shape
        for candidate in fresh
        if candidate.footage and not candidate.refusal
    }
    if not shapes and not chosen:
        return None
    if chosen:
        shape = next(iter(chosen.values()))  # by an earlier run
        if len(set(chosen.values())) > 1:
            _refuse(
                fresh,
                f"The clips from earlier runs have different shapes ({_list_shapes(chosen)}). "
                "Create a new version of the study, and ingest the clips again.",
            )
    elif equalise:
        shape = _smallest(list(shapes.values()))
    else:
        ranked = Counter(shapes.values()).most_common()
        tied = len(ranked) > 1 and ranked[0][1] == ranked[1][1]
        shape = _even(ranked[0][0])
        if tied:
            _refuse(
                fresh,
                f"The clips of this prompt have different shapes ({_list_shapes(shapes)}). Make "
                "them alike, or set equalise = true in the study.",
            )
    for candidate in fresh:
        if candidate.footage and not candidate.refusal:
            candidate.refusal = _misfit(candidate.footage.shape, shape, equalise=equalise)
    return shape


def _even(shape: Shape) -> Shape:
    """Make width and height even, as the video format requires."""
    return Shape(shape.width // 2 * 2, shape.height // 2 * 2, shape.fps, shape.frames)


def _smallest(shapes: Sequence[Shape]) -> Shape:
    fps = min(shape.fps for shape in shapes)
    seconds = min(shape.seconds for shape in shapes)
    width = min(shape.width for shape in shapes)
    height = min(shape.height for shape in shapes)
    return _even(Shape(width, height, fps, max(1, int(seconds * fps))))


def _misfit(found: Shape, wanted: Shape, *, equalise: bool) -> str:
    """Return why a clip cannot get the wanted shape; empty if it can."""
    if _even(found) == wanted:
        return ""
    if not equalise:
        return (
            f"The clip has {found}, but the clips it is compared with have {wanted}. Make it "
            "again, or set equalise = true in the study."
        )
    stretch = found.width * wanted.height / (found.height * wanted.width) - 1
    smaller = (
        found.width < wanted.width
        or found.height < wanted.height
        or found.fps < wanted.fps
        or found.seconds < wanted.seconds
    )
    if abs(stretch) > MAX_STRETCH or smaller:
        return (
            f"The clip has {found} and cannot shrink to {wanted}. Make it again in the shape of "
            "the clips it is compared with."
        )
    return ""


def _store(candidate: _Candidate, shape: Shape | None, text: str, folder: Path) -> Clip:
    source = candidate.source
    clip = Clip(
        system=source.system,
        prompt_index=source.prompt_index,
        prompt=text,
        seed=source.seed,
        source_sha256=candidate.sha256,
        stored_name="",
        sha256="",
    )
    if candidate.refusal or candidate.footage is None or shape is None:
        return replace(clip, status="quarantined", reason=f"{source.path}: {candidate.refusal}")
    name, digest, size = store_footage(candidate.footage.fit(shape), folder)
    return replace(
        clip,
        stored_name=name,
        sha256=digest,
        width=shape.width,
        height=shape.height,
        fps=float(shape.fps),
        frames=shape.frames,
        bytes=size,
    )


def tabulate_clips(clips: Iterable[Clip]) -> pd.DataFrame:
    """Return the number of clips and their mean shape and size, by system."""
    frame = pd.DataFrame([asdict(clip) for clip in clips], columns=list(Clip.__annotations__))
    good = frame[frame["status"] == "ok"].groupby("system")
    table = good[["width", "height", "fps", "frames", "bytes"]].mean()
    table.insert(0, "clips", good.size())
    return table.rename(columns={"bytes": "mean_bytes"}).reset_index()
