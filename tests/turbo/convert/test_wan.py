"""Wan's published files: every name accounted for, and the weights in their places."""

from dataclasses import replace
from math import atan, cos, sin
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import (
    convert_wan_transformer_to_diffusers,
    convert_wan_vae_to_diffusers,
)
from safetensors.torch import save_file
from torch.testing import assert_close
from transformers import UMT5Config, UMT5EncoderModel

from tests.support.tiny_models import randomise
from training.tiny import wan_parts
from turbo.card import ModelCard
from turbo.convert.model import convert_model
from turbo.convert.part import Part
from turbo.convert.wan import (
    map_wan_network,
    map_wan_text,
    map_wan_vae,
    published_wan_network,
    published_wan_text,
    published_wan_vae,
    wan_network_part,
    wan_text_part,
    wan_vae_part,
)
from turbo.models.registry import find_card
from turbo.models.verify import verify_model
from turbo.networks.wan import WanNetwork
from turbo.pipeline import VideoPipeline


@pytest.fixture(scope="module")
def parts() -> dict[str, Part]:
    """The three networks in miniature, with the proportions that the files do not state."""
    network = WanNetwork(
        num_attention_heads=1,
        attention_head_dim=12,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
    )
    text = UMT5Config(
        vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, pad_token_id=0
    )
    return {
        "teacher": wan_network_part(randomise(network)),
        "vae": wan_vae_part(AutoencoderKLWan(base_dim=4).eval()),
        "text_encoder": wan_text_part(randomise(UMT5EncoderModel(text))),
    }


def published(part: Part) -> dict[str, torch.Tensor]:
    """Return the weights of a part under their published names."""
    weights = part.network.state_dict()
    return {origin.name: weights[name].clone() for name, origin in part.origins.items()}


@pytest.mark.parametrize(
    "name, convert",
    [("teacher", convert_wan_transformer_to_diffusers), ("vae", convert_wan_vae_to_diffusers)],
)
def test_names_are_those_that_diffusers_converts(name, convert, parts):
    ours = parts[name].network.state_dict()

    theirs = convert(published(parts[name]))

    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], weight) for name, weight in ours.items())


@pytest.mark.slow
def test_the_published_files_have_as_many_tensors():
    """As others have counted in the released files, which were not available here."""
    assert len(wan_network_part(published_wan_network()).expected) == 825
    assert len(wan_vae_part(published_wan_vae()).expected) == 194
    assert len(wan_text_part(published_wan_text()).expected) == 242


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, build",
    [("teacher", map_wan_network), ("vae", map_wan_vae), ("text_encoder", map_wan_text)],
)
def test_the_shapes_of_a_file_determine_its_network(name, build, parts):
    part = build({name: tuple(tensor.shape) for name, tensor in published(parts[name]).items()})

    assert part.shapes == parts[name].shapes
    assert part.origins == parts[name].origins


@pytest.fixture
def files(parts, tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "diffusion_pytorch_model.safetensors", tmp_path / "Wan2.1_VAE.pth"]
    paths += [tmp_path / "models_t5_umt5-xxl-enc-bf16.pth"]
    save_file(published(parts["teacher"]), paths[0])
    torch.save(published(parts["vae"]), paths[1])
    torch.save(published(parts["text_encoder"]), paths[2])
    wan_parts()["tokenizer"].save_pretrained(tmp_path / "umt5")
    return [*paths, tmp_path / "umt5" / "tokenizer.json"]


@pytest.fixture
def card(tmp_path: Path) -> ModelCard:
    shape = {"height": 16, "width": 16, "num_frames": 5, "default_steps": 2}
    return replace(find_card("wan2.1-1.3b"), folder=tmp_path / "wan", **shape)


def test_published_files_become_a_model_that_makes_clips(card, files, parts):
    list(convert_model(card, files))

    assert card.is_ready()
    pipeline = VideoPipeline.load(card, "cpu")
    assert pipeline("a cat").frames.shape == (5, 16, 16, 3)
    loaded = {
        "teacher": pipeline.unet,
        "vae": pipeline.vae,
        "text_encoder": pipeline.text_encoder.model,
    }
    for name, network in loaded.items():
        weights = network.state_dict()
        for key, weight in parts[name].network.state_dict().items():
            assert torch.equal(weights[key], weight), key
    assert [finding.problems for finding in verify_model(replace(card, sources=()))] == [[]] * 4


@pytest.mark.slow
def test_a_file_of_another_model_is_refused(card, files, tiny_unet, tmp_path):
    save_file(tiny_unet.state_dict(), tmp_path / "unet.safetensors")

    with pytest.raises(ValueError, match="not a file of wan"):
        list(convert_model(card, [tmp_path / "unet.safetensors"]))
    with pytest.raises(ValueError, match="not a file of modelscope"):
        list(convert_model(find_card("modelscope"), files[:1]))


def rcm_weights(parts: dict[str, Part]) -> dict[str, torch.Tensor]:
    """Return the network as rCM publishes it: a matrix as first layer, a prefix, and counters."""
    weights = published(parts["teacher"])
    weights["patch_embedding.weight"] = weights["patch_embedding.weight"].flatten(1)
    named = {f"net.{name}": tensor for name, tensor in weights.items()}
    return named | {"net.accum_iteration": torch.tensor(5)}


@pytest.fixture
def student_card(card, tmp_path) -> ModelCard:
    shape = {"height": 16, "width": 16, "num_frames": 5}
    return replace(find_card("rcm-wan2.1-1.3b"), folder=tmp_path / "wan", **shape)


def test_a_published_student_makes_the_clips_of_its_own_sampler(
    student_card, files, parts, tmp_path
):
    torch.save(rcm_weights(parts), tmp_path / "rcm.pt")
    list(convert_model(student_card, [tmp_path / "rcm.pt", *files[1:]]))
    pipeline = VideoPipeline.load(student_card, "cpu")
    noises = [torch.randn(1, *pipeline.latent_shape) for _ in range(4)]

    *_, result = pipeline.stream(["a cat"], [0], noise=noises[0], step_noise=noises[1:])

    embeds = pipeline.text_encoder.encode(["a cat"])
    angles = (atan(80), 1.3, 1.0, 0.6)  # of its script: z = cos t x + sin t n
    with torch.inference_mode():
        latents = noises[0]
        for step, angle in enumerate(angles):
            total = cos(angle) + sin(angle)
            told = torch.tensor([1000 * sin(angle) / total])
            velocity = pipeline.unet(latents / total, told, embeds)
            clean = (latents - sin(angle) * velocity) / total
            if step < 3:
                latents = cos(angles[step + 1]) * clean + sin(angles[step + 1]) * noises[step + 1]
    assert_close(result.latents, clean, atol=1e-5, rtol=1e-4)
    weights = pipeline.unet.state_dict()
    for key, weight in parts["teacher"].network.state_dict().items():
        assert torch.equal(weights[key], weight), key


def test_the_bidirectional_student_of_causvid_makes_the_clips_of_its_own_sampler(
    files, parts, tmp_path
):
    weights = {f"model.{name}": tensor for name, tensor in published(parts["teacher"]).items()}
    critic = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    torch.save({"generator": weights, "critic": critic}, tmp_path / "model.pt")
    shape = {"height": 16, "width": 16, "num_frames": 5}
    card = replace(find_card("causvid-wan2.1-1.3b"), folder=tmp_path / "wan", **shape)

    list(convert_model(card, [tmp_path / "model.pt", *files[1:]]))

    pipeline = VideoPipeline.load(card, "cpu")
    noises = [torch.randn(1, *pipeline.latent_shape) for _ in range(3)]
    *_, result = pipeline.stream(["a cat"], [0], noise=noises[0], step_noise=noises[1:])
    embeds, noisy = pipeline.text_encoder.encode(["a cat"]), noises[0]
    times = (1000, 757, 522)  # of its configuration
    with torch.inference_mode():
        for step, time in enumerate(times):
            clean = noisy - time / 1000 * pipeline.unet(noisy, torch.tensor([float(time)]), embeds)
            if step < 2:
                sigma = times[step + 1] / 1000
                noisy = (1 - sigma) * clean + sigma * noises[step + 1]
    assert_close(result.latents, clean, atol=1e-5, rtol=1e-4)
    loaded = pipeline.unet.state_dict()
    for key, weight in parts["teacher"].network.state_dict().items():
        assert torch.equal(loaded[key], weight), key
    with pytest.raises(ValueError, match="is the network of CausVid"):
        list(convert_model(find_card("rcm-wan2.1-1.3b"), [tmp_path / "model.pt", *files[1:]]))


def test_teacher_and_published_student_are_not_taken_for_each_other(
    card, student_card, files, parts, tmp_path
):
    torch.save(rcm_weights(parts), tmp_path / "rcm.pt")

    with pytest.raises(ValueError, match="is the network of rCM"):
        list(convert_model(card, [tmp_path / "rcm.pt", *files[1:]]))
    with pytest.raises(ValueError, match="is the network of Wan"):
        list(convert_model(student_card, files))


def test_a_file_that_lacks_a_tensor_is_refused(card, parts, tmp_path):
    weights = published(parts["teacher"])
    del weights["blocks.1.ffn.0.bias"]
    save_file(weights, tmp_path / "network.safetensors")

    with pytest.raises(ValueError, match=r"blocks\.1\.ffn\.0\.bias"):
        list(convert_model(card, [tmp_path / "network.safetensors"]))
