"""Votes that were collected elsewhere: rows of a table, read by a mapping in TOML."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from human_eval.errors import StudyError
from human_eval.statistics.votes import Choice
from turbo.text_files.decoding import FileRefused
from turbo.text_files.tables import read_table, require_columns

MAPPINGS = Path(__file__).parent / "mappings"
NEEDED = ("system_a", "system_b", "choice")
KNOWN = (*NEEDED, "prompt", "question", "rater", "time", "side_a")
MAX_BAD = 0.01  # share of rows that may be left out
MAX_LISTED = 20  # rows in a message


@dataclass(frozen=True, kw_only=True)
class VoteMapping:
    """Which column of a foreign table holds what."""

    columns: Mapping[str, str]  # name in the table by a name of KNOWN
    choices: Mapping[str, str]  # a Choice by the table's word, in lower case


@dataclass(frozen=True, kw_only=True)
class ForeignVotes:
    """The votes of a table."""

    rows: dict[int, dict[str, str]]  # by line; cells by a name of KNOWN, "" if unknown
    bad: dict[int, str]  # reason by line of each row that was left out


def load_mapping(source: str) -> VoteMapping:
    """Read a mapping from a TOML file, or by the name of a file in human_eval/reporting/mappings.

    Raises:
        StudyError: there is none, or it is not a mapping.
    """
    ready = MAPPINGS / f"{source}.toml"
    path = ready if ready.is_file() else Path(source)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        known = ", ".join(sorted(file.stem for file in MAPPINGS.glob("*.toml")))
        raise StudyError(
            f"The mapping {source!r} cannot be read ({error}). Give a TOML file, or one of: "
            f"{known}."
        ) from error
    unknown = sorted(set(values) - {"columns", "choices"})
    columns, choices = values.get("columns", {}), values.get("choices", {})
    unknown += sorted(set(columns) - set(KNOWN))
    if unknown:
        raise StudyError(f"The mapping {source!r} has the unknown key {unknown[0]!r}. Remove it.")
    missing = [name for name in NEEDED if name not in columns]
    if missing:
        raise StudyError(f"The mapping {source!r} has no column for {missing[0]}. Add it.")
    wrong = sorted({str(word) for word in choices.values()} - set(get_args(Choice)))
    if wrong or not choices:
        raise StudyError(
            f"[choices] of the mapping {source!r} must name words for "
            f"{', '.join(get_args(Choice))}, not {wrong}. Correct it."
        )
    return VoteMapping(
        columns=columns, choices={word.strip().lower(): kind for word, kind in choices.items()}
    )


def read_foreign_votes(path: Path, mapping: VoteMapping, max_bad: float = MAX_BAD) -> ForeignVotes:
    """Read the votes of a table.

    Raises:
        StudyError: the table cannot be read, lacks a column, or more than `max_bad` of its rows
            are not votes; the message lists the first of them.
    """
    try:
        table = read_table(path)
        require_columns(table, path, {name: [name] for name in mapping.columns.values()})
    except FileRefused as error:
        raise StudyError(str(error)) from error
    rows, bad = {}, {}
    for line, cells in table.rows.items():
        row = {name: cells[mapping.columns[name]].strip() if name in mapping.columns else ""
               for name in KNOWN}  # fmt: skip
        reason = _find_fault(row, mapping)
        if reason:
            bad[line] = reason
        else:
            rows[line] = row | {"choice": mapping.choices[row["choice"].lower()]}
    if not rows or len(bad) > max_bad * len(table.rows):
        listed = "".join(f"\n  line {n}: {bad[n]}" for n in list(bad)[:MAX_LISTED])
        raise StudyError(
            f"{len(bad):,} of the {len(table.rows):,} rows of {path} are not votes; at most "
            f"{100 * max_bad:g} % may be left out.{listed}\nNothing was imported. Correct the "
            "table or the mapping."
        )
    return ForeignVotes(rows=rows, bad=bad)


def _find_fault(row: Mapping[str, str], mapping: VoteMapping) -> str:
    empty = [name for name in mapping.columns if name in NEEDED and not row[name]]
    if empty:
        return f"no {empty[0]}"
    if row["system_a"] == row["system_b"]:
        return f"{row['system_a']!r} against itself"
    if row["choice"].lower() not in mapping.choices:
        return f"the choice {row['choice']!r} is not in the mapping"
    return ""
