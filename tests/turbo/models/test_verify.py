"""Verification: every difference by name and meaning, before and after a conversion."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support import published
from turbo.card import HubFile, ModelCard
from turbo.convert.difference import Difference
from turbo.convert.model import convert_model
from turbo.convert.unet import videocrafter_part
from turbo.models import cli
from turbo.models.cli import main
from turbo.models.registry import CARDS
from turbo.models.verify import sha256_of, verify_file, verify_model
from turbo.pipeline import VideoPipeline


@pytest.fixture
def full_card(tmp_path, monkeypatch):
    """T2V-Turbo-v2 with an empty folder."""
    card = next(card for card in CARDS if card.name == "t2v-turbo-v2")
    card = replace(card, folder=tmp_path / "weights")
    monkeypatch.setitem(cli.MODELS, card.name, card)
    return card


@pytest.fixture
def card(full_card, monkeypatch):
    """The same card, without checks of size and hash."""
    monkeypatch.setattr("turbo.models.verify.find_strange_size", lambda card, part: [])
    card = replace(full_card, sources=with_hash(full_card, None))
    monkeypatch.setitem(cli.MODELS, card.name, card)
    return card


def with_hash(card: ModelCard, sha256: str | None) -> tuple[HubFile, ...]:
    return tuple(replace(file, sha256=sha256) for file in card.sources)


@pytest.fixture
def weights():
    return published.publish(videocrafter_part(published.videocrafter_unet(**published.V2)))


@pytest.mark.parametrize(
    "name, meaning",
    [
        ("time_cond_proj.weight", "the guidance projection of a student"),
        ("motion_cond_proj.weight", "the motion projections of T2V-Turbo-v2"),
        ("model.diffusion_model.fps_embedding.0.bias", "the frame-rate embedding"),
        ("first_stage_model.decoder.conv_in.bias", "the VAE: latents to pixels"),
        ("cond_stage_model.model.ln_final.bias", "the text encoder: prompt to tensor"),
        ("input_blocks.1.0.temopral_conv.conv1.2.bias", "the UNet: temporal convolution"),
        ("input_blocks.1.2.transformer_blocks.0.attn2.to_q.weight", "temporal attention"),
        ("middle_block.1.transformer_blocks.0.attn2.to_k.weight", "cross-attention to the prompt"),
        ("output_blocks.3.1.proj_in.weight", "the UNet: spatial attention"),
        ("down_blocks.0.temp_attentions.1.norm.bias", "the UNet: temporal attention"),
        ("unknown", "not a tensor of any network here"),
    ],
)
def test_a_difference_says_what_the_tensor_is_for(name, meaning):
    assert meaning in str(Difference("missing", name, expected=(3,)))


def test_a_good_file_has_no_problem(card, weights, tmp_path):
    torch.save(weights, tmp_path / "unet_mg.pt")

    finding = verify_file(card, tmp_path / "unet_mg.pt")

    assert not finding.problems
    assert finding.parameters == sum(tensor.numel() for tensor in weights.values())


def test_a_file_is_held_against_the_hash_on_its_card(card, weights, tmp_path):
    """Old pickles have no checksums of their own."""
    path = tmp_path / "unet_mg.pt"
    torch.save(weights, path, _use_new_zipfile_serialization=False)
    card = replace(card, sources=with_hash(card, sha256_of(path)))
    assert not verify_file(card, path).problems
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)

    [problem] = verify_file(card, path).problems

    assert f"damaged, or another file: its SHA-256 is {sha256_of(path)}" in problem


def test_every_difference_of_a_file_is_listed(card, weights, tmp_path, capsys):
    lost = [name for name in weights if ".attn1." in name]
    for name in lost:
        del weights[name]
    weights["extra.weight"] = torch.ones(2)
    torch.save(weights, tmp_path / "unet_mg.pt")

    with pytest.raises(SystemExit):
        main(["verify", card.name, str(tmp_path / "unet_mg.pt")])

    printed = capsys.readouterr().out
    assert all(f"missing {name}: " in printed for name in lost)
    assert "unexpected extra.weight: got (2,)" in printed
    assert f"{len(lost) + 1} problems" in printed


def test_every_missing_tensor_is_listed_with_those_that_tell_the_sizes(card, golden, tmp_path):
    folder = golden("vc2_unet_recipe").folder
    names = set(published.read_inventory(folder, "vc2_unet_v2_student"))
    lost = {"init_attn.0.proj_in.weight", "out.2.weight", "output_blocks.5.0.in_layers.0.bias"}
    lost |= {"combine_proj.weight"}
    torch.save({name: torch.ones(1) for name in names - lost}, tmp_path / "unet_mg.pt")

    problems = verify_file(card, tmp_path / "unet_mg.pt").problems

    assert {problem.split(":")[0] for problem in problems} == {f"missing {name}" for name in lost}


def test_a_network_of_another_size_than_the_papers_is_a_problem(full_card, weights, tmp_path):
    torch.save(weights, tmp_path / "unet_mg.pt")

    full_card = replace(full_card, sources=with_hash(full_card, None))

    [problem] = verify_file(full_card, tmp_path / "unet_mg.pt").problems

    count = sum(tensor.numel() for tensor in weights.values())
    assert f"{count:,} parameters: not a network of the papers" in problem
    assert "1,413,653,060" in problem


def test_a_list_of_adapters_is_good_before_its_teacher_is_there(golden, tmp_path):
    table = published.read_inventory(golden("vc2_unet_recipe").folder, "lora_ms_v1_r32")
    shapes = [row[end] for row in table for end in ("up", "down")]
    torch.save([torch.zeros(1).expand(shape) for shape in shapes], tmp_path / "unet_lora.pt")
    card, other = (
        replace(card, folder=tmp_path, sources=with_hash(card, None))
        for card in CARDS
        if card.name in ("t2v-turbo-ms", "vcm-vc2")
    )

    assert not verify_file(card, tmp_path / "unet_lora.pt").problems
    [problem] = verify_file(other, tmp_path / "unet_lora.pt").problems
    assert "belongs to another network" in problem


def test_a_folder_in_diffusers_layout_is_verified_file_by_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("turbo.models.verify.find_strange_size", lambda card, part: [])
    published.save_diffusers_layout(tmp_path / "files", published.modelscope_unet())

    main(["verify", "modelscope", str(tmp_path / "files")])

    printed = capsys.readouterr().out
    assert [line.split(": ")[1][:4] for line in printed.splitlines()] == ["good"] * 3


def test_a_file_of_another_model_is_a_problem(weights, tmp_path):
    torch.save(weights, tmp_path / "unet_mg.pt")
    card = next(card for card in CARDS if card.name == "t2v-turbo-vc2")

    [problem] = verify_file(card, tmp_path / "unet_mg.pt").problems

    assert "is T2V-Turbo-v2, not t2v-turbo-vc2" in problem


@pytest.fixture(scope="module")
def converted_once(tmp_path_factory) -> Path:
    """Convert a tiny T2V-Turbo-v2, and return its folder."""
    folder = tmp_path_factory.mktemp("converted")
    student = published.videocrafter_unet(**published.V2)
    torch.save(published.publish(videocrafter_part(student)), folder / "unet_mg.pt")
    base = published.videocrafter_checkpoint(published.videocrafter_unet())
    torch.save(base, folder / "model.ckpt")
    card = next(card for card in CARDS if card.name == "t2v-turbo-v2")
    card = replace(card, folder=folder / "weights")
    list(convert_model(card, [folder / "model.ckpt", folder / "unet_mg.pt"]))
    return card.folder


@pytest.fixture
def converted(card, converted_once):
    """The card of a converted model, whose files the test may damage."""
    shutil.copytree(converted_once, card.folder)
    return card


def problems_of(card) -> list[str]:
    return [problem for finding in verify_model(card) for problem in finding.problems]


def test_a_converted_model_is_good(converted):
    findings = list(verify_model(converted))

    names = [finding.path.name for finding in findings]
    assert names == ["text_encoder", "t2v-turbo-v2", "vae", "tokenizer"]
    assert not problems_of(converted)


def test_a_flipped_bit_after_the_conversion_is_found(converted):
    [file] = (converted.folder / "vae").glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)

    problem, remedy = problems_of(converted)

    assert "changed since its conversion: SHA-256" in problem
    assert remedy == f"To repair it, delete {file.parent} and fetch or convert t2v-turbo-v2 again."


def empty(folder: Path) -> None:
    [file] = folder.glob("*.safetensors")
    file.write_bytes(b"")


def cut(folder: Path) -> None:
    [file] = folder.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])


def forget_words(folder: Path) -> None:
    """Leave a tokenizer with a short vocabulary, as transformers creates for an empty folder."""
    file = folder / "tokenizer.json"
    words = json.loads(file.read_text())
    few = dict(list(words["model"]["vocab"].items())[:100])
    words["model"] |= {"vocab": few, "merges": []}
    file.write_text(json.dumps(words))


def garble(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def simplify(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


@pytest.mark.parametrize(
    "part, damage",
    [
        ("t2v-turbo-v2", empty),
        ("t2v-turbo-v2", cut),
        ("t2v-turbo-v2", garble),
        ("t2v-turbo-v2", simplify),
        ("text_encoder", cut),
        ("text_encoder", garble),
        ("vae", empty),
        ("vae", garble),
        ("tokenizer", forget_words),
    ],
)
def test_damage_after_the_conversion_is_told_by_verify_and_at_loading(part, damage, converted):
    damage(converted.folder / part)

    problems = problems_of(converted)

    assert any(f"delete {converted.folder / part}" in problem for problem in problems)
    with pytest.raises(ValueError, match=r"weights|tokenizer"):
        VideoPipeline.load(converted, "cpu")


def test_a_missing_folder_is_named_with_what_gets_it(converted):
    (converted.folder / "vae").rename(converted.folder / "elsewhere")

    [problem] = problems_of(converted)

    assert "missing. Fetch it: python -m turbo.models fetch t2v-turbo-v2." in problem


@pytest.mark.parametrize("name", ["shapes-teacher", "shapes-turbo"])
def test_the_embedded_models_are_good(name):
    findings = list(verify_model(next(card for card in CARDS if card.name == name)))

    assert findings and not any(finding.problems for finding in findings)


def test_adapters_without_their_guidance_projection_are_a_problem(tmp_path):
    card = next(card for card in CARDS if card.name == "shapes-turbo")
    copy = replace(card, folder=shutil.copytree(card.folder, tmp_path / "shapes"))
    file = copy.folder / "turbo" / "lora.safetensors"
    adapters = load_file(file)
    del adapters["time_embedding.cond_proj.weight"]
    save_file(adapters, file)

    [problem] = problems_of(copy)

    assert (
        "missing time_embedding.cond_proj.weight. Adapters alone do not define a student" in problem
    )


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.complex64])
def test_weights_of_a_kind_that_no_weight_is_are_a_problem(dtype, card, weights, tmp_path):
    name = "middle_block.0.in_layers.2.weight"
    weights[name] = weights[name].to(dtype)
    torch.save(weights, tmp_path / "unet_mg.pt")

    [problem] = verify_file(card, tmp_path / "unet_mg.pt").problems

    assert f"{name!r} in {tmp_path / 'unet_mg.pt'} is {str(dtype)[6:]}" in problem
    with pytest.raises(ValueError, match=f"is {str(dtype)[6:]}, but weights"):
        list(convert_model(card, [tmp_path / "unet_mg.pt"]))
    assert not list(card.folder.glob("*"))
