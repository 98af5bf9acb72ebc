"""The ImageReward reward: BLIP's text encoder reads the prompt beside the picture.

Source: ImageReward, arXiv:2304.05977.
"""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from einops import rearrange, reduce, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import relu
from transformers import (
    BertTokenizer,
    BlipTextConfig,
    BlipTextModel,
    BlipVisionConfig,
    BlipVisionModel,
)

from turbo.card import HubFile
from turbo.convert.checkpoint import open_checkpoint
from turbo.convert.part import Part, renamed_part
from turbo.networks.text import pad_tokens
from turbo.rewards.checkpoints import RewardCard, build_on_meta, read_part
from turbo.rewards.preprocess import (
    CLIP_MEAN,
    CLIP_STD,
    Images,
    Squares,
    center_crop,
    normalise,
    scale_short_side,
)
from turbo.types import Frames, PerVideo

MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the head's output on the training data
BEST = 2.0  # T2V-Turbo does not reward what is above
LENGTH = 35  # tokens

# BLIP-large's pictures and BERT-base's texts. The precision of the normalisations matters.
VISION_CONFIG: dict[str, Any] = {
    "image_size": 224,
    "patch_size": 16,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "layer_norm_eps": 1e-6,
}
TEXT_CONFIG: dict[str, Any] = {
    "vocab_size": 30524,
    "hidden_size": 768,
    "encoder_hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "layer_norm_eps": 1e-12,
}
_VISION_NAMES = {
    "vision.embeddings.class_embedding": "cls_token",
    "vision.embeddings.position_embedding": "pos_embed",
    "vision.embeddings.patch_embedding": "patch_embed.proj",
    "vision.post_layernorm": "norm",
}
_BLOCK_NAMES = {
    "layer_norm": "norm",
    "self_attn.projection": "attn.proj",
    "self_attn.qkv": "attn.qkv",
}
_UNUSED = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")


class ImageRewardNetwork(nn.Module):
    """Score pictures against token ids; the scores are not standardised."""

    def __init__(self, vision: BlipVisionConfig, text: BlipTextConfig) -> None:
        super().__init__()
        self.vision = BlipVisionModel(vision)
        self.text = BlipTextModel(text, add_pooling_layer=False)
        widths = (text.hidden_size, 1024, 128, 64, 16, 1)
        # One affine map: the published head has nothing but dropout between its layers.
        self.head = nn.Sequential(*map(nn.Linear, widths[:-1], widths[1:]))

    def forward(
        self, pixels: Float[Tensor, "N 3 S S"], ids: Int[Tensor, "N L"], mask: Int[Tensor, "N L"]
    ) -> Float[Tensor, " N"]:
        """Score normalised pictures; `mask` is 0 at padding."""
        patches = self.vision(pixel_values=pixels).last_hidden_state
        tokens = self.text(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=patches
        ).last_hidden_state
        return self.head(tokens[:, 0])[:, 0]


class ImageReward(nn.Module):
    """The standardised score of frames, cut off at 2 and averaged over frames; at most 0."""

    def __init__(self, model: ImageRewardNetwork, tokenizer: BertTokenizer) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer

    def forward(self, frames: Frames, prompts: list[str]) -> PerVideo:
        """Score videos of any number of frames.

        Raises:
            ValueError: the numbers of prompts and videos differ.
        """
        if len(prompts) != len(frames):
            raise ValueError(f"Expected {len(frames)} prompts, one a video, got {len(prompts)}.")
        tokens = pad_tokens(self.tokenizer, prompts, LENGTH).to(frames.device)
        ids, mask = (
            repeat(part, "B L -> (B F) L", F=frames.shape[1])
            for part in (tokens.input_ids, tokens.attention_mask)
        )
        pixels = prepare_images(
            rearrange(frames, "B F C H W -> (B F) C H W"), self.model.vision.config.image_size
        )
        raw = self.model(pixels.to(next(self.model.parameters()).dtype), ids, mask).to(frames.dtype)
        scores = -relu(BEST - (raw - MEAN) / STD)
        return reduce(scores, "(B F) -> B", "mean", B=len(frames))


def prepare_images(images: Images, size: int) -> Squares:
    """Resize, crop and normalise images (N, 3, H, W) in [0, 1]."""
    return normalise(center_crop(scale_short_side(images, size)), CLIP_MEAN, CLIP_STD)


def read_imagereward(
    file: Path, vision: BlipVisionConfig | None = None, text: BlipTextConfig | None = None
) -> ImageRewardNetwork:
    """Read published weights; of ImageReward-v1.0 by default."""
    checkpoint = open_checkpoint(file)
    part = imagereward_part(
        vision or BlipVisionConfig(**VISION_CONFIG),
        # Cross-attention is built for decoders only; the encoder is then called as what it is.
        text or BlipTextConfig(**TEXT_CONFIG, is_decoder=True),
        checkpoint.shapes,
    )
    model = part.filled(read_part(checkpoint, part), share=True)
    assert isinstance(model, ImageRewardNetwork)
    return model


def imagereward_part(
    vision: BlipVisionConfig, text: BlipTextConfig, published: Collection[str]
) -> Part:
    """Return the network with the origins of its tensors.

    Args:
        published: names of the file's tensors.
    """
    part = renamed_part(build_on_meta(lambda: ImageRewardNetwork(vision, text)), _published_name)
    unused = {name for name in published if name.startswith(_UNUSED)}
    return replace(part, unused=frozenset(unused))


def _published_name(name: str) -> str:
    if name.startswith("text."):
        return f"blip.text_encoder.{name.removeprefix('text.')}"
    if name.startswith("head."):
        _, layer, kind = name.split(".")
        return f"mlp.layers.{(0, 2, 4, 6, 7)[int(layer)]}.{kind}"  # dropout between them
    for ours, theirs in _VISION_NAMES.items():
        if name.startswith(ours):
            return f"blip.visual_encoder.{theirs}{name.removeprefix(ours)}"
    block = name.removeprefix("vision.encoder.layers.")
    for ours, theirs in _BLOCK_NAMES.items():
        block = block.replace(ours, theirs)
    return f"blip.visual_encoder.blocks.{block}"


def _load_published(folder: Path) -> ImageReward:
    tokenizer = BertTokenizer.from_pretrained(folder, local_files_only=True)
    return ImageReward(read_imagereward(folder / _FILE), tokenizer)


_FILE = "ImageReward.pt"
IMAGEREWARD = RewardCard(
    title="ImageReward-v1.0",
    files=(
        HubFile(repository="THUDM/ImageReward", path=_FILE, size=1_786_880_927),
        HubFile(
            repository="google-bert/bert-base-uncased",
            path="vocab.txt",
            size=231_508,
            sha256="07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        ),
    ),
    load=_load_published,
)
