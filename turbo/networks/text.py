"""Prompts to embeddings: CLIP's byte-pair tokens, then CLIP's text tower."""

import html
import re
from pathlib import Path

import ftfy
import torch
from jaxtyping import Int
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from turbo.types import PromptEmbeds


def clean_prompt(prompt: str) -> str:
    """Undo broken Unicode and HTML escapes, and collapse white space, as OpenCLIP does.

    Escapes are undone twice: captions from the web are often escaped twice.
    """
    fixed = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return re.sub(r"\s+", " ", fixed).strip()


def clip_tokenizer() -> CLIPTokenizer:
    """Return CLIP's tokenizer, made from the vocabulary that OpenCLIP brings: no download.

    For checkpoints that come without one, as VideoCrafter2's does.
    """
    from open_clip.tokenizer import SimpleTokenizer  # takes seconds, and only a conversion needs it

    published = SimpleTokenizer()
    names = {published.sot_token_id: "<|startoftext|>", published.eot_token_id: "<|endoftext|>"}
    vocab = {names.get(index, token): index for token, index in published.encoder.items()}
    merges = sorted(published.bpe_ranks, key=published.bpe_ranks.__getitem__)
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=published.context_length)


def load_tokenizer(folder: Path, num_tokens: int) -> CLIPTokenizer:
    """Load the tokenizer of a text encoder that knows so many tokens.

    Raises:
        ValueError: it has another number of them; transformers makes one of hardly any out of a
            folder without its vocabulary.
    """
    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    if len(tokenizer) != num_tokens:
        raise ValueError(
            f"Expected {num_tokens:,} tokens, as the text encoder knows, in {folder}, got "
            f"{len(tokenizer):,}. Delete that folder, and convert or fetch again."
        )
    return tokenizer


def tokenize(tokenizer: CLIPTokenizer, prompts: list[str]) -> Int[Tensor, "B L"]:
    """Return token ids, cut to the model's length and padded with id 0 after the end token.

    The UNet attends to padding too, so the id matters: OpenCLIP pads with 0, CLIP's own
    tokenizer with the end token.
    """
    ids = tokenizer(
        [clean_prompt(prompt) for prompt in prompts],
        padding="max_length",
        truncation=True,
        max_length=tokenizer.model_max_length,
        return_tensors="pt",
    ).input_ids
    ended = (ids == tokenizer.eos_token_id).long().cumsum(dim=1)
    after_end = torch.cat([torch.zeros_like(ended[:, :1]), ended[:, :-1]], dim=1) > 0
    return ids.masked_fill(after_end, 0)


class TextEncoder:
    """A tokenizer and a text tower; every token's embedding conditions the UNet."""

    def __init__(self, tokenizer: CLIPTokenizer, model: CLIPTextModel) -> None:
        self.tokenizer = tokenizer
        self.model = model.eval().requires_grad_(False)

    @classmethod
    def load(
        cls, tokenizer: Path, model: Path, dtype: torch.dtype = torch.float32
    ) -> "TextEncoder":
        """Load from two folders written by `save_pretrained`.

        Raises:
            ValueError: as for `load_tokenizer`.
        """
        tower = CLIPTextModel.from_pretrained(model, local_files_only=True, dtype=dtype)
        return cls(load_tokenizer(tokenizer, tower.config.vocab_size), tower)

    def to(self, device: torch.device | str) -> "TextEncoder":
        self.model.to(device)
        return self

    def tokenize(self, prompts: list[str]) -> Int[Tensor, "B L"]:
        """Return the token ids of `tokenize`."""
        return tokenize(self.tokenizer, prompts)

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> PromptEmbeds:
        """Embed every token of every prompt; the empty prompt is the unconditional one."""
        tokens = self.tokenize(prompts).to(self.model.device)
        return self.model(input_ids=tokens).last_hidden_state
