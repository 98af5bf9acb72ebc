"""Damaged weights: what the libraries raise of them, and what is said instead."""

from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError

from safetensors import SafetensorError

from turbo.card import ModelCard

# What diffusers, transformers and safetensors raise of damaged weights and configurations.
DAMAGE = (
    *(OSError, KeyError, TypeError, AttributeError, RuntimeError),
    *(SafetensorError, JSONDecodeError, UnicodeDecodeError),
)


@contextmanager
def explained_damage(card: ModelCard) -> Iterator[None]:
    """Turn what the libraries say of damaged weights into a `ValueError` that says what to do."""
    try:
        yield
    except DAMAGE as error:
        raise ValueError(
            f"Expected whole weights of {card.name} in {card.folder}, got {type(error).__name__}: "
            f"{error}. `python -m turbo.models verify {card.name}` tells what is damaged."
        ) from error
