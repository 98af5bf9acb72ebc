"""The ViCLIP reward: a vision transformer over all frames, and CLIP's causal text encoder.

The parameters have the names of the published checkpoint.

Source: InternVid, arXiv:2307.06942.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from transformers import CLIPTokenizer
from transformers.activations import QuickGELUActivation

from turbo.card import HubFile
from turbo.convert.checkpoint import open_checkpoint
from turbo.convert.part import Part, renamed_part
from turbo.networks.text import clip_tokenizer, tokenize
from turbo.rewards.checkpoints import RewardCard, build_on_meta, read_part
from turbo.rewards.preprocess import check_videos, prepare_videos
from turbo.rewards.text_cache import cache_texts
from turbo.types import Embedding, Frames, PerVideo


@dataclass(frozen=True, kw_only=True)
class ViCLIPConfig:
    """Sizes; the defaults are ViCLIP-L/14."""

    size: int = 224  # pixels, each side
    patch: int = 14
    num_frames: int = 8
    width: int = 1024
    layers: int = 24
    heads: int = 16
    vocabulary: int = 49408
    length: int = 32  # tokens
    text_width: int = 768
    text_layers: int = 12
    text_heads: int = 12
    embed: int = 768  # dimension of the shared embedding space


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("gelu", QuickGELUActivation())
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        normed = self.ln_1(tokens)
        attended, _ = self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)
        tokens = tokens + attended
        return tokens + self.mlp(self.ln_2(tokens))


class _Transformer(nn.Module):
    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(_Block(width, heads) for _ in range(layers))

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            tokens = block(tokens, mask)
        return tokens


class VisionTower(nn.Module):
    """Embed normalised frames; attention is joint over all patches of all frames."""

    def __init__(self, config: ViCLIPConfig) -> None:
        super().__init__()
        width, patch = config.width, (1, config.patch, config.patch)
        patches = (config.size // config.patch) ** 2
        self.conv1 = nn.Conv3d(3, width, patch, stride=patch, bias=False)
        scale = width**-0.5
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn(patches + 1, width))
        self.temporal_positional_embedding = nn.Parameter(torch.zeros(1, config.num_frames, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = _Transformer(width, config.layers, config.heads)
        self.proj = nn.Parameter(scale * torch.randn(width, config.embed))

    def embed_patches(self, frames: Float[Tensor, "B F 3 H W"]) -> Float[Tensor, "B N D"]:
        """Return the tokens after all blocks: the class token, then every patch of every frame."""
        patches = self.conv1(rearrange(frames, "B F C H W -> B C F H W"))
        space = rearrange(self.positional_embedding[1:], "P D -> 1 1 P D")
        time = rearrange(self.temporal_positional_embedding, "1 F D -> 1 F 1 D")
        patches = rearrange(patches, "B D F h w -> B F (h w) D") + space + time
        first = (self.class_embedding + self.positional_embedding[0]).expand(len(frames), 1, -1)
        tokens = torch.cat([first, rearrange(patches, "B F P D -> B (F P) D")], dim=1)
        return self.transformer(self.ln_pre(tokens))

    def embed(self, tokens: Float[Tensor, "B N E"]) -> Embedding:
        """Return the embedding of `embed_patches`' tokens."""
        return self.ln_post(tokens[:, 0]) @ self.proj

    def forward(self, frames: Float[Tensor, "B F 3 H W"]) -> Embedding:
        return self.embed(self.embed_patches(frames))


class TextTower(nn.Module):
    """Embed token ids: the output at the end token, which has the largest id."""

    def __init__(self, config: ViCLIPConfig) -> None:
        super().__init__()
        width = config.text_width
        self.token_embedding = nn.Embedding(config.vocabulary, width)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(config.length, width))
        self.transformer = _Transformer(width, config.text_layers, config.text_heads)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(width**-0.5 * torch.randn(width, config.embed))
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def forward(self, ids: Int[Tensor, "B L"]) -> Embedding:
        length = ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=ids.device).triu(1)
        tokens = self.token_embedding(ids) + self.positional_embedding[:length]
        tokens = self.ln_final(self.transformer(tokens, causal))
        end = ids.argmax(dim=1)
        return tokens[torch.arange(len(ids), device=ids.device), end] @ self.text_projection


class ViCLIP(nn.Module):
    """Vision and text encoder, and the temperature of their contrastive loss."""

    def __init__(self, config: ViCLIPConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_encoder, self.text_encoder = VisionTower(config), TextTower(config)
        self.temp = nn.Parameter(torch.tensor(1 / 100))


class VideoTextReward(nn.Module):
    """The cosine similarity of a video and its prompt in ViCLIP space, in [-1, 1]."""

    def __init__(self, model: ViCLIP, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.embed = cache_texts(self._embed_texts, model)

    @classmethod
    def load(cls, model: Path, tokenizer: Path) -> "VideoTextReward":
        """Load from two folders, written by `save_viclip` and `save_pretrained`, in float32."""
        return cls(
            load_viclip(model), CLIPTokenizer.from_pretrained(tokenizer, local_files_only=True)
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
        videos = embed_videos(self.model, frames)
        return cosine_similarity(videos, self.embed(prompts).to(videos))

    def _embed_texts(self, prompts: list[str]) -> Embedding:
        ids = tokenize(self.tokenizer, prompts).to(self.model.temp.device)
        return self.model.text_encoder(ids)


def embed_videos(model: ViCLIP, frames: Frames) -> Embedding:
    """Embed the central square of videos in [0, 1]; the embeddings are not normalised.

    They have the dtype of the frames, whatever that of the weights.
    """
    pixels = prepare_videos(frames, model.config.size)
    return model.vision_encoder(pixels.to(model.temp.dtype)).to(frames.dtype)


def save_viclip(model: ViCLIP, folder: Path) -> None:
    """Write config.json and half-precision safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(asdict(model.config), indent=2) + "\n")
    tensors = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")


def load_viclip(folder: Path) -> ViCLIP:
    """Load what `save_viclip` wrote; no tensor may be missing or unexpected."""
    model = ViCLIP(ViCLIPConfig(**json.loads((folder / "config.json").read_text())))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model


def read_viclip(file: Path, config: ViCLIPConfig | None = None) -> ViCLIP:
    """Read published weights, by default those of ViCLIP-L/14."""
    part = viclip_part(config or ViCLIPConfig())
    model = part.filled(read_part(open_checkpoint(file), part), share=True)
    assert isinstance(model, ViCLIP)
    return model


def viclip_part(config: ViCLIPConfig) -> Part:
    """Return a ViCLIP with the origins of its tensors, which have their published names."""
    return renamed_part(build_on_meta(lambda: ViCLIP(config)))


def _load_published(folder: Path) -> VideoTextReward:
    model, tokenizer = read_viclip(folder / _FILE), clip_tokenizer()
    tokenizer.model_max_length = model.config.length
    return VideoTextReward(model, tokenizer)


_FILE = "ViClip-InternVid-10M-FLT.pth"
VICLIP = RewardCard(
    title="ViCLIP-L/14",
    files=(HubFile(repository="OpenGVLab/ViCLIP", path=_FILE, size=1_710_000_000),),
    load=_load_published,
)
