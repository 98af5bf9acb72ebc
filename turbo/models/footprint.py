"""What a model takes of a device's memory, foretold from its files before any is loaded.

Free of torch, so that a page can say it at once.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from safetensors import safe_open

from turbo.card import Memory, ModelCard
from turbo.models.errors import explained_damage

# How many frames the VAE decodes at a time.
DECODE_CHUNK: dict[Memory, int] = {"full": 8, "sliced": 1, "offload": 1}

# Live numbers at the worst moment of a call, for every latent place and frame (UNet) or pixel (VAE)
# and channel: of the first temporal transformer, in whose feed-forward layer the moment usually is;
# of the outermost layers, where it is else; and of the VAE's outermost layers. Counted on the meta
# device, as a test does.
ENTRANCE_NUMBERS, UNET_NUMBERS, VAE_NUMBERS = 20.5, 26.5, 6.0
ENTRANCE_HEADS = 8  # of that transformer, in every network
# On top: workspaces of convolutions and what the allocator cannot use. A guess, on the safe side.
HEADROOM = 1.15


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """How many numbers a model holds at a time; bytes follow from the precision."""

    text_encoder: int  # weights
    unet: int  # weights
    vae: int  # weights
    denoise: int  # activations of one call of the UNet, for one video
    decode: int  # activations of the VAE, for one frame
    frames: int

    def peak(self, memory: Memory, itemsize: int) -> int:
        """Return the bytes at the worst moment of one video, `itemsize` bytes a number."""
        decode = self.decode * min(DECODE_CHUNK[memory], self.frames)
        if memory == "offload":  # one part after the other
            numbers = max(self.text_encoder, self.unet + self.denoise, self.vae + decode)
        else:
            numbers = self.text_encoder + self.unet + self.vae + max(self.denoise, decode)
        return int(HEADROOM * itemsize * numbers)


def measure_footprint(card: ModelCard) -> Footprint:
    """Read the footprint of a model from its configurations and from the heads of its weights.

    Raises:
        ValueError: a part of it is not on this disk, or damaged.
    """
    with explained_damage(card):
        unet, vae = (_read_config(card.folder / part) for part in (card.unet, "vae"))
        shrink = 2 ** (len(vae["block_out_channels"]) - 1) * unet.get("patch_size", 1)
        places = (card.height // shrink) * (card.width // shrink)
        return Footprint(
            text_encoder=count_weights(card.folder / "text_encoder"),
            unet=count_weights(card.folder / card.unet),
            vae=count_weights(card.folder / "vae"),
            denoise=int(card.num_frames * places * _numbers_a_place(unet)),
            decode=int(VAE_NUMBERS * card.height * card.width * vae["block_out_channels"][0]),
            frames=card.num_frames,
        )


def _numbers_a_place(unet: dict) -> float:
    channels = unet["block_out_channels"][0]
    entrance = ENTRANCE_HEADS * unet["attention_head_dim"]
    return max(ENTRANCE_NUMBERS * entrance + channels, UNET_NUMBERS * channels)


def count_weights(folder: Path) -> int:
    """Return how many numbers the safetensors of a folder hold; reads only their heads."""
    return sum(prod(shape) for file in folder.glob("*.safetensors") for shape in _shapes(file))


def _shapes(file: Path) -> list[Sequence[int]]:
    with safe_open(file, framework="numpy") as opened:
        return [opened.get_slice(name).get_shape() for name in opened.keys()]


def _read_config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())
