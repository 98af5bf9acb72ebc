"""Tensors and networks recorded from the published implementation."""

import hashlib
import json
import os
import zlib
from math import prod, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from torch import Tensor

from turbo.convert.part import Shapes
from turbo.convert.unet import map_modelscope_unet, map_videocrafter_unet
from turbo.convert.vae import map_latent_diffusion_vae
from turbo.diffusion.schedule import NoiseSchedule
from turbo.networks.unet import VideoUNet

# What a variant lacks of the recorded networks, which are T2V-Turbo-v2's and a student's of MS.
LACKING = {
    "teacher": (
        "time_cond_proj.",
        "motion_cond_proj.",
        "combine_proj.",
        "time_embedding.cond_proj.",
    ),
    "v1": ("motion_cond_proj.", "combine_proj."),
    "v2": (),
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
        """Return the weights by their published names, stored or made by the file's recipe."""
        if "recipe" in self.file.metadata():
            return recipe_weights(self)
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


def shapes_of(weights: dict[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def variant_of(weights: dict[str, Tensor], variant: str) -> dict[str, Tensor]:
    """Return a copy of the tensors that a variant has."""
    lacking = LACKING[variant]
    return {name: t.clone() for name, t in weights.items() if not name.startswith(lacking)}


def videocrafter_unet(
    recorded: Golden, variant: str, weights: dict[str, Tensor] | None = None
) -> VideoUNet:
    """Convert a VideoCrafter2 network from weights under their published names."""
    weights = variant_of(weights or recorded.weights(), variant)
    return map_videocrafter_unet(shapes_of(weights)).filled(weights)


def modelscope_unet(
    recorded: Golden, variant: str, weights: dict[str, Tensor] | None = None
) -> VideoUNet:
    """Convert a ModelScope network, whose published names are diffusers' own."""
    weights = variant_of(weights or recorded.weights(), variant)
    return map_modelscope_unet(shapes_of(weights)).filled(weights)


def merged_lora(recorded: Golden, base: dict[str, Tensor]) -> dict[str, Tensor]:
    """Fold a published list of LoRA pairs into the weights it was trained on."""
    merged = dict(base)
    for index, (module, _, _) in enumerate(recorded.metadata("table")):
        up, down = (recorded[f"lora/{index:04d}.{end}"].float() for end in ("up", "down"))
        name = f"{module}.weight"
        change = up.flatten(1) @ down.flatten(1)
        merged[name] = base[name] + change.reshape(base[name].shape)
    return merged


def latent_diffusion_vae(recorded: Golden, dtype: torch.dtype = torch.float32) -> AutoencoderKL:
    """Convert a VAE from weights under their published names."""
    weights = {name: tensor.to(dtype) for name, tensor in recorded.weights().items()}
    return map_latent_diffusion_vae(shapes_of(weights)).filled(weights)


@pytest.fixture
def published_schedule(golden) -> NoiseSchedule:
    """The recorded schedule: torch's own `linspace` depends on the processor in the last bit."""
    return NoiseSchedule(golden("scheduler")["alphas_cumprod"])


@pytest.fixture
def golden():
    """Open a file recorded from the published implementation, or skip where there is none."""
    beside = Path(__file__).parents[3] / "shared" / "parity"
    folder = Path(os.environ.get("T2V_PARITY_DIR", beside))

    def open_golden(name: str) -> Golden:
        path = folder / f"{name}.safetensors"
        if not path.exists():
            pytest.skip(f"no {path.name} of the published implementation; set T2V_PARITY_DIR")
        return Golden(path)

    return open_golden
