"""An optional filter of prompts, by the word lists of glin-profanity and of the operator.

It knows words, not meanings, so it stops no determined visitor. The lists of some languages contain
common words of others: the operator names the languages of the visitors.
"""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

from human_eval.errors import StudyError

PromptFilter = Callable[[str], bool]  # whether a prompt is refused


def read_prompt_filter(text: str) -> PromptFilter:
    """Return the filter that the operator describes.

    Args:
        text: languages and files with a word or phrase a line, separated by commas, such as
            "english,german,words.txt". Without a language, English counts.

    Raises:
        StudyError: the library is not installed, or there is no such language or file.
    """
    try:
        from glin_profanity import Filter, Language
    except ImportError as missing:
        raise StudyError(
            "The prompt filter needs a package. Install it: pip install glin-profanity."
        ) from missing
    names = [name.strip() for name in text.split(",")]
    files = [Path(name) for name in names if Path(name).suffix == ".txt"]
    languages = [name for name in names if Path(name).suffix != ".txt"]
    known = get_args(Language)
    if unknown := [name for name in languages if name not in known]:
        raise StudyError(
            f"There is no word list {unknown[0]!r}. Name a file that ends in .txt, or languages: "
            f"{', '.join(known)}."
        )
    words = [word.strip() for file in files for word in _read_lines(file) if word.strip()]
    return Filter({"languages": languages, "custom_words": words}).is_profane


def _read_lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as failure:
        raise StudyError(f"{file} cannot be read: {failure}. Save it as UTF-8.") from failure
