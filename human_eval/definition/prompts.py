"""The prompts of a study: EvalCrafter's 700, or those of any text or CSV file."""

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
# The state of the upstream repository whose files hold the 700 prompts and their attributes.
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
MAX_LENGTH = 500  # characters; the longest of EvalCrafter has 230
MAX_BYTES = 64 * 2**20  # of a file of prompts
MAX_PROBLEMS = 20  # how many a message lists


@dataclass(frozen=True)
class Prompt:
    """One prompt. Prompts of equal text are one cluster in every statistic."""

    index: int  # counts from 0, as in the clips' file names
    text: str  # verbatim, as the video models got it
    categories: tuple[str, ...] = ()

    @property
    def display(self) -> str:
        """Return the text as raters should read it: repaired where its encoding was garbled."""
        return ftfy.fix_encoding(self.text).strip()

    @property
    def category(self) -> str:
        """Return all categories in one word."""
        return "|".join(self.categories) or NO_CATEGORY


def load_prompts(
    source: Path | str, *, cache: Path | None = None, column: str = "prompt"
) -> list[Prompt]:
    """Load the prompts that a study names.

    Args:
        source: "evalcrafter"; a folder with EvalCrafter's two files; or a text file with a prompt
            on each line, or a CSV file.
        cache: where downloaded files are kept.
        column: of a CSV file, the one with the prompts.

    Raises:
        StudyError: the file is missing, unreadable, or not all of it are prompts.
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
    """Download EvalCrafter's two files into the folder, unless they lie there already.

    Raises:
        StudyError: there is no network, or a file is not the pinned one.
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
                f"Expected to download {UPSTREAM + name}, got: {error}. Put {TEXTS} and "
                f"{ATTRIBUTES} of EvalCrafter into {folder}, or name their folder as the prompts."
            ) from error
        _check_sha256(name, content)
        unfinished = path.with_name(f".{name}.{os.getpid()}")
        unfinished.write_bytes(content)
        unfinished.replace(path)
    return folder


def read_evalcrafter(folder: Path) -> list[Prompt]:
    """Read the 700 prompts, with the attributes of their metadata as categories.

    Raises:
        StudyError: a file is missing, or is not the pinned one.
    """
    contents = {name: _read_bytes(folder / name) for name in SHA256}
    for name, content in contents.items():
        _check_sha256(name, content)
    metadata = json.loads(contents[ATTRIBUTES])
    # Trailing spaces belong to the prompts: the video models got them too.
    texts = contents[TEXTS].decode("utf-8").split("\r\n")
    return [
        Prompt(index, text, tuple(sorted(metadata[f"{index:04d}"]["attributes"])))
        for index, text in enumerate(texts)
    ]


def _check_sha256(name: str, content: bytes) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256[name]:
        raise StudyError(
            f"Expected {name} with SHA-256 {SHA256[name]}, got {found} ({len(content):,} bytes). "
            f"Take the file from {UPSTREAM + name}."
        )


def read_prompts(path: Path, *, column: str = "prompt") -> list[Prompt]:
    """Read a text file with a prompt on each line, or a CSV file.

    A CSV file has one column of prompts and may have `index` (else rows are counted from 0) and
    `category` (several in a cell are separated by "|").

    Raises:
        StudyError: nothing, or not everything, in the file is a prompt. Nothing is skipped.
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
            f"Expected a file of prompts at {path}, got: {error.strerror}. Check the path."
        ) from error
    if size > MAX_BYTES:
        raise StudyError(
            f"Expected at most {MAX_BYTES:,} bytes of prompts, got {size:,} in {path}. Split it."
        )
    return content


def _decode(content: bytes, path: Path) -> str:
    marked = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        return content.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise StudyError(
            f"Expected UTF-8 in {path}, got the byte {content[error.start]:#04x} in line {line}. "
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
            f"Expected a CSV file at {path}, got: {error} in line {reader.line_num}. "
            "Quote cells that hold commas, quotes or line breaks."
        ) from error
    if column not in names or len(set(names)) < len(names):
        raise StudyError(
            f"Expected one column named {column!r} in {path}, got {names}. "
            "Rename the column of prompts, or name it with --column."
        )
    uneven = [line for line, row in enumerate(rows, 2) if None in row or None in row.values()]
    if uneven:
        raise StudyError(
            f"Expected {len(names)} cells in every row of {path}, got another number in row "
            f"{_list(uneven)}. Quote prompts that hold commas."
        )
    return [_from_row(number, row, path, column) for number, row in enumerate(rows)]


def _from_row(number: int, row: dict[str, str], path: Path, column: str) -> Prompt:
    index = row.get("index", str(number))
    if not (index.isascii() and index.isdigit()):
        raise StudyError(
            f"Expected a whole number as index in {path}, got {index!r} in row {number + 2}. "
            "Count from 0, or leave the column out."
        )
    named = row.get("category", "").split("|")
    categories = tuple(sorted({name.strip() for name in named} - {"", NO_CATEGORY}))
    return Prompt(int(index), row[column], categories)


def _check_prompts(prompts: Sequence[Prompt], path: Path) -> None:
    problems = [
        f"prompt {prompt.index} {wrong}" for prompt in prompts if (wrong := _what_is_wrong(prompt))
    ]
    seen: set[int] = set()
    for prompt in prompts:
        if prompt.index in seen:
            problems.append(f"the index {prompt.index} stands twice")
        seen.add(prompt.index)
    if not prompts:
        problems = ["no prompts"]
    if problems:
        raise StudyError(
            f"Expected nothing but prompts in {path}, got {_list(problems, '; ')}. "
            "Correct the file; nothing was read."
        )


def _what_is_wrong(prompt: Prompt) -> str:
    if not prompt.text.strip():
        return "is empty"
    if len(prompt.text) > MAX_LENGTH:
        return f"has {len(prompt.text):,} characters, more than {MAX_LENGTH}"
    for character in prompt.text:
        if unicodedata.category(character) in {"Cc", "Cs"}:
            return f"holds the control character U+{ord(character):04X}"
    return ""


def _list(problems: Sequence[object], separator: str = ", ") -> str:
    listed = separator.join(map(str, problems[:MAX_PROBLEMS]))
    more = len(problems) - MAX_PROBLEMS
    return f"{listed} and {more:,} more" if more > 0 else listed
