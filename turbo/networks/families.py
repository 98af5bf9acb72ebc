"""The families of networks: which class a folder of weights needs, by its config.json.

A new family is a line in each table that its classes are missing from.
"""

import json
from pathlib import Path
from typing import Any, TypeAlias

import torch
from diffusers import AutoencoderKL, AutoencoderKLWan
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, UMT5Config, UMT5EncoderModel

from turbo.networks.text import (
    CLIPTextEncoder,
    UMT5TextEncoder,
    load_tokenizer,
    load_umt5_tokenizer,
)
from turbo.networks.unet import VideoUNet
from turbo.networks.wan import WanNetwork

Network = VideoUNet | WanNetwork
VideoVAE: TypeAlias = AutoencoderKL | AutoencoderKLWan

NETWORKS: dict[str, type[Network]] = {
    "VideoUNet": VideoUNet,
    "WanNetwork": WanNetwork,
    "WanTransformer3DModel": WanNetwork,  # as published
}
VAES: dict[str, type[VideoVAE]] = {
    "AutoencoderKL": AutoencoderKL,
    "AutoencoderKLWan": AutoencoderKLWan,
}
TEXT_ENCODERS: dict[str, type[CLIPTextEncoder | UMT5TextEncoder]] = {
    "clip_text_model": CLIPTextEncoder,
    "umt5": UMT5TextEncoder,
}
_LOCAL: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}


def load_network(folder: Path, dtype: torch.dtype) -> Network:
    """Load a denoising network from a folder."""
    return _class_of(folder, NETWORKS).from_pretrained(folder, torch_dtype=dtype, **_LOCAL)


def load_vae(folder: Path, dtype: torch.dtype) -> VideoVAE:
    """Load a VAE from a folder."""
    return _class_of(folder, VAES).from_pretrained(folder, torch_dtype=dtype, **_LOCAL)


def load_text_encoder(
    tokenizer: Path, folder: Path, dtype: torch.dtype
) -> CLIPTextEncoder | UMT5TextEncoder:
    """Load a text encoder and its tokenizer from their folders."""
    kind = TEXT_ENCODERS[_read_config(folder)["model_type"]]
    return kind.load(tokenizer, folder, dtype)


def check_tokenizer(tokenizer: Path, folder: Path) -> None:
    """Check that a tokenizer belongs to the text encoder in a folder.

    Raises:
        ValueError: as for `load_tokenizer`.
    """
    config = _read_config(folder)
    load = load_umt5_tokenizer if config.get("model_type") == "umt5" else load_tokenizer
    load(tokenizer, config["vocab_size"])


def network_on_meta(folder: Path, changes: dict[str, Any] | None = None) -> Network:
    """Return the denoising network of a folder's configuration, on the meta device."""
    kind = _class_of(folder, NETWORKS)
    with torch.device("meta"):
        return kind.from_config({**kind.load_config(folder), **(changes or {})})


def part_on_meta(folder: Path) -> nn.Module:
    """Return the network, VAE or text model of a folder's configuration, on the meta device."""
    config = _read_config(folder)
    kind: Any = {**VAES, **NETWORKS}.get(config.get("_class_name", ""))
    with torch.device("meta"):
        if kind is not None:
            return kind.from_config(kind.load_config(folder))
        if config.get("model_type") == "umt5":
            return UMT5EncoderModel(UMT5Config.from_pretrained(folder))
        return CLIPTextModel(CLIPTextConfig.from_pretrained(folder))


def _class_of(folder: Path, table: dict[str, Any]) -> Any:
    name = _read_config(folder).get("_class_name")
    if name not in table:
        raise ValueError(
            f"{folder / 'config.json'} names the class {name!r}. "
            f"This library reads {', '.join(table)}. Choose the folder of one of these."
        )
    return table[name]


def _read_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())
