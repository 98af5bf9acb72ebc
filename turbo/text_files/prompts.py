"""Files of prompts: text, CSV or TSV, JSON, JSON lines. The ending of the name decides."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turbo.text_files.decoding import FileRefused, read_text
from turbo.text_files.tables import PROMPT_NAMES, read_table, require_columns

TEXT, TABLES, JSON_LINES = {".txt", ""}, {".csv", ".tsv"}, {".jsonl", ".ndjson"}
ENDINGS = ".txt, .csv, .tsv, .json or .jsonl"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A prompt of a file, as it is written there."""

    place: str  # such as "line 7", for messages
    number: int  # from 0, by position in the file; blank lines of a text count
    text: str
    index: str = ""  # these three are optional in all but text files
    category: str = ""
    seed: str = ""  # as written


def read_prompt_file(path: Path, column: str | None = None) -> list[Entry]:
    """Read a file of prompts.

    Text has one prompt per line. A table has a column of prompts. JSON is a list, or an object
    whose "prompts" is one, of texts or of objects with a key for the prompt; JSON lines have one
    of these per line.

    Args:
        column: name of the column or key of the prompts; without it, one of `PROMPT_NAMES`.

    Raises:
        FileRefused: it cannot be read, has another ending, or something in it is no prompt.
    """
    ending = path.suffix.lower()
    if ending not in TEXT | TABLES | JSON_LINES | {".json"}:
        raise FileRefused(
            f"{path} ends in {path.suffix}. A file of prompts ends in {ENDINGS}. Save it as one "
            "of these."
        )
    usual = (column,) if column else PROMPT_NAMES
    if ending in TABLES:
        return _from_table(path, usual)
    text = read_text(path)
    if ending in TEXT:
        return _from_text(text, path)
    if ending in JSON_LINES:
        lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
        values = [(f"line {n}", _parse(line, path, f" in line {n}")) for n, line in lines]
    else:
        values = [(f"entry {n}", value) for n, value in enumerate(_list_of(text, path), 1)]
    return [_from_json(n, value, place, path, usual) for n, (place, value) in enumerate(values)]


def _from_text(text: str, path: Path) -> list[Entry]:
    lines = re.split(r"\r\n|\n|\r", text)
    while lines and not lines[-1].strip():
        lines.pop()
    first = next((line.strip() for line in lines if line.strip()), "")
    kind = _other_kind(first, text)
    if kind:
        raise FileRefused(
            f"{path} is named as text with one prompt per line, but contains {kind}. Give its name "
            "that ending."
        )
    return [Entry(place=f"line {n + 1}", number=n, text=line) for n, line in enumerate(lines)]


def _other_kind(first: str, text: str) -> str:
    """Return what a text is, if it is not lines of prompts."""
    for kind, content in [("JSON (.json)", text), ("JSON lines (.jsonl)", first)]:
        try:
            if content.lstrip()[:1] in ("{", "[") and isinstance(json.loads(content), dict | list):
                return kind
        except (ValueError, RecursionError):  # a prompt may begin with a bracket
            continue
    for kind, delimiter in [("CSV (.csv)", ","), ("CSV (.csv)", ";"), ("TSV (.tsv)", "\t")]:
        cells = [cell.strip(' "') for cell in first.split(delimiter)]
        if len(cells) > 1 and set(cells) & set(PROMPT_NAMES) and all(map(str.isidentifier, cells)):
            return kind
    return ""


def _from_table(path: Path, usual: tuple[str, ...]) -> list[Entry]:
    columns = {"prompt": usual} | {name: (name,) for name in ("index", "category", "seed")}
    table = read_table(path, columns)
    require_columns(table, path, {"prompt": usual})
    empty = next((line for line, row in table.rows.items() if not row["prompt"].strip()), None)
    if empty is not None:
        raise FileRefused(f"{path}, line {empty}: the prompt is empty. Fill it in or remove it.")
    return [
        Entry(
            place=f"line {line}",
            number=number,
            text=row["prompt"],
            index=row.get("index", ""),
            category=row.get("category", ""),
            seed=row.get("seed", "").strip(),
        )
        for number, (line, row) in enumerate(table.rows.items())
    ]


def _list_of(text: str, path: Path) -> list[Any]:
    value = _parse(text, path)
    if isinstance(value, dict) and isinstance(value.get("prompts"), list):
        value = value["prompts"]
    if not isinstance(value, list):
        raise FileRefused(
            f'{path} is not a list of prompts. Write ["a cat", "a dog"] or [{{"prompt": "a cat"}}].'
        )
    return value


def _parse(text: str, path: Path, where: str = "") -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileRefused(f"{path} is not valid JSON{where}: {error}. Correct it.") from error


def _from_json(number: int, value: Any, place: str, path: Path, usual: tuple[str, ...]) -> Entry:
    if isinstance(value, str) and value.strip():
        return Entry(place=place, number=number, text=value)
    fields = value if isinstance(value, dict) else {}
    key = next((name for name in usual if name in fields), None)
    if key is None or not isinstance(fields[key], str) or not fields[key].strip():
        raise FileRefused(
            f"{path}, {place}: there is no prompt. Write a text, or an object with the key "
            f"{' or '.join(map(repr, usual))} and a text."
        )
    category = fields.get("category") or ""
    joined = "|".join(map(str, category)) if isinstance(category, list) else str(category)
    index, seed = (
        str(fields[name]) if fields.get(name) is not None else "" for name in ("index", "seed")
    )
    return Entry(
        place=place, number=number, text=fields[key], index=index, category=joined, seed=seed
    )
