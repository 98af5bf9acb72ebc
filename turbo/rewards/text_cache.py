"""Prompts embedded once: the text side of a reward is frozen, and a run repeats its captions."""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import nn

from turbo.types import Embedding

CACHED_PROMPTS = 20_000  # 80 MB at 1024 numbers in float32

EmbedTexts = Callable[[list[str]], Embedding]


def cache_texts(embed: EmbedTexts, model: nn.Module, size: int = CACHED_PROMPTS) -> EmbedTexts:
    """Return `embed` with a memory of the `size` prompts last used; without gradient.

    Each prompt is embedded by itself, and outside autocast. So its embedding depends neither on the
    prompts beside it nor on those before it, and a resumed run computes the same scores to the bit.

    Args:
        model: whose device and dtype `embed` uses; a move makes the memory start anew.
    """

    @lru_cache(maxsize=size)
    def embed_one(prompt: str, device: torch.device, dtype: torch.dtype) -> Embedding:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return embed([prompt])

    def embed_all(prompts: list[str]) -> Embedding:
        weight = next(model.parameters())
        return torch.cat([embed_one(prompt, weight.device, weight.dtype) for prompt in prompts])

    return embed_all
