"""Text: cleaning, padding, and that every token counts."""

import pytest
import torch
from torch.testing import assert_close

from turbo.networks.text import clean_prompt, clip_tokenizer, tokenize


@pytest.mark.parametrize(
    "prompt, cleaned",
    [
        ("  a\tcat \n", "a cat"),
        ("cat &amp;amp; dog", "cat & dog"),
        ("1 < 2 &amp;amp; 3", "1 < 2 & 3"),  # beside a "<" ftfy leaves escapes as they are
        ("schÃ¶n", "schön"),
        ("👩‍👩‍👧", "👩‍👩‍👧"),
        ("", ""),
    ],
)
def test_prompts_are_cleaned(prompt, cleaned):
    assert clean_prompt(prompt) == cleaned


def test_padding_is_zero_after_the_end_token(tiny_text_encoder):
    tokenizer = tiny_text_encoder.tokenizer

    tokens = tokenize(tokenizer, ["a cat", ""])

    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    a, cat = tokenizer.convert_tokens_to_ids(["a</w>", "cat</w>"])
    assert tokens.shape == (2, 24)
    assert tokens[0].tolist() == [start, a, cat, end] + [0] * 20
    assert tokens[1].tolist() == [start, end] + [0] * 22


def test_long_prompts_are_cut_and_keep_their_end_token(tiny_text_encoder):
    tokens = tokenize(tiny_text_encoder.tokenizer, ["cat " * 100])

    assert tokens.shape == (1, 24)
    assert tokens[0, -1] == tiny_text_encoder.tokenizer.eos_token_id


def test_an_exclamation_mark_is_a_word_like_others(tiny_text_encoder):
    assert not torch.equal(*tokenize(tiny_text_encoder.tokenizer, ["a cat!", "a cat"]))


def test_encoding_of_a_prompt_does_not_depend_on_its_neighbours(tiny_text_encoder):
    alone = tiny_text_encoder.encode(["a cat"])
    together = tiny_text_encoder.encode(["a cat", "a very long dog"])

    assert alone.shape == (1, 24, 16)
    assert_close(together[:1], alone, rtol=0, atol=1e-5)
    assert not alone.requires_grad


def test_tokens_of_the_published_tokenizer_parity(golden):
    """The tower itself is compared in test_turbo_convert_text.py."""
    recorded = golden("text_tiny")

    tokens = tokenize(clip_tokenizer(), recorded.metadata("prompts"))

    assert torch.equal(tokens, recorded["token_ids"])


def test_words_that_are_not_read_change_no_token(tiny_text_encoder):
    limit = tiny_text_encoder.tokenizer.model_max_length
    prompt = " ".join(["cat"] * limit * 2)

    unread = tiny_text_encoder.unread(prompt)

    read = prompt.removesuffix(unread)
    assert read != prompt
    assert tiny_text_encoder.unread(read) == ""
    assert torch.equal(*(tokenize(tiny_text_encoder.tokenizer, [text]) for text in (prompt, read)))
