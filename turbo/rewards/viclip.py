"""ViCLIP: a vision transformer over all patches of all frames, and CLIP's causal text tower.

Parameters bear the names of the published checkpoint, so it loads as it is.

Source: InternVid, arXiv:2307.06942.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from turbo.types import Embedding


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
    embed: int = 768  # features both towers end in


class QuickGELU(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return values * (1.702 * values).sigmoid()


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("gelu", QuickGELU())
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
    """Normalised frames to one embedding; every patch attends to every patch of every frame."""

    def __init__(self, config: ViCLIPConfig) -> None:
        super().__init__()
        width, patch = config.width, (1, config.patch, config.patch)
        places = (config.size // config.patch) ** 2
        self.conv1 = nn.Conv3d(3, width, patch, stride=patch, bias=False)
        scale = width**-0.5
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn(places + 1, width))
        self.temporal_positional_embedding = nn.Parameter(torch.zeros(1, config.num_frames, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = _Transformer(width, config.layers, config.heads)
        self.proj = nn.Parameter(scale * torch.randn(width, config.embed))

    def forward(self, frames: Float[Tensor, "B F 3 H W"]) -> Embedding:
        patches = self.conv1(rearrange(frames, "B F C H W -> B C F H W"))
        places = rearrange(self.positional_embedding[1:], "P D -> 1 1 P D")
        times = rearrange(self.temporal_positional_embedding, "1 F D -> 1 F 1 D")
        patches = rearrange(patches, "B D F h w -> B F (h w) D") + places + times
        first = (self.class_embedding + self.positional_embedding[0]).expand(len(frames), 1, -1)
        tokens = torch.cat([first, rearrange(patches, "B F P D -> B (F P) D")], dim=1)
        tokens = self.transformer(self.ln_pre(tokens))
        return self.ln_post(tokens[:, 0]) @ self.proj


class TextTower(nn.Module):
    """Token ids to one embedding, read at the end token, which has the largest id."""

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
    """Both towers and the temperature of their contrastive loss."""

    def __init__(self, config: ViCLIPConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_encoder, self.text_encoder = VisionTower(config), TextTower(config)
        self.temp = nn.Parameter(torch.tensor(1 / 100))
