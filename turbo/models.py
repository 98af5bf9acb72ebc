"""The models that can be loaded: a table of cards, and the function that loads one.

Reading the table takes no time: torch and diffusers are imported by the first load.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from turbo.card import ModelCard

if TYPE_CHECKING:
    import turbo.pipeline

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
    "cpu_threads": 1,
}

_SHAPES_STUDENT: dict[str, Any] = {
    "role": "student",
    "sampler": "consistency",
    "unet": "teacher",
    "default_steps": 4,
    "max_steps": 8,
    "default_guidance": 1.5,
    "min_guidance": 0.5,  # the range it was distilled on
    "max_guidance": 8.0,
    "origin_steps": 20,  # a coarser grid than the paper's 50: fewer hops from clean to noise
    "guidance_kind": "Embedded guidance w: told to the network, one call a step; s = w + 1.",
    **_SHAPES,
}

_CARDS = [
    ModelCard(
        name="shapes-teacher",
        title="Shapes teacher",
        role="teacher",
        sampler="ddim",
        eta=1.0,
        unet="teacher",
        default_steps=50,
        max_steps=100,
        default_guidance=2.0,
        min_guidance=1.0,
        max_guidance=8.0,
        guidance_kind="Classifier-free guidance s: two network calls a step; 1 is no guidance.",
        **_SHAPES,
    ),
    ModelCard(
        name="shapes-vcm",
        title="Shapes VCM",
        lora="vcm",
        **_SHAPES_STUDENT,
    ),
    ModelCard(
        name="shapes-turbo",
        title="Shapes Turbo",
        lora="turbo",
        **_SHAPES_STUDENT,
    ),
]

MODELS: dict[str, ModelCard] = {card.name: card for card in _CARDS}
DEFAULT_MODEL = "shapes-turbo"


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


def load_pipeline(name: str = DEFAULT_MODEL, device: str = "cpu") -> "turbo.pipeline.VideoPipeline":
    """Load a model by name, in float32, from local files only."""
    return load_card(find_card(name), device)


def load_card(card: ModelCard, device: str = "cpu") -> "turbo.pipeline.VideoPipeline":
    """Load the model a card describes, which need not be in the table."""
    from turbo.pipeline import VideoPipeline  # brings torch and diffusers: seconds

    return VideoPipeline.load(card, device)
