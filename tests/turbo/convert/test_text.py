"""The published text encoder: OpenCLIP's names, its last block unused, and transformers' names."""

import gzip
import json

import pytest
import torch
from torch.testing import assert_close

from tests.support.golden import Golden, shapes_of
from turbo.convert.text import BLOCKS, map_open_clip_text, map_transformers_text

PREFIX = "cond_stage_model.model."


def published_tower(recorded: Golden) -> dict[str, torch.Tensor]:
    """Return the recorded weights with the token embedding, of which some rows are recorded."""
    weights = {name.removeprefix("model."): t for name, t in recorded.weights().items()}
    text = recorded.metadata("config")["arch"]["text_cfg"]
    words = torch.zeros(text["vocab_size"], text["width"])
    words[recorded["token_rows/ids"]] = recorded["token_rows/values__f16"].float()
    return {**weights, "token_embedding.weight": words}


def test_full_size_names_and_shapes_are_the_published_ones(golden):
    folder = golden("text_tiny").folder / "inventory"
    file = folder / "vc2_latentdiffusion_ckpt.json.gz"
    published = json.loads(gzip.decompress(file.read_bytes()))
    own = {n: tuple(s) for n, s in published.items() if n.startswith(PREFIX)}

    part = map_open_clip_text({n: tuple(s) for n, s in published.items()}, PREFIX, blocks=BLOCKS)

    assert part.expected == {n: s for n, s in own.items() if n not in part.unused}
    assert part.expected.keys() | part.unused == own.keys()
    config = part.network.config
    assert (config.num_hidden_layers, config.num_attention_heads) == (23, 16)
    assert (config.hidden_size, config.intermediate_size) == (1024, 4096)


@pytest.mark.parametrize("dtype, expected, tolerance", [
    (torch.float32, "penultimate", 2e-5), (torch.float64, "penultimate__f64", 1e-12)
])  # fmt: skip
@torch.no_grad()
def test_converted_text_tower_parity(dtype, expected, tolerance, golden):
    recorded = golden("text_tiny")
    weights = {name: tensor.to(dtype) for name, tensor in published_tower(recorded).items()}
    sizes = recorded.metadata("config")["arch"]["text_cfg"]
    part = map_open_clip_text(shapes_of(weights), blocks=sizes["layers"] - 1, heads=sizes["heads"])
    tower = part.filled(weights)

    embedded = tower(input_ids=recorded["token_ids"]).last_hidden_state

    assert_close(embedded, recorded[expected], rtol=0, atol=tolerance)


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_names_of_transformers_old_and_new_lead_to_the_same_tensors(prefix, golden):
    recorded = golden("text_tiny")
    weights = published_tower(recorded)
    blocks = recorded.metadata("config")["arch"]["text_cfg"]["layers"] - 1
    ours = map_open_clip_text(shapes_of(weights), blocks=blocks).rename(weights)
    published = {f"{prefix}{name}": tensor for name, tensor in ours.items()}

    part = map_transformers_text(shapes_of(published), blocks=blocks)

    assert_close(part.rename(published), ours, rtol=0, atol=0)
