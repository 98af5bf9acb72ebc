"""Tiny random models: every path of the library in seconds, without a download."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn

from training.tiny import LAYERS, tiny_text_model, tiny_tokenizer
from turbo.card import ModelCard
from turbo.diffusion.schedule import NoiseSchedule
from turbo.networks.text import CLIPTextEncoder
from turbo.networks.unet import VideoUNet
from turbo.pipeline import VideoPipeline

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
    return randomise(VideoUNet(**{**LAYERS, **changes}), seed)


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
    tokenizer = tiny_tokenizer(merges=[("c", "a"), ("ca", "t</w>")])
    return CLIPTextEncoder(tokenizer, randomise(tiny_text_model(tokenizer), seed=2))


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
