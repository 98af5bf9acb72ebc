"""Published reward networks, read from the files as they were published.

Each reader knows where every tensor of ours stands in the file, refuses a file that lacks one, and
reads nothing else.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from turbo.convert.checkpoint import Checkpoint, open_checkpoint
from turbo.convert.difference import refuse_differences
from turbo.convert.part import Origin, Part
from turbo.convert.text import END_TOKEN, open_clip_name
from turbo.rewards.internvideo2 import InternVideo2, InternVideo2Config, stretch_positions
from turbo.rewards.viclip import ViCLIP, ViCLIPConfig

Network = TypeVar("Network", bound=nn.Module)

# OpenCLIP's ViT-H/14, in the words of transformers.
CLIP_H: dict[str, Any] = {
    "projection_dim": 1024,
    "text_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
        "bos_token_id": END_TOKEN - 1,
        "eos_token_id": END_TOKEN,
        "pad_token_id": 0,
    },
    "vision_config": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "patch_size": 14,
        "hidden_act": "gelu",
    },
}
_CLIP_AROUND = {
    "logit_scale": "logit_scale",
    "text_projection.weight": "text_projection",
    "visual_projection.weight": "visual.proj",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",  # their spelling
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
}
_TRANSPOSED = ("text_projection", "visual.proj")  # multiplied from the right; ours are Linear

_INTERNVIDEO2_UNUSED = (  # of pre-training, and of the fusion of text with video
    "temp",
    "itm_head.",
    "text_encoder.",
    "vision_encoder.img_pos_embed",
    "vision_encoder.clip_pos_embed",
    "vision_encoder.clip_img_pos_embed",
    "vision_encoder.clip_decoder.",
    "vision_encoder.final_clip_decoder.",
)


def read_open_clip(file: Path, config: CLIPConfig | None = None) -> CLIPModel:
    """Read a CLIP model that OpenCLIP saved; of ViT-H/14, unless told otherwise."""
    part = open_clip_part(config or CLIPConfig(**CLIP_H))
    published = _read(open_checkpoint(file), part)
    for name in _TRANSPOSED:
        published[name] = published[name].T.contiguous()
    return part.filled(published)


def open_clip_part(config: CLIPConfig) -> Part:
    """Return a CLIP model, and where OpenCLIP keeps its tensors."""
    model = _on_meta(lambda: CLIPModel(config))
    origins = {}
    for name, tensor in model.state_dict().items():
        theirs, third = _open_clip_name(name)
        shape = tuple(tensor.shape)
        if third is not None:
            shape = (3 * shape[0], *shape[1:])
        origins[name] = Origin(theirs, shape[::-1] if theirs in _TRANSPOSED else shape, third)
    return Part(model, origins)


def _open_clip_name(name: str) -> tuple[str, int | None]:
    if name in _CLIP_AROUND:
        return _CLIP_AROUND[name], None
    tower, _, rest = name.partition(".")
    theirs, third = open_clip_name(rest)
    return (theirs if tower == "text_model" else f"visual.{theirs}"), third


def read_viclip(file: Path, config: ViCLIPConfig | None = None) -> ViCLIP:
    """Read ViCLIP; of ViCLIP-L/14, unless told otherwise."""
    part = viclip_part(config or ViCLIPConfig())
    model = part.filled(_read(open_checkpoint(file), part))
    assert isinstance(model, ViCLIP)
    return model


def viclip_part(config: ViCLIPConfig) -> Part:
    """Return a ViCLIP, whose tensors bear their published names."""
    model = _on_meta(lambda: ViCLIP(config))
    return Part(model, {name: Origin(name, tuple(t.shape)) for name, t in _tensors(model)})


def read_internvideo2(
    file: Path, num_frames: int, config: InternVideo2Config | None = None
) -> InternVideo2:
    """Read InternVideo2, for any number of frames; of stage 2, 1B, unless told otherwise.

    Args:
        config: of the file; its positions are interpolated if it was trained on other frames.
    """
    config = config or InternVideo2Config()
    checkpoint = open_checkpoint(file)
    part = internvideo2_part(config, checkpoint.shapes)
    model = part.filled(_read(checkpoint, part))
    assert isinstance(model, InternVideo2)
    if num_frames != config.num_frames:
        positions = model.vision_encoder.pos_embed
        places = (config.size // config.patch) ** 2
        stretched = stretch_positions(positions, places, num_frames)
        model.vision_encoder.pos_embed = nn.Parameter(stretched, requires_grad=False)
        model.config = replace(config, num_frames=num_frames)
    return model


def internvideo2_part(config: InternVideo2Config, published: Collection[str]) -> Part:
    """Return an InternVideo2, and where its tensors stand among published names.

    Args:
        published: names of the file; `bert.` may stand in those of its text tower.
    """
    model = _on_meta(lambda: InternVideo2(config))
    wrapped = any(name.startswith("text_encoder.bert.") for name in published)
    tower = "text_encoder.bert." if wrapped else "text_encoder."
    origins = {
        name: Origin(name.replace("text_encoder.", tower, 1), tuple(tensor.shape))
        for name, tensor in _tensors(model)
    }
    needed = {origin.name for origin in origins.values()}
    unused = {name for name in published if name.startswith(_INTERNVIDEO2_UNUSED)} - needed
    return Part(model, origins, frozenset(unused))


def _read(checkpoint: Checkpoint, part: Part) -> dict[str, Tensor]:
    """Read what the part needs, in float32, or say how the file differs from it."""
    refuse_differences(checkpoint, part)
    return {name: checkpoint.read(name).float() for name in part.expected}


def _tensors(network: nn.Module) -> Iterable[tuple[str, Tensor]]:
    return network.state_dict().items()


def _on_meta(build: Callable[[], Network]) -> Network:
    """Build a network without memory for its parameters; the few constants no file holds are made.

    They are those of transformers: positions counted up, and token types that are all zero.
    """
    with torch.device("meta"):
        network = build()
    for module in network.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            constant = torch.zeros(buffer.shape, dtype=buffer.dtype)
            if name == "position_ids":
                constant = torch.arange(buffer.shape[-1]).expand(1, -1)
            module.register_buffer(name, constant, persistent=False)
    return network
