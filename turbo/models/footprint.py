"""Estimate a model's memory use from its files, before loading it.

Does not import torch, so that a page can show the estimate at once.
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

# Activations alive at the peak of one call, counted on the meta device (a test repeats the count).
# Per latent position and frame, and per channel of the layer at which the peak occurs: usually the
# feed-forward layer of the first temporal transformer, else the outermost layers of the UNet.
TRANSFORMER_IN_ACTIVATIONS, UNET_ACTIVATIONS = 20.5, 26.5
VAE_ACTIVATIONS = 6.0  # per pixel and channel of the VAE's outermost layers
# Wan: per token, and channel of its feed-forward layers and of its stream; per pixel and channel of
# the causal VAE, which decodes four frames at a time whatever their number.
WAN_FEED_FORWARD_ACTIVATIONS, WAN_ACTIVATIONS, CAUSAL_VAE_ACTIVATIONS = 2.0, 5.0, 53.0
WAN_TEXT_TOKENS = 512
TRANSFORMER_IN_HEADS = 8  # of the first temporal transformer, in every network
# Convolution workspaces and memory that the allocator cannot use. A guess, on the safe side.
HEADROOM = 1.15


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Element counts of a model's weights and activations; times the item size they are bytes."""

    text_encoder: int  # weights
    unet: int  # weights
    vae: int  # weights
    denoise: int  # activations of one UNet call, for one video
    decode: int  # activations of the VAE, for one frame; of a causal VAE, for all
    frames: int  # for how many of them at most; 1 for a causal VAE

    def peak(self, memory: Memory, itemsize: int) -> int:
        """Return the peak memory in bytes for one video, at `itemsize` bytes per element."""
        decode = self.decode * min(DECODE_CHUNK[memory], self.frames)
        if memory == "offload":  # one network on the device at a time
            elements = max(self.text_encoder, self.unet + self.denoise, self.vae + decode)
        else:
            elements = self.text_encoder + self.unet + self.vae + max(self.denoise, decode)
        return int(HEADROOM * itemsize * elements)


def measure_footprint(card: ModelCard) -> Footprint:
    """Compute a footprint from a model's configurations and the headers of its weight files.

    Raises:
        ValueError: a file is missing or damaged.
    """
    with explained_damage(card):
        unet, vae = (_read_config(card.folder / part) for part in (card.unet, "vae"))
        denoise = (_count_wan if "ffn_dim" in unet else _count_unet)(card, unet, vae)
        pixels, frames = card.height * card.width, card.num_frames
        if "base_dim" in vae:  # the causal VAE
            decode, frames = CAUSAL_VAE_ACTIVATIONS * pixels * vae["base_dim"], 1
        else:
            decode = VAE_ACTIVATIONS * pixels * vae["block_out_channels"][0]
        return Footprint(
            text_encoder=count_weights(card.folder / "text_encoder"),
            unet=count_weights(card.folder / card.unet),
            vae=count_weights(card.folder / "vae"),
            denoise=int(denoise),
            decode=int(decode),
            frames=frames,
        )


def _count_unet(card: ModelCard, unet: dict, vae: dict) -> float:
    """Return the activations of one call of a video UNet."""
    _, space = _shrinkage(vae)
    downscale = space * unet.get("patch_size", 1)
    positions = (card.height // downscale) * (card.width // downscale)
    channels = unet["block_out_channels"][0]
    inner = TRANSFORMER_IN_HEADS * unet["attention_head_dim"]
    first = TRANSFORMER_IN_ACTIVATIONS * inner + channels  # the first temporal transformer
    return card.num_frames * positions * max(first, UNET_ACTIVATIONS * channels)


def _shrinkage(vae: dict) -> tuple[int, int]:
    """Return how many frames, and how many pixels of a side, one latent holds."""
    if "base_dim" in vae:
        return vae["scale_factor_temporal"], vae["scale_factor_spatial"]
    return 1, 2 ** (len(vae["block_out_channels"]) - 1)


def _count_wan(card: ModelCard, network: dict, vae: dict) -> float:
    """Return the activations of one call of Wan's network."""
    time, space = _shrinkage(vae)
    depth, height, width = network["patch_size"]
    frames = (card.num_frames - 1) // time + 1
    tokens = (frames // depth) * (card.height // space // height) * (card.width // space // width)
    channels = network["num_attention_heads"] * network["attention_head_dim"]
    per_token = WAN_FEED_FORWARD_ACTIVATIONS * network["ffn_dim"] + WAN_ACTIVATIONS * channels
    text = WAN_TEXT_TOKENS * channels  # kept for every layer
    return tokens * per_token + text


def count_weights(folder: Path) -> int:
    """Return the number of elements in a folder's safetensors; reads only the headers."""
    return sum(prod(shape) for file in folder.glob("*.safetensors") for shape in _shapes(file))


def _shapes(file: Path) -> list[Sequence[int]]:
    with safe_open(file, framework="numpy") as opened:
        return [opened.get_slice(name).get_shape() for name in opened.keys()]


def _read_config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())
