"""The export of a study: files for other programs, from which its report can be made again."""

import csv
import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields, replace
from io import BytesIO
from pathlib import Path

import pandas as pd

from human_eval.clips.ingest import Clip
from human_eval.definition.definition import StudyDefinition, parse_definition
from human_eval.errors import StudyError
from human_eval.reporting.methods_text import data_card
from human_eval.reporting.preferences import (
    MEDIA,
    direct_preferences,
    tabulate_preferences,
    video_align,
)
from human_eval.statistics.votes import COLUMNS, check_origin, check_votes

# Spreadsheets run cells that begin like this as formulas; a leading apostrophe makes them text.
RUNS_AS_FORMULA = re.compile(r"^'*[=+\-@\t\r]")
DEFINITION, CLIPS, VOTES = "study.toml", "clips.csv", "votes"
PAIRS = "pairs.csv"  # of the plan
EARLIER = "earlier-definitions.jsonl"
VIDEO_ALIGN, DPO = "preferences.videoalign.csv", "preferences.dpo.jsonl"
FILES = MEDIA.rstrip("/")  # folder of the clips in an export
REPORT = "report"  # folder of the report that is made of an export
EMPTY = {"seconds": "", "loops": ""}  # how CSV writes what is unknown
CARD, SUMS = "README.md", "SHA256SUMS"


def write_export(
    votes: pd.DataFrame,
    definition: StudyDefinition,
    folder: Path,
    *,
    clips: Iterable[Clip] = (),
    pairs: pd.DataFrame | None = None,
    media: Path | None = None,
) -> list[Path]:
    """Write definition, votes, clips, preference data and a data card into a folder.

    The same votes give the same bytes. Votes of excluded raters are marked in the tables of votes
    and left out of the preference data. SHA256SUMS is written last: without it, an export is
    unfinished. Clips of a former export that are not among these are deleted.

    Args:
        pairs: those of the plan, as `read_planned_pairs` returns them; None if it is unknown.
        media: folder with the files of the clips, to include them; None: the tables alone.

    Returns:
        The files written.

    Raises:
        StudyError: the folder contains other files, a clip has no file, or `check_votes` refuses
            the votes.
    """
    check_origin(check_votes(votes))
    clips = list(clips)
    if media is not None:
        _check_files(clips, media)
    folder.mkdir(parents=True, exist_ok=True)
    ours = _names() | {FILES, REPORT}
    foreign = [path.name for path in folder.iterdir() if path.name not in ours]
    if foreign:
        raise StudyError(
            f"{folder} contains {foreign[0]!r}, which is not of an export. Name another folder."
        )
    outdated = _find_outdated(folder, {clip.stored_name for clip in clips})
    (folder / SUMS).unlink(missing_ok=True)
    votes = votes[list(COLUMNS)].sort_values("vote_id", ignore_index=True)
    shown = pd.DataFrame([asdict(clip) for clip in clips], columns=[f.name for f in fields(Clip)])
    preferences = tabulate_preferences(votes)
    (folder / DEFINITION).write_bytes(definition.source.encode())
    sources = [{"definition": former.source} for former in definition.earlier]
    write_jsonl(pd.DataFrame(sources), folder / EARLIER)
    write_csv(votes, folder / f"{VOTES}.csv")
    votes.to_parquet(folder / f"{VOTES}.parquet", index=False)
    write_jsonl(votes, folder / f"{VOTES}.jsonl")
    # Not exported: the reason of a refusal, which names files on the machine of the study.
    write_csv(shown.drop(columns="reason"), folder / CLIPS)
    write_csv(video_align(preferences, shown, definition), folder / VIDEO_ALIGN)
    write_jsonl(direct_preferences(preferences, shown, definition), folder / DPO)
    (folder / PAIRS).unlink(missing_ok=True)  # of a former export
    if pairs is not None:
        write_csv(pairs, folder / PAIRS)
    if media is not None:
        _copy_clips(clips, media, folder / FILES)
    for path in outdated:
        path.unlink()
    included = sorted((folder / FILES).glob("*.mp4"))
    card = data_card(votes, definition, with_clips=bool(included))
    (folder / CARD).write_text(card, encoding="utf-8")
    written = [folder / name for name in sorted(_names() - {SUMS}) if (folder / name).is_file()]
    lines = [sum_line(path) for path in written]
    lines += [sum_line(path, f"{FILES}/{path.name}") for path in included]
    (folder / SUMS).write_text("\n".join(lines) + "\n")
    return [*written, folder / SUMS]


def _check_files(clips: Sequence[Clip], media: Path) -> None:
    missing = [clip for clip in clips if not (media / clip.stored_name).is_file()]
    if missing:
        raise StudyError(
            f"{len(missing)} clips have no file in {media}. `status` lists them; run `ingest` with "
            "the original clips."
        )


def _copy_clips(clips: Sequence[Clip], media: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for clip in clips:
        shutil.copyfile(media / clip.stored_name, target / clip.stored_name)


def _find_outdated(folder: Path, names: set[str]) -> list[Path]:
    """Return the clips in `folder` that a former export wrote and that are not among `names`.

    A link may lead to a study's clips, so nothing behind it is returned.

    Raises:
        StudyError: a clip is of neither export.
    """
    target, table = folder / FILES, folder / CLIPS
    if target.is_symlink():
        return []
    former = set(pd.read_csv(table, dtype=str)["stored_name"]) if table.exists() else set()
    others = [path for path in sorted(target.glob("*.mp4")) if path.name not in names]
    for path in others:
        if path.name not in former:
            raise StudyError(f"{path} is not a clip of an export. Name another folder.")
    return others


def _names() -> set[str]:
    tables = {f"{VOTES}.{kind}" for kind in ("csv", "parquet", "jsonl")}
    return tables | {DEFINITION, EARLIER, CLIPS, PAIRS, VIDEO_ALIGN, DPO, CARD, SUMS}


def read_export(folder: Path) -> tuple[pd.DataFrame, StudyDefinition]:
    """Read the votes and the definition of an export.

    Raises:
        StudyError: the export is unfinished, or a file is missing, is damaged, or does not have
            the hash of SHA256SUMS.
    """
    try:
        text = (folder / DEFINITION).read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(
            f"{folder} is not an export: {DEFINITION} cannot be read ({error}). Make one with "
            "`python -m human_eval export`."
        ) from error
    kinds = [kind for kind in ("parquet", "csv", "jsonl") if (folder / f"{VOTES}.{kind}").exists()]
    if not kinds:
        raise StudyError(f"{folder} contains no table of votes. Export the study again.")
    table = f"{VOTES}.{kinds[0]}"
    check_sums(folder, DEFINITION, table)
    votes = read_votes(folder / table)
    definition = parse_definition(text, origin=str(folder / DEFINITION))
    definition = replace(definition, earlier=_read_earlier(folder))
    foreign = set(votes["definition_hash"]) - {entry.hash for entry in definition.versions}
    if foreign:
        raise StudyError(
            f"Some votes were given under another definition ({sorted(foreign)[0][:16]}) than the "
            f"one in {DEFINITION} ({definition.hash[:16]}). Restore the study's own {DEFINITION}."
        )
    return votes, definition


def read_exported_pairs(folder: Path) -> pd.DataFrame | None:
    """Read the planned pairs of an export: comparison, prompt_index, raters; None if unknown.

    Raises:
        StudyError: the table does not have the hash of SHA256SUMS.
    """
    path = folder / PAIRS
    if not path.is_file():  # an export of a former version of this program
        return None
    check_sums(folder, PAIRS)
    return pd.read_csv(path)


def _read_earlier(folder: Path) -> tuple[StudyDefinition, ...]:
    path = folder / EARLIER
    if not path.is_file():  # an export of a former version of this program
        return ()
    check_sums(folder, EARLIER)
    lines = path.read_text(encoding="utf-8").splitlines()
    sources = [json.loads(line)["definition"] for line in lines if line]
    return tuple(parse_definition(source, origin=str(path)) for source in sources)


def check_sums(folder: Path, *names: str) -> None:
    """Refuse an export that is unfinished, or in which one of these files was changed.

    Raises:
        StudyError: SHA256SUMS is missing, or does not have the hash of a file.
    """
    sums = folder / SUMS
    if not sums.is_file():
        raise StudyError(
            f"{folder} has no {SUMS}, which is written last: the export was interrupted, or was "
            "not copied as a whole. Export the study again."
        )
    lines = sums.read_text(encoding="utf-8", errors="replace").splitlines()
    changed = [name for name in names if sum_line(folder / name) not in lines]
    if changed:
        raise StudyError(
            f"{changed[0]} in {folder} was changed since the export: its hash is not the one in "
            f"{SUMS}. Export again, or correct its line in {SUMS} if the change is yours."
        )


def sum_line(path: Path, name: str = "") -> str:
    """Return the line of SHA256SUMS for a file."""
    return f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name or path.name}"


def read_votes(path: Path) -> pd.DataFrame:
    """Read a table of votes from CSV, Parquet or JSONL.

    Raises:
        StudyError: the file is missing or damaged, or is not a table of votes.
    """
    texts = {name: "str" for name, kind in COLUMNS.items() if kind in {"text", "text?"}}
    try:
        if path.suffix == ".parquet":
            votes = pd.read_parquet(path)
        elif path.suffix == ".jsonl":
            votes = pd.read_json(path, lines=True, dtype=False, precise_float=True)
        else:
            votes = pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=EMPTY)
            for name in texts:
                if name in votes:
                    votes[name] = votes[name].str.replace(r"^'(?='*[=+\-@\t\r])", "", regex=True)
        if "strength" not in votes:  # exported before there were scales
            votes["strength"] = 0
        if len(votes) and "answered_at" in votes:
            votes["answered_at"] = pd.to_datetime(votes["answered_at"], utc=True, format="ISO8601")
    except (OSError, ValueError, TypeError) as error:
        raise StudyError(
            f"{path} cannot be read as a table of votes: {error}. Export it again."
        ) from error
    for name, kind in COLUMNS.items():
        if kind == "text?" and name in votes:
            votes[name] = (
                votes[name].astype(object).where(votes[name].notna(), None).replace("", None)
            )
    return check_votes(votes)


def write_csv(table: pd.DataFrame, target: Path | BytesIO, *, verbatim: bool = False) -> None:
    """Write a table as CSV in which no cell is a formula to a spreadsheet.

    Args:
        verbatim: leave such cells as they are, for a program that shows them to people.
    """
    safe = table.copy()
    quoting = csv.QUOTE_MINIMAL
    for name in safe.select_dtypes(["object", "string", "category"]):
        text = safe[name].astype(object)
        values = {value for value in text.dropna().unique() if isinstance(value, str)}
        changed = {value: "'" + value for value in values if RUNS_AS_FORMULA.match(value)}
        safe[name] = text.replace(changed) if changed and not verbatim else text
        if any("\r" in value for value in values):  # which Python before 3.13 does not quote
            quoting = csv.QUOTE_NONNUMERIC
    for name in safe.select_dtypes(["datetimetz"]):
        safe[name] = _iso(safe[name])
    safe.to_csv(target, index=False, lineterminator="\n", quoting=quoting)


def write_jsonl(table: pd.DataFrame, path: Path) -> None:
    """Write a table as one JSON object per line, with its text verbatim."""
    table = table.copy()
    for name in table.select_dtypes(["datetimetz"]):
        table[name] = _iso(table[name])
    table.to_json(path, orient="records", lines=True, force_ascii=False, double_precision=15)


def _iso(times: pd.Series) -> pd.Series:
    return times.dt.tz_convert("UTC").dt.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
