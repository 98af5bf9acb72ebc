"""The gate through which clips enter a study: decoded, made alike, re-encoded, renamed.

Whatever could tell a rater which system made a clip is taken away here: size, rate, length, codec,
metadata, sound and name.
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
from human_eval.clips.sources import Source, list_names
from human_eval.definition.definition import StudyDefinition
from human_eval.definition.prompts import Prompt
from human_eval.errors import StudyError

MAX_STRETCH = 0.01  # by which the aspect ratios of a pair may differ

Progress = Callable[[int, int, str], None]  # clips done, clips in all, what is being done
Place = tuple[str, int]  # system, prompt index
Meeting = tuple[int, int]  # prompt index, family of systems that comparisons link


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A clip of a study, or the reason why a file did not become one."""

    system: str
    prompt_index: int
    prompt: str  # verbatim
    seed: int | None
    source_sha256: str
    stored_name: str  # below the media folder; tells nothing
    sha256: str
    width: int = 0  # pixels
    height: int = 0
    fps: float = 0.0
    frames: int = 0
    bytes: int = 0
    status: Literal["ok", "quarantined"] = "ok"
    reason: str = ""  # of a quarantine

    @property
    def shape(self) -> Shape:
        return Shape(self.width, self.height, _rate(self.fps), self.frames)


_Entry = TypeVar("_Entry", Source, Clip)


def _rate(fps: float) -> Fraction:
    return Fraction(fps).limit_denominator(1001)


@dataclass(eq=False)
class _Candidate:
    """A source on its way through the gate."""

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
    """Yield a clip for every source that is not known yet, its file being safely on disk.

    Clips that can meet in a pair get one size, rate and length. Where they differ, the study's
    `equalise` says whether all are brought to the smallest or those that differ are quarantined.
    Clips that came in earlier stay as they are, and those that join them get their shape.
    Stopped at any moment, it goes on where it was.

    Args:
        known: the clips that earlier runs have yielded.
        partial: go on although clips are missing; pairs are made of what is there.

    Raises:
        StudyError: a system or prompt is not of this study, a clip is missing and `partial` is
            not set, or the file of a known clip has changed.
    """
    texts = {prompt.index: prompt.text for prompt in prompts}
    _check_sources(sources, texts, definition)
    absent = missing_clips(sources, prompts, definition, known)
    if absent and not partial:
        raise StudyError(
            f"Expected a clip of every system for every prompt, got none for "
            f"{list_names(absent)}. Make them, or go on without them with --partial."
        )
    media_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for leftover in media_folder.glob(".*.mp4"):
        leftover.unlink()  # of a run that was killed
    done = 0
    standing = _meetings(known.values(), definition)
    for meeting, group in _meetings(sources, definition).items():
        index, _ = meeting
        progress(done, len(sources), f"prompt {index}")
        stored = standing.get(meeting, [])
        yield from _admit(group, stored, texts[index], definition, media_folder)
        done += len(group)
    progress(done, len(sources), "done")


def missing_clips(
    sources: Iterable[Source],
    prompts: Sequence[Prompt],
    definition: StudyDefinition,
    known: Mapping[Place, Clip] | None = None,
) -> list[str]:
    """Return what a complete study still lacks, as "SYSTEM 0012"."""
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
                f"Expected a prompt of the study, got number {source.prompt_index} for "
                f"{source.path}. Check the numbers of the files."
            )
    counts = Counter((source.system, source.prompt_index) for source in sources)
    for (system, index), count in counts.items():
        if count > 1:
            raise StudyError(
                f"Expected one clip of {system} for prompt {index}, got {count}. Keep one."
            )


def _meetings(
    entries: Iterable[_Entry], definition: StudyDefinition
) -> dict[Meeting, list[_Entry]]:
    """Group the sources or clips of one prompt whose systems are linked by comparisons."""
    keys = [system.key for system in definition.systems]
    place = {key: number for number, key in enumerate(keys)}
    rows = [place[comparison.a] for comparison in definition.comparisons]
    columns = [place[comparison.b] for comparison in definition.comparisons]
    links = coo_array((np.ones(len(rows)), (rows, columns)), shape=(len(keys), len(keys)))
    _, family = connected_components(links, directed=False)
    groups: dict[Meeting, list[_Entry]] = defaultdict(list)
    for entry in entries:
        groups[entry.prompt_index, int(family[place[entry.system]])].append(entry)
    return {meeting: groups[meeting] for meeting in sorted(groups)}


def _admit(
    group: Sequence[Source],
    stored: Sequence[Clip],
    text: str,
    definition: StudyDefinition,
    folder: Path,
) -> Iterator[Clip]:
    """Take in the clips of one meeting, `stored` being those that came in earlier."""
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
        return _Candidate(source, "", refusal=f"Expected a file, got: {error.strerror}.")


def _is_known(candidate: _Candidate, clip: Clip | None) -> bool:
    source = candidate.source
    if clip is None or clip.status == "quarantined":
        return False
    if candidate.sha256 != clip.source_sha256:
        raise StudyError(
            f"Expected {source.path} as it was when it entered the study, got another file. "
            "Put the former back, or create a new version of the study for the new clips."
        )
    return True


def _open(candidate: _Candidate) -> None:
    told = candidate.source.sha256
    if candidate.refusal:
        return
    if told and told != candidate.sha256:
        candidate.refusal = (
            f"Expected the file with SHA-256 {told[:16]} of its manifest, got "
            f"{candidate.sha256[:16]}. The file was damaged or replaced; make it again."
        )
        return
    try:
        candidate.footage = read_footage(candidate.source.path)
    except StudyError as error:
        candidate.refusal = str(error)


def _refuse_seeds(fresh: Sequence[_Candidate], stored: Sequence[Clip]) -> None:
    """Refuse clips that tell differing seeds; those that tell none may meet any."""
    seeds = {candidate.source.seed for candidate in fresh} | {clip.seed for clip in stored}
    seeds.discard(None)
    if len(seeds) < 2:
        return
    _refuse(
        fresh,
        f"Expected one seed for all clips of a prompt, got {sorted(map(str, seeds))}. "
        "Make the clips from one seed, or set match_seeds = false in the study.",
    )


def _refuse(candidates: Iterable[_Candidate], reason: str) -> None:
    """Refuse those that nothing else was wrong with."""
    for candidate in candidates:
        candidate.refusal = candidate.refusal or reason


def _list_shapes(shapes: Mapping[str, Shape]) -> str:
    return "; ".join(f"{system}: {shape}" for system, shape in sorted(shapes.items()))


def _common_shape(
    fresh: Sequence[_Candidate], stored: Sequence[Clip], *, equalise: bool
) -> Shape | None:
    """Choose the shape of a group; refuse the candidates that cannot get it."""
    standing = {clip.system: clip.shape for clip in stored if clip.status == "ok"}
    shapes = {
        candidate.source.system: candidate.footage.shape
        for candidate in fresh
        if candidate.footage and not candidate.refusal
    }
    if not shapes and not standing:
        return None
    if standing:
        shape = next(iter(standing.values()))  # earlier runs have chosen it
        if len(set(standing.values())) > 1:
            _refuse(
                fresh,
                f"Expected the clips that came in earlier to have one shape, got "
                f"{_list_shapes(standing)}. Create a new version of the study, and take the clips "
                "in again.",
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
                f"Expected clips of one shape, got {_list_shapes(shapes)}. Make them alike, or "
                "set equalise = true in the study.",
            )
    for candidate in fresh:
        if candidate.footage and not candidate.refusal:
            candidate.refusal = _misfit(candidate.footage.shape, shape, equalise=equalise)
    return shape


def _even(shape: Shape) -> Shape:
    """Make width and height even, which the video format asks for."""
    return Shape(shape.width // 2 * 2, shape.height // 2 * 2, shape.fps, shape.frames)


def _smallest(shapes: Sequence[Shape]) -> Shape:
    fps = min(shape.fps for shape in shapes)
    seconds = min(shape.seconds for shape in shapes)
    width = min(shape.width for shape in shapes)
    height = min(shape.height for shape in shapes)
    return _even(Shape(width, height, fps, max(1, int(seconds * fps))))


def _misfit(found: Shape, wanted: Shape, *, equalise: bool) -> str:
    """Return why a clip cannot become the wanted shape; nothing where it can."""
    if _even(found) == wanted:
        return ""
    if not equalise:
        return (
            f"Expected {wanted}, as the clips it is compared with, got {found}. Make the clip "
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
            f"Expected a clip that can shrink to {wanted}, got {found}. Make it again in the "
            "shape of the clips it is compared with."
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
    """Return, by system, how many clips are in and what could tell them apart by weight."""
    frame = pd.DataFrame([asdict(clip) for clip in clips], columns=list(Clip.__annotations__))
    good = frame[frame["status"] == "ok"].groupby("system")
    table = good[["width", "height", "fps", "frames", "bytes"]].mean()
    table.insert(0, "clips", good.size())
    return table.rename(columns={"bytes": "mean_bytes"}).reset_index()
