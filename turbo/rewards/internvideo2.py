"""The InternVideo2 reward: a vision transformer over all frames, and the lower layers of BERT.

The parameters have the names of the published checkpoint. The fusion layers of its text encoder and
the pre-training heads of its vision encoder are left out: a reward does not use them.

Source: InternVideo2, arXiv:2403.15377.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, interpolate, linear, scaled_dot_product_attention
from transformers import BertConfig, BertModel, BertTokenizer

from turbo.card import HubFile
from turbo.convert.checkpoint import open_checkpoint
from turbo.convert.part import Part, renamed_part
from turbo.networks.text import pad_tokens
from turbo.rewards.checkpoints import RewardCard, build_on_meta, read_part
from turbo.rewards.preprocess import check_videos, prepare_videos
from turbo.rewards.text_cache import cache_texts
from turbo.types import Embedding, Frames, PerVideo

Tokens = Float[Tensor, "B N D"]
Queries = Float[Tensor, "B Q D"]  # one query for pooling, else as many as tokens


_UNUSED = (  # prefixes of tensors for pre-training, and for the fusion of text with video
    "temp",
    "itm_head.",
    "text_encoder.",
    "vision_encoder.img_pos_embed",
    "vision_encoder.clip_pos_embed",
    "vision_encoder.clip_img_pos_embed",
    "vision_encoder.clip_decoder.",
    "vision_encoder.final_clip_decoder.",
)


@dataclass(frozen=True, kw_only=True)
class InternVideo2Config:
    """Sizes; the defaults are stage 2, 1B, as published for 4 frames of 224 x 224."""

    size: int = 224  # pixels, each side
    patch: int = 14
    num_frames: int = 4
    width: int = 1408
    layers: int = 40
    heads: int = 16
    hidden: int = 6144  # of every MLP
    pool_heads: int = 16
    pooled: int = 768
    # The published runs used a fused kernel with the tanh approximation of GELU.
    gelu: Literal["tanh", "none"] = "tanh"
    vocabulary: int = 30522
    positions: int = 512
    length: int = 40  # tokens
    text_width: int = 1024
    text_layers: int = 19  # of 24: the others fuse text with video
    text_heads: int = 16
    text_hidden: int = 4096
    embed: int = 512  # dimension of the shared embedding space


class _Attention(nn.Module):
    """Self-attention with queries and keys normalised over all heads together."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_norm, self.k_norm = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tokens) -> Tokens:
        queries, keys, values = self.qkv(tokens).chunk(3, dim=-1)
        return self.proj(_attend(self.q_norm(queries), self.k_norm(keys), values, self.heads))


class _LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, tokens: Tokens) -> Tokens:
        return self.gamma * tokens


class _Block(nn.Module):
    def __init__(self, config: InternVideo2Config) -> None:
        super().__init__()
        width = config.width
        self.norm1, self.norm2 = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.attn = _Attention(width, config.heads)
        self.ls1, self.ls2 = _LayerScale(width), _LayerScale(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("fc1", nn.Linear(width, config.hidden))
        self.mlp.add_module("gelu", nn.GELU(config.gelu))
        self.mlp.add_module("fc2", nn.Linear(config.hidden, width))

    def forward(self, tokens: Tokens) -> Tokens:
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens)))
        return tokens + self.ls2(self.mlp(self.norm2(tokens)))


class _CrossAttention(nn.Module):
    def __init__(self, width: int, heads: int, out: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.q_bias, self.k_bias, self.v_bias = (nn.Parameter(torch.zeros(width)) for _ in range(3))
        self.proj = nn.Linear(width, out)

    def forward(self, queries: Queries, keys: Tokens, values: Tokens) -> Float[Tensor, "B Q E"]:
        queries = linear(queries, self.q.weight, self.q_bias)
        keys = linear(keys, self.k.weight, self.k_bias)
        values = linear(values, self.v.weight, self.v_bias)
        return self.proj(_attend(queries, keys, values, self.heads))


class AttentionPool(nn.Module):
    """Pool all tokens to one vector by cross-attention, with their mean as the query."""

    def __init__(self, config: InternVideo2Config) -> None:
        super().__init__()
        width = config.width
        self.norm1_q, self.norm1_k, self.norm1_v = (nn.LayerNorm(width) for _ in range(3))
        self.cross_attn = _CrossAttention(width, config.pool_heads, config.pooled)

    def forward(self, tokens: Tokens) -> Float[Tensor, "B E"]:
        mean = tokens.mean(dim=1, keepdim=True)
        pooled = self.cross_attn(self.norm1_q(mean), self.norm1_k(tokens), self.norm1_v(tokens))
        return pooled[:, 0]


def _attend(queries: Queries, keys: Tokens, values: Tokens, heads: int) -> Queries:
    q, k, v = (
        rearrange(t, "B N (heads D) -> B heads N D", heads=heads) for t in (queries, keys, values)
    )
    return rearrange(scaled_dot_product_attention(q, k, v), "B heads N D -> B N (heads D)")


class VisionTower(nn.Module):
    """Encode normalised frames; attention is joint over all patches of all frames."""

    def __init__(self, config: InternVideo2Config) -> None:
        super().__init__()
        width, patch = config.width, (1, config.patch, config.patch)
        patches = config.num_frames * (config.size // config.patch) ** 2
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv3d(3, width, patch, stride=patch)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + patches, width))
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.layers))
        self.clip_projector = AttentionPool(config)

    def embed_patches(self, frames: Float[Tensor, "B F 3 H W"]) -> Tokens:
        """Return the tokens after all blocks: the class token, then every patch of every frame."""
        patches = self.patch_embed["proj"](rearrange(frames, "B F C H W -> B C F H W"))
        patches = rearrange(patches, "B D F h w -> B (F h w) D")
        first = self.cls_token.expand(len(frames), -1, -1)
        tokens = torch.cat([first, patches], dim=1) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens)
        return tokens

    def forward(self, frames: Float[Tensor, "B F 3 H W"]) -> Embedding:
        return self.clip_projector(self.embed_patches(frames))


class InternVideo2(nn.Module):
    """Vision and text encoder, with projections to a shared embedding space."""

    def __init__(self, config: InternVideo2Config) -> None:
        super().__init__()
        self.config = config
        self.vision_encoder = VisionTower(config)
        self.text_encoder = BertModel(
            BertConfig(
                vocab_size=config.vocabulary,
                hidden_size=config.text_width,
                num_hidden_layers=config.text_layers,
                num_attention_heads=config.text_heads,
                intermediate_size=config.text_hidden,
                max_position_embeddings=config.positions,
            ),
            add_pooling_layer=False,
        )
        self.vision_proj = nn.Linear(config.pooled, config.embed)
        self.text_proj = nn.Linear(config.text_width, config.embed)

    def embed_frames(self, frames: Float[Tensor, "B F 3 H W"]) -> Embedding:
        """Embed normalised frames; the embeddings are not normalised."""
        return self.vision_proj(self.vision_encoder(frames))

    def embed_tokens(self, ids: Int[Tensor, "B L"], mask: Int[Tensor, "B L"]) -> Embedding:
        """Embed token ids; `mask` is 0 at padding. The embeddings are not normalised."""
        tokens = self.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return self.text_proj(tokens[:, 0])


def stretch_positions(
    positions: Float[Tensor, "1 N D"], patches: int, num_frames: int
) -> Float[Tensor, "1 M D"]:
    """Interpolate position embeddings over time, to another number of frames.

    Args:
        positions: one row for the class token, then `patches` rows per frame.
    """
    first, rest = positions[:, :1], positions[:, 1:]
    over_time = rearrange(rest, "1 (F P) D -> P D F", P=patches)
    stretched = interpolate(over_time, num_frames, mode="linear", align_corners=False)
    return torch.cat([first, rearrange(stretched, "P D F -> 1 (F P) D")], dim=1)


class InternVideo2Reward(nn.Module):
    """The cosine similarity of a video and its prompt in InternVideo2 space, in [-1, 1]."""

    def __init__(self, model: InternVideo2, tokenizer: BertTokenizer) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.embed = cache_texts(
            lambda prompts: model.embed_tokens(*self._tokenize(prompts)), model
        )

    @property
    def num_frames(self) -> int:
        """The number of frames that a video must have."""
        return self.model.config.num_frames

    def forward(self, frames: Frames, prompts: list[str]) -> PerVideo:
        """Score videos of exactly `num_frames` frames.

        Raises:
            ValueError: the number of frames is wrong, or those of prompts and videos differ.
        """
        check_videos(frames, prompts, self.num_frames)
        pixels = prepare_videos(frames, self.model.config.size)
        videos = self.model.embed_frames(pixels.to(self.model.vision_proj.weight.dtype))
        return cosine_similarity(videos.to(frames.dtype), self.embed(prompts).to(frames))

    def _tokenize(self, prompts: list[str]) -> tuple[Int[Tensor, "B L"], Int[Tensor, "B L"]]:
        """Return token ids, truncated or padded to the model's length, and the attention mask."""
        tokens = pad_tokens(self.tokenizer, prompts, self.model.config.length)
        tokens = tokens.to(self.model.vision_proj.weight.device)
        return tokens.input_ids, tokens.attention_mask


def read_internvideo2(
    file: Path, num_frames: int, config: InternVideo2Config | None = None
) -> InternVideo2:
    """Read published weights, for any number of frames; of stage 2, 1B, by default.

    Args:
        config: of the file. Its position embeddings are interpolated to `num_frames`.
    """
    config = config or InternVideo2Config()
    checkpoint = open_checkpoint(file)
    part = internvideo2_part(config, checkpoint.shapes)
    model = part.filled(read_part(checkpoint, part), share=True)
    assert isinstance(model, InternVideo2)
    if num_frames != config.num_frames:
        patches = (config.size // config.patch) ** 2
        positions = stretch_positions(model.vision_encoder.pos_embed, patches, num_frames)
        model.vision_encoder.pos_embed = nn.Parameter(positions, requires_grad=False)
        model.config = replace(config, num_frames=num_frames)
    return model


def internvideo2_part(config: InternVideo2Config, published: Collection[str]) -> Part:
    """Return an InternVideo2 with the origins of its tensors.

    Args:
        published: names of the file's tensors; those of its text encoder may contain `bert.`.
    """
    wrapped = any(name.startswith("text_encoder.bert.") for name in published)
    prefix = "text_encoder.bert." if wrapped else "text_encoder."
    part = renamed_part(
        build_on_meta(lambda: InternVideo2(config)),
        lambda name: name.replace("text_encoder.", prefix, 1),
    )
    unused = {name for name in published if name.startswith(_UNUSED)} - part.expected.keys()
    return replace(part, unused=frozenset(unused))


def _load_published(folder: Path, num_frames: int) -> InternVideo2Reward:
    model = read_internvideo2(folder / _FILE, num_frames)
    return InternVideo2Reward(model, BertTokenizer.from_pretrained(folder, local_files_only=True))


_FILE = "InternVideo2-stage2_1b-224p-f4.pt"
_FILES = (
    HubFile(repository="OpenGVLab/InternVideo2-Stage2_1B-224p-f4", path=_FILE, size=2_820_000_000),
    HubFile(repository="google-bert/bert-large-uncased", path="vocab.txt", size=231_508),
)
INTERNVIDEO2_F8, INTERNVIDEO2_F4 = (
    RewardCard(
        title=f"InternVideo2 for {num_frames} frames",
        files=_FILES,
        load=partial(_load_published, num_frames=num_frames),
    )
    for num_frames in (8, 4)
)
