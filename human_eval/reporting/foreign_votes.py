"""Votes that were collected elsewhere: records of a file, read by a mapping in TOML."""

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from human_eval.errors import StudyError, list_names
from human_eval.reporting.foreign_records import (
    Record,
    find_value,
    read_crowd_time,
    read_records,
    show_value,
)
from human_eval.statistics.votes import Choice, Side

MAPPINGS = Path(__file__).parent / "mappings"
NEEDED = ("system_a", "system_b", "choice")
KNOWN = (*NEEDED, "prompt", "question", "rater", "time", "side_a")
SECTIONS = (
    *("columns", "optional", "questions", "choices", "sides", "patterns", "constants"),
    "only",
)
MAX_BAD = 0.01  # share of rows that may be left out


@dataclass(frozen=True, kw_only=True)
class VoteMapping:
    """Which fields of a foreign file fill which columns of votes; see `find_value` for paths.

    A record is one vote, or answers several questions: then `questions` has the path of the choice
    by question, and `columns` has no choice.
    """

    columns: Mapping[str, str]  # path by a name of KNOWN
    choices: Mapping[str, str]  # a Choice by the file's word, in lower case
    optional: Mapping[str, str] = field(default_factory=dict)  # paths that a file may lack
    questions: Mapping[str, str] = field(default_factory=dict)
    sides: Mapping[str, str] = field(  # a Side by the file's word, in lower case
        default_factory=lambda: {side: side for side in get_args(Side)}
    )
    patterns: Mapping[str, str] = field(default_factory=dict)  # group 1 is the value, by name
    constants: Mapping[str, str] = field(default_factory=dict)  # equal in all votes, by name
    only: Mapping[str, str] = field(default_factory=dict)  # other records are no votes
    each: tuple[str, ...] = ()  # see `read_records`


@dataclass(frozen=True, kw_only=True)
class ForeignVotes:
    """The votes of a table."""

    # By line, or numbered where a record answers several questions; "" if unknown.
    rows: dict[int, dict[str, str]]
    bad: dict[int, str]  # reason by line of each record that was left out
    others: int = 0  # records that are no votes by [only] of the mapping


def load_mapping(source: str) -> VoteMapping:
    """Read a mapping from a TOML file, or by the name of a file in human_eval/reporting/mappings.

    Raises:
        StudyError: there is none, or it is not a mapping.
    """
    ready = MAPPINGS / f"{source}.toml"
    path = ready if ready.is_file() else Path(source)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        known = ", ".join(sorted(file.stem for file in MAPPINGS.glob("*.toml")))
        raise StudyError(
            f"The mapping {source!r} cannot be read ({error}). Give a TOML file, or one of: "
            f"{known}."
        ) from error
    tables = {name: _read_section(values.get(name, {}), name, source) for name in SECTIONS}
    columns, each = tables["columns"], values.get("each", [])
    unknown = sorted(set(values) - {*SECTIONS, "each"})
    for name in ("columns", "optional", "patterns", "constants"):
        unknown += sorted(set(tables[name]) - set(KNOWN))
    if unknown:
        raise StudyError(f"The mapping {source!r} has the unknown key {unknown[0]!r}. Remove it.")
    if not isinstance(each, list) or not all(isinstance(key, str) for key in each):
        raise StudyError(f"`each` of the mapping {source!r} must be a list of names. Correct it.")
    given = {*columns, *tables["constants"]} | ({"choice"} if tables["questions"] else set())
    missing = [name for name in NEEDED if name not in given]
    if missing:
        raise StudyError(f"The mapping {source!r} has no column for {missing[0]}. Add it.")
    for name, pattern in tables["patterns"].items():
        try:
            groups = re.compile(pattern).groups
        except re.error:
            groups = 0
        if groups != 1:
            raise StudyError(
                f"The pattern of {name} in the mapping {source!r} must be a regular expression "
                f"with one group, not {pattern!r}. Correct it."
            )
    for name, words in (("choices", get_args(Choice)), ("sides", get_args(Side))):
        wrong = sorted(set(tables[name].values()) - set(words))
        if wrong:
            raise StudyError(
                f"[{name}] of the mapping {source!r} must name words for {', '.join(words)}, not "
                f"{', '.join(wrong)}. Correct it."
            )
        tables[name] = {word.strip().lower(): kind for word, kind in tables[name].items()}
    if not tables["sides"]:
        del tables["sides"]  # the usual words
    return VoteMapping(**tables, each=tuple(each))


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
    """Read the votes of a file.

    A column that is empty in all records is unknown. An empty cell in one that other records fill
    is a fault of its record. A choice may also be the name of the winner. It is a fault if that is
    an option too, with another meaning.

    Args:
        max_bad: share of records that may be left out.

    Raises:
        StudyError: the file cannot be read, lacks a column, or more than `max_bad` of its records
            are not votes; the message lists the first of them.
    """
    bad: dict[int, str] = {}
    everything = read_records(path, mapping.each, bad)
    records = {
        line: record
        for line, record in everything.items()
        if all(show_value(find_value(record, key)) == value for key, value in mapping.only.items())
    }
    number = len(records) + len(bad)
    if not number:
        reason = (
            f"None of the {len(everything):,} records of {path} is a vote by [only] of the mapping"
            if everything
            else f"{path} has no votes"
        )
        raise StudyError(f"{reason}. Choose another file or another mapping.")
    columns = _find_columns(records, mapping, path) if records else {}
    asked = mapping.questions or {"": columns.get("choice", "")}
    rows: dict[int, dict[str, str]] = {}
    for line, record in records.items():
        votes = []
        for question, choice in asked.items():
            found = {**columns, "choice": choice} if choice else columns
            row, reason = _read_vote(record, found, mapping)
            if reason:
                bad[line] = f"{question}: {reason}" if question else reason
                break
            votes.append({**row, "question": question or row["question"]})
        else:
            for vote in votes:
                rows[len(rows) + 1 if mapping.questions else line] = vote
    if not rows or len(bad) > max_bad * number:
        listed = list_names([f"line {n}: {bad[n]}" for n in sorted(bad)], "\n  ")
        raise StudyError(
            f"{len(bad):,} of the {number:,} rows of {path} are not votes; at most "
            f"{100 * max_bad:g} % may be left out:\n  {listed}\nNothing was imported. Correct the "
            "table or the mapping."
        )
    others = len(everything) - len(records)
    return ForeignVotes(rows=rows, bad=dict(sorted(bad.items())), others=others)


def _find_columns(
    records: Mapping[int, Record], mapping: VoteMapping, path: Path
) -> dict[str, str]:
    """Return the paths that the records have, by their name in KNOWN, without empty ones."""
    columns = {}
    needed = {**mapping.columns, **{f"question {key}": at for key, at in mapping.questions.items()}}
    for name, place in {**mapping.optional, **needed}.items():
        found = [find_value(record, place) for record in records.values()]
        if all(value is None for value in found):
            if name in needed:
                known = ", ".join(next(iter(records.values())))
                raise StudyError(
                    f"{path} has no {place!r}, which the mapping names as the {name}. It has: "
                    f"{known or 'nothing'}. Correct the mapping."
                )
        elif name in NEEDED or (name in KNOWN and any(show_value(value) for value in found)):
            columns[name] = place
    return columns


def _read_vote(
    record: Record, columns: Mapping[str, str], mapping: VoteMapping
) -> tuple[dict[str, str], str]:
    """Return a vote by the names of KNOWN, and why the row is not a vote, or ""."""
    row = {**dict.fromkeys(KNOWN, ""), **mapping.constants}
    cells: dict[str, str] = {}
    for name, place in columns.items():
        row[name] = cells[name] = cell = show_value(find_value(record, place))
        if not cell:
            return row, f"no {name}"
        if name in mapping.patterns:
            match = re.search(mapping.patterns[name], cell)
            if match is None:
                return row, f"no {name} in {cell!r}"
            row[name] = match[1]
    if row["system_a"] == row["system_b"]:
        return row, f"{row['system_a']!r} against itself"
    winners = {cells.get("system_a"): "a", cells.get("system_b"): "b"}
    option, winner = mapping.choices.get(row["choice"].lower()), winners.get(row["choice"])
    if option and winner and option != winner:
        return row, (
            f"the choice {row['choice']!r} is both an option and a system; rename the systems, or "
            "take the option out of the mapping"
        )
    choice = option or winner
    if choice is None:
        return row, f"the choice {row['choice']!r} is not in the mapping"
    side = mapping.sides.get(row["side_a"].lower(), "")
    if row["side_a"] and not side:
        return row, f"the side {row['side_a']!r} is not in the mapping"
    if row["time"] and parse_time(row["time"]) is None:
        return row, f"the time {row['time']!r} is neither ISO 8601 nor seconds since 1970"
    return {**row, "choice": choice, "side_a": side}, ""


def parse_time(text: str) -> datetime | None:
    """Read a time in ISO 8601 (UTC where it names no zone), in seconds since 1970, or as crowd
    platforms write it; else None.
    """
    try:
        seconds = float(text)
    except ValueError:
        pass
    else:
        in_range = math.isfinite(seconds) and 0 <= seconds < 2**33
        return datetime.fromtimestamp(seconds, UTC) if in_range else None
    try:
        moment = read_crowd_time(text) or datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
