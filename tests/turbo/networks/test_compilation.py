"""Compilation: the same video, and nothing compiled again for another request."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from einops import rearrange
from jaxtyping import config
from torch._dynamo.utils import counters

from tests.support.tiny_models import make_unet
from turbo.networks.compilation import BLOCKS, compile_blocks
from turbo.networks.unet import VideoUNet
from turbo.networks.wan import WanNetwork
from turbo.pipeline import VideoPipeline


class OtherTensor(torch.Tensor):
    """A type that einops has not met."""


@pytest.fixture
def traced(student_card, tiny_vae, tiny_text_encoder, schedule) -> VideoPipeline:
    """Return a pipeline whose blocks are traced and guarded as for the compiler, which is slow."""
    torch._dynamo.reset()
    counters.clear()
    config.update("jaxtyping_disable", True)  # only the tests check shapes, and it cannot be traced
    unet = make_unet(time_cond_proj_dim=256)
    pipeline = VideoPipeline(student_card, unet, deepcopy(tiny_vae), tiny_text_encoder, schedule)
    for network in (pipeline.unet, pipeline.vae):
        compile_blocks(network, backend="eager")
    yield pipeline
    config.update("jaxtyping_disable", False)
    torch._dynamo.reset()


def test_every_kind_of_block_exists():
    """A block that a new version of diffusers renames would silently stay slow."""
    with torch.device("meta"):
        networks = [
            VideoUNet(),
            VideoUNet(skip_temporal_for_one_frame=True),
            AutoencoderKL(norm_num_groups=8, block_out_channels=(8,)),
            WanNetwork(num_layers=1),
        ]

    found = {type(module).__name__ for network in networks for module in network.modules()}

    assert set(BLOCKS) <= found


@pytest.mark.slow
def test_blocks_traced_for_one_request_serve_all_others_and_make_the_same_video(
    traced, tiny_pipeline
):
    frames = traced("a cat", steps=2, guidance=3.0, seed=1).frames
    compiled = counters["stats"]["unique_graphs"]
    rearrange(torch.zeros(1).as_subclass(OtherTensor), "B -> B 1")
    traced("another cat", steps=5, guidance=9.0, seed=2)
    traced("a cat", steps=1, guidance=3.0, seed=1)

    expected = tiny_pipeline("a cat", steps=2, guidance=3.0, seed=1).frames
    assert np.abs(frames.astype(int) - expected).max() <= 1
    assert counters["stats"]["unique_graphs"] == compiled > 0
