"""Guidance: its embedding, its two conventions, its cost."""

import pytest
import torch
from diffusers import LatentConsistencyModelPipeline
from torch.testing import assert_close

from tests.support.tiny_models import make_unet
from turbo.diffusion.consistency import embed_guidance_scale
from turbo.diffusion.guidance import bind_guided, guide

# w, first four sines, sine 127, first four cosines, cosine 127
PUBLISHED = [
    (7.5, [-0.851236, 0.842131, 0.011876, 0.992377], 0.68163872)
    + ([-0.524783, 0.539273, -0.999929, -0.123241], 0.73168892),
    (5.0, [-0.987966, 0.619010, 0.869957, 0.904228], 0.47942549)
    + ([0.154668, 0.785383, -0.493127, 0.427051], 0.87758261),
    (0.05, [-0.262375, 0.582372, -0.669189, 0.578609], 0.00499998)
    + ([0.964966, -0.812923, 0.743092, -0.815605], 0.99998748),
]


@pytest.mark.parametrize("scale, sines, last_sine, cosines, last_cosine", PUBLISHED)
def test_embedding_has_the_published_values(scale, sines, last_sine, cosines, last_cosine):
    embedding = embed_guidance_scale(torch.tensor([scale]))[0]

    # The low frequencies' phases run into the thousands, where float32 is coarse.
    assert embedding[:4].tolist() == pytest.approx(sines, abs=2e-3)
    assert embedding[128:132].tolist() == pytest.approx(cosines, abs=2e-3)
    assert embedding[127].item() == pytest.approx(last_sine, abs=1e-5)
    assert embedding[255].item() == pytest.approx(last_cosine, abs=1e-5)
    assert embedding.norm().item() == pytest.approx(128**0.5, rel=1e-6)


def test_embedding_of_zero_is_sines_zero_then_cosines_one():
    assert embed_guidance_scale(torch.zeros(1))[0].tolist() == [0.0] * 128 + [1.0] * 128


def test_embedding_is_that_of_diffusers():
    scales = torch.tensor([0.0, 0.05, 5.0, 7.5, 14.9])

    theirs = LatentConsistencyModelPipeline.get_guidance_scale_embedding(
        None, scales, embedding_dim=256
    )

    assert_close(embed_guidance_scale(scales), theirs, rtol=0, atol=2e-3)


@pytest.mark.parametrize("size", [256, 512])
def test_embedding_has_parity_with_the_published_code(size, golden):
    recorded = golden("functions")

    embedding = embed_guidance_scale(recorded["w"], size)

    assert_close(embedding, recorded[f"guidance_scale_embedding/{size}"], rtol=0, atol=2e-3)


def test_embedding_is_computed_in_float32_where_the_rest_is_not():
    scale = torch.tensor([0.05, 7.5])
    exact = embed_guidance_scale(scale)

    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(embed_guidance_scale(scale), exact)
    assert embed_guidance_scale(scale.bfloat16()).dtype == torch.float32


def test_embedding_refuses_an_odd_size():
    with pytest.raises(ValueError, match="Expected an even embedding size, got 65."):
        embed_guidance_scale(torch.zeros(1), 65)


def test_guide_is_the_papers_formula_with_w_plus_one():
    cond, uncond = torch.full((1, 1, 1, 1, 1), 0.3), torch.full((1, 1, 1, 1, 1), 0.1)

    assert guide(cond, uncond, torch.tensor([8.5])).item() == pytest.approx(1.8)
    assert guide(cond, uncond, 8.5).item() == pytest.approx(cond.item() + 7.5 * 0.2)
    assert torch.equal(guide(cond, uncond, 1.0), cond)


def test_guide_gives_each_video_its_own_scale():
    cond, uncond = torch.ones(2, 4, 2, 3, 3), torch.zeros(2, 4, 2, 3, 3)

    guided = guide(cond, uncond, torch.tensor([2.0, 5.0]))

    assert guided[0].unique().tolist() == [2.0]
    assert guided[1].unique().tolist() == [5.0]


@pytest.mark.parametrize("one_call", [False, True])
def test_both_predictions_have_the_frame_rate_of_their_video(schedule, one_call):
    network, told = make_unet(fps_conditioning=True), []
    network.register_forward_pre_hook(lambda _, inputs: told.extend(inputs[3].fps.tolist()))
    texts, rates = torch.zeros(2, 6, 16), torch.tensor([8, 24])
    guided = bind_guided(network, schedule, texts, texts, torch.ones(2), rates, one_call=one_call)
    guided(torch.zeros(2, 4, 3, 4, 4), torch.tensor([519, 19]))

    assert told == [8, 24, 8, 24]


def test_guided_unet_combines_its_two_predictions(tiny_unet, schedule):
    noisy, timesteps = torch.randn(2, 4, 3, 4, 4), torch.tensor([519, 19])
    prompts, empty = torch.randn(2, 2, 6, 16)
    scale = torch.tensor([3.0, 7.0])

    guided = bind_guided(tiny_unet, schedule, prompts, empty, scale)(noisy, timesteps)

    cond, uncond = (tiny_unet(noisy, timesteps, text) for text in (prompts, empty))
    assert_close(guided, guide(cond, uncond, scale))
