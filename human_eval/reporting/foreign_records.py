"""Records of foreign files: rows of a table, objects of JSON or JSON lines, and values in them."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from human_eval.errors import StudyError
from turbo.text_files.decoding import FileRefused, read_text
from turbo.text_files.tables import read_table

# Zones of crowd platforms' times, in hours; the names are those of North America.
ZONES = {
    **{"UTC": 0, "GMT": 0, "EST": -5, "EDT": -4, "CST": -6, "CDT": -5},
    **{"MST": -7, "MDT": -6, "PST": -8, "PDT": -7},
}

Record = Mapping[str, Any]


def read_records(path: Path, each: Sequence[str], bad: dict[int, str]) -> dict[int, Record]:
    """Read the records of a file.

    Args:
        each: of JSON: keys of lists, from the outside inwards, such as task and annotation. Each
            entry of the innermost list is a record. It also has the fields of those around it,
            unless it has a field of the same name.
        bad: rows that are not records are put here: the reason by line.

    Returns:
        By line of a table or of JSON lines, from 1; else by the record's number, from 1.

    Raises:
        StudyError: the file cannot be read, or has no such lists.
    """
    try:
        if path.suffix.lower() not in (".json", ".jsonl", ".ndjson"):
            return {**read_table(path, incomplete=bad).rows}
        text = read_text(path)
    except FileRefused as error:
        raise StudyError(str(error)) from error
    records: dict[int, Record]
    records = _read_lines(text, bad) if path.suffix.lower() != ".json" else _read_json(text, path)
    for key in each:
        records = dict(enumerate(_open(records.values(), key, path), start=1))
    return records


def find_value(record: Record, path: str) -> Any:
    """Return the value at a path, None if there is none.

    A path is the name of a field or column, or such names and positions joined by dots:
    `data.prompt`, `choices.0`; `#1` is the second key of an object. A cell may hold JSON. Columns
    that begin with the path and a dot are an object: radio buttons are stored as
    `Answer.Q1.left` and `Answer.Q1.right`, one of which is true.
    """
    if path in record:
        return record[path]
    steps = path.split(".")
    for length in range(len(steps) - 1, 0, -1):
        name = ".".join(steps[:length])
        if name in record:
            return _walk(record[name], steps[length:])
    parts = {name[len(path) + 1 :]: record[name] for name in record if name.startswith(f"{path}.")}
    return parts or None


def show_value(value: Any) -> str:
    """Return a value as the text of a cell. Flags become the name of the only true one.

    A value that says nothing is "".
    """
    if isinstance(value, Mapping):
        chosen = [name for name, flag in value.items() if str(flag).strip().lower() == "true"]
        return chosen[0] if len(chosen) == 1 else ""
    if isinstance(value, list):
        return show_value(value[0]) if len(value) == 1 else ""
    return "" if value is None else str(value).strip()


def read_crowd_time(text: str) -> datetime | None:
    """Read a time such as "Tue Mar 05 10:33:21 PST 2019"; None if the text is not one.

    Raises:
        ValueError: its zone is not known.
    """
    match = re.fullmatch(r"(\w{3} \w{3} \d{1,2} [\d:]{8}) (\w{3,4}) (\d{4})", text.strip())
    if match is None:
        return None
    moment, zone, year = match.groups()
    if zone not in ZONES:
        raise ValueError(f"{text!r} is in a zone other than {', '.join(ZONES)}")
    local = datetime.strptime(f"{moment} {year}", "%a %b %d %H:%M:%S %Y")
    return local.replace(tzinfo=timezone(timedelta(hours=ZONES[zone]))).astimezone(UTC)


def _read_lines(text: str, bad: dict[int, str]) -> dict[int, Record]:
    records: dict[int, Record] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            bad[number] = f"no JSON: {error}"
            continue
        if isinstance(value, dict):
            records[number] = value
        else:
            bad[number] = "no object of JSON"
    return records


def _read_json(text: str, path: Path) -> dict[int, Record]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise StudyError(f"{path} is not JSON ({error}). Export it again.") from error
    values = values if isinstance(values, list) else [values]
    if not all(isinstance(value, dict) for value in values):
        raise StudyError(f"{path} must be a list of objects of JSON. Export it again.")
    return dict(enumerate(values, start=1))


def _open(records: Iterable[Record], key: str, path: Path) -> list[Record]:
    found: list[Record] = []
    for number, record in enumerate(records, start=1):
        inner = find_value(record, key)
        if not isinstance(inner, list) or not all(isinstance(entry, dict) for entry in inner):
            raise StudyError(
                f"The object {number} of {path} has no list of objects named {key!r}. Correct "
                "`each` in the mapping."
            )
        found += [{**record, **entry} for entry in inner]
    return found


def _walk(value: Any, steps: Sequence[str]) -> Any:
    for step in steps:
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                return None
        if isinstance(value, Mapping):
            place = step[1:] if step.startswith("#") else ""
            if place.isdecimal():
                value = list(value)[int(place)] if int(place) < len(value) else None
            else:
                value = value.get(step)
        elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value
