"""Rewards of single frames by a CLIP model: HPSv2.1, PickScore, CLIPScore and their like."""

from collections.abc import Callable
from pathlib import Path

import torch
from einops import rearrange, reduce, repeat
from torch import nn
from torch.nn.functional import cosine_similarity
from transformers import CLIPModel, CLIPTokenizer

from turbo.networks.text import tokenize
from turbo.rewards.preprocess import CLIP_MEAN, CLIP_STD, Images, Squares, normalise, warp
from turbo.types import Embedding, Frames, PerVideo

MakeSquare = Callable[[Images, int], Squares]  # (images, side) -> images as the model takes them


class ImageTextReward(nn.Module):
    """The mean cosine between a video's frames and its prompt; gradients reach the frames only."""

    def __init__(
        self, model: CLIPModel, tokenizer: CLIPTokenizer, make_square: MakeSquare = warp
    ) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.make_square = make_square

    @classmethod
    def load(cls, model: Path, tokenizer: Path) -> "ImageTextReward":
        """Load from two folders written by `save_pretrained`, in float32."""
        return cls(
            CLIPModel.from_pretrained(model, local_files_only=True, dtype=torch.float32),
            CLIPTokenizer.from_pretrained(tokenizer, local_files_only=True),
        )

    def forward(self, frames: Frames, prompts: list[str]) -> PerVideo:
        """Score videos, each by all its frames.

        Raises:
            ValueError: another number of prompts than videos.
        """
        if len(prompts) != len(frames):
            raise ValueError(f"Expected {len(frames)} prompts, one a video, got {len(prompts)}.")
        images = rearrange(frames, "B F C H W -> (B F) C H W")
        images = embed_images(self.model, images, self.make_square)
        with torch.no_grad():
            texts = embed_texts(self.model, self.tokenizer, prompts)
        # Frames are grouped by video, so must the texts be: the published code tiles them instead.
        texts = repeat(texts, "B D -> (B F) D", F=frames.shape[1])
        return reduce(cosine_similarity(images, texts), "(B F) -> B", "mean", B=len(frames))


def embed_images(model: CLIPModel, images: Images, make_square: MakeSquare = warp) -> Embedding:
    """Embed images (N, 3, H, W) in [0, 1], not normalised."""
    size = model.config.vision_config.image_size
    pixels = normalise(make_square(images, size), CLIP_MEAN, CLIP_STD)
    return model.get_image_features(pixel_values=pixels).pooler_output


def embed_texts(model: CLIPModel, tokenizer: CLIPTokenizer, prompts: list[str]) -> Embedding:
    """Embed prompts, not normalised."""
    ids = tokenize(tokenizer, prompts).to(model.device)
    return model.get_text_features(input_ids=ids).pooler_output
