"""Map the two published video UNets to our names: VideoCrafter2 from its own, ModelScope from
diffusers'.

The configuration is inferred from the names and shapes, for any size.
"""

import re
from collections.abc import Callable
from typing import Any

import torch

from turbo.convert.part import Origin, Part, Shapes, renamed_part
from turbo.networks.unet import VideoUNet

INPUT_HEADS = 8  # of the first temporal transformer, in both networks

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_AROUND = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "transformer_in": "init_attn.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "time_embedding.cond_proj": "time_cond_proj",
    "time_embedding.motion_cond_proj": "motion_cond_proj",
    "time_embedding.combine_proj": "combine_proj",
    "time_embedding.fps_embedding.linear_1": "fps_embedding.0",
    "time_embedding.fps_embedding.linear_2": "fps_embedding.2",
}
_CHILD = {"resnets": 0, "temp_convs": 0, "attentions": 1, "temp_attentions": 2}


def map_videocrafter_unet(shapes: Shapes, prefix: str = "") -> Part:
    """Return the VideoCrafter2 network with tensors of these shapes.

    Covers the teacher, T2V-Turbo and T2V-Turbo-v2, which differ in their conditioning.

    Args:
        shapes: of a file's tensors, by name; names without the prefix are ignored.

    Raises:
        KeyError: name of a missing tensor that determines the configuration.
    """
    own = {name.removeprefix(prefix): s for name, s in shapes.items() if name.startswith(prefix)}
    return videocrafter_part(on_meta(_videocrafter_configuration(own)), prefix)


def map_modelscope_unet(shapes: Shapes) -> Part:
    """Return the ModelScope network with tensors of these shapes, under diffusers' names.

    Raises:
        KeyError: name of a missing tensor that determines the configuration.
    """
    return modelscope_part(on_meta(_modelscope_configuration(shapes)))


def videocrafter_part(unet: VideoUNet, prefix: str = "") -> Part:
    """Return a network with the origins of its tensors under VideoCrafter2's names."""
    names = videocrafter_names(unet)
    origins = {}
    for name, tensor in unet.state_dict().items():
        # Its first temporal transformer has a Conv1d of kernel 1 where ours has a Linear.
        pointwise = re.match(r"transformer_in\.proj_(in|out)\.weight", name)
        shape = (*tensor.shape, 1) if pointwise else tuple(tensor.shape)
        origins[name] = Origin(prefix + names[name], shape)
    return Part(unet, origins)


def modelscope_part(unet: VideoUNet) -> Part:
    """Return a network with the origins of its tensors under diffusers' names, which are ours."""
    return renamed_part(unet)


def videocrafter_names(unet: VideoUNet) -> dict[str, str]:
    """Return VideoCrafter2's name of every tensor of a network, by our names.

    Source: T2V-Turbo's published code; the tests check every name of the full networks.
    """
    rename = _renamer(unet)
    return {name: rename(name) for name in unet.state_dict()}


def _renamer(unet: VideoUNet) -> Callable[[str], str]:
    """Return the function from our names to VideoCrafter2's.

    Its blocks are numbered consecutively: per level the residual blocks, then the resampling.
    """
    layers = unet.config.layers_per_block

    def block(match: re.Match[str]) -> str:
        side, level, kind, index, rest = match.groups()
        level, index = int(level), int(index)
        up = side == "up"
        number = level * (layers + 1) + index + (0 if up else 1)
        prefix = f"{'output' if up else 'input'}_blocks"
        if kind == "downsamplers":
            return f"{prefix}.{(level + 1) * (layers + 1)}.0.op{rest.removeprefix('.conv')}"
        if kind == "upsamplers":
            child = 3 if "CrossAttn" in unet.config.up_block_types[level] else 1
            return f"{prefix}.{level * (layers + 1) + layers}.{child}{rest}"
        return f"{prefix}.{number}.{_CHILD[kind]}{_inside(kind, rest)}"

    def middle(match: re.Match[str]) -> str:
        kind, index, rest = match.groups()
        child = 3 * int(index) + _CHILD[kind]
        return f"middle_block.{child}{_inside(kind, rest)}"

    def rename(name: str) -> str:
        name, count = re.subn(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)(.*)", block, name)
        if not count:
            name, count = re.subn(r"mid_block\.(\w+)\.(\d+)(.*)", middle, name)
        if not count:
            [ours] = [ours for ours in _AROUND if name.startswith(f"{ours}.")]
            name = name.replace(ours, _AROUND[ours], 1)
        return name

    return rename


def _inside(kind: str, rest: str) -> str:
    """Rename the rest of a name, inside a block; `temopral_conv` is their spelling."""
    if kind == "temp_convs":
        return f".temopral_conv{rest}"
    if kind == "resnets":
        _, layer, leaf = rest.split(".")
        return f".{_RESNET[layer]}.{leaf}"
    return rest


def on_meta(configuration: dict[str, Any]) -> VideoUNet:
    """Return a network on the meta device: names and shapes without data."""
    arguments = {name: value for name, value in configuration.items() if name[0] != "_"}
    with torch.device("meta"):
        return VideoUNet(**arguments)


def _videocrafter_configuration(shapes: Shapes) -> dict[str, Any]:
    downs = sorted(
        int(match[1])
        for match in (re.match(r"input_blocks\.(\d+)\.0\.op\.weight", name) for name in shapes)
        if match
    )
    stride = downs[0] if downs else 0  # blocks per level, including the resampling
    first = [1 + level * stride for level in range(len(downs) + 1)]  # first block of each level
    widths = [shapes[f"input_blocks.{block}.0.in_layers.2.weight"][0] for block in first]
    attends = [f"input_blocks.{block}.1.norm.weight" in shapes for block in first]
    layers = [n for n in shapes if re.fullmatch(r"input_blocks\.\d+\.0\.in_layers\.2\.weight", n)]
    to_k = shapes["middle_block.1.transformer_blocks.0.attn2.to_k.weight"]
    return {
        **_blocks(widths, attends, len(layers) // len(widths)),
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "cross_attention_dim": to_k[1],
        "attention_head_dim": shapes["init_attn.0.proj_in.weight"][0] // INPUT_HEADS,
        "time_cond_proj_dim": shapes.get("time_cond_proj.weight", (None, None))[1],
        "fps_conditioning": True,  # every network of this kind has it
        "motion_conditioning": "motion_cond_proj.weight" in shapes,
    }


def _modelscope_configuration(shapes: Shapes) -> dict[str, Any]:
    levels = 1 + max(
        int(match[1]) for match in (re.match(r"down_blocks\.(\d+)\.", n) for n in shapes) if match
    )
    widths = [shapes[f"down_blocks.{level}.resnets.0.conv1.weight"][0] for level in range(levels)]
    attends = [f"down_blocks.{level}.attentions.0.norm.weight" in shapes for level in range(levels)]
    layers = [n for n in shapes if re.fullmatch(r"down_blocks\.0\.resnets\.\d+\.conv1\.weight", n)]
    to_k = shapes["mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"]
    return {
        **_blocks(widths, attends, len(layers)),
        "in_channels": shapes["conv_in.weight"][1],
        "out_channels": shapes["conv_out.weight"][0],
        "cross_attention_dim": to_k[1],
        "attention_head_dim": shapes["transformer_in.proj_in.weight"][0] // INPUT_HEADS,
        "time_cond_proj_dim": shapes.get("time_embedding.cond_proj.weight", (None, None))[1],
        "skip_temporal_for_one_frame": True,  # as its published code does
    }


def _blocks(widths: list[int], attends: list[bool], layers: int) -> dict[str, Any]:
    down = ["CrossAttnDownBlock3D" if attention else "DownBlock3D" for attention in attends]
    up = ["CrossAttnUpBlock3D" if attention else "UpBlock3D" for attention in reversed(attends)]
    return {
        "block_out_channels": widths,
        "down_block_types": down,
        "up_block_types": up,
        "layers_per_block": layers,
    }
