"""Environment variables, for the study and the demo.

An empty variable counts as unset: templates of containers leave variables empty.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from human_eval.errors import StudyError

YES = {"1", "true", "yes", "on", "y", "t"}
NO = {"0", "false", "no", "off", "n", "f"}

Value = TypeVar("Value")


def read_variable(name: str) -> str | None:
    """Return the text of a variable without surrounding blanks; None if there is none."""
    return os.environ.get(name, "").strip() or None


def read_switch(name: str) -> bool:
    """Return whether a variable is switched on; unset is off.

    Raises:
        StudyError: it is neither yes nor no.
    """
    text = (read_variable(name) or "no").lower()
    if text not in YES | NO:
        raise StudyError(f"{name} is {text!r}. Set it to yes or no.")
    return text in YES


def read_setting(
    flag: str, given: str | None, variables: str, parse: Callable[[str], Value], default: Value
) -> Value:
    """Return the value of a flag; without one, of the first variable that is set; else the default.

    Args:
        given: the text after the flag; None without the flag.
        variables: names, separated by blanks.
        parse: raises a `StudyError` if it cannot use a text.

    Raises:
        StudyError: the text cannot be used; the message names the flag or the variable.
    """
    for name, text in [(flag, given), *((name, read_variable(name)) for name in variables.split())]:
        if text is not None:
            try:
                return parse(text)
            except StudyError as error:
                raise StudyError(f"{name}: {error}") from error
    return default


@contextmanager
def hidden(names: Iterable[str]) -> Iterator[None]:
    """Remove variables until the end of the block, for libraries that cannot use their values."""
    removed = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(removed)
