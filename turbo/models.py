"""The models that can be loaded: a table of cards, and the function that loads one.

Reading the table takes no time: torch and diffusers are imported by the first load.
"""

from typing import TYPE_CHECKING, Any

from turbo.card import ModelCard
from turbo.cards import CARDS, WEIGHTS

if TYPE_CHECKING:
    import turbo.pipeline

__all__ = ["DEFAULT_MODEL", "MODELS", "WEIGHTS", "find_card", "load_card", "load_pipeline"]

MODELS: dict[str, ModelCard] = {card.name: card for card in CARDS if card.family == "shapes"}
DEFAULT_MODEL = "shapes-turbo"


def find_card(name: str) -> ModelCard:
    """Return the card of that name.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name not in MODELS:
        raise ValueError(
            f"Expected a model from {list(MODELS)}, got {name!r}. Cards are in turbo/cards.py."
        )
    return MODELS[name]


def load_pipeline(
    name: str = DEFAULT_MODEL, device: str = "cpu", **options: Any
) -> "turbo.pipeline.VideoPipeline":
    """Load a model by name from local files only; `options` are those of `VideoPipeline.load`."""
    return load_card(find_card(name), device, **options)


def load_card(
    card: ModelCard, device: str = "cpu", **options: Any
) -> "turbo.pipeline.VideoPipeline":
    """Load the model a card describes, which need not be in the table."""
    from turbo.pipeline import VideoPipeline  # brings torch and diffusers: seconds

    return VideoPipeline.load(card, device, **options)
