"""Text encoders: a tokenizer, then a text transformer. CLIP for the video UNet, UMT5 for Wan."""

import html
import re
from collections.abc import Iterable
from pathlib import Path

import ftfy
import torch
from einops import rearrange
from jaxtyping import Int
from torch import Tensor
from transformers import (
    AutoTokenizer,
    BatchEncoding,
    CLIPTextModel,
    CLIPTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    UMT5EncoderModel,
)

from turbo.types import PromptEmbeds, TextEncoder


def clean_prompt(prompt: str) -> str:
    """Repair broken Unicode, decode HTML escapes, and collapse white space, as OpenCLIP does.

    Escapes are decoded twice: captions from the web are often escaped twice.
    """
    fixed = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return re.sub(r"\s+", " ", fixed).strip()


def clip_tokenizer() -> CLIPTokenizer:
    """Return CLIP's tokenizer from the vocabulary in the OpenCLIP package: no download.

    For checkpoints without a tokenizer, such as VideoCrafter2's.
    """
    from open_clip.tokenizer import SimpleTokenizer  # takes seconds; only a conversion needs it

    published = SimpleTokenizer()
    names = {published.sot_token_id: "<|startoftext|>", published.eot_token_id: "<|endoftext|>"}
    vocab = {names.get(index, token): index for token, index in published.encoder.items()}
    merges = sorted(published.bpe_ranks, key=published.bpe_ranks.__getitem__)
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=published.context_length)


def load_tokenizer(folder: Path, num_tokens: int) -> CLIPTokenizer:
    """Load the tokenizer of a text encoder with this number of tokens.

    Raises:
        ValueError: the numbers differ; from a folder without a vocabulary, transformers makes a
            tokenizer with hardly any tokens instead of failing.
    """
    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    if len(tokenizer) != num_tokens:
        raise ValueError(
            f"The tokenizer in {folder} has {len(tokenizer):,} tokens, but its text encoder has "
            f"{num_tokens:,}. Delete that folder, then convert or fetch the model again."
        )
    return tokenizer


def pad_tokens(tokenizer: PreTrainedTokenizerBase, texts: list[str], length: int) -> BatchEncoding:
    """Return the token ids of texts, cut or padded to a length, and their attention mask."""
    return tokenizer(
        texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    )


def tokenize(tokenizer: CLIPTokenizer, prompts: list[str]) -> Int[Tensor, "B L"]:
    """Return token ids, cut to the model's length and padded with id 0 after the end token.

    The UNet attends to padding too, so the padding id matters: OpenCLIP pads with 0, CLIP's own
    tokenizer with the end token.
    """
    texts = [clean_prompt(prompt) for prompt in prompts]
    ids = pad_tokens(tokenizer, texts, tokenizer.model_max_length).input_ids
    ended = (ids == tokenizer.eos_token_id).long().cumsum(dim=1)
    after_end = torch.cat([torch.zeros_like(ended[:, :1]), ended[:, :-1]], dim=1) > 0
    return ids.masked_fill(after_end, 0)


def read_umt5_tokenizer(file: Path) -> PreTrainedTokenizerFast:
    """Read UMT5's tokenizer from its tokenizer.json."""
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_file=str(file), model_max_length=512, **special)


def load_umt5_tokenizer(folder: Path, num_tokens: int) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a text encoder with this number of tokens.

    Raises:
        ValueError: it has more tokens; the encoder's number is rounded up.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if len(tokenizer) > num_tokens:
        raise ValueError(
            f"The tokenizer in {folder} has {len(tokenizer):,} tokens, but its text encoder has "
            f"{num_tokens:,}. Delete that folder, then convert or fetch the model again."
        )
    return tokenizer


def find_unread(tokenizer: CLIPTokenizer | PreTrainedTokenizerFast, prompt: str, read: int) -> str:
    """Return the words at the end of a prompt that are beyond its first `read` tokens."""
    text = clean_prompt(prompt)
    offsets = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    ).offset_mapping
    if len(offsets) <= read:
        return ""
    begin, _ = offsets[read]
    return text[text.rfind(" ", 0, begin + 1) + 1 :].strip()


class CLIPTextEncoder:
    """A tokenizer and a text transformer; the UNet attends to the embedding of every token.

    A `turbo.types.TextEncoder`.
    """

    def __init__(self, tokenizer: CLIPTokenizer, model: CLIPTextModel) -> None:
        self.tokenizer = tokenizer
        self.model = model.eval().requires_grad_(False)

    @classmethod
    def load(
        cls, tokenizer: Path, model: Path, dtype: torch.dtype = torch.float32
    ) -> "CLIPTextEncoder":
        """Load from two folders written by `save_pretrained`.

        Raises:
            ValueError: as for `load_tokenizer`.
        """
        transformer = CLIPTextModel.from_pretrained(model, local_files_only=True, dtype=dtype)
        return cls(load_tokenizer(tokenizer, transformer.config.vocab_size), transformer)

    def to(self, device: torch.device | str) -> "CLIPTextEncoder":
        self.model.to(device)
        return self

    def unread(self, prompt: str) -> str:
        """Return the words at the end of a prompt that are beyond the tokens the model reads.

        A word that is read in part counts as unread. The text is that of `clean_prompt`.
        """
        # without the start and the end token
        return find_unread(self.tokenizer, prompt, self.tokenizer.model_max_length - 2)

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> PromptEmbeds:
        """Embed every token of every prompt; the empty prompt is the unconditional one."""
        tokens = tokenize(self.tokenizer, prompts).to(self.model.device)
        return self.model(input_ids=tokens).last_hidden_state


class UMT5TextEncoder:
    """UMT5's SentencePiece tokenizer and its encoder, as Wan reads it: zeros after the end.

    A `turbo.types.TextEncoder`. The published one is four times as large as the network that it
    serves, so memory "offload" keeps it off the device once it has encoded.

    Source: Wan, arXiv:2503.20314, section 4.2.
    """

    TOKENS = 512  # to which prompts are cut and padded

    def __init__(self, tokenizer: PreTrainedTokenizerFast, model: UMT5EncoderModel) -> None:
        self.tokenizer = tokenizer
        self.model = model.eval().requires_grad_(False)
        self.num_tokens = min(self.TOKENS, tokenizer.model_max_length)

    @classmethod
    def load(
        cls, tokenizer: Path, model: Path, dtype: torch.dtype = torch.float32
    ) -> "UMT5TextEncoder":
        """Load from two folders written by `save_pretrained`.

        Raises:
            ValueError: as for `load_umt5_tokenizer`.
        """
        transformer = UMT5EncoderModel.from_pretrained(model, local_files_only=True, dtype=dtype)
        words = load_umt5_tokenizer(tokenizer, transformer.config.vocab_size)
        return cls(words, transformer)

    def to(self, device: torch.device | str) -> "UMT5TextEncoder":
        self.model.to(device)
        return self

    def unread(self, prompt: str) -> str:
        """Return the words at the end of a prompt that are beyond the tokens the model reads."""
        return find_unread(self.tokenizer, prompt, self.num_tokens - 1)  # without the end token

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> PromptEmbeds:
        """Embed every token of every prompt; zeros after the end token."""
        texts = [clean_prompt(prompt) for prompt in prompts]
        tokens = pad_tokens(self.tokenizer, texts, self.num_tokens).to(self.model.device)
        embeds = self.model(tokens.input_ids, tokens.attention_mask).last_hidden_state
        return embeds * rearrange(tokens.attention_mask, "B L -> B L 1").to(embeds)


class KnownPrompts:
    """The embeddings of a few prompts, in place of the text encoder that made them.

    The encoder can then be let go of. A `turbo.types.TextEncoder`.
    """

    def __init__(self, encoder: TextEncoder, prompts: Iterable[str]) -> None:
        self.known = {
            prompt: (encoder.encode([prompt]), encoder.unread(prompt)) for prompt in prompts
        }

    def to(self, device: torch.device | str) -> "KnownPrompts":
        self.known = {p: (embeds.to(device), rest) for p, (embeds, rest) in self.known.items()}
        return self

    def unread(self, prompt: str) -> str:
        """Return the words at the end of a prompt that the text encoder did not read."""
        return self._find(prompt)[1]

    def encode(self, prompts: list[str]) -> PromptEmbeds:
        """Return the embeddings that the text encoder made of each prompt by itself.

        Raises:
            ValueError: a prompt is not known.
        """
        return torch.cat([self._find(prompt)[0] for prompt in prompts])

    def _find(self, prompt: str) -> tuple[PromptEmbeds, str]:
        if prompt not in self.known:
            raise ValueError(
                f"The prompt {prompt!r} is not among the {len(self.known)} that were embedded, and "
                "the text encoder is no longer loaded. Name it when you make KnownPrompts."
            )
        return self.known[prompt]
