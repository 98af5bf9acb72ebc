"""A request: one video asked of one model, checked before anything is computed."""

import unicodedata
from dataclasses import dataclass

from turbo.card import ModelCard

MAX_PROMPT_LENGTH = 1000  # characters; the text encoders read 77 tokens at most
MAX_SEED = 2**32 - 1


@dataclass(frozen=True, kw_only=True)
class Request:
    """What makes a video again, given the weights."""

    prompt: str
    seed: int
    steps: int
    guidance: float


def check_request(
    card: ModelCard,
    prompt: str,
    *,
    seed: float = 0,
    steps: float | None = None,
    guidance: float | None = None,
) -> Request:
    """Return a request this model can serve; None takes the card's default.

    Seed and steps are whole; a page sends them as 4.0 all the same.

    Raises:
        ValueError: something is out of range; the text is fit for a page.
    """
    steps = card.default_steps if steps is None else steps
    guidance = card.default_guidance if guidance is None else guidance
    check_prompt(prompt)
    if not _is_whole(seed) or not 0 <= seed <= MAX_SEED:
        raise ValueError(
            f"Expected a whole seed between 0 and {MAX_SEED}, got {seed!r}. Choose another."
        )
    if not _is_whole(steps) or not card.min_steps <= steps <= card.max_steps:
        raise ValueError(
            f"Expected a whole number of steps between {card.min_steps} and {card.max_steps} "
            f"for {card.name}, got {steps!r}. Its default is {card.default_steps}."
        )
    if not card.min_guidance <= guidance <= card.max_guidance:  # also refuses NaN
        raise ValueError(
            f"Expected guidance between {card.min_guidance:g} and {card.max_guidance:g} "
            f"for {card.name}, got {guidance!r}. Its default is {card.default_guidance:g}."
        )
    return Request(prompt=prompt, seed=int(seed), steps=int(steps), guidance=float(guidance))


def check_prompt(prompt: str) -> None:
    """Refuse what cannot be a prompt; emoji and all scripts are welcome.

    Raises:
        ValueError: it is empty, too long, or holds control characters.
    """
    if not prompt.strip():
        raise ValueError(f"Expected a prompt, got {prompt[:10]!r}. Say what the video should show.")
    if len(prompt) > MAX_PROMPT_LENGTH:
        raise ValueError(
            f"Expected at most {MAX_PROMPT_LENGTH} characters, got {len(prompt)}. "
            "Shorten the prompt."
        )
    for character in prompt:
        if unicodedata.category(character) in ("Cc", "Cs"):
            raise ValueError(
                f"Expected a prompt without control characters, got {character!r}. Remove it."
            )


def _is_whole(number: float) -> bool:
    return not isinstance(number, bool) and float(number).is_integer()
