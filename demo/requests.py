"""Requests from the page and from the API: every field is checked, since both can send anything.

RequestError   what was expected, what came, what to do; its text is shown to the visitor
"""

import math
import secrets
import unicodedata
from collections.abc import Mapping

from demo.session import MAX_PROMPT, MAX_SEED, ModelInfo, Request


class RequestError(ValueError):
    """A field of a request cannot be used; the message says why and what to do."""


def read_request(
    models: Mapping[str, ModelInfo],
    prompt: object,
    model: object,
    steps: object = None,
    guidance: object = None,
    seed: object = None,
) -> Request:
    """Check the fields of one request; None takes the model's default, for the seed a draw.

    Raises:
        RequestError: a field is missing, of the wrong kind or out of range.
    """
    info = read_model(models, model)
    return Request(
        model=info.name,
        prompt=read_prompt(prompt),
        steps=_whole(steps, "steps", info.min_steps, info.max_steps, info.default_steps),
        guidance=_guidance(guidance, info),
        seed=read_seed(seed),
    )


def read_model(models: Mapping[str, ModelInfo], model: object) -> ModelInfo:
    """Return the model of that name."""
    if not isinstance(model, str) or model not in models:
        raise RequestError(f"Expected a model from {list(models)}, got {_shown(model)}.")
    return models[model]


def read_prompt(prompt: object) -> str:
    """Return the prompt in composed form with single spaces; emoji and any script are welcome."""
    if not isinstance(prompt, str):
        raise RequestError(f"Expected a prompt in words, got {_shown(prompt)}. Send text.")
    if len(prompt) > MAX_PROMPT:
        raise RequestError(
            f"Expected a prompt of at most {MAX_PROMPT} characters, got {len(prompt)}. Shorten it."
        )
    bad = next(
        (c for c in prompt if unicodedata.category(c) in ("Cc", "Cs") and c not in "\t\n\r"), ""
    )
    if bad:
        raise RequestError(
            f"Expected printable text, got the control character U+{ord(bad):04X}. Remove it."
        )
    words = " ".join(unicodedata.normalize("NFC", prompt).split())
    if not any(unicodedata.category(c)[0] in "LNSPM" for c in words):
        raise RequestError(
            "Expected a prompt, got an empty one. Describe the video in a few words."
        )
    return words


def read_seed(seed: object) -> int:
    """Return the seed, or a fresh draw for None."""
    return _whole(seed, "seed", 0, MAX_SEED, secrets.randbelow(MAX_SEED + 1))


def _guidance(value: object, info: ModelInfo) -> float:
    if value is None:
        return info.default_guidance
    lowest, highest = info.min_guidance, info.max_guidance
    number = _number(value)
    if number is None or not lowest <= number <= highest:
        raise RequestError(
            f"Expected guidance between {lowest:g} and {highest:g} for {info.title}, "
            f"got {_shown(value)}."
        )
    return number


def _whole(value: object, name: str, lowest: int, highest: int, default: int) -> int:
    if value is None:
        return default
    number = _number(value)
    if number is None or number != int(number) or not lowest <= number <= highest:
        raise RequestError(
            f"Expected {name} as a whole number between {lowest} and {highest}, "
            f"got {_shown(value)}."
        )
    return int(number)


def _number(value: object) -> float | int | None:
    """Return a finite number, None for anything else; JSON's true is not the number 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def _shown(value: object) -> str:
    """Return the value as a message may repeat it: short, and free of lone surrogates."""
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
