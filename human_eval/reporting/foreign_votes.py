"""Votes that were collected elsewhere: rows of a table, read by a mapping in TOML."""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from human_eval.errors import StudyError
from human_eval.statistics.votes import Choice, Side
from turbo.text_files.decoding import FileRefused
from turbo.text_files.tables import Table, read_table, require_columns

MAPPINGS = Path(__file__).parent / "mappings"
NEEDED = ("system_a", "system_b", "choice")
KNOWN = (*NEEDED, "prompt", "question", "rater", "time", "side_a")
SECTIONS = ("columns", "optional", "choices", "sides")
MAX_BAD = 0.01  # share of rows that may be left out
MAX_LISTED = 20  # rows in a message


@dataclass(frozen=True, kw_only=True)
class VoteMapping:
    """Which column of a foreign table holds what."""

    columns: Mapping[str, str]  # name in the table by a name of KNOWN
    choices: Mapping[str, str]  # a Choice by the table's word, in lower case
    optional: Mapping[str, str] = field(default_factory=dict)  # columns that a table may lack
    sides: Mapping[str, str] = field(  # a Side by the table's word, in lower case
        default_factory=lambda: {side: side for side in get_args(Side)}
    )


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
    tables = {name: _read_section(values.get(name, {}), name, source) for name in SECTIONS}
    columns, optional = tables["columns"], tables["optional"]
    unknown = sorted(set(values) - set(SECTIONS))
    unknown += sorted((set(columns) | set(optional)) - set(KNOWN))
    if unknown:
        raise StudyError(f"The mapping {source!r} has the unknown key {unknown[0]!r}. Remove it.")
    missing = [name for name in NEEDED if name not in columns]
    if missing:
        raise StudyError(f"The mapping {source!r} has no column for {missing[0]}. Add it.")
    for name, words in (("choices", get_args(Choice)), ("sides", get_args(Side))):
        wrong = sorted(set(tables[name].values()) - set(words))
        if wrong or (name == "choices" and not tables[name]):
            raise StudyError(
                f"[{name}] of the mapping {source!r} must name words for {', '.join(words)}, not "
                f"{', '.join(wrong) or 'nothing'}. Correct it."
            )
        tables[name] = {word.strip().lower(): kind for word, kind in tables[name].items()}
    sides = {"sides": tables["sides"]} if tables["sides"] else {}
    return VoteMapping(columns=columns, optional=optional, choices=tables["choices"], **sides)


def _read_section(values: Any, name: str, source: str) -> dict[str, str]:
    if not isinstance(values, dict):
        raise StudyError(f"{name} of the mapping {source!r} must be a table. Write [{name}].")
    for key, value in values.items():
        if not isinstance(value, str):
            raise StudyError(
                f"{key!r} in [{name}] of the mapping {source!r} must be text, not {value!r}. Write "
                "it in quotes."
            )
    return values


def read_foreign_votes(path: Path, mapping: VoteMapping, max_bad: float = MAX_BAD) -> ForeignVotes:
    """Read the votes of a table.

    A column that is empty in all rows is unknown. An empty cell in one that other rows fill is a
    fault of its row.

    Args:
        max_bad: share of rows that may be left out.

    Raises:
        StudyError: the table cannot be read, lacks a column, or more than `max_bad` of its rows
            are not votes; the message lists the first of them.
    """
    bad: dict[int, str] = {}
    try:
        table = read_table(path, incomplete=bad)
        require_columns(table, path, {name: [name] for name in mapping.columns.values()})
    except FileRefused as error:
        raise StudyError(str(error)) from error
    number = len(table.rows) + len(bad)
    columns = _find_columns(table, mapping)
    rows = {}
    for line, cells in table.rows.items():
        row = {name: cells[columns[name]].strip() if name in columns else "" for name in KNOWN}
        reason = _find_fault(row, columns, mapping)
        if reason:
            bad[line] = reason
        else:
            side = mapping.sides.get(row["side_a"].lower(), "")
            choice = mapping.choices[row["choice"].lower()]
            rows[line] = {**row, "choice": choice, "side_a": side}
    if not rows or len(bad) > max_bad * number:
        listed = "".join(f"\n  line {n}: {bad[n]}" for n in sorted(bad)[:MAX_LISTED])
        raise StudyError(
            f"{len(bad):,} of the {number:,} rows of {path} are not votes; at most "
            f"{100 * max_bad:g} % may be left out.{listed}\nNothing was imported. Correct the "
            "table or the mapping."
        )
    return ForeignVotes(rows=rows, bad=dict(sorted(bad.items())))


def _find_columns(table: Table, mapping: VoteMapping) -> dict[str, str]:
    """Return the columns that the table has, by their name in KNOWN, without empty ones."""
    columns = {
        name: column
        for name, column in {**mapping.optional, **mapping.columns}.items()
        if column in table.names
    }
    filled = {column: any(row[column].strip() for row in table.rows.values())
              for column in columns.values()}  # fmt: skip
    return {name: column for name, column in columns.items() if filled[column] or name in NEEDED}


def _find_fault(row: Mapping[str, str], columns: Mapping[str, str], mapping: VoteMapping) -> str:
    empty = [name for name in columns if not row[name]]
    if empty:
        return f"no {empty[0]}"
    if row["system_a"] == row["system_b"]:
        return f"{row['system_a']!r} against itself"
    if row["choice"].lower() not in mapping.choices:
        return f"the choice {row['choice']!r} is not in the mapping"
    if row["side_a"] and row["side_a"].lower() not in mapping.sides:
        return f"the side {row['side_a']!r} is not in the mapping"
    if row["time"] and parse_time(row["time"]) is None:
        return f"the time {row['time']!r} is neither ISO 8601 nor seconds since 1970"
    return ""


def parse_time(text: str) -> datetime | None:
    """Read a time in ISO 8601, UTC where it names no zone, or in seconds since 1970; else None."""
    try:
        seconds = float(text)
    except ValueError:
        pass
    else:
        in_range = math.isfinite(seconds) and 0 <= seconds < 2**33
        return datetime.fromtimestamp(seconds, UTC) if in_range else None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
