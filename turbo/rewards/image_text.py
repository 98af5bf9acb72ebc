"""Rewards of single frames by a CLIP model: HPSv2.1, CLIPScore, PickScore."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from einops import rearrange, reduce, repeat
from torch import nn
from torch.nn.functional import cosine_similarity
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from turbo.card import HubFile
from turbo.convert.checkpoint import open_checkpoint
from turbo.convert.part import Origin, Part
from turbo.convert.text import END_TOKEN, open_clip_name
from turbo.networks.text import clip_tokenizer, tokenize
from turbo.rewards.checkpoints import RewardCard, build_on_meta, read_part
from turbo.rewards.preprocess import (
    CLIP_MEAN,
    CLIP_STD,
    Images,
    Squares,
    letterbox,
    normalise,
    stretch,
)
from turbo.rewards.text_cache import cache_texts
from turbo.types import Embedding, Frames, PerVideo

MakeSquare = Callable[[Images, int], Squares]  # (images, side) -> square images

# OpenCLIP's ViT-H/14, as a configuration of transformers.
VIT_H_CONFIG: dict[str, Any] = {
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
_OPEN_CLIP_NAMES = {
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
_TRANSPOSED = ("text_projection", "visual.proj")  # x @ W in OpenCLIP, a Linear layer in ours


class ImageTextReward(nn.Module):
    """The cosine similarity of frames and prompt in CLIP space, averaged over frames; [-1, 1]."""

    def __init__(
        self, model: CLIPModel, tokenizer: CLIPTokenizer, make_square: MakeSquare = stretch
    ) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.make_square = make_square
        self.embed = cache_texts(lambda prompts: embed_texts(model, tokenizer, prompts), model)

    @classmethod
    def load(cls, model: Path, tokenizer: Path) -> "ImageTextReward":
        """Load from two folders written by `save_pretrained`, in float32."""
        return cls(
            CLIPModel.from_pretrained(model, local_files_only=True, dtype=torch.float32),
            CLIPTokenizer.from_pretrained(tokenizer, local_files_only=True),
        )

    def forward(self, frames: Frames, prompts: list[str]) -> PerVideo:
        """Score videos of any number of frames.

        Raises:
            ValueError: the numbers of prompts and videos differ.
        """
        if len(prompts) != len(frames):
            raise ValueError(f"Expected {len(frames)} prompts, one a video, got {len(prompts)}.")
        images = rearrange(frames, "B F C H W -> (B F) C H W")
        images = embed_images(self.model, images, self.make_square).to(frames.dtype)
        texts = self.embed(prompts).to(frames)
        # One text per frame, grouped by video like the frames. The published code tiles the texts
        # instead, which pairs frames with the wrong prompts in a batch of several videos.
        texts = repeat(texts, "B D -> (B F) D", F=frames.shape[1])
        return reduce(cosine_similarity(images, texts), "(B F) -> B", "mean", B=len(frames))


def embed_images(model: CLIPModel, images: Images, make_square: MakeSquare = stretch) -> Embedding:
    """Embed images (N, 3, H, W) in [0, 1]; the embeddings are not normalised."""
    size = model.config.vision_config.image_size
    pixels = normalise(make_square(images, size), CLIP_MEAN, CLIP_STD)
    return model.get_image_features(pixel_values=pixels).pooler_output


def embed_texts(model: CLIPModel, tokenizer: CLIPTokenizer, prompts: list[str]) -> Embedding:
    """Embed prompts; the embeddings are not normalised."""
    ids = tokenize(tokenizer, prompts).to(model.device)
    return model.get_text_features(input_ids=ids).pooler_output


def read_open_clip(file: Path, config: CLIPConfig | None = None) -> CLIPModel:
    """Read a CLIP model saved by OpenCLIP; a ViT-H/14 by default."""
    part = open_clip_part(config or CLIPConfig(**VIT_H_CONFIG))
    published = read_part(open_checkpoint(file), part)
    for name in _TRANSPOSED:
        published[name] = published[name].T.contiguous()
    return part.filled(published, share=True)


def open_clip_part(config: CLIPConfig) -> Part:
    """Return a CLIP model with the origins of its tensors under OpenCLIP's names."""
    model = build_on_meta(lambda: CLIPModel(config))
    origins = {}
    for name, tensor in model.state_dict().items():
        theirs, third = _open_clip_name(name)
        shape = tuple(tensor.shape)
        if third is not None:
            shape = (3 * shape[0], *shape[1:])
        origins[name] = Origin(theirs, shape[::-1] if theirs in _TRANSPOSED else shape, third)
    return Part(model, origins)


def _open_clip_name(name: str) -> tuple[str, int | None]:
    if name in _OPEN_CLIP_NAMES:
        return _OPEN_CLIP_NAMES[name], None
    tower, _, rest = name.partition(".")
    theirs, third = open_clip_name(rest)
    return (theirs if tower == "text_model" else f"visual.{theirs}"), third


def _load_pickscore(folder: Path) -> ImageTextReward:
    model = CLIPModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    return ImageTextReward(model, clip_tokenizer())


_HPS_FILE, _CLIP_H_FILE = "HPS_v2.1_compressed.pt", "open_clip_pytorch_model.bin"
HPS = RewardCard(
    title="HPSv2.1",
    files=(HubFile(repository="xswu/HPSv2", path=_HPS_FILE, size=1_970_000_000),),
    load=lambda folder: ImageTextReward(
        read_open_clip(folder / _HPS_FILE), clip_tokenizer(), make_square=letterbox
    ),
)
CLIP_H = RewardCard(
    title="CLIP ViT-H/14",
    files=(
        HubFile(
            repository="laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
            path=_CLIP_H_FILE,
            size=3_940_000_000,
            sha256="9a78ef8e8c73fd0df621682e7a8e8eb36c6916cb3c16b291a082ecd52ab79cc4",
        ),
    ),
    load=lambda folder: ImageTextReward(read_open_clip(folder / _CLIP_H_FILE), clip_tokenizer()),
)
PICKSCORE = RewardCard(
    title="PickScore",
    files=(
        HubFile(
            repository="yuvalkirstain/PickScore_v1", path="model.safetensors", size=3_940_000_000
        ),
        HubFile(repository="yuvalkirstain/PickScore_v1", path="config.json", size=4_700),
    ),
    load=_load_pickscore,
)
