"""Tiny networks written the way the published files are: names, layouts, pickles."""

import gzip
import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from tests.support.tiny_models import randomise
from turbo.convert.adapters import adapter_order
from turbo.convert.part import Part
from turbo.convert.text import open_clip_name
from turbo.convert.unet import modelscope_part, videocrafter_part
from turbo.convert.vae import latent_diffusion_name
from turbo.networks.unet import VideoUNet

UNET = {
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    "layers_per_block": 1,
    "cross_attention_dim": 64,
    "attention_head_dim": 8,
}
STUDENT = {"time_cond_proj_dim": 256}
V2 = {**STUDENT, "motion_conditioning": True}
SCHEDULE = {"betas": torch.zeros(1000), "scale_arr": torch.ones(1400)}


def publish(part: Part) -> dict[str, Tensor]:
    """Return a UNet's weights by their published names."""
    tensors = part.network.state_dict()
    return {o.name: tensors[name].reshape(o.shape).clone() for name, o in part.origins.items()}


def videocrafter_unet(seed: int = 0, **changes) -> VideoUNet:
    return randomise(VideoUNet(**{**UNET, "fps_conditioning": True, **changes}), seed)


def modelscope_unet(seed: int = 0, **changes) -> VideoUNet:
    return randomise(VideoUNet(**{**UNET, **changes}), seed)


def vae() -> AutoencoderKL:
    network = AutoencoderKL(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
    )
    return randomise(network, seed=1)


def text_tower() -> CLIPTextModel:
    configuration = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=23,  # however narrow, it is as deep as the published one
        num_attention_heads=1,
        hidden_act="gelu",
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=0,
    )
    return randomise(CLIPTextModel(configuration), seed=2)


def videocrafter_checkpoint(unet: VideoUNet) -> dict[str, Tensor]:
    """Return what VideoCrafter2 keeps in one file, with the block of text tower nobody reads."""
    weights = {f"model.diffusion_model.{n}": t for n, t in publish(videocrafter_part(unet)).items()}
    image = vae()
    for name, tensor in image.state_dict().items():
        pointwise = tensor.ndim == 2  # its attention projects by convolutions
        theirs = f"first_stage_model.{latent_diffusion_name(name, levels=2)}"
        weights[theirs] = tensor[..., None, None] if pointwise else tensor
    weights |= {f"cond_stage_model.model.{n}": t for n, t in _open_clip(text_tower()).items()}
    return {**SCHEDULE, **weights}


def _open_clip(tower: CLIPTextModel) -> dict[str, Tensor]:
    published: dict[str, Tensor] = {"text_projection": torch.eye(64), "logit_scale": torch.ones(())}
    thirds: dict[str, list[Tensor]] = {}
    for name, tensor in tower.state_dict().items():
        theirs, third = open_clip_name(name)
        if third is None:
            published[theirs] = tensor.clone()
        else:
            thirds.setdefault(theirs, [torch.empty(0)] * 3)[third] = tensor
    published |= {name: torch.cat(parts) for name, parts in thirds.items()}
    last = {n: t for n, t in published.items() if n.startswith("transformer.resblocks.22.")}
    return published | {
        n.replace("resblocks.22", "resblocks.23"): t.clone() for n, t in last.items()
    }


def save_diffusers_layout(folder: Path, unet: VideoUNet) -> Path:
    """Write ModelScope's folders as diffusers and transformers of its time did."""
    for part in ("unet", "vae", "text_encoder"):
        (folder / part).mkdir(parents=True)
    torch.save(publish(modelscope_part(unet)), folder / "unet" / "diffusion_pytorch_model.bin")
    former = {
        ".to_q.": ".query.",
        ".to_k.": ".key.",
        ".to_v.": ".value.",
        ".to_out.0.": ".proj_attn.",
    }
    images = {}
    for name, tensor in vae().state_dict().items():
        for present, old in former.items():
            name = name.replace(present, old)
        images[name] = tensor
    torch.save(images, folder / "vae" / "diffusion_pytorch_model.bin")
    words = {f"text_model.{name}": t for name, t in text_tower().state_dict().items()}
    words["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    torch.save(words, folder / "text_encoder" / "pytorch_model.bin")
    return folder


def adapter_list(part: Part, rank: int = 3) -> list[Tensor]:
    """Return a published list of adapters for a student: [up, down, ...] without names."""
    generator, tensors = torch.Generator().manual_seed(5), []
    for layer in adapter_order(part):
        out, inner, *kernel = part.shapes[f"{layer}.weight"]
        narrow = min(rank, out, inner)
        tensors.append(0.1 * torch.randn(out, narrow, *(1 for _ in kernel), generator=generator))
        tensors.append(0.1 * torch.randn(narrow, inner, *kernel, generator=generator))
    return tensors


# The full networks at tiny width: every real name in its real order, each size of them smaller.
_SMALLER_UNET = {
    **{320: 32, 640: 64, 960: 96, 1280: 128, 1920: 192, 2560: 256, 5120: 512, 10240: 1024},
    **{512: 64, 2048: 256, 4096: 512},  # its first attention over time: 8 heads
    1024: 64,  # of the prompt
}
_SMALLER = {
    "first_stage_model.": {128: 32, 256: 64, 512: 128},
    "cond_stage_model.": {1024: 32, 3072: 96, 4096: 128},
}


def read_inventory(folder: Path, name: str) -> Any:
    """Return what was listed of a published file: names and shapes, or the adapters in order."""
    return json.loads(gzip.decompress((folder / "inventory" / f"{name}.json.gz").read_bytes()))


def smaller(name: str, shape: Iterable[int]) -> tuple[int, ...]:
    """Return the shape of a published tensor in the network at tiny width."""
    prefix = f"{name.partition('.')[0]}."
    sizes = _SMALLER.get(prefix, {} if "." not in name else _SMALLER_UNET)
    return tuple(sizes.get(size, size) for size in shape)


def draw(name: str, shape: Iterable[int]) -> Tensor:
    """Return random numbers that a published name has for itself."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(tuple(shape), generator=generator)


def full_file(inventory: dict[str, list[int]]) -> dict[str, Tensor]:
    """Return a published file with all its names, at tiny width."""
    return {name: draw(name, smaller(name, shape)) for name, shape in inventory.items()}


def full_adapters(table: list[dict[str, Any]]) -> list[Tensor]:
    """Return a published list of adapters of their real rank for a network at tiny width."""
    tensors = []
    for row in table:
        out, inner, *kernel = smaller(f"{row['module']}.weight", row["base"])
        tensors.append(draw(f"{row['module']}.up", (out, row["r"], *(1 for _ in kernel))))
        tensors.append(draw(f"{row['module']}.down", (row["r"], inner, *kernel)))
    return tensors
