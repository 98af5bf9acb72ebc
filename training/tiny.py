"""Tiny random teachers: every path of a training in seconds, without a download."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from turbo.card import ModelCard
from turbo.models.local import write_card
from turbo.networks.unet import VideoUNet

TINY: dict[str, dict[str, Any]] = {  # as VideoCrafter2 and ModelScope, in miniature
    "tiny-vc2": {"fps_conditioning": True},
    "tiny-ms": {"skip_temporal_for_one_frame": True},
}
_LAYERS = {
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
        tokenizer = _tokenizer()
        VideoUNet(**(_LAYERS | TINY[name])).save_pretrained(folder / "teacher")
        _vae().save_pretrained(folder / "vae")
        _text_model(tokenizer).save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    card = ModelCard(
        name=name,
        title=f"Tiny random teacher ({name})",
        family=name,
        role="teacher",
        sampler="ddim",
        licence="Apache-2.0",
        folder=folder.resolve(),
        unet="teacher",
        height=16,
        width=16,
        num_frames=4,
        fps=8,
        enlarge=4,
        default_steps=10,
        max_steps=50,
        default_guidance=7.5,
        min_guidance=1.0,
        max_guidance=15.0,
        guidance_kind="Classifier-free guidance s.",
        cpu_threads=1,
    )
    write_card(card, folder)
    return card


def _tokenizer() -> CLIPTokenizer:
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=24)


def _text_model(tokenizer: CLIPTokenizer) -> CLIPTextModel:
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


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16,
    )
