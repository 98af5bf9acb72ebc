"""Tiny random teachers, to try every path of a training in seconds, without a download."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderKLWan
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

from turbo.card import ModelCard
from turbo.models.local import write_card
from turbo.networks.unet import VideoUNet
from turbo.networks.wan import WanNetwork

UNETS: dict[str, dict[str, Any]] = {  # as VideoCrafter2 and ModelScope, in miniature
    "tiny-vc2": {"fps_conditioning": True},
    "tiny-ms": {"skip_temporal_for_one_frame": True},
}
_UNET_SHAPE = {"height": 16, "width": 16, "num_frames": 4}
TINY: dict[str, dict[str, Any]] = {  # what differs between their cards
    "tiny-vc2": _UNET_SHAPE,
    "tiny-ms": _UNET_SHAPE,
    "tiny-wan": dict(height=32, width=32, num_frames=9, flow_shift=3.0, spacing="trailing"),
}
LAYERS = {
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 16,
    "attention_head_dim": 8,
}


def write_tiny(name: str, folder: Path) -> ModelCard:
    """Write a tiny random teacher with its card, the same one every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for part, made in (_unet_parts(name) if name in UNETS else wan_parts()).items():
            made.save_pretrained(folder / part)
    card = ModelCard(
        name=name,
        title=f"Tiny random teacher ({name})",
        family=name,
        role="teacher",
        sampler="ddim",
        licence="Apache-2.0",
        folder=folder.resolve(),
        unet="teacher",
        fps=8,
        enlarge=4,
        default_steps=10,
        max_steps=50,
        default_guidance=7.5,
        min_guidance=1.0,
        max_guidance=15.0,
        guidance_kind="Classifier-free guidance s.",
        cpu_threads=1,
        **TINY[name],
    )
    write_card(card, folder)
    return card


def _unet_parts(name: str) -> dict[str, Any]:
    tokenizer = tiny_tokenizer()
    return {
        "teacher": VideoUNet(**(LAYERS | UNETS[name])),
        "vae": AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            latent_channels=4,
            sample_size=16,
        ),
        "text_encoder": tiny_text_model(tokenizer),
        "tokenizer": tokenizer,
    }


def wan_parts() -> dict[str, Any]:
    """Return Wan2.1 in miniature, with random weights, by folder."""
    letters = [(letter, -1.0) for letter in "abcdefghijklmnopqrstuvwxyz0123456789 -,."]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    tokenizer = T5Tokenizer(vocab=special + letters, extra_ids=0, model_max_length=24)
    text = UMT5Config(
        vocab_size=len(tokenizer),
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        pad_token_id=0,
    )
    return {
        "teacher": WanNetwork(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=16,
            freq_dim=16,
            ffn_dim=32,
            num_layers=2,
            rope_max_seq_len=32,
        ),
        "vae": AutoencoderKLWan(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.25, -0.5, 0.0, 1.0],
            latents_std=[1.0, 2.0, 0.5, 1.0],
        ),
        "text_encoder": UMT5EncoderModel(text),
        "tokenizer": tokenizer,
    }


def tiny_tokenizer(merges: Sequence[tuple[str, str]] = ()) -> CLIPTokenizer:
    """Return a tokenizer whose vocabulary is the single letters and the results of the merges."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=list(merges), model_max_length=24)


def tiny_text_model(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Return a text transformer of one layer, with random weights."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=24,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=0,
        )
    )
