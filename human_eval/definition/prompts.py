"""The prompts of a study: the 700 of EvalCrafter, or those of any file of prompts."""

import hashlib
import json
import os
import unicodedata
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ftfy

from human_eval.errors import StudyError, list_names
from turbo.text_files.decoding import MAX_BYTES, FileRefused, read_bytes
from turbo.text_files.prompts import Entry, read_prompt_file

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
MAX_LENGTH = 2000  # characters, by default; EvalCrafter's longest prompt has 230


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
    source: Path | str, *, column: str | None = None, max_length: int = MAX_LENGTH
) -> list[Prompt]:
    """Load the prompts of a study.

    Args:
        source: "evalcrafter"; a folder with the two files of EvalCrafter; or a file of prompts, see
            `turbo.text_files.prompts.read_prompt_file`.
        column: name of the column or key with the prompts; None finds the usual ones.
        max_length: characters that a prompt may have.

    Raises:
        StudyError: the file is missing or unreadable, or not everything in it is a prompt.
    """
    path = Path(source)
    if str(source) == EVALCRAFTER:
        return read_evalcrafter(fetch_evalcrafter(Path.home() / ".cache" / "human_eval"))
    if path.is_dir():
        return read_evalcrafter(path)
    if path.name == TEXTS and (path.parent / ATTRIBUTES).is_file():
        return read_evalcrafter(path.parent)
    return read_prompts(path, column=column, max_length=max_length)


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
    try:
        contents = {name: read_bytes(folder / name) for name in SHA256}
    except FileRefused as refusal:
        raise StudyError(str(refusal)) from refusal
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


def read_prompts(
    path: Path, *, column: str | None = None, max_length: int = MAX_LENGTH
) -> list[Prompt]:
    """Read a file of prompts; see `turbo.text_files.prompts.read_prompt_file`.

    All but text files may give an `index` (otherwise prompts count from 0) and a `category`
    (several are separated by "|").

    Raises:
        StudyError: the file has no prompts, or lines that are not prompts. No line is skipped.
    """
    try:
        prompts = [_from_entry(entry, path) for entry in read_prompt_file(path, column)]
    except FileRefused as refusal:
        raise StudyError(str(refusal)) from refusal
    _check_prompts(prompts, path, max_length)
    return prompts


def _from_entry(entry: Entry, path: Path) -> Prompt:
    index = entry.index.strip() or str(entry.number)
    if not (index.isascii() and index.isdigit()):
        raise StudyError(
            f"The index in {entry.place} of {path} is {index!r}, not a whole number. Count from 0, "
            "or leave the index out."
        )
    named = entry.category.split("|")
    categories = tuple(sorted({name.strip() for name in named} - {"", NO_CATEGORY}))
    return Prompt(int(index), entry.text, categories)


def _check_prompts(prompts: Sequence[Prompt], path: Path, max_length: int) -> None:
    problems = [
        f"prompt {prompt.index} {problem}"
        for prompt in prompts
        if (problem := _problem_of(prompt, max_length))
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
            f"{path} cannot be used: {list_names(problems, '; ')}. Correct the file. Nothing was "
            "read."
        )


def _problem_of(prompt: Prompt, max_length: int) -> str:
    if not prompt.text.strip():
        return "is empty"
    if len(prompt.text) > max_length:
        return (
            f"has {len(prompt.text):,} characters, more than the {max_length:,} of the "
            "definition's max_prompt_length"
        )
    for character in prompt.text:
        if unicodedata.category(character) in {"Cc", "Cs"}:
            return f"contains the control character U+{ord(character):04X}"
    return ""
