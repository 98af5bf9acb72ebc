"""The published adapters: names from their order, merged, active, and without projection."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from tests.support import published
from tests.support.golden import modelscope_unet, shapes_of, variant_of, videocrafter_unet
from training.build import build_student
from training.config import load_config
from training.forecast import FAMILIES as FAMILIES_ON_META
from turbo.convert import unet as unets
from turbo.convert.adapters import (
    adapter_order,
    change_of,
    check_projection,
    export_adapters,
    list_adapters,
    pair_up,
    read_projection,
)
from turbo.convert.checkpoint import open_checkpoint
from turbo.convert.plan import plan_jobs
from turbo.convert.unet import map_modelscope_unet, map_videocrafter_unet
from turbo.diffusion.distillation import student_of
from turbo.models.registry import CARDS
from turbo.networks.lora import DOWN, UP, add_lora, load_lora, merge_lora, save_lora
from turbo.types import Conditioning

CONFIGS = Path(__file__).parents[3] / "training" / "configs"
FAMILIES = {
    "vc2": (map_videocrafter_unet, videocrafter_unet, "vc2_unet_tiny"),
    "ms": (map_modelscope_unet, modelscope_unet, "ms_unet_tiny"),
}


def recorded_adapters(golden, family):
    """Return a student's weights by published name, its part, its list and the recording."""
    find, _, base = FAMILIES[family]
    recorded = golden(f"lora_{family}_tiny")
    weights = variant_of(golden(base).weights(), "v1")
    checkpoint = open_checkpoint(recorded.folder / f"lora_{family}_tiny_unet_lora.pt")
    return weights, find(shapes_of(weights)), checkpoint, recorded


def run(unet, recorded):
    text = "context" if "context" in recorded.file.keys() else "encoder_hidden_states"
    fps = int(recorded.file.metadata()["fps"]) if text == "context" else None
    conditioning = Conditioning(
        guidance=recorded["timestep_cond"], fps=None if fps is None else torch.tensor([fps] * 2)
    )
    with torch.no_grad():
        return unet(recorded["x"], recorded["timesteps"], recorded[text], conditioning)


@pytest.mark.parametrize("name, student, find", [
    ("lora_vc2_v1_r64", "vc2_unet_v1_student", map_videocrafter_unet),
    ("lora_ms_v1_r32", "ms_unet_student", map_modelscope_unet),
])  # fmt: skip
def test_full_size_order_is_the_published_one(name, student, find, golden):
    folder = golden("lora_vc2_tiny").folder / "inventory"
    table, published = (
        json.loads(gzip.decompress((folder / f"{file}.json.gz").read_bytes()))
        for file in (name, student)
    )
    part = find({key: tuple(shape) for key, shape in published.items()})

    order = [part.origins[f"{layer}.weight"].name for layer in adapter_order(part)]

    assert order == [f"{row['module']}.weight" for row in table]
    assert len(order) == 575


def merge_adapters(weights, part, checkpoint) -> dict[str, torch.Tensor]:
    """Merge a published list into a student's weights, by published name."""
    merged = dict(weights)
    for layer, pair in pair_up(checkpoint, part).items():
        name = part.origins[f"{layer}.weight"].name
        change = change_of(checkpoint, pair, tuple(weights[name].shape))
        merged[name] = weights[name] + change.to(weights[name].dtype)
    return merged


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_adapters_parity(family, golden):
    weights, part, checkpoint, recorded = recorded_adapters(golden, family)

    merged = merge_adapters(weights, part, checkpoint)

    steps = recorded["merged_fingerprints__f64"]
    for (module, *_), expected in zip(recorded.metadata("table"), steps, strict=True):
        flat = merged[f"{module}.weight"].double().flatten()
        found = torch.stack(
            [flat.sum(), flat.abs().sum(), flat @ torch.linspace(-1, 1, len(flat)).double()]
        )
        assert_close(found, expected, rtol=0, atol=2e-3, msg=module)
    for name in recorded.names("merged/"):
        assert_close(merged[name.removeprefix("merged/")], recorded[name], rtol=0, atol=1e-7)
    output = run(part.filled(merged), recorded)
    assert_close(output, recorded["out_merged"], rtol=0, atol=3e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_named_adapters_parity(family, golden, tmp_path):
    """The list becomes a file of named adapters, which PEFT applies and merges."""
    weights, part, checkpoint, recorded = recorded_adapters(golden, family)
    pairs = pair_up(checkpoint, part)
    projection = "time_embedding.cond_proj"
    guided = part.rename(weights)[f"{projection}.weight"]
    own = {
        f"{projection}.weight": guided + change_of(checkpoint, pairs.pop(projection), guided.shape)
    }
    own |= {f"{layer}{DOWN}": checkpoint.read(pair.down) for layer, pair in pairs.items()}
    own |= {f"{layer}{UP}": checkpoint.read(pair.up) for layer, pair in pairs.items()}
    save_file(own, tmp_path / "lora.safetensors")

    unet = load_lora(part.filled(weights), tmp_path / "lora.safetensors").eval()

    assert_close(run(unet, recorded), recorded["out_lora_active"], rtol=0, atol=3e-5)
    assert_close(run(merge_lora(unet), recorded), recorded["out_merged"], rtol=0, atol=3e-5)


SKIPPED = ("transformer_in.proj_in", "transformer_in.proj_out")  # Conv1d in VideoCrafter2


def student_with_adapters(family, skip):
    teacher = getattr(published, {"vc2": "videocrafter_unet", "ms": "modelscope_unet"}[family])()
    student = student_of(teacher, share=True).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for weight in add_lora(student, 3, skip=skip).parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.1, generator=generator)
    return student


@pytest.mark.parametrize("family, skip", [("vc2", SKIPPED), ("ms", ())])
def test_exported_adapters_are_the_student_to_the_reader_of_the_published_list(
    family, skip, tmp_path
):
    student = student_with_adapters(family, skip)
    save_lora(student, tmp_path / "lora" / "lora.safetensors")
    (tmp_path / "unet").mkdir()
    base = getattr(published, {"vc2": "videocrafter_unet", "ms": "modelscope_unet"}[family])()
    base.save_config(tmp_path / "unet")
    card = replace(card_of("vcm-vc2", tmp_path), unet="unet", lora="lora")

    export_adapters(card, tmp_path / "new" / "unet_lora.pt")

    assert [file.name for file in (tmp_path / "new").iterdir()] == ["unet_lora.pt"]
    expected = merge_lora(student).state_dict()
    part = getattr(unets, {"vc2": "videocrafter_part", "ms": "modelscope_part"}[family])(student)
    weights = published.publish(part)  # with the projection, which a teacher lacks, of zeros
    for name, origin in part.origins.items():
        before = base.state_dict().get(name, torch.zeros(part.shapes[name]))
        weights[origin.name] = before.reshape(origin.shape)
    found = merge_adapters(weights, part, open_checkpoint(tmp_path / "new" / "unet_lora.pt"))
    for name, weight in part.rename(found).items():
        assert_close(weight, expected[name], atol=1e-6, rtol=1e-5, msg=name)


def test_adapters_without_a_place_in_a_published_list_are_refused():
    student = student_with_adapters("vc2", ())
    named = {name: w for name, w in student.named_parameters() if w.requires_grad}
    part = unets.videocrafter_part(published.videocrafter_unet(time_cond_proj_dim=256))

    with pytest.raises(ValueError, match=r"no place .* transformer_in.proj_in. .*lora_skip"):
        list_adapters(named, part)
    del named[f"conv_in{DOWN}"]
    for layer in SKIPPED:
        del named[f"{layer}{DOWN}"]
    with pytest.raises(ValueError, match="needs an adapter of conv_in"):
        list_adapters(named, part)


@pytest.mark.slow
@pytest.mark.parametrize("name, count", [("vc2", 117_142_176), ("modelscope", 58_497_696)])
def test_a_configuration_trains_the_layers_of_the_published_list(name, count):
    config = load_config(CONFIGS / f"{name}.toml")
    with torch.device("meta"):
        student = build_student(FAMILIES_ON_META[config.teacher.model][0](), config)
    part = unets.videocrafter_part if name == "vc2" else unets.modelscope_part
    named = {key: w for key, w in student.named_parameters() if w.requires_grad}

    listed = list_adapters(named, part(unets.on_meta({**student.config})))

    assert len(listed) == 2 * 575
    # The published pair of the projection has the rank of the others; ours has 256.
    ours, rank = sum(tensor.numel() for tensor in listed), config.student.lora_rank
    assert ours - (320 + 256) * (256 - rank) == count


@pytest.mark.parametrize("family, other", [("vc2", "ms"), ("ms", "vc2")])
def test_the_list_of_another_network_is_refused(family, other, golden):
    _, part, _, _ = recorded_adapters(golden, family)
    _, _, strange, _ = recorded_adapters(golden, other)

    with pytest.raises(
        ValueError, match=r"unet_lora.pt holds \d+ pairs of adapters; .* \d+ adapted"
    ):
        pair_up(strange, part)


def test_a_list_out_of_order_is_refused_with_layer_and_place(golden, tmp_path):
    _, part, checkpoint, _ = recorded_adapters(golden, "vc2")
    tensors = [checkpoint.read(name) for name in checkpoint.shapes]
    tensors[12:14], tensors[14:16] = tensors[14:16], tensors[12:14]
    torch.save(tensors, tmp_path / "unet_lora.pt")

    with pytest.raises(
        ValueError, match=r"lora.pt belongs to another .* 12 and 13 .* adapt down_blocks"
    ):
        pair_up(open_checkpoint(tmp_path / "unet_lora.pt"), part)


def test_no_projection_is_no_choice(tmp_path):
    with pytest.raises(ValueError, match="random, frozen and never saved") as refusal:
        read_projection(None, (32, 256), tmp_path / "unet_lora.pt")

    for choice in ("--projection zeros", "--projection random:N", "--projection FILE"):
        assert choice in str(refusal.value)


def test_projections_are_what_was_chosen(tmp_path):
    shape, path = (32, 256), tmp_path / "unet_lora.pt"
    file = {"model.diffusion_model.time_cond_proj.weight": torch.randn(shape)}
    torch.save(file, tmp_path / "projection.pt")

    assert not read_projection("zeros", shape, path).any()
    drawn = read_projection("random:3", shape, path)
    assert_close(drawn, read_projection("random:3", shape, path), rtol=0, atol=0)
    assert not torch.equal(drawn, read_projection("random:4", shape, path))
    torch.manual_seed(3)
    assert_close(drawn, torch.nn.Linear(256, 32, bias=False).weight.detach(), rtol=0, atol=0)
    found = read_projection(str(tmp_path / "projection.pt"), shape, path)
    assert_close(found, *file.values(), rtol=0, atol=0)


def test_a_file_without_the_projection_is_refused(tmp_path):
    torch.save({"other.weight": torch.ones(2)}, tmp_path / "other.pt")
    torch.save({"time_cond_proj.weight": torch.ones(2, 3)}, tmp_path / "small.pt")

    with pytest.raises(ValueError, match="other.pt does not hold a guidance projection"):
        read_projection(str(tmp_path / "other.pt"), (32, 256), tmp_path)
    with pytest.raises(ValueError, match=r"small.pt has shape \(2, 3\), not \(32, 256\)"):
        read_projection(str(tmp_path / "small.pt"), (32, 256), tmp_path)


@pytest.mark.parametrize("seed", ["9" * 23, str(2**63), "9" * 5000])
def test_a_seed_out_of_range_is_refused_before_anything_is_drawn(seed):
    check_projection(f"random:{2**63 - 1}")

    with pytest.raises(ValueError, match="random:.*is too large. .* 0 to 9223372036854775807"):
        check_projection(f"random:{seed}")


def card_of(name, folder):
    return replace(next(card for card in CARDS if card.name == name), folder=folder)


def test_a_projection_that_no_file_takes_up_is_refused(tmp_path):
    torch.save(published.videocrafter_checkpoint(published.videocrafter_unet()), tmp_path / "m.pt")
    checkpoint = open_checkpoint(tmp_path / "m.pt")
    card = card_of("videocrafter2", tmp_path)

    assert plan_jobs(card, [checkpoint])
    for projection in ("zeros", "random:3"):
        with pytest.raises(ValueError, match=rf"projection '{projection}' was not used: .*m.pt"):
            plan_jobs(card, [checkpoint], projection)


def test_a_projection_of_adapters_that_are_there_already_is_no_fault(tmp_path):
    torch.save(published.videocrafter_checkpoint(published.videocrafter_unet()), tmp_path / "m.pt")
    card = card_of("vcm-vc2", tmp_path)
    with pytest.raises(ValueError, match="Leave --projection out"):
        plan_jobs(card, [open_checkpoint(tmp_path / "m.pt")], "random:3")
    (tmp_path / card.lora).mkdir()
    save_file({"a": torch.ones(1)}, tmp_path / card.lora / "lora.safetensors")

    assert plan_jobs(card, [open_checkpoint(tmp_path / "m.pt")], "random:3")
