"""A study as files that other programs read, and that a report can be made from again."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path

import pandas as pd

from human_eval.clips.ingest import Clip
from human_eval.definition.definition import StudyDefinition, parse_definition
from human_eval.errors import StudyError
from human_eval.reporting.methods_text import data_card
from human_eval.reporting.preferences import (
    DIMENSIONS,
    direct_preferences,
    tabulate_preferences,
    video_align,
)
from human_eval.statistics.votes import COLUMNS, check_origin, check_votes

# A spreadsheet runs a cell that begins so; a quotation mark before it makes it text.
RUNS_AS_FORMULA = re.compile(r"^'*[=+\-@\t\r]")
DEFINITION, CLIPS, VOTES = "study.toml", "clips.csv", "votes"
VIDEO_ALIGN, DPO = "preferences.videoalign.csv", "preferences.dpo.jsonl"
CARD, SUMS = "README.md", "SHA256SUMS"


def write_export(
    votes: pd.DataFrame,
    definition: StudyDefinition,
    folder: Path,
    *,
    clips: Iterable[Clip] = (),
    dimensions: Mapping[str, str] = DIMENSIONS,
) -> list[Path]:
    """Write definition, votes, clips, preference data and a data card into a folder.

    The same votes give the same bytes. Votes of raters who are excluded are in the tables of votes,
    marked, and not in the preference data.

    Raises:
        StudyError: the folder holds something else, or the votes are not as they should be.
    """
    check_origin(check_votes(votes))
    folder.mkdir(parents=True, exist_ok=True)
    foreign = [path.name for path in folder.iterdir() if path.name not in _names()]
    if foreign:
        raise StudyError(
            f"Expected an empty folder, or one with an export, at {folder}, got {foreign[0]!r} in "
            "it. Name another folder."
        )
    votes = votes[list(COLUMNS)].sort_values("vote_id", ignore_index=True)
    shown = pd.DataFrame([asdict(clip) for clip in clips], columns=[f.name for f in fields(Clip)])
    pairs = tabulate_preferences(votes)
    (folder / DEFINITION).write_bytes(definition.source.encode())
    write_csv(votes, folder / f"{VOTES}.csv")
    votes.to_parquet(folder / f"{VOTES}.parquet", index=False)
    write_jsonl(votes, folder / f"{VOTES}.jsonl")
    # Names of files on the machine of the study stay there.
    write_csv(shown.drop(columns=["source_sha256", "reason"]), folder / CLIPS)
    write_csv(video_align(pairs, shown, dimensions), folder / VIDEO_ALIGN)
    write_jsonl(direct_preferences(pairs, shown), folder / DPO)
    (folder / CARD).write_text(data_card(votes, definition, dimensions), encoding="utf-8")
    written = [folder / name for name in sorted(_names() - {SUMS})]
    (folder / SUMS).write_text("\n".join(map(_sum_line, written)) + "\n")
    return [*written, folder / SUMS]


def _names() -> set[str]:
    tables = {f"{VOTES}.{kind}" for kind in ("csv", "parquet", "jsonl")}
    return tables | {DEFINITION, CLIPS, VIDEO_ALIGN, DPO, CARD, SUMS}


def read_export(folder: Path) -> tuple[pd.DataFrame, StudyDefinition]:
    """Read the votes and the definition back from an export.

    Raises:
        StudyError: a file is missing, or is not what was exported, by the sums beside it.
    """
    try:
        text = (folder / DEFINITION).read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(
            f"Expected an export with {DEFINITION} in {folder}, got: {error}. "
            "Make one with `python -m human_eval export`."
        ) from error
    kinds = [kind for kind in ("parquet", "csv", "jsonl") if (folder / f"{VOTES}.{kind}").exists()]
    if not kinds:
        raise StudyError(f"Expected a table of votes in {folder}, got none. Export again.")
    table = folder / f"{VOTES}.{kinds[0]}"
    _check_sums(folder / DEFINITION, table)
    votes = read_votes(table)
    definition = parse_definition(text, origin=str(folder / DEFINITION))
    foreign = set(votes["definition_hash"]) - {definition.hash}
    if foreign:
        raise StudyError(
            f"Expected votes under the definition {definition.hash[:16]} of {DEFINITION}, got "
            f"some under {sorted(foreign)[0][:16]}. Put the study's own {DEFINITION} back."
        )
    return votes, definition


def _check_sums(*paths: Path) -> None:
    """Refuse files that were changed since their export; without sums, anything passes."""
    sums = paths[0].parent / SUMS
    if not sums.exists():
        return
    lines = sums.read_text(encoding="utf-8", errors="replace").splitlines()
    changed = [path.name for path in paths if _sum_line(path) not in lines]
    if changed:
        raise StudyError(
            f"Expected {changed[0]} in {sums.parent} as it was exported, got one with another sum "
            f"than {SUMS} says. Export again, or remove {SUMS} if the change is yours."
        )


def _sum_line(path: Path) -> str:
    return f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}"


def read_votes(path: Path) -> pd.DataFrame:
    """Read a table of votes from CSV, Parquet or JSONL.

    Raises:
        StudyError: the file is missing, damaged, or not a table of votes.
    """
    texts = {name: "str" for name, kind in COLUMNS.items() if kind in {"text", "text?"}}
    try:
        if path.suffix == ".parquet":
            votes = pd.read_parquet(path)
        elif path.suffix == ".jsonl":
            votes = pd.read_json(path, lines=True, dtype=False, precise_float=True)
        else:
            votes = pd.read_csv(path, dtype=texts, keep_default_na=False, na_values={"seconds": ""})
            for name in texts:
                if name in votes:
                    votes[name] = votes[name].str.replace(r"^'(?='*[=+\-@\t\r])", "", regex=True)
        if len(votes) and "answered_at" in votes:
            votes["answered_at"] = pd.to_datetime(votes["answered_at"], utc=True, format="ISO8601")
    except (OSError, ValueError, TypeError) as error:
        raise StudyError(
            f"Expected a table of votes at {path}, got: {error}. Export it again."
        ) from error
    for name, kind in COLUMNS.items():
        if kind == "text?" and name in votes:
            votes[name] = (
                votes[name].astype(object).where(votes[name].notna(), None).replace("", None)
            )
    return check_votes(votes)


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table in which no cell of text can run as a formula in a spreadsheet."""
    safe = table.copy()
    for name in safe.select_dtypes(["object", "string", "category"]):
        text = safe[name].astype(object)
        values = {value for value in text.dropna().unique() if isinstance(value, str)}
        changed = {value: "'" + value for value in values if RUNS_AS_FORMULA.match(value)}
        safe[name] = text.replace(changed) if changed else text
    for name in safe.select_dtypes(["datetimetz"]):
        safe[name] = _iso(safe[name])
    safe.to_csv(path, index=False, lineterminator="\n")


def write_jsonl(table: pd.DataFrame, path: Path) -> None:
    """Write a table as one JSON object a line, its text verbatim."""
    table = table.copy()
    for name in table.select_dtypes(["datetimetz"]):
        table[name] = _iso(table[name])
    table.to_json(path, orient="records", lines=True, force_ascii=False, double_precision=15)


def _iso(times: pd.Series) -> pd.Series:
    return times.dt.tz_convert("UTC").dt.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
