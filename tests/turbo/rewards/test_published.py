"""Published rewards load from the files as they were published, and nothing else does."""

import gzip
import json
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import BlipTextConfig, BlipVisionConfig, CLIPConfig

from tests.support.golden import Golden, shapes_of
from tests.support.tiny_models import randomise
from tests.turbo.rewards.test_internvideo2 import random_frames
from turbo.rewards import check_reward, image_text, imagereward, internvideo2, viclip
from turbo.rewards.__main__ import main as check_command
from turbo.rewards.checkpoints import RewardCard
from turbo.rewards.image_text import embed_images, open_clip_part, read_open_clip
from turbo.rewards.imagereward import ImageRewardNetwork, imagereward_part
from turbo.rewards.internvideo2 import (
    InternVideo2,
    InternVideo2Config,
    internvideo2_part,
    read_internvideo2,
)
from turbo.rewards.preprocess import CLIP_MEAN, CLIP_STD, letterbox, normalise, stretch
from turbo.rewards.published import REWARDS, load_reward
from turbo.rewards.viclip import ViCLIP, ViCLIPConfig, read_viclip, viclip_part

TINY_CLIP = CLIPConfig(
    projection_dim=24,
    text_config={
        "vocab_size": 49408,
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
        "hidden_act": "gelu",
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 0,
    },
    vision_config={
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "hidden_act": "gelu",
    },
)
TINY_VICLIP = ViCLIPConfig(
    size=28, patch=14, num_frames=2, width=16, layers=1, heads=2, text_width=16, text_layers=1,
    text_heads=2, embed=8,
)  # fmt: skip
TINY_INTERNVIDEO2 = InternVideo2Config(
    size=28, patch=14, num_frames=4, width=16, layers=2, heads=2, hidden=24, pool_heads=2,
    pooled=8, vocabulary=10, positions=64, text_width=16, text_layers=2, text_heads=2,
    text_hidden=24, embed=8,
)  # fmt: skip
TINY_BLIP_VISION = {
    "image_size": 32, "patch_size": 16, "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 2, "layer_norm_eps": 1e-6,
}  # fmt: skip
TINY_BLIP_TEXT = {
    "vocab_size": 12, "hidden_size": 16, "encoder_hidden_size": 32, "intermediate_size": 32,
    "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 40,
    "layer_norm_eps": 1e-12, "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def theirs() -> open_clip.CLIP:
    """A CLIP model built by OpenCLIP."""
    model = open_clip.CLIP(
        embed_dim=24,
        vision_cfg={"image_size": 28, "layers": 2, "width": 32, "head_width": 16, "patch_size": 14},
        text_cfg={"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    )
    return randomise(model, seed=7)


@pytest.fixture
def tiny_sizes(monkeypatch) -> None:
    """Let the loaders expect tiny networks in the published files."""
    monkeypatch.setattr(image_text, "VIT_H_CONFIG", TINY_CLIP.to_dict())
    monkeypatch.setattr(imagereward, "VISION_CONFIG", TINY_BLIP_VISION)
    monkeypatch.setattr(imagereward, "TEXT_CONFIG", TINY_BLIP_TEXT)
    monkeypatch.setattr(viclip, "ViCLIPConfig", lambda: TINY_VICLIP)
    monkeypatch.setattr(internvideo2, "InternVideo2Config", lambda: TINY_INTERNVIDEO2)


def inventory(recorded: Golden, name: str) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor of a full-size network."""
    file = recorded.folder / "inventory" / f"{name}.json.gz"
    shapes = json.loads(gzip.decompress(file.read_bytes()))
    return {name: tuple(shape) for name, shape in shapes.items()}


def save_internvideo2(path: Path, model: InternVideo2) -> None:
    """Save as published: in half precision, nested, with the tensors a reward does not use."""
    tensors = {
        name.replace("text_encoder.", "text_encoder.bert."): tensor.bfloat16()
        for name, tensor in model.state_dict().items()
    }
    for name in (
        "temp",
        "itm_head.weight",
        "text_encoder.cls.predictions.bias",
        "text_encoder.bert.embeddings.position_ids",
        "text_encoder.bert.encoder.layer.2.crossattention.self.key.weight",
        "vision_encoder.img_pos_embed",
        "vision_encoder.clip_pos_embed",
        "vision_encoder.clip_decoder.0.head.weight",
        "vision_encoder.final_clip_decoder.norm.bias",
    ):
        tensors[name] = torch.zeros(3)
    torch.save({"module": tensors, "seen": {"a", "set"}}, path)


@torch.no_grad()
def test_a_converted_clip_embeds_as_openclip_does(theirs, tmp_path):
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "hps.pt")
    ours = read_open_clip(tmp_path / "hps.pt", TINY_CLIP)
    images = random_frames(1, 2, 28, 28)[0]
    ids = open_clip.tokenize(["a cat", "a dog that surfs"])

    pixels = normalise(images, CLIP_MEAN, CLIP_STD)
    assert_close(embed_images(ours, images), theirs.encode_image(pixels), rtol=0, atol=1e-5)
    texts = ours.get_text_features(input_ids=ids).pooler_output
    assert_close(texts, theirs.encode_text(ids), rtol=0, atol=1e-5)


def test_every_tensor_of_openclips_vit_h_has_a_place():
    with torch.device("meta"):
        theirs = open_clip.CLIP(**open_clip.get_model_config("ViT-H-14"))

    part = open_clip_part(CLIPConfig(**image_text.VIT_H_CONFIG))

    assert part.expected == shapes_of(theirs.state_dict())


def test_every_published_tensor_of_viclip_has_a_place(golden):
    shapes = inventory(golden("viclip_tiny"), "viclip_l")

    part = viclip_part(ViCLIPConfig())

    assert part.expected == shapes
    assert part.parameters == 427_590_145


@pytest.mark.parametrize("num_frames", [4, 8])
def test_every_tensor_of_internvideo2_has_its_published_place(num_frames, golden):
    name = f"internvideo2_stage2_1b_{num_frames}frames"
    shapes = inventory(golden("internvideo2_tiny"), name)

    part = internvideo2_part(InternVideo2Config(num_frames=num_frames), shapes)

    assert part.expected == {name: shapes[name] for name in part.expected}
    left_out = {name.split(".")[1] for name in shapes if name not in part.expected}
    assert left_out == {
        "img_pos_embed",
        "clip_pos_embed",
        "clip_img_pos_embed",
        "clip_decoder",
        "final_clip_decoder",
        "embeddings",  # position_ids, which count up
        "encoder",  # the layers of fusion
    }
    assert set(shapes) == set(part.expected) | part.unused


def test_viclip_is_read_as_published(tmp_path):
    model = randomise(ViCLIP(TINY_VICLIP), seed=8)
    torch.save({"model": model.state_dict()}, tmp_path / "viclip.pth")

    loaded = read_viclip(tmp_path / "viclip.pth", TINY_VICLIP)

    frames = random_frames(1, 2, 28, 28)
    assert_close(loaded.vision_encoder(frames), model.vision_encoder(frames))


def test_internvideo2_is_read_for_another_number_of_frames(tmp_path):
    model = randomise(InternVideo2(TINY_INTERNVIDEO2), seed=9).bfloat16().float()
    save_internvideo2(tmp_path / "iv2.pt", model)

    four, eight = (read_internvideo2(tmp_path / "iv2.pt", n, TINY_INTERNVIDEO2) for n in (4, 8))

    frames = random_frames(1, 4, 28, 28)
    assert_close(four.embed_frames(frames), model.embed_frames(frames))
    assert eight.config.num_frames == 8
    positions = eight.vision_encoder.pos_embed
    assert_close(positions[:, 1 + 4 * 1], 0.75 * model.vision_encoder.pos_embed[:, 1]
                 + 0.25 * model.vision_encoder.pos_embed[:, 1 + 4])  # fmt: skip
    ids = torch.tensor([[2, 5, 6, 3]])
    texts = eight.embed_tokens(ids, torch.ones_like(ids))
    assert_close(texts, model.embed_tokens(ids, torch.ones_like(ids)))


@pytest.fixture(params=REWARDS)
def published(request, theirs, tiny_sizes, tmp_path) -> tuple[str, Path]:
    """Save every reward in miniature, as it was published."""
    name = request.param
    path = tmp_path / REWARDS[name].files[0].path
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog", "red", "boat"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    if name in ("hpsv2.1", "clip-h"):
        torch.save(theirs.state_dict(), path)
    elif name == "pickscore":
        torch.save(theirs.state_dict(), tmp_path / "open_clip.pt")
        read_open_clip(tmp_path / "open_clip.pt", TINY_CLIP).save_pretrained(tmp_path)
    elif name == "imagereward":
        part = imagereward_part(
            BlipVisionConfig(**TINY_BLIP_VISION),
            BlipTextConfig(**TINY_BLIP_TEXT, is_decoder=True),
            (),
        )
        network = ImageRewardNetwork(part.network.vision.config, part.network.text.config)
        weights = randomise(network, seed=2).state_dict()
        torch.save({part.origins[ours].name: weights[ours] for ours in part.origins}, path)
    elif name == "viclip":
        torch.save({"model": randomise(ViCLIP(TINY_VICLIP), seed=8).state_dict()}, path)
    elif name.startswith("internvideo2"):
        save_internvideo2(path, randomise(InternVideo2(TINY_INTERNVIDEO2), seed=9))
    else:
        pytest.fail(f"Save the files of {name} here in miniature, as they were published.")
    return name, tmp_path


def test_a_reward_loads_from_its_published_files(published):
    """From the downloaded folder to scores that depend on frames and prompts, in any precision."""
    name, folder = published

    reward = load_reward(name, folder)

    count = getattr(reward, "num_frames", 3)
    check_reward(reward, count, 40, 64, low=-3 if name == "imagereward" else -1, high=1)
    frames = random_frames(2, count, 40, 64).requires_grad_(True)
    scores = reward(frames, ["a cat", "a dog"])
    assert not torch.allclose(scores, reward(frames, ["a dog", "a cat"]), atol=1e-4)
    assert getattr(reward, "make_square", None) in (
        (letterbox,) if name == "hpsv2.1" else (stretch, None)
    )

    half = reward.to(torch.bfloat16)(frames, ["a cat", "a dog"])
    half.sum().backward()

    assert half.dtype == torch.float32
    assert_close(half, scores, rtol=0, atol=0.05)
    assert frames.grad.isfinite().all() and frames.grad.any()


def test_pickscore_loads_from_a_transformers_folder(theirs, tmp_path):
    torch.save(theirs.state_dict(), tmp_path / "open_clip.pt")
    model = read_open_clip(tmp_path / "open_clip.pt", TINY_CLIP)
    model.save_pretrained(tmp_path)

    reward = load_reward("pickscore", tmp_path)

    images = random_frames(1, 2, 40, 64)[0]
    assert_close(embed_images(reward.model, images), embed_images(model, images))


def test_viclips_prompts_are_cut_to_its_own_length(tiny_sizes, tmp_path):
    path = tmp_path / REWARDS["viclip"].files[0].path
    torch.save({"model": randomise(ViCLIP(TINY_VICLIP), seed=8).state_dict()}, path)

    reward = load_reward("viclip", tmp_path)

    assert reward.tokenizer.model_max_length == TINY_VICLIP.length == 32


def test_a_missing_file_is_named_with_the_command_that_gets_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"python -m turbo.rewards fetch hpsv2.1"):
        load_reward("hpsv2.1", tmp_path)


def test_an_unknown_reward_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no reward 'vibes'. Choose one of .*viclip"):
        load_reward("vibes", tmp_path)


@pytest.mark.parametrize("change", ["missing", "unexpected", "mis-shaped"])
def test_another_file_is_refused_by_the_name_of_a_tensor(change, theirs, tmp_path):
    weights = theirs.state_dict()
    if change == "missing":
        del weights["visual.proj"]
    elif change == "unexpected":
        weights["visual.more"] = torch.zeros(2)
    else:
        weights["text_projection"] = torch.zeros(24, 32)
    torch.save({"state_dict": weights}, tmp_path / "clip.pt")
    name = {"missing": "visual.proj", "unexpected": "visual.more"}.get(change, "text_projection")

    with pytest.raises(ValueError, match=rf"clip.pt(.|\n)*{name}"):
        read_open_clip(tmp_path / "clip.pt", TINY_CLIP)


def test_a_check_of_truncated_weights_is_refused_in_words(tmp_path, monkeypatch):
    file = tmp_path / "weights.safetensors"
    save_file({"a": torch.zeros(9)}, file)
    file.write_bytes(file.read_bytes()[:-1])
    card = RewardCard(title="Trial", files=(), load=lambda folder: load_file(file))
    monkeypatch.setitem(REWARDS, "trial", card)

    with pytest.raises(SystemExit, match="cannot be read"):
        check_command(["check", "trial", "--folder", str(tmp_path)])
