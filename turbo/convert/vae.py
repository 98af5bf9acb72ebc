"""Map Stable Diffusion's image VAE, used by both teachers, from LDM's or diffusers' names."""

import re
from collections.abc import Container
from typing import Any

import torch
from diffusers import AutoencoderKL

from turbo.convert.part import Origin, Part, Shapes

SCALING_FACTOR = 0.18215  # arXiv:2112.10752, section D.1: latents of unit variance

_LEAVES = {
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "conv_norm_out": "norm_out",
}
# diffusers' names of attention layers when ModelScope was published.
_FORMER_LEAVES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def map_latent_diffusion_vae(shapes: Shapes, prefix: str = "") -> Part:
    """Return the VAE with tensors of these shapes, under LDM's names.

    Raises:
        KeyError: name of a missing tensor that determines the configuration.
    """
    own = {name.removeprefix(prefix): s for name, s in shapes.items() if name.startswith(prefix)}
    levels = 1 + _highest(r"encoder\.down\.(\d+)\.", own)
    vae = _on_meta(
        [own[f"encoder.down.{level}.block.0.conv1.weight"][0] for level in range(levels)],
        layers=1 + _highest(r"encoder\.down\.0\.block\.(\d+)\.", own),
        latent_channels=own["post_quant_conv.weight"][0],
    )
    return latent_diffusion_part(vae, prefix)


def latent_diffusion_part(vae: AutoencoderKL, prefix: str = "") -> Part:
    """Return a VAE with the origins of its tensors under LDM's names."""
    levels = len(vae.config.block_out_channels)
    origins = {}
    for name, tensor in vae.state_dict().items():
        # Its attention has 1 x 1 convolutions where ours has Linear layers.
        pointwise = re.search(r"\.to_(q|k|v|out\.0)\.weight$", name)
        shape = (*tensor.shape, 1, 1) if pointwise else tuple(tensor.shape)
        origins[name] = Origin(prefix + latent_diffusion_name(name, levels), shape)
    return Part(vae, origins)


def map_diffusers_vae(shapes: Shapes) -> Part:
    """Return the VAE with tensors of these shapes, under diffusers' former or present names.

    Raises:
        KeyError: name of a missing tensor that determines the configuration.
    """
    levels = 1 + _highest(r"encoder\.down_blocks\.(\d+)\.", shapes)
    vae = _on_meta(
        [
            shapes[f"encoder.down_blocks.{level}.resnets.0.conv1.weight"][0]
            for level in range(levels)
        ],
        layers=1 + _highest(r"encoder\.down_blocks\.0\.resnets\.(\d+)\.", shapes),
        latent_channels=shapes["post_quant_conv.weight"][0],
    )
    return diffusers_part(vae, shapes)


def diffusers_part(vae: AutoencoderKL, names: Container[str]) -> Part:
    """Return a VAE with the origins of its tensors, under diffusers' former or present names."""
    origins = {}
    for name, tensor in vae.state_dict().items():
        theirs = name
        for present, former in _FORMER_LEAVES.items():
            candidate = name.replace(f".{present}.", f".{former}.")
            theirs = candidate if candidate in names else theirs
        origins[name] = Origin(theirs, tuple(tensor.shape))
    return Part(vae, origins)


def published_vae() -> AutoencoderKL:
    """Return the VAE of both teachers, on the meta device."""
    return _on_meta([128, 256, 512, 512], layers=2, latent_channels=4)


def latent_diffusion_name(name: str, levels: int) -> str:
    """Return LDM's name of a tensor of a VAE with `levels` levels."""

    def reverse_level(match: re.Match[str]) -> str:
        # LDM numbers the decoder's levels from the other end.
        return f"decoder.up.{levels - 1 - int(match[1])}."

    name = re.sub(r"decoder\.up_blocks\.(\d+)\.", reverse_level, name)
    name = re.sub(r"encoder\.down_blocks\.", "encoder.down.", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0", "mid.attn_1")
    name = re.sub(r"\.resnets\.", ".block.", name)
    name = re.sub(r"\.(down|up)samplers\.0\.", r".\1sample.", name)
    for ours, theirs in _LEAVES.items():
        name = name.replace(f".{ours}.", f".{theirs}.")
    return name


def _highest(pattern: str, shapes: Shapes) -> int:
    found = [int(match[1]) for match in map(re.compile(pattern).match, shapes) if match]
    if not found:
        raise KeyError(pattern.replace("\\", "").replace("(d+)", "0"))
    return max(found)


def _on_meta(widths: list[int], *, layers: int, latent_channels: int) -> AutoencoderKL:
    configuration: dict[str, Any] = {
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "layers_per_block": layers,
        "latent_channels": latent_channels,
        "sample_size": 512,
        "scaling_factor": SCALING_FACTOR,
    }
    with torch.device("meta"):
        return AutoencoderKL(**configuration)
