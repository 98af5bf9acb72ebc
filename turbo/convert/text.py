"""Map the text encoder of OpenCLIP ViT-H/14, used by both teachers, to transformers' names.

The prompt embedding is the output of the last but one block, normalised; the last block is unused.
"""

from collections.abc import Iterable

import torch
from transformers import CLIPTextConfig, CLIPTextModel

from turbo.convert.part import Origin, Part, Shapes, renamed_part

BLOCKS = 23  # of the published 24: the last one is unused
HEAD_WIDTH = 64  # of every published CLIP
END_TOKEN = 49407

OPEN_CLIP_LEAVES = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_AROUND = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_UNUSED = ("text_projection", "logit_scale", "attn_mask")


def map_open_clip_text(
    shapes: Shapes, prefix: str = "", *, blocks: int, heads: int | None = None
) -> Part:
    """Return the text encoder with tensors of these shapes, under OpenCLIP's names.

    Args:
        blocks: to use.
        heads: of its attention; cannot be inferred. None means heads of width 64, as published.

    Raises:
        KeyError: name of a missing tensor that determines the configuration.
    """
    own = {name.removeprefix(prefix): s for name, s in shapes.items() if name.startswith(prefix)}
    encoder = _on_meta(
        own["token_embedding.weight"],
        positions=own["positional_embedding"][0],
        hidden=own["transformer.resblocks.0.mlp.c_fc.weight"][0],
        blocks=blocks,
        heads=heads,
    )
    return open_clip_part(encoder, own, prefix)


def open_clip_part(encoder: CLIPTextModel, names: Iterable[str] = (), prefix: str = "") -> Part:
    """Return a text encoder with the origins of its tensors under OpenCLIP's names.

    Args:
        names: of all tensors in the file, without the prefix.
    """
    origins = {}
    for name, tensor in encoder.state_dict().items():
        theirs, third = open_clip_name(name)
        rows, *columns = tensor.shape
        shape = (rows, *columns) if third is None else (3 * rows, *columns)
        origins[name] = Origin(prefix + theirs, shape, third)
    last = f"transformer.resblocks.{encoder.config.num_hidden_layers}."
    unused = [name for name in names if name.startswith(last) or name in _UNUSED]
    return Part(encoder, origins, frozenset(prefix + name for name in unused))


def map_transformers_text(shapes: Shapes, *, blocks: int) -> Part:
    """Return the text encoder with tensors of these shapes, under transformers' names.

    In transformers < 5, and so in ModelScope's file, they have the prefix `text_model.`.

    Args:
        blocks: to use.

    Raises:
        KeyError: name of a missing tensor that determines the configuration.
    """
    prefix = "text_model." if any(name.startswith("text_model.") for name in shapes) else ""
    encoder = _on_meta(
        shapes[f"{prefix}embeddings.token_embedding.weight"],
        positions=shapes[f"{prefix}embeddings.position_embedding.weight"][0],
        hidden=shapes[f"{prefix}encoder.layers.0.mlp.fc1.weight"][0],
        blocks=blocks,
    )
    return transformers_part(encoder, prefix)


def transformers_part(encoder: CLIPTextModel, prefix: str) -> Part:
    """Return a text encoder with its origins under transformers' names: ours, after a prefix."""
    unused = frozenset({f"{prefix}embeddings.position_ids"})
    return renamed_part(encoder, prefix.__add__, unused)


def published_text_encoder() -> CLIPTextModel:
    """Return the text encoder of both teachers, on the meta device."""
    return _on_meta((49408, 1024), positions=77, hidden=4096, blocks=BLOCKS, heads=16)


def open_clip_name(name: str) -> tuple[str, int | None]:
    """Return OpenCLIP's name of our tensor, and which third of it is ours (None: all of it)."""
    if name in _AROUND:
        return _AROUND[name], None
    _, _, block, *middle, end = name.split(".")
    leaf = ".".join(middle)
    prefix = f"transformer.resblocks.{block}"
    if leaf in OPEN_CLIP_LEAVES:
        return f"{prefix}.{OPEN_CLIP_LEAVES[leaf]}.{end}", None
    third = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"].index(leaf)
    return f"{prefix}.attn.in_proj_{end}", third


def _on_meta(
    embedding: tuple[int, ...],
    *,
    positions: int,
    hidden: int,
    blocks: int,
    heads: int | None = None,
) -> CLIPTextModel:
    vocabulary, width = embedding
    configuration = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=blocks,
        num_attention_heads=heads or max(1, width // HEAD_WIDTH),
        max_position_embeddings=positions,
        hidden_act="gelu",
        bos_token_id=END_TOKEN - 1,
        eos_token_id=END_TOKEN,
        pad_token_id=0,
    )
    with torch.device("meta"):
        encoder = CLIPTextModel(configuration)
    # The only tensor that is not in the file.
    encoder.embeddings.position_ids = torch.arange(positions).expand(1, -1)
    return encoder
