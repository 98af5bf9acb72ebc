"""Batches in the format of Amazon Mechanical Turk, as the paper's study used it. Legacy.

The service is reported closed since September 2026. Its file formats are still in use: a batch CSV
has one row per pair for any platform that fills a template, and old results can be imported.
"""

import random
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import pandas as pd

from human_eval.definition.definition import StudyDefinition
from human_eval.definition.prompts import Prompt
from human_eval.errors import StudyError, list_names
from human_eval.mturk.votes_in import ImportedSubmission
from human_eval.reporting.export import write_csv
from human_eval.reporting.foreign_records import read_crowd_time
from human_eval.statistics.votes import MTURK
from human_eval.storage.keys import Keys
from human_eval.study.queries import read_pairs
from human_eval.study.store import StudyStore
from turbo.text_files.decoding import FileRefused
from turbo.text_files.tables import read_table

NEEDED = ["AssignmentId", "WorkerId", "AssignmentStatus", "SubmitTime", "WorkTimeInSeconds"]
HIT = "pair"  # the variable that identifies a pair and its sides, by a pseudonym
WORDS = {"left", "right", "tie", "both_bad"}


def write_batches(store: StudyStore, url: str, path: Path) -> list[tuple[Path, int]]:
    """Write one row for each pair of the study that still lacks raters.

    A batch is published as a whole, for one number of workers. So pairs that lack one rater, two
    raters and so on are written to separate files, named after `path` and that number. More workers
    would be paid for answers that the study does not take.

    Columns: `pair`, `prompt`, `video_left`, `video_right`, to be used as ${pair} and so on in a
    template, whose answers are to be named after the questions' keys, with the values left, right,
    tie or both_bad. Sides are even within each comparison. A spreadsheet may run a prompt that
    begins like a formula: upload the files as they are.

    Args:
        url: where the media folder of the study is served, over https.

    Returns:
        Each file, and for how many workers its rows are to be published.

    Raises:
        StudyError: the address is invalid, or there are no pairs to publish.
    """
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.netloc:
        raise StudyError(
            f"{url!r} is not an https address. Give the address of the media folder: the platform "
            "shows videos from https addresses only."
        )
    scales = [question.key for question in store.definition.questions if question.kind == "scale"]
    if scales:
        raise StudyError(
            f"{scales[0]} has a scale, which the files of Mechanical Turk cannot hold. Ask these "
            "raters through the raters' page."
        )
    pairs = read_pairs(store)
    pairs = pairs[(pairs["kind"] == "real") & (pairs["taken"] < pairs["target"])]
    if pairs.empty:
        raise StudyError("No pair needs more raters. Ingest clips, or see `status`.")
    rng = random.Random(0)
    batches: dict[int, list[list[str]]] = {}
    for _, cell in pairs.groupby("comparison"):
        sides = (["left", "right"] * len(cell))[: len(cell)]
        rng.shuffle(sides)
        for side, pair in zip(sides, cell.itertuples(), strict=True):
            clips = [f"{url.rstrip('/')}/{name}" for name in (pair.clip_a, pair.clip_b)]
            left, right = clips if side == "left" else reversed(clips)
            name = _name_pair(store.keys, pair.comparison, pair.prompt_index, side)
            row = [name, Prompt(pair.prompt_index, pair.prompt).display, left, right]
            batches.setdefault(int(pair.target - pair.taken), []).append(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for workers, rows in sorted(batches.items()):
        rng.shuffle(rows)
        batch = path.with_stem(f"{path.stem}-{workers}")
        table = pd.DataFrame(rows, columns=[HIT, "prompt", "video_left", "video_right"])
        write_csv(table, batch, verbatim=True)  # workers read the prompt
        written.append((batch, workers))
    return written


def _name_pair(keys: Keys, comparison: str, prompt_index: int, side: str) -> str:
    """Return a name that only the study can trace back to its pair and sides."""
    return keys.pseudonym("mturk pair", f"{comparison}\0{prompt_index}\0{side}")


def read_results(
    path: Path, store: StudyStore, *, columns: Mapping[str, str] | None = None
) -> list[ImportedSubmission]:
    """Read the results of a batch that `write_batches` wrote.

    Assignments that were rejected are left out.

    Args:
        columns: by question, the column with its answer, where it is not `Answer.<question>` or
            `Answer.<question>.label`.

    Raises:
        StudyError: the file is no results CSV of this study; the message lists what is wrong,
            with line numbers, and nothing is read.
    """
    for key in columns or {}:
        store.definition.question(key)  # refuses one that is not asked
    rows = _read_rows(path)
    named = _find_columns(list(rows[0][1]), store.definition, columns or {}, path)
    pairs = read_pairs(store)
    real = pairs[pairs["kind"] == "real"]
    known = {
        _name_pair(store.keys, comparison, index, side): (comparison, int(index), side)
        for comparison, index in zip(real["comparison"], real["prompt_index"], strict=True)
        for side in ("left", "right")
    }
    submissions, problems = [], []
    for line, row in rows:
        if row["AssignmentStatus"] == "Rejected":
            continue
        try:
            submissions.append(_read_submission(row, f"{path.name}, line {line}", named, known))
        except ValueError as problem:
            problems.append(f"line {line}: {problem}")
    if problems:
        raise StudyError(
            f"{len(problems):,} of {len(rows):,} rows in {path} do not belong to this study: "
            f"{list_names(problems, '; ')}. Nothing was imported. Correct the file."
        )
    return submissions


def _read_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    try:
        table = read_table(path)
    except FileRefused as refusal:
        raise StudyError(f"{refusal} If it was damaged, download it again.") from refusal
    missing = [name for name in [*NEEDED, f"Input.{HIT}"] if name not in table.names]
    if missing:
        raise StudyError(
            f"{path} lacks the columns {', '.join(missing)}. Download the results of a batch made "
            "by `export --mturk`."
        )
    if not table.rows:
        raise StudyError(f"{path} has no rows. Download the file again.")
    return list(table.rows.items())


def _find_columns(
    names: list[str], definition: StudyDefinition, columns: Mapping[str, str], path: Path
) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return, by question, the column of its answers and the answers it takes."""
    found = {}
    for question in definition.questions:
        usual = [f"Answer.{question.key}", f"Answer.{question.key}.label"]
        wanted = [columns[question.key]] if question.key in columns else usual
        present = [name for name in wanted if name in names]
        if not present:
            raise StudyError(
                f"{path} has no column {wanted[0]} with the answers to {question.key}. Name one "
                "of: "
                f"{', '.join(name for name in names if name.startswith('Answer.'))}."
            )
        found[question.key] = (present[0], question.choices)
    return found


def _read_submission(
    row: Mapping[str, str],
    source: str,
    named: Mapping[str, tuple[str, tuple[str, ...]]],
    known: Mapping[str, tuple[str, int, str]],
) -> ImportedSubmission:
    name = row[f"Input.{HIT}"]
    if name not in known:
        raise ValueError(f"unknown pair {name!r}")
    comparison, index, side = known[name]
    answers = {}
    for question, (column, choices) in named.items():
        word = row[column].strip().lower()
        if word not in WORDS:
            raise ValueError(f"{column} is {row[column]!r}, not left, right, tie or both_bad")
        choice = word if word not in ("left", "right") else "a" if word == side else "b"
        if choice not in choices:
            raise ValueError(f"{column} is {word!r}, which {question} does not allow")
        answers[question] = choice
    if not row["WorkerId"].strip():
        raise ValueError("no WorkerId")
    return ImportedSubmission(
        provider=MTURK,
        rater=row["WorkerId"].strip(),
        comparison=comparison,
        prompt_index=index,
        side_a=side,
        answers=answers,
        answered_at=read_time(row["SubmitTime"]),
        seconds=_read_seconds(row["WorkTimeInSeconds"]),
        source=source,
    )


def _read_seconds(text: str) -> float | None:
    if not text.strip():
        return None
    if not re.fullmatch(r"\d{1,9}(\.\d+)?", text.strip(), re.ASCII):
        raise ValueError(f"WorkTimeInSeconds is {text!r}")
    return float(text)


def read_time(text: str) -> datetime:
    """Read "Tue Mar 05 10:33:21 PST 2019", or an ISO time with its zone.

    Raises:
        ValueError: it is neither, or its zone is not known.
    """
    if (moment := read_crowd_time(text)) is None:
        try:
            moment = datetime.fromisoformat(text.strip())
        except ValueError as error:
            raise ValueError(f"SubmitTime is {text!r}") from error
    if moment.tzinfo is None:
        raise ValueError(f"SubmitTime {text!r} has no time zone")
    return moment.astimezone(UTC)
