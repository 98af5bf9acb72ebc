"""Tiny random models: every path of the library in seconds, without a download."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from turbo.card import ModelCard
from turbo.diffusion.schedule import NoiseSchedule
from turbo.networks.text import CLIPTextEncoder
from turbo.networks.unet import VideoUNet
from turbo.pipeline import VideoPipeline

TINY_UNET = {
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 16,
    "attention_head_dim": 8,
}

TINY_CARD = {
    "title": "Tiny",
    "family": "tiny",
    "licence": "Apache-2.0",
    "height": 8,
    "width": 8,
    "num_frames": 3,
    "fps": 8,
    "enlarge": 4,
    "default_guidance": 7.5,
    "min_guidance": 1.0,
    "max_guidance": 15.0,
    "guidance_kind": "",
}


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter, also those that start at zero, a random value."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        offset = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
        values = torch.randn(parameter.shape, generator=generator)
        parameter.data = offset + scale * values
    return network.eval().requires_grad_(False)


def make_unet(seed: int = 0, **changes) -> VideoUNet:
    return randomise(VideoUNet(**{**TINY_UNET, **changes}), seed)


@pytest.fixture
def tiny_unet() -> VideoUNet:
    """A teacher."""
    return make_unet()


@pytest.fixture
def tiny_vae() -> AutoencoderKL:
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.5,
        shift_factor=0.25,
        sample_size=8,
    )
    return randomise(vae, seed=1)


@pytest.fixture
def tiny_text_encoder() -> CLIPTextEncoder:
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    tokens += ["ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    merges = [("c", "a"), ("ca", "t</w>")]
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=24)
    config = CLIPTextConfig(
        vocab_size=len(vocab),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=24,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=0,
    )
    return CLIPTextEncoder(tokenizer, randomise(CLIPTextModel(config), seed=2))


@pytest.fixture
def schedule() -> NoiseSchedule:
    """That of the published teachers."""
    return NoiseSchedule.scaled_linear()


@pytest.fixture
def student_card(tmp_path: Path) -> ModelCard:
    return ModelCard(
        name="tiny-student",
        role="student",
        sampler="consistency",
        unet="student",
        folder=tmp_path / "tiny",
        default_steps=4,
        max_steps=8,
        **TINY_CARD,
    )


@pytest.fixture
def teacher_card(tmp_path: Path) -> ModelCard:
    return ModelCard(
        name="tiny-teacher",
        role="teacher",
        sampler="ddim",
        unet="teacher",
        folder=tmp_path / "tiny",
        default_steps=50,
        max_steps=50,
        **TINY_CARD,
    )


@pytest.fixture
def tiny_pipeline(student_card, tiny_vae, tiny_text_encoder, schedule) -> VideoPipeline:
    """A student."""
    unet = make_unet(time_cond_proj_dim=256)
    return VideoPipeline(student_card, unet, tiny_vae, tiny_text_encoder, schedule)


@pytest.fixture
def tiny_teacher(teacher_card, tiny_unet, tiny_vae, tiny_text_encoder, schedule) -> VideoPipeline:
    """A teacher."""
    return VideoPipeline(teacher_card, tiny_unet, tiny_vae, tiny_text_encoder, schedule)
