"""Tensors and networks recorded from the published implementation."""

import gzip
import hashlib
import json
import zlib
from math import prod, sqrt
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from turbo.unet import VideoUNet

TINY_VC2 = {
    "block_out_channels": (32, 32, 32, 64),
    "cross_attention_dim": 64,
    "attention_head_dim": 8,
    "fps_conditioning": True,
}
TINY_MS = {
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    "layers_per_block": 1,
    "cross_attention_dim": 64,
    "attention_head_dim": 8,
}
VARIANTS = {
    "teacher": {},
    "v1": {"time_cond_proj_dim": 256},
    "v2": {"time_cond_proj_dim": 256, "motion_conditioning": True},
}


class Golden:
    """One recorded file, by tensor name."""

    def __init__(self, path: Path) -> None:
        self.folder = path.parent
        self.file = safe_open(path, framework="pt")

    def __getitem__(self, name: str) -> Tensor:
        return self.file.get_tensor(name)

    def names(self, prefix: str) -> list[str]:
        return [name for name in self.file.keys() if name.startswith(prefix)]

    def metadata(self, name: str) -> dict | list:
        return json.loads(self.file.metadata()[name])

    def weights(self) -> dict[str, Tensor]:
        return {name.removeprefix("sd/"): self[name].float() for name in self.names("sd/")}


def recipe_weights(recorded: Golden, **constants: float) -> dict[str, Tensor]:
    """Make the weights of a file that holds only the rule to draw them, by published name.

    Args:
        constants: tensors that the rule excepts.
    """
    seed, weights = recorded.metadata("seed"), {}
    for name, shape in recorded.metadata("sd_shapes").items():
        if name in constants:
            weights[name] = torch.tensor(constants[name])
            continue
        random = np.random.RandomState((zlib.crc32(name.encode()) ^ seed) & 0xFFFFFFFF)
        draw = random.randint(-2048, 2049, size=prod(shape), dtype=np.int64)
        values = draw.astype(np.float32) / np.float32(2048)
        if len(shape) > 1:
            values = values * np.float32(sqrt(3 / prod(shape[1:])))
        else:
            values = 1 + 0.25 * values if name.endswith(".weight") else 0.125 * values
        weights[name] = torch.from_numpy(values.astype(np.float32).reshape(shape))
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].numpy().astype("<f4").tobytes())
    assert digest.hexdigest() == recorded.file.metadata()["sd_sha256"]
    return weights


def videocrafter_unet(
    recorded: Golden, variant: str, weights: dict[str, Tensor] | None = None
) -> VideoUNet:
    """Build the tiny VideoCrafter2 network from weights under their published names."""
    file = recorded.folder / "inventory" / "vc2_unet_v2_key_map_to_diffusers.json.gz"
    names = json.loads(gzip.decompress(file.read_bytes()))
    own = {"fps_embedding", "motion_cond_proj", "combine_proj"}
    weights = weights or recorded.weights()
    ours = {}
    for theirs, tensor in weights.items():
        # The full-size network, whose names these are, has no shortcut at its deepest level.
        twin = theirs.replace("skip_connection", "in_layers.2")
        name = names[twin].replace("conv1", "conv_shortcut") if twin != theirs else names[theirs]
        name = f"time_embedding.{name}" if name.partition(".")[0] in own else name
        # The published input transformer projects by a Conv1d.
        ours[name] = tensor.squeeze(-1) if name.startswith("transformer_in.proj") else tensor
    return _load(VideoUNet(**TINY_VC2, **VARIANTS[variant]), ours)


def modelscope_unet(recorded: Golden, variant: str) -> VideoUNet:
    """Build the tiny ModelScope network, whose published names are diffusers' own."""
    return _load(VideoUNet(**TINY_MS, **VARIANTS[variant]), recorded.weights())


def merged_lora(recorded: Golden, base: dict[str, Tensor]) -> dict[str, Tensor]:
    """Fold a published list of LoRA pairs into the weights it was trained on."""
    merged = dict(base)
    for index, (module, _, _) in enumerate(recorded.metadata("table")):
        up, down = (recorded[f"lora/{index:04d}.{end}"].float() for end in ("up", "down"))
        name = f"{module}.weight"
        change = up.flatten(1) @ down.flatten(1)
        merged[name] = base[name] + change.reshape(base[name].shape)
    return merged


def _load(unet: VideoUNet, weights: dict[str, Tensor]) -> VideoUNet:
    missing, _ = unet.load_state_dict(weights, strict=False)
    assert not missing
    return unet.eval().requires_grad_(False)
