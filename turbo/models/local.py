"""Models outside the registry: a folder with a card.json, as `training.distil` exports them."""

import json
from collections.abc import Iterable
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from turbo.card import ModelCard
from turbo.whole_file import write_whole

CARD = "card.json"
PLACES = ("folder", "unet", "lora")  # "./" in them is the folder of the card


def read_card(folder: Path) -> ModelCard:
    """Read the card of the model in a folder.

    Raises:
        ValueError: it cannot be read, or it is not the card of a model.
    """
    file = folder / CARD
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        for place in PLACES:
            if (values.get(place) or "").startswith("./"):
                values[place] = str((folder / values[place]).resolve())
        values["sigmas"] = tuple(values.get("sigmas", ()))
        card = ModelCard(**{**values, "folder": Path(values["folder"])})
        _check_limits(card)
        return card
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as failure:
        raise ValueError(f"{file} is not the card of a model: {failure}.") from failure


def _check_limits(card: ModelCard) -> None:
    """Check a card that a person may have written: its limits, and that its sampler takes them.

    Raises:
        ValueError: they contradict each other or the sampler.
    """
    steps = (1, card.min_steps, card.default_steps, card.max_steps)
    guidance = (card.min_guidance, card.default_guidance, card.max_guidance)
    on_grid = card.sampler == "consistency" and not card.sigmas
    flows = card.flow_shift is not None
    wrong = {
        "min_steps (1 or more), default_steps and max_steps must rise": steps,
        "min_guidance, default_guidance and max_guidance must rise": guidance,
        "max_steps must be at most origin_steps": (card.max_steps, card.origin_steps) * on_grid,
        "eta must be 0 where there is a flow_shift": (card.eta, 0) * flows,
    }
    for rule, values in wrong.items():
        if any(low > high for low, high in pairwise(values)):
            raise ValueError(rule)
    if card.flow_shift is not None and card.flow_shift <= 0:
        raise ValueError("flow_shift must be above 0")


def write_card(card: ModelCard, folder: Path) -> None:
    """Write a card; what lies in `folder` moves with it."""
    here = folder.resolve()
    values: dict[str, Any] = {f.name: getattr(card, f.name) for f in fields(card)}
    values["folder"] = str(card.folder.resolve())
    del values["sources"]  # of published models
    for place in PLACES:
        value = Path(values[place] or "")
        if value.is_absolute() and value.is_relative_to(here):
            values[place] = f"./{value.relative_to(here)}"
    # Complete, since it says that the model is there.
    write_whole(folder / CARD, f"{json.dumps(values, indent=2)}\n".encode())


def find_local(folder: Path, others: Iterable[ModelCard] = ()) -> list[ModelCard]:
    """Return the cards of the models in the folders of a folder, by name.

    Args:
        others: cards of the registry, whose names are taken.

    Raises:
        ValueError: there is no such folder, two models have one name, or as for `read_card`.
    """
    if not folder.is_dir():
        raise ValueError(f"T2V_MODELS_DIR is {folder}, which is not a folder. Correct or unset it.")
    places = {card.name: "turbo/models/registry.py" for card in others}
    cards = []
    for file in sorted(folder.glob(f"*/{CARD}")):
        card = read_card(file.parent)
        if card.name in places:
            raise ValueError(
                f"{places[card.name]} and {file.parent} have models of one name, {card.name}. "
                f"Change the name in {file}, or move that folder out of T2V_MODELS_DIR."
            )
        places[card.name] = str(file.parent)
        cards.append(card)
    return cards
