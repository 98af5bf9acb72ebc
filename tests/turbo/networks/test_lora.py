"""LoRA: what is adapted, what is saved, and that merging changes nothing."""

import copy
import os

import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

from tests.support.tiny_models import make_unet
from turbo.diffusion.consistency import embed_guidance_scale
from turbo.diffusion.distillation import student_of
from turbo.networks import lora
from turbo.networks.lora import DOWN, UP, add_lora, load_lora, merge_lora, save_lora
from turbo.networks.unet import VideoUNet
from turbo.types import Conditioning


def _output(unet):
    generator = torch.Generator().manual_seed(0)
    noisy, text = (
        torch.randn(shape, generator=generator) for shape in [(1, 4, 3, 4, 4), (1, 6, 16)]
    )
    guidance = embed_guidance_scale(torch.tensor([7.5]))
    with torch.no_grad():
        return unet(noisy, torch.tensor([519]), text, Conditioning(guidance=guidance))


def _train(unet):
    """Stand in for training: give everything trainable a random value."""
    generator = torch.Generator().manual_seed(1)
    for parameter in unet.parameters():
        if parameter.requires_grad:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return unet


@pytest.fixture
def student(tiny_unet) -> VideoUNet:
    return student_of(tiny_unet).eval()


def test_adapters_change_nothing_at_first(student):
    before = _output(student)

    adapted = add_lora(student, rank=4)

    assert_close(_output(adapted), before, rtol=0, atol=1e-5)
    assert not any(type(module) is nn.Conv3d for module in adapted.modules())  # slow on a CPU


def test_merged_network_is_the_adapted_one(student):
    before = _output(student)
    names = set(student.state_dict())
    adapted = _output(_train(add_lora(student, rank=4)))

    merged = _output(merge_lora(student))

    assert not torch.allclose(adapted, before, atol=1e-2)
    assert_close(merged, adapted, rtol=0, atol=1e-5)
    assert set(student.state_dict()) == names


@pytest.mark.parametrize("training", [False, True])
def test_folded_adapters_give_the_outputs_and_gradients_of_adapters_apart(
    student, training, monkeypatch
):
    student = _train(add_lora(student, rank=2)).double()
    noisy = torch.randn(2, 4, 3, 8, 8, dtype=torch.float64)
    text = torch.randn(2, 6, 16, dtype=torch.float64)
    guidance = embed_guidance_scale(torch.tensor([7.5, 1.0])).double()
    chosen, rule = [], lora._folds

    def run() -> list[torch.Tensor]:
        student.zero_grad()
        with torch.set_grad_enabled(training):
            seen = student(noisy, torch.tensor([519, 3]), text, Conditioning(guidance=guidance))
        if training:
            seen.square().sum().backward()
        gradients = (weight.grad for weight in student.parameters() if weight.requires_grad)
        return [seen.detach(), *(g for g in gradients if g is not None)]

    def record(layer, x) -> bool:
        chosen.append(rule(layer, x))
        return chosen[-1]

    monkeypatch.setattr(lora, "_folds", record)
    folded = run()
    monkeypatch.setattr(lora, "_folds", lambda layer, x: False)
    apart = run()

    assert any(chosen) and not all(chosen)
    assert len(folded) == len(apart) > training
    for ours, theirs in zip(folded, apart, strict=True):
        assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_adapters_that_drop_or_compute_in_half_precision_are_not_folded(student):
    add_lora(student, rank=2, dropout=0.1)
    layer = next(m for m in student.modules() if isinstance(m, lora.FoldingLinear))
    x = torch.randn(4096, layer.get_base_layer().in_features)

    with torch.no_grad():
        assert lora._folds(layer.eval(), x)
        assert not lora._folds(layer.eval(), x.bfloat16())
        assert not lora._folds(layer.train(), x)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert not lora._folds(layer.eval(), x)


def test_merging_leaves_the_weights_that_were_read_as_they_are(student):
    """They may lie in a mapped file: each page that is written is a copy in memory."""
    read = {name: (tensor, tensor.clone()) for name, tensor in student.state_dict().items()}

    merge_lora(_train(add_lora(student, rank=4)))

    for name, (tensor, before) in read.items():
        if "_proj" not in name:  # trained in full
            assert torch.equal(tensor, before), name


def test_adapters_are_merged_in_full_before_the_network_is_rounded(student):
    _train(add_lora(student, rank=4))
    exact = merge_lora(copy.deepcopy(student)).state_dict()

    rounded = merge_lora(student, torch.bfloat16).state_dict()

    for name, tensor in exact.items():
        assert torch.equal(rounded[name], tensor.bfloat16()), name


def test_saved_adapters_restore_the_student(tiny_unet, student, tmp_path):
    _train(add_lora(student, rank=4))
    save_lora(student, tmp_path / "lora.safetensors")

    restored = load_lora(student_of(tiny_unet).eval(), tmp_path / "lora.safetensors")

    assert torch.equal(_output(restored), _output(student))


def test_adapters_whose_writing_is_killed_leave_those_that_were_there(
    student, tmp_path, monkeypatch
):
    def kill(_: int) -> None:
        raise KeyboardInterrupt

    add_lora(student, rank=4)
    save_lora(student, tmp_path / "lora.safetensors")
    whole = (tmp_path / "lora.safetensors").read_bytes()
    monkeypatch.setattr(os, "fsync", kill)
    with pytest.raises(KeyboardInterrupt):
        save_lora(student, tmp_path / "lora.safetensors")

    assert (tmp_path / "lora.safetensors").read_bytes() == whole


def test_saved_file_holds_what_was_trained_and_no_more(student, tmp_path):
    add_lora(student, rank=4)

    save_lora(student, tmp_path / "lora.safetensors")

    saved = set(load_file(tmp_path / "lora.safetensors"))
    assert saved == {name for name, p in student.named_parameters() if p.requires_grad}
    assert "time_embedding.cond_proj.weight" in saved


def test_narrow_layers_get_their_width_as_rank(student):
    add_lora(student, rank=8)

    ranks = {n: m.r["default"] for n, m in student.named_modules() if isinstance(m, LoraLayer)}
    assert ranks["conv_in"] == ranks["conv_out"] == 4
    assert ranks["mid_block.resnets.0.conv1"] == 8
    scales = {m.scaling["default"] for m in student.modules() if isinstance(m, LoraLayer)}
    assert scales == {1.0}


def test_what_linear_and_2d_adapters_add_is_dropped_in_training_as_published(student):
    _train(add_lora(student, rank=4, dropout=0.1))
    twin = copy.deepcopy(student)  # a target
    for network in (student, twin):
        assert_close(_output(network), _output(merge_lora(copy.deepcopy(network))))

    shares = {nn.Linear: [], nn.Conv2d: [], nn.Conv3d: []}
    for module in twin.train().modules():
        if isinstance(module, LoraLayer):
            up, layer = module.lora_B["default"], module.get_base_layer()
            [kind] = [kind for kind in shares if isinstance(layer, kind)]
            given = torch.ones(64, up.weight.shape[1], *[4] * (up.weight.ndim - 2))
            shares[kind].append((up(given) == 0).float().mean().item())

    for kind, expected in ((nn.Linear, 0.1), (nn.Conv2d, 0.1), (nn.Conv3d, 0.0)):
        assert sum(shares[kind]) / len(shares[kind]) == pytest.approx(expected, abs=0.01)


def test_adapters_repeat_with_the_generator(tiny_unet):
    def first_draw():
        generator = torch.Generator().manual_seed(3)
        return add_lora(student_of(tiny_unet), rank=4, generator=generator).state_dict()

    first, second = first_draw(), first_draw()

    assert all(torch.equal(first[name], second[name]) for name in first)


def test_modelscope_has_the_published_number_of_adapter_weights():
    """58,497,696 at rank 32, less the pair on the guidance projection, which is trained itself."""
    with torch.device("meta"):
        student = VideoUNet(time_cond_proj_dim=256)
        add_lora(student, rank=32)

    trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
    assert trained == 58_497_696 - 32 * (256 + 320) + 256 * 320


def test_refusals_say_what_to_do(student, tmp_path):
    with pytest.raises(ValueError, match="Expected rank of at least 1, got 0."):
        add_lora(student, rank=0)
    with pytest.raises(ValueError, match="Expected a network with adapters, got none."):
        save_lora(student, tmp_path / "lora.safetensors")

    save_lora(add_lora(student, rank=4), tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match="does not hold adapters of this network"):
        load_lora(make_unet(), tmp_path / "lora.safetensors")


def test_a_file_tells_its_layers_and_their_ranks(tiny_unet, student, tmp_path):
    """Published adapters leave out layers that ours would adapt."""
    _train(add_lora(student, rank=4))
    save_lora(student, tmp_path / "lora.safetensors")
    saved = load_file(tmp_path / "lora.safetensors")
    kept = {name: tensor for name, tensor in saved.items() if "transformer_in" not in name}
    narrow = "mid_block.resnets.0.conv1"
    kept[f"{narrow}{DOWN}"] = kept[f"{narrow}{DOWN}"][:2].clone()
    kept[f"{narrow}{UP}"] = kept[f"{narrow}{UP}"][:, :2].clone()
    save_file(kept, tmp_path / "fewer.safetensors")

    loaded = load_lora(student_of(tiny_unet), tmp_path / "fewer.safetensors")

    adapted = {n: m.r["default"] for n, m in loaded.named_modules() if isinstance(m, LoraLayer)}
    assert not any(name.startswith("transformer_in") for name in adapted)
    assert adapted[narrow] == 2 and adapted["mid_block.resnets.0.conv2"] == 4


def test_adapters_of_another_size_are_refused_by_name(student, tmp_path):
    save_lora(add_lora(student, rank=4), tmp_path / "lora.safetensors")
    saved = load_file(tmp_path / "lora.safetensors")
    saved[f"conv_in{DOWN}"] = torch.zeros(4, 5, 3, 3)
    save_file(saved, tmp_path / "lora.safetensors")

    with pytest.raises(ValueError, match="adapters of this network: conv_in.lora_A.default.weight"):
        load_lora(student_of(make_unet()), tmp_path / "lora.safetensors")


def test_adapters_without_their_guidance_projection_are_refused(tiny_unet, student, tmp_path):
    save_lora(add_lora(student, rank=4), tmp_path / "lora.safetensors")
    saved = load_file(tmp_path / "lora.safetensors")
    del saved["time_embedding.cond_proj.weight"]
    save_file(saved, tmp_path / "lora.safetensors")

    with pytest.raises(
        ValueError,
        match="lacks the layer time_embedding.cond_proj.weight",
    ):
        load_lora(student_of(tiny_unet), tmp_path / "lora.safetensors")
