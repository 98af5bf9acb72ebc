"""ImageReward: the recorded network and its reward."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers import BertTokenizer, BlipTextConfig, BlipVisionConfig

from tests.support.golden import Golden
from tests.turbo.rewards.test_published import inventory
from turbo.rewards.imagereward import (
    LENGTH,
    MEAN,
    STD,
    TEXT_CONFIG,
    VISION_CONFIG,
    ImageReward,
    imagereward_part,
    prepare_images,
    read_imagereward,
)


def recorded_reward(recorded: Golden, folder: Path) -> ImageReward:
    """Read the recorded weights from a file of the published form, in float64."""
    vision, text = recorded.metadata("vision_config"), recorded.metadata("text_config")
    torch.save(
        recorded.weights()
        | {"blip.text_encoder.embeddings.position_ids": torch.arange(40).reshape(1, -1)},
        folder / "ImageReward.pt",
    )
    network = read_imagereward(
        folder / "ImageReward.pt",
        BlipVisionConfig(
            image_size=vision["img_size"],
            patch_size=vision["patch_size"],
            hidden_size=vision["embed_dim"],
            intermediate_size=int(vision["embed_dim"] * vision["mlp_ratio"]),
            num_hidden_layers=vision["depth"],
            num_attention_heads=vision["num_heads"],
            layer_norm_eps=VISION_CONFIG["layer_norm_eps"],
        ),
        BlipTextConfig(
            **{name: text[name] for name in TEXT_CONFIG if name in text},
            encoder_hidden_size=text["encoder_width"],
            is_decoder=True,
        ),
    )
    words = recorded.metadata("vocab")[:-2]  # without [DEC] and [ENC]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    return ImageReward(network.double(), BertTokenizer.from_pretrained(folder))


def test_imagereward_is_in_parity_with_the_published_implementation(golden, tmp_path):
    """Pixels, towers, raw score, reward and gradient, in float64."""
    recorded = golden("imagereward_tiny")
    reward = recorded_reward(recorded, tmp_path)
    frames = recorded["frames"].double().requires_grad_(True)
    ids, mask = recorded["input_ids"], recorded["attention_mask"]

    pixels = prepare_images(frames, reward.model.vision.config.image_size)
    tokens = reward.model.vision(pixel_values=pixels).last_hidden_state
    raw = reward.model(pixels, ids, mask)
    ((raw - MEAN) / STD).sum().backward()

    for found, name in [
        (pixels, "pixel_values"),
        (tokens, "vision_tokens"),
        (raw[:, None], "raw"),
        ((raw[:, None] - MEAN) / STD, "reward"),
        (frames.grad, "grad_frames"),
    ]:
        assert_close(found, recorded[f"{name}__f64"], rtol=0, atol=1e-12)


def test_its_reward_is_the_published_one_with_the_published_tokens(golden, tmp_path):
    """Above a score of 2 there is neither reward nor gradient."""
    recorded = golden("imagereward_tiny")
    reward = recorded_reward(recorded, tmp_path)
    prompts = recorded.metadata("prompts")
    frames = recorded["frames"].double()[:, None].requires_grad_(True)

    score = reward(frames, prompts)
    score.sum().backward()

    assert_close(score, recorded["published_reward"].double(), rtol=0, atol=5e-6)
    above = recorded["reward__f64"][:, 0] > 2
    reached = frames.grad.flatten(1).any(dim=1)
    assert above.any() and torch.equal(reached, ~above)
    ids = reward.tokenizer(prompts, padding="max_length", truncation=True, max_length=LENGTH)
    assert ids["input_ids"] == recorded["input_ids"].tolist()


def test_odd_margins_are_cropped_as_published(golden):
    recorded = golden("imagereward_tiny")

    pixels = prepare_images(recorded["odd/frames"].double(), 48)

    assert_close(pixels, recorded["odd/pixel_values"].double(), rtol=0, atol=2e-5)


def test_every_published_tensor_has_a_place(golden):
    shapes = inventory(golden("imagereward_tiny"), "imagereward_v1")

    part = imagereward_part(
        BlipVisionConfig(**VISION_CONFIG), BlipTextConfig(**TEXT_CONFIG, is_decoder=True), shapes
    )

    assert part.expected == {name: shapes[name] for name in part.expected}
    assert set(shapes) == set(part.expected) | part.unused


def test_a_video_needs_its_prompt(golden, tmp_path):
    reward = recorded_reward(golden("imagereward_tiny"), tmp_path)

    with pytest.raises(ValueError, match="2 prompts"):
        reward(torch.rand(2, 1, 3, 40, 64).double(), ["a cat"])
