"""InternVideo2: the recorded network, and its reward."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import cosine_similarity, normalize
from torch.testing import assert_close
from transformers import BertTokenizer

from tests.support.golden import Golden
from tests.support.tiny_models import randomise
from turbo.rewards.internvideo2 import (
    InternVideo2,
    InternVideo2Config,
    InternVideo2Reward,
    stretch_positions,
)

PROMPTS = ["a cat", "cats of a house"]


@pytest.fixture
def tokenizer(tmp_path: Path) -> BertTokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "##s", "of", "house"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    return BertTokenizer.from_pretrained(tmp_path)


@pytest.fixture
def reward(tokenizer) -> InternVideo2Reward:
    config = InternVideo2Config(
        size=8,
        patch=4,
        num_frames=2,
        width=16,
        layers=2,
        heads=2,
        hidden=24,
        pool_heads=2,
        pooled=8,
        vocabulary=len(tokenizer),
        positions=16,
        length=8,
        text_width=16,
        text_layers=1,
        text_heads=2,
        text_hidden=24,
        embed=8,
    )
    return InternVideo2Reward(randomise(InternVideo2(config), seed=6), tokenizer)


def random_frames(count: int, frames: int, height: int = 8, width: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(count, frames, 3, height, width, generator=generator)


def published_internvideo2(recorded: Golden, gelu: str) -> InternVideo2:
    """Build the recorded network in float64; ignore its heads, which no reward uses.

    The recording is in float32. Computing in float64 leaves only its rounding error, which does not
    depend on the processor of this machine: at most 3e-6 of the tokens, 6e-7 of the rest.
    """
    vision, text = recorded.metadata("vision_config"), recorded.metadata("bert_config")
    config = InternVideo2Config(
        size=vision["img_size"],
        patch=vision["patch_size"],
        num_frames=vision["num_frames"],
        width=vision["embed_dim"],
        layers=vision["depth"],
        heads=vision["num_heads"],
        hidden=int(vision["embed_dim"] * vision["mlp_ratio"]),
        pool_heads=vision["attn_pool_num_heads"],
        pooled=vision["clip_embed_dim"],
        gelu=gelu,
        vocabulary=text["vocab_size"],
        positions=text["max_position_embeddings"],
        text_width=text["hidden_size"],
        text_layers=text["fusion_layer"],
        text_heads=text["num_attention_heads"],
        text_hidden=text["intermediate_size"],
        embed=recorded.metadata("embed_dim"),
    )
    model = InternVideo2(config)
    missing, _ = model.load_state_dict(recorded.weights(), strict=False)
    assert not missing
    return model.eval().requires_grad_(False).double()


def assert_near(found: torch.Tensor, recorded: torch.Tensor, tolerance: float) -> None:
    assert_close(found, recorded.double(), rtol=0, atol=tolerance)


def test_internvideo2_is_in_parity_with_the_published_modules(golden):
    """Tokens, pooled and projected features, the score, and its gradient."""
    recorded = golden("internvideo2_tiny")
    model = published_internvideo2(recorded, "none")
    frames = recorded["frames"].double().requires_grad_(True)

    tokens = model.vision_encoder.embed_patches(frames)
    videos = model.embed_frames(frames)
    texts = model.embed_tokens(recorded["input_ids"], recorded["attention_mask"])
    score = cosine_similarity(videos, texts)
    score.sum().backward()

    pooled = model.vision_encoder.clip_projector(tokens)
    assert_near(tokens, recorded["vision_embeds"], 1e-5)
    assert_near(pooled, recorded["pooled_vision_embeds"], 2e-6)
    assert_near(normalize(videos), recorded["video_features"], 2e-6)
    assert_near(normalize(texts), recorded["text_features"], 2e-6)
    assert_near(score, recorded["score"], 2e-6)
    assert_near(frames.grad, recorded["grad_frames"], 2e-7)


def test_the_fused_kernels_gelu_is_in_parity_with_the_published_one(golden):
    """The two variants of GELU differ by more than 3e-5 here."""
    recorded = golden("internvideo2_tiny")
    model = published_internvideo2(recorded, InternVideo2Config().gelu)

    frames = recorded["frames"].double()
    videos = model.embed_frames(frames)
    texts = model.embed_tokens(recorded["input_ids"], recorded["attention_mask"])

    pooled = model.vision_encoder(frames)
    assert_near(pooled, recorded["tanhgelu/pooled_vision_embeds"], 3e-6)
    assert_near(normalize(videos), recorded["tanhgelu/video_features"], 3e-6)
    score = cosine_similarity(videos, texts)
    assert_near(score, recorded["tanhgelu/score"], 3e-6)
    assert (pooled - recorded["pooled_vision_embeds"]).abs().max() > 3e-5


def test_text_pooled_is_in_parity_with_the_published_tower(golden):
    recorded = golden("internvideo2_tiny")
    model = published_internvideo2(recorded, InternVideo2Config().gelu)

    tokens = model.text_encoder(
        input_ids=recorded["input_ids"], attention_mask=recorded["attention_mask"]
    ).last_hidden_state

    assert_near(tokens[:, 0], recorded["text_pooled"], 1e-5)


def test_interpolated_positions_are_in_parity_with_the_published_ones(golden):
    recorded = golden("internvideo2_tiny")
    four, eight = recorded["posembed_ckpt_t4"], recorded["posembed_interp_t8"]

    stretched = stretch_positions(four, (four.shape[1] - 1) // 4, 8)

    assert_close(stretched, eight, rtol=0, atol=1e-6)


def test_a_ramp_of_positions_becomes_the_worked_one():
    ramp = torch.tensor([9.0, 0, 1, 2, 3]).reshape(1, 5, 1)

    stretched = stretch_positions(ramp, 1, 8).flatten()

    assert stretched.tolist() == [9, 0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]


def test_the_default_sizes_are_those_of_the_published_network():
    """1.02 B parameters in the vision encoder; BERT's first 19 of 24 layers for the text."""
    with torch.device("meta"):
        model = InternVideo2(InternVideo2Config())

    vision = sum(parameter.numel() for parameter in model.vision_encoder.parameters())
    assert 1.01e9 < vision < 1.03e9
    assert len(model.text_encoder.encoder.layer) == 19


def test_every_video_is_scored_against_its_own_prompt(reward):
    frames = random_frames(2, 2)

    together = reward(frames, PROMPTS)

    apart = torch.cat([reward(frames[i : i + 1], PROMPTS[i : i + 1]) for i in range(2)])
    assert_close(together, apart)
    assert not torch.allclose(together, reward(frames, PROMPTS[::-1]), atol=1e-3)


def test_padding_does_not_change_the_score(reward):
    ids, mask = reward._tokenize(PROMPTS[:1])

    padded = reward.model.embed_tokens(ids, mask)
    short = reward.model.embed_tokens(ids[:, : int(mask.sum())], mask[:, : int(mask.sum())])

    assert ids.shape == (1, reward.model.config.length) and mask.sum() < ids.shape[1]
    assert_close(padded, short)


def test_the_gradient_reaches_the_frames_alone(reward):
    frames = random_frames(1, 2, height=8, width=16).requires_grad_(True)

    reward(frames, PROMPTS[:1]).sum().backward()

    assert frames.grad[..., 4:12].abs().sum() > 0
    assert not frames.grad[..., :4].any() and not frames.grad[..., 12:].any()  # the middle is cut
    assert all(parameter.grad is None for parameter in reward.parameters())


def test_another_number_of_frames_or_prompts_is_refused(reward):
    with pytest.raises(ValueError, match="2 frames a video, got 2 and 3"):
        reward(random_frames(2, 3), PROMPTS)
    with pytest.raises(ValueError, match="2 prompts"):
        reward(random_frames(2, 2), PROMPTS[:1])
