"""The models that can be loaded: a table of cards, and the function that loads one."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from turbo.card import ModelCard
from turbo.pipeline import VideoPipeline
from turbo.text import TextEncoder
from turbo.unet import VideoUNet

WEIGHTS = Path(__file__).parent / "weights"

_SHAPES: dict[str, Any] = {
    "family": "shapes",
    "folder": WEIGHTS / "shapes",
    "licence": "Apache-2.0",
    "height": 32,
    "width": 32,
    "num_frames": 16,
    "fps": 8,
    "enlarge": 8,
    "prediction_type": "v_prediction",
    "beta_end": 0.02,
    "spacing": "trailing",
}

_CARDS = [
    ModelCard(
        name="shapes-teacher",
        title="Shapes teacher",
        role="teacher",
        sampler="ddim",
        unet="teacher",
        default_steps=50,
        max_steps=100,
        default_guidance=4.0,
        min_guidance=1.0,
        max_guidance=16.0,
        guidance_kind="Classifier-free guidance s: two network calls a step; 1 is no guidance.",
        **_SHAPES,
    ),
    ModelCard(
        name="shapes-vcm",
        title="Shapes VCM",
        role="student",
        sampler="consistency",
        unet="vcm",
        default_steps=4,
        max_steps=8,
        default_guidance=7.5,
        min_guidance=1.0,
        max_guidance=15.0,
        guidance_kind="Embedded guidance w: told to the network, one call a step; s = w + 1.",
        **_SHAPES,
    ),
]

MODELS: dict[str, ModelCard] = {card.name: card for card in _CARDS}
DEFAULT_MODEL = "shapes-vcm"


def find_card(name: str) -> ModelCard:
    """Return the card of that name.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name not in MODELS:
        raise ValueError(
            f"Expected a model from {list(MODELS)}, got {name!r}. Cards are in turbo/models.py."
        )
    return MODELS[name]


def load_pipeline(name: str = DEFAULT_MODEL, device: torch.device | str = "cpu") -> VideoPipeline:
    """Load a model by name, in float32, from local files only."""
    return load_card(find_card(name), device)


def load_card(card: ModelCard, device: torch.device | str = "cpu") -> VideoPipeline:
    """Load the model a card describes."""
    for part in ("vae", "text_encoder", "tokenizer", card.unet):
        if not (card.folder / part).is_dir():
            raise FileNotFoundError(
                f"Expected the weights of {card.name} in {card.folder}, got no folder {part!r}. "
                "Train them, or check out the repository with its weights."
            )
    local = {"torch_dtype": torch.float32, "local_files_only": True, "use_safetensors": True}
    return VideoPipeline(
        card,
        VideoUNet.from_pretrained(card.folder / card.unet, **local),
        AutoencoderKL.from_pretrained(card.folder / "vae", **local),
        TextEncoder.load(card.folder / "tokenizer", card.folder / "text_encoder"),
        card.schedule,
        weights_sha256=card.weights_sha256(),
    ).to(device)
