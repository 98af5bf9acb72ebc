"""One video requested of a model: the rules for prompt, seed, steps and guidance.

The command line, the pipeline, the page and the API all call these checks, so that one prompt makes
one recipe everywhere. No torch, so that a page can import this at once. Messages are plain
sentences: visitors read them.
"""

import unicodedata
from dataclasses import dataclass
from numbers import Real
from typing import Protocol, TypeGuard, runtime_checkable

MAX_PROMPT_LENGTH = 1000  # characters; the text encoders read 77 tokens at most
MAX_SEED = 2**32 - 1


class RequestError(ValueError):
    """A field of a request cannot be used; the message says what is wrong and what to do."""


@runtime_checkable
class Limits(Protocol):
    """What a model allows and its defaults; a `ModelCard` is one."""

    @property
    def title(self) -> str: ...  # for messages
    @property
    def min_steps(self) -> int: ...
    @property
    def max_steps(self) -> int: ...
    @property
    def default_steps(self) -> int: ...
    @property
    def min_guidance(self) -> float: ...
    @property
    def max_guidance(self) -> float: ...
    @property
    def default_guidance(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Request:
    """With the weights, all that is needed to make a video again. Values are checked."""

    prompt: str
    seed: int
    steps: int
    guidance: float


def check_request(
    limits: Limits,
    prompt: object,
    *,
    seed: object = 0,
    steps: object = None,
    guidance: object = None,
) -> Request:
    """Return a request that the model can run; None takes the model's default.

    Raises:
        RequestError: a field has the wrong type or is out of range.
    """
    return Request(
        prompt=check_prompt(prompt),
        seed=check_seed(seed),
        steps=check_steps(limits, steps),
        guidance=check_guidance(limits, guidance),
    )


def check_prompt(prompt: object) -> str:
    """Return the prompt in Unicode's composed form (NFC) with single spaces; emoji are allowed.

    Raises:
        RequestError: it is no text, is empty or too long, or contains control characters.
    """
    if not isinstance(prompt, str):
        raise RequestError("The prompt must be text. Describe the video in a few words.")
    _check_length(prompt)  # before composing, whose time can grow with the length squared
    for character in prompt:
        if unicodedata.category(character) in ("Cc", "Cs") and character not in "\t\n\r":
            raise RequestError(
                f"The prompt contains the control character U+{ord(character):04X}. Remove it."
            )
    words = " ".join(unicodedata.normalize("NFC", prompt).split())
    _check_length(words)  # composing replaces some characters by two or three
    if not any(unicodedata.category(character)[0] in "LMNPS" for character in words):
        raise RequestError("The prompt is empty. Describe the video in a few words.")
    return words


def _check_length(prompt: str) -> None:
    if len(prompt) > MAX_PROMPT_LENGTH:
        raise RequestError(
            f"The prompt has {len(prompt)} characters; at most {MAX_PROMPT_LENGTH} are allowed. "
            "Shorten it."
        )


def check_seed(seed: object) -> int:
    """Return the seed as an int; a page sends 4 as 4.0.

    Raises:
        RequestError: it is not a whole number from 0 to `MAX_SEED`.
    """
    return _check_whole("seed", seed, 0, MAX_SEED)


def check_steps(limits: Limits, steps: object) -> int:
    """Return the number of steps as an int; None takes the model's default.

    Raises:
        RequestError: it is not a whole number in the model's range.
    """
    if steps is None:
        return limits.default_steps
    return _check_whole(
        "number of steps", steps, limits.min_steps, limits.max_steps, f" for {limits.title}"
    )


def check_guidance(limits: Limits, guidance: object) -> float:
    """Return the guidance scale as a float; None takes the model's default.

    Raises:
        RequestError: it is not a number in the model's range.
    """
    if guidance is None:
        return limits.default_guidance
    low, high = limits.min_guidance, limits.max_guidance
    if not _is_number(guidance) or not low <= guidance <= high:  # NaN compares as false
        raise RequestError(
            f"The guidance must be a number from {low:g} to {high:g} for {limits.title}, "
            f"not {_shown(guidance)}."
        )
    return float(guidance)


def _check_whole(name: str, value: object, low: int, high: int, owner: str = "") -> int:
    if not _is_number(value) or not low <= value <= high or value != int(value):
        raise RequestError(
            f"The {name} must be a whole number from {low} to {high}{owner}, not {_shown(value)}."
        )
    return int(value)


def _is_number(value: object) -> TypeGuard[float]:
    """Return whether it is a real number; JSON's true is not the number 1."""
    return isinstance(value, Real) and not isinstance(value, bool)


def _shown(value: object) -> str:
    """Return a value as a message may repeat it: short, and free of lone surrogates."""
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
