"""Export trained networks as float16 safetensors, and the world's vocabulary as JSON."""

import json
from copy import deepcopy
from pathlib import Path

from diffusers import ModelMixin
from transformers import PreTrainedModel

from training.shapes.world.scenes import BACKGROUNDS, COLOURS, MOTIONS, SPRITES

EXAMPLES = (
    "a red star moving left on a black background",
    "a yellow ghost jumping in the night sky",
    "a blue circle circling over a meadow",
    "a purple heart moving up on a white background",
    "a green square moving right in the desert",
    "an orange triangle blinking in the night sky",
    "a yellow star moving down over a meadow",
    "a purple ghost moving right on a black background",
    "a red heart jumping over a meadow",
    "a blue triangle moving up in the desert",
    "a green ghost standing still on a white background",
    "an orange circle moving left in the night sky",
)


def export_module(network: ModelMixin | PreTrainedModel, folder: Path) -> None:
    """Save a diffusers or transformers module in float16, half the size of float32."""
    half = deepcopy(network)
    for weight in half.parameters():  # diffusers warns of a cast of the whole
        weight.data = weight.data.half()
    half.save_pretrained(folder, safe_serialization=True)
    config = json.loads((folder / "config.json").read_text())
    config.pop("_name_or_path", None)  # a path on the machine that trained it
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def export_world(path: Path) -> None:
    """Write the words that the models know, with example prompts, for the demo page."""
    words = {
        "template": "a {colour} {shape} {motion} {background}",
        "colours": list(COLOURS),
        "shapes": list(SPRITES),
        "motions": list(MOTIONS),
        "backgrounds": [words for _, _, words in BACKGROUNDS.values()],
        "examples": list(EXAMPLES),
    }
    path.write_text(json.dumps(words, indent=1) + "\n")
