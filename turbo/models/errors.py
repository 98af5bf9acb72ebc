"""Damaged weights: the exceptions of the libraries that read them, and one message for all."""

from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError

from safetensors import SafetensorError

from turbo.card import ModelCard

# Raised by diffusers, transformers and safetensors for damaged weights and configurations.
DAMAGE = (
    *(OSError, KeyError, TypeError, AttributeError, RuntimeError),
    *(SafetensorError, JSONDecodeError, UnicodeDecodeError),
)


@contextmanager
def explained_damage(card: ModelCard) -> Iterator[None]:
    """Turn an exception from reading damaged weights into a `ValueError` that names a remedy."""
    try:
        yield
    except DAMAGE as error:
        raise ValueError(
            f"The weights of {card.name} in {card.folder} cannot be read ({type(error).__name__}: "
            f"{error}). Run `python -m turbo.models verify {card.name}` to find the damaged file."
        ) from error
