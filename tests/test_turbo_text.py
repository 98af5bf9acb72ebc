"""Text: cleaning, padding, and that every token counts."""

import pytest
import torch
from torch.testing import assert_close
from transformers import CLIPTextConfig, CLIPTextModel

from golden import Golden
from turbo.text import clean_prompt


@pytest.mark.parametrize(
    "prompt, cleaned",
    [
        ("  a\tcat \n", "a cat"),
        ("cat &amp;amp; dog", "cat & dog"),
        ("schÃ¶n", "schön"),
        ("👩‍👩‍👧", "👩‍👩‍👧"),
        ("", ""),
    ],
)
def test_prompts_are_cleaned(prompt, cleaned):
    assert clean_prompt(prompt) == cleaned


def test_padding_is_zero_after_the_end_token(tiny_text_encoder):
    tokenizer = tiny_text_encoder.tokenizer

    tokens = tiny_text_encoder.tokenize(["a cat", ""])

    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    a, cat = tokenizer.convert_tokens_to_ids(["a</w>", "cat</w>"])
    assert tokens.shape == (2, 24)
    assert tokens[0].tolist() == [start, a, cat, end] + [0] * 20
    assert tokens[1].tolist() == [start, end] + [0] * 22


def test_long_prompts_are_cut_and_keep_their_end_token(tiny_text_encoder):
    tokens = tiny_text_encoder.tokenize(["cat " * 100])

    assert tokens.shape == (1, 24)
    assert tokens[0, -1] == tiny_text_encoder.tokenizer.eos_token_id


def test_an_exclamation_mark_is_a_word_like_others(tiny_text_encoder):
    assert not torch.equal(*tiny_text_encoder.tokenize(["a cat!", "a cat"]))


def test_encoding_of_a_prompt_does_not_depend_on_its_neighbours(tiny_text_encoder):
    alone = tiny_text_encoder.encode(["a cat"])
    together = tiny_text_encoder.encode(["a cat", "a very long dog"])

    assert alone.shape == (1, 24, 16)
    assert_close(together[:1], alone, rtol=0, atol=1e-5)
    assert not alone.requires_grad


def test_encoding_is_that_of_the_published_text_tower(golden):
    recorded = golden("text_tiny")
    config = CLIPTextConfig(
        hidden_size=64, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
        hidden_act="gelu", vocab_size=49408, eos_token_id=49407,
    )  # fmt: skip
    model = CLIPTextModel(config).eval()
    model.load_state_dict(_from_open_clip(recorded), strict=False)

    with torch.no_grad():
        embeds = model(input_ids=recorded["token_ids"]).last_hidden_state

    assert_close(embeds, recorded["penultimate"], rtol=0, atol=2e-5)


def _from_open_clip(recorded: Golden) -> dict[str, torch.Tensor]:
    """Rename the published tower, whose last block is not used, to transformers' names."""
    theirs = {name.removeprefix("model."): t for name, t in recorded.weights().items()}
    words = torch.zeros(49408, 64)
    words[recorded["token_rows/ids"]] = recorded["token_rows/values__f16"].float()
    ours = {
        "embeddings.token_embedding.weight": words,
        "embeddings.position_embedding.weight": theirs["positional_embedding"],
    }
    for end in ("weight", "bias"):
        ours[f"final_layer_norm.{end}"] = theirs[f"ln_final.{end}"]
        for index in range(3):
            block, layer = f"transformer.resblocks.{index}", f"encoder.layers.{index}"
            joint = theirs[f"{block}.attn.in_proj_{end}"].chunk(3)
            for name, part in zip("qkv", joint, strict=True):
                ours[f"{layer}.self_attn.{name}_proj.{end}"] = part
            for old, new in {
                "attn.out_proj": "self_attn.out_proj",
                "ln_1": "layer_norm1",
                "ln_2": "layer_norm2",
                "mlp.c_fc": "mlp.fc1",
                "mlp.c_proj": "mlp.fc2",
            }.items():
                ours[f"{layer}.{new}.{end}"] = theirs[f"{block}.{old}.{end}"]
    return ours
