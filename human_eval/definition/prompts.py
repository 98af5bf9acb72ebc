"""The prompts of a study: the 700 of EvalCrafter, or those of any text or CSV file."""

import csv
import hashlib
import io
import json
import os
import unicodedata
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ftfy

from human_eval.errors import StudyError

EVALCRAFTER = "evalcrafter"
# The commit of the upstream repository with the 700 prompts and their attributes.
UPSTREAM = (
    "https://raw.githubusercontent.com/evalcrafter/EvalCrafter/"
    "1275bda05e74f295ad2585e3ebde8e95a81a15af/"
)
TEXTS, ATTRIBUTES = "prompt700.txt", "metadata.json"
SHA256 = {
    TEXTS: "2b54c2786af539df302dee7270d5d82658652d1531c0814c9e4c32f02ff1c8fc",
    ATTRIBUTES: "25cfc22427e40b76d2a04dcd56c8cf9bc1ab150d1afb7eb378620c7d77be4533",
}
NO_CATEGORY = "none"
MAX_LENGTH = 500  # characters; EvalCrafter's longest prompt has 230
MAX_BYTES = 64 * 2**20  # of a file of prompts
MAX_PROBLEMS = 20  # listed in a message


@dataclass(frozen=True)
class Prompt:
    """One prompt. Prompts with the same text are one cluster in every statistic."""

    index: int  # counts from 0, as in the names of clip files
    text: str  # verbatim, as given to the video models
    categories: tuple[str, ...] = ()

    @property
    def display(self) -> str:
        """Return the text for raters: with a garbled encoding repaired."""
        return ftfy.fix_encoding(self.text).strip()

    @property
    def category(self) -> str:
        """Return all categories, joined by "|"."""
        return "|".join(self.categories) or NO_CATEGORY


def load_prompts(
    source: Path | str, *, cache: Path | None = None, column: str = "prompt"
) -> list[Prompt]:
    """Load the prompts of a study.

    Args:
        source: "evalcrafter"; a folder with the two files of EvalCrafter; a text file with one
            prompt per line; or a CSV file.
        cache: folder for downloaded files.
        column: name of the column with the prompts, in a CSV file.

    Raises:
        StudyError: the file is missing or unreadable, or not everything in it is a prompt.
    """
    path = Path(source)
    if str(source) == EVALCRAFTER:
        return read_evalcrafter(fetch_evalcrafter(cache or Path.home() / ".cache" / "human_eval"))
    if path.is_dir():
        return read_evalcrafter(path)
    if path.name == TEXTS and (path.parent / ATTRIBUTES).is_file():
        return read_evalcrafter(path.parent)
    return read_prompts(path, column=column)


def fetch_evalcrafter(folder: Path) -> Path:
    """Download the two files of EvalCrafter into the folder, unless it contains them already.

    Raises:
        StudyError: the download fails, or a file does not have its pinned hash.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in SHA256:
        path = folder / name
        if path.exists():
            continue
        try:
            with urllib.request.urlopen(UPSTREAM + name, timeout=30) as answer:
                content = answer.read(MAX_BYTES)
        except (urllib.error.URLError, TimeoutError) as error:
            raise StudyError(
                f"{UPSTREAM + name} cannot be downloaded: {error}. Put {TEXTS} and {ATTRIBUTES} of "
                f"EvalCrafter into {folder}, or pass their folder as --prompts."
            ) from error
        _check_sha256(name, content)
        unfinished = path.with_name(f".{name}.{os.getpid()}")
        unfinished.write_bytes(content)
        unfinished.replace(path)
    return folder


def read_evalcrafter(folder: Path) -> list[Prompt]:
    """Read the 700 prompts, with the attributes of their metadata as categories.

    Raises:
        StudyError: a file is missing, or does not have its pinned hash.
    """
    contents = {name: _read_bytes(folder / name) for name in SHA256}
    for name, content in contents.items():
        _check_sha256(name, content)
    metadata = json.loads(contents[ATTRIBUTES])
    # Trailing spaces are part of the prompts: the video models were given them too.
    texts = contents[TEXTS].decode("utf-8").split("\r\n")
    return [
        Prompt(index, text, tuple(sorted(metadata[f"{index:04d}"]["attributes"])))
        for index, text in enumerate(texts)
    ]


def _check_sha256(name: str, content: bytes) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256[name]:
        raise StudyError(
            f"{name} has the SHA-256 {found} ({len(content):,} bytes) instead of {SHA256[name]}. "
            f"Take the file from {UPSTREAM + name}."
        )


def read_prompts(path: Path, *, column: str = "prompt") -> list[Prompt]:
    """Read a text file with one prompt per line, or a CSV file.

    A CSV file has a column of prompts. Its columns `index` (otherwise rows count from 0) and
    `category` (several in a cell are separated by "|") are optional.

    Raises:
        StudyError: the file has no prompts, or lines that are not prompts. No line is skipped.
    """
    text = _decode(_read_bytes(path), path)
    reads_csv = path.suffix.lower() in {".csv", ".tsv"}
    prompts = _from_csv(text, path, column) if reads_csv else _from_lines(text)
    _check_prompts(prompts, path)
    return prompts


def _read_bytes(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        content = path.read_bytes() if size <= MAX_BYTES else b""
    except OSError as error:
        raise StudyError(
            f"The prompts at {path} cannot be read: {error.strerror}. Check the path."
        ) from error
    if size > MAX_BYTES:
        raise StudyError(
            f"{path} has {size:,} bytes; a file of prompts has at most {MAX_BYTES:,}. Split it."
        )
    return content


def _decode(content: bytes, path: Path) -> str:
    marked = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        return content.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise StudyError(
            f"{path} is not UTF-8: line {line} contains the byte {content[error.start]:#04x}. "
            "Save the file as UTF-8."
        ) from error


def _from_lines(text: str) -> list[Prompt]:
    lines = text.replace("\r\n", "\n").split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    return [Prompt(index, line) for index, line in enumerate(lines)]


def _from_csv(text: str, path: Path, column: str) -> list[Prompt]:
    csv.field_size_limit(MAX_BYTES)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = list(reader.fieldnames or [])
        rows = list(reader)
    except csv.Error as error:
        raise StudyError(
            f"{path} is not a valid CSV file: {error} in line {reader.line_num}. Quote cells with "
            "commas, quotes or line breaks."
        ) from error
    if column not in names or len(set(names)) < len(names):
        raise StudyError(
            f"{path} must have one column named {column!r}; its columns are {', '.join(names)}. "
            "Rename the column of prompts, or name it with --column."
        )
    uneven = [line for line, row in enumerate(rows, 2) if None in row or None in row.values()]
    if uneven:
        raise StudyError(
            f"{path} has {len(names)} columns, but another number of cells in row "
            f"{_list(uneven)}. Quote prompts with commas."
        )
    return [_from_row(number, row, path, column) for number, row in enumerate(rows)]


def _from_row(number: int, row: dict[str, str], path: Path, column: str) -> Prompt:
    index = row.get("index", str(number))
    if not (index.isascii() and index.isdigit()):
        raise StudyError(
            f"The index in row {number + 2} of {path} is {index!r}, not a whole number. Count from "
            "0, or leave the column out."
        )
    named = row.get("category", "").split("|")
    categories = tuple(sorted({name.strip() for name in named} - {"", NO_CATEGORY}))
    return Prompt(int(index), row[column], categories)


def _check_prompts(prompts: Sequence[Prompt], path: Path) -> None:
    problems = [
        f"prompt {prompt.index} {problem}" for prompt in prompts if (problem := _problem_of(prompt))
    ]
    seen: set[int] = set()
    for prompt in prompts:
        if prompt.index in seen:
            problems.append(f"the index {prompt.index} is used twice")
        seen.add(prompt.index)
    if not prompts:
        problems = ["it contains no prompts"]
    if problems:
        raise StudyError(
            f"{path} cannot be used: {_list(problems, '; ')}. Correct the file; nothing was read."
        )


def _problem_of(prompt: Prompt) -> str:
    if not prompt.text.strip():
        return "is empty"
    if len(prompt.text) > MAX_LENGTH:
        return f"has {len(prompt.text):,} characters, more than {MAX_LENGTH}"
    for character in prompt.text:
        if unicodedata.category(character) in {"Cc", "Cs"}:
            return f"contains the control character U+{ord(character):04X}"
    return ""


def _list(problems: Sequence[object], separator: str = ", ") -> str:
    listed = separator.join(map(str, problems[:MAX_PROBLEMS]))
    more = len(problems) - MAX_PROBLEMS
    return f"{listed} and {more:,} more" if more > 0 else listed
