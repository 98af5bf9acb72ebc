"""Placement: memory estimates, what fits where, and running out of memory."""

import gc
import json
import os
import struct
import weakref
from copy import deepcopy
from dataclasses import replace
from math import prod
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CLIPTextConfig, CLIPTextModel

from turbo.convert.part import saved_shapes
from turbo.convert.wan import published_wan_network, published_wan_text, published_wan_vae
from turbo.diffusion.distillation import student_of
from turbo.models import placement
from turbo.models.footprint import HEADROOM, Footprint, measure_footprint
from turbo.models.placement import (
    Placement,
    choose_dtype,
    largest_fit,
    memory_options,
    missing_memory,
    next_smaller,
    place,
)
from turbo.models.registry import CARDS, find_card
from turbo.networks.lora import LORA_FILE, add_lora, merge_lora, save_lora
from turbo.networks.unet import VideoUNet
from turbo.pipeline import VideoPipeline, load_pipeline
from turbo.types import Conditioning

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
PARTS = Footprint(text_encoder=10, unet=100, vae=5, denoise=20, decode=4, frames=16)


@pytest.fixture
def saved_card(tiny_pipeline):
    """Save the tiny student and return its card."""
    card = tiny_pipeline.card
    tiny_pipeline.unet.save_pretrained(card.folder / card.unet)
    tiny_pipeline.vae.save_pretrained(card.folder / "vae")
    tiny_pipeline.text_encoder.model.save_pretrained(card.folder / "text_encoder")
    tiny_pipeline.text_encoder.tokenizer.save_pretrained(card.folder / "tokenizer")
    return card


@pytest.fixture
def accelerators(monkeypatch):
    """Pretend that the machine has accelerators; nothing is moved there."""
    monkeypatch.setattr(placement, "available_devices", lambda: ["cpu", "cuda", "cuda:0", "mps"])


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    "memory, numbers",
    [
        ("full", 10 + 100 + 5 + 8 * 4),  # eight frames at a time are more than a call
        ("sliced", 10 + 100 + 5 + 20),
        ("offload", 100 + 20),  # the UNet at work, alone
    ],
)
def test_the_peak_is_what_is_there_at_the_worst_moment(memory, numbers):
    assert PARTS.peak(memory, 2) == int(HEADROOM * 2 * numbers)


@pytest.mark.parametrize(
    "free, memory", [(10**6, "full"), (330, "sliced"), (290, "offload"), (270, None)]
)
def test_the_largest_use_of_memory_that_fits_is_chosen(free, memory):
    assert largest_fit(PARTS, free, 2, memory_options(CUDA)) == memory


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_what_torch_keeps_of_former_models_is_free(kind, monkeypatch):
    module = SimpleNamespace(
        mem_get_info=lambda _: (1_000, 24_000),
        memory_reserved=lambda _: 9_000,
        memory_allocated=lambda _: 2_000,
    )
    monkeypatch.setattr(torch, "get_device_module", lambda _: module)

    assert placement.free_memory(torch.device(kind)) == 1_000 + 7_000


def test_a_model_gets_what_torch_keeps_of_former_ones(saved_card, accelerators, monkeypatch):
    """With a fake accelerator that records its calls."""
    calls = []
    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: calls.append("empty"))
    read = SimpleNamespace()
    monkeypatch.setattr(VideoPipeline, "_read", lambda *_: calls.append("read") or read)
    monkeypatch.setattr(placement, "free_memory", lambda _: 10**12)

    VideoPipeline.load(saved_card, "cuda", dtype="float32")

    assert calls == ["empty", "read"]


def test_a_cpu_decodes_large_frames_one_by_one_unless_told_otherwise(
    saved_card, accelerators, monkeypatch
):
    """Eight at a time are slower there, and take eight times the memory."""
    assert place(saved_card, device="cpu").memory == "full"

    large = replace(saved_card, height=320, width=512)

    assert place(large, device="cpu").memory == "sliced"
    assert place(large, device="cpu", memory="full").memory == "full"
    monkeypatch.setattr(placement, "free_memory", lambda _: 10**12)
    assert place(large, device="cuda", dtype="float32").memory == "full"


def test_a_cpu_convolves_in_its_own_layout(saved_card):
    kernel = VideoPipeline.load(saved_card, "cpu").vae.decoder.conv_in.weight

    assert kernel.is_contiguous(memory_format=torch.channels_last)


def test_a_cpu_has_nowhere_to_offload_to():
    assert memory_options(CPU) == ("full", "sliced")
    assert memory_options(torch.device("mps")) == ("full", "sliced")
    assert memory_options(CUDA) == ("full", "sliced", "offload")


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_offloading_is_refused_where_there_is_nowhere_to_offload_to(
    device, saved_card, accelerators
):
    with pytest.raises(
        ValueError, match=rf"'offload' is not possible on {device}.*'full' or 'sliced'"
    ):
        place(saved_card, device=device, memory="offload")


def test_weights_are_counted_from_the_heads_of_their_files(saved_card, tiny_pipeline):
    footprint = measure_footprint(saved_card)

    networks = (tiny_pipeline.text_encoder.model, tiny_pipeline.unet, tiny_pipeline.vae)
    counts = [sum(t.numel() for t in network.state_dict().values()) for network in networks]
    assert [footprint.text_encoder, footprint.unet, footprint.vae] == counts


class _Live(TorchDispatchMode):
    """Counts the elements of all tensors created here, at the peak."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()
        self.sizes = {tensor.untyped_storage()._cdata: 0 for tensor in known}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in filter(torch.is_tensor, tree_leaves(made)):
            storage = tensor.untyped_storage()
            if storage._cdata not in self.sizes:
                self.sizes[storage._cdata] = storage.nbytes() // tensor.itemsize
                self.now += self.sizes[storage._cdata]
                weakref.finalize(storage, self._free, storage._cdata)
        self.peak = max(self.peak, self.now)
        return made

    def _free(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


def _fused_attention(query, key, value, *_, **__):
    return query.new_empty(*query.shape[:-1], value.shape[-1])


def _activations(network: torch.nn.Module, call) -> int:
    live = _Live([*network.parameters(), *network.buffers()])
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode(), torch.device("meta"):
        patch.setattr(F, "scaled_dot_product_attention", _fused_attention)
        with live:
            call(network)
    return live.peak


@pytest.mark.parametrize("frames, side", [(16, 16), (5, 24)])
def test_the_estimated_activations_are_those_of_a_call(frames, side, student_card):
    """For a network with the proportions of the published ones, on the meta device."""
    widths = (64, 128, 256, 256)
    with torch.device("meta"):
        unet = VideoUNet(
            block_out_channels=widths,
            cross_attention_dim=16,
            attention_head_dim=16,
            fps_conditioning=True,
        ).eval()
    config = {"block_out_channels": widths, "attention_head_dim": 16}
    for part in (student_card.unet, "vae", "text_encoder"):
        (student_card.folder / part).mkdir(parents=True)
        (student_card.folder / part / "config.json").write_text(json.dumps(config))
    card = replace(student_card, num_frames=frames, height=8 * side, width=8 * side)

    def call(network):
        fps = Conditioning(fps=torch.zeros(1, dtype=torch.long))
        noisy = torch.empty(1, 4, frames, side, side)
        network(noisy, torch.zeros(1, dtype=torch.long), torch.empty(1, 77, 16), fps)

    counted = _activations(unet, call)

    assert 0.95 < measure_footprint(card).denoise / counted < 1.2


def _save_heads(network: torch.nn.Module, folder: Path) -> None:
    """Write a network's configuration, and a sparse weight file with a header and no data."""
    folder.mkdir(parents=True)
    config = network.config
    config = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    (folder / "config.json").write_text(json.dumps(config, default=str))
    heads, end = {}, 0
    for name, shape in saved_shapes(network).items():
        begin, end = end, end + 2 * prod(shape)
        place = {"shape": list(shape), "data_offsets": [begin, end]}
        heads[name] = {"dtype": "F16", **place}
    text = json.dumps(heads).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(folder / "model.safetensors", 8 + len(text) + end)


@pytest.mark.parametrize("name", ["t2v-turbo-v2", "t2v-turbo-ms"])
def test_cards_state_the_estimated_memory_of_the_full_networks(name, tmp_path):
    """In half precision, with everything on the device."""
    card = replace(find_card(name), folder=tmp_path)
    widths = (128, 256, 512, 512)
    videocrafter2 = card.family == "videocrafter2"
    with torch.device("meta"):
        unet = VideoUNet(
            time_cond_proj_dim=256,
            fps_conditioning=videocrafter2,
            motion_conditioning=videocrafter2,
        )
        vae = AutoencoderKL(
            block_out_channels=widths,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
        )
        tower = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=1024,
                intermediate_size=4096,
                num_hidden_layers=23,
                num_attention_heads=16,
                vocab_size=49408,
            )
        )
    for part, network in ((card.unet, unet), ("vae", vae), ("text_encoder", tower)):
        _save_heads(network, tmp_path / part)

    estimated = round(measure_footprint(card).peak("full", 2) / 1e9, 1)

    assert {other.memory_gb for other in CARDS if other.family == card.family} == {estimated}


@pytest.mark.parametrize("name", ["wan2.1-1.3b", "rcm-wan2.1-1.3b", "causvid-wan2.1-1.3b"])
def test_the_card_of_wan_states_the_estimated_memory(name, tmp_path):
    card = replace(find_card(name), folder=tmp_path)
    _save_heads(published_wan_network(), tmp_path / card.unet)
    _save_heads(published_wan_vae(), tmp_path / "vae")
    _save_heads(published_wan_text(), tmp_path / "text_encoder")

    footprint = measure_footprint(card)

    assert round(footprint.peak("full", 2) / 1e9, 1) == card.memory_gb
    assert footprint.peak("offload", 2) < 14e9  # the text encoder alone


def test_the_cards_of_tiny_models_state_an_upper_bound():
    tiny = [card for card in CARDS if not card.sources and card.is_ready()]

    assert all(measure_footprint(card).peak("full", 2) / 1e9 < card.memory_gb for card in tiny)
    assert {card.memory_gb for card in tiny} == {0.1}


def test_a_pipeline_loads_with_the_given_placement(saved_card, monkeypatch):
    placed = VideoPipeline.load(saved_card, "cpu", dtype="bfloat16", memory="sliced")

    assert placed.placement.memory == "sliced"
    assert {placed.unet.dtype, placed.vae.dtype, placed.text_encoder.model.dtype} == {
        torch.bfloat16
    }
    recipe = placed("a cat", steps=2).recipe
    assert (recipe["dtype"], recipe["device"]) == ("bfloat16", "cpu")


def _bytes_held() -> int:
    """Return the total size of all tensor storages in this process."""
    gc.collect()
    kinds = (torch.Tensor, torch.nn.Parameter)
    storages = [o.untyped_storage() for o in gc.get_objects() if type(o) in kinds]
    return sum({s.data_ptr(): s.nbytes() for s in storages if s.device.type == "cpu"}.values())


def test_a_student_made_of_adapters_is_in_memory_once(saved_card, tiny_unet, monkeypatch):
    student = add_lora(student_of(tiny_unet), rank=1)
    save_lora(student, saved_card.folder / "adapters" / LORA_FILE)
    tiny_unet.save_pretrained(saved_card.folder / "teacher")
    card = replace(saved_card, unet="teacher", lora="adapters")
    at_the_worst = []

    def merge(*arguments):
        at_the_worst.append(_bytes_held())
        return merge_lora(*arguments)

    monkeypatch.setattr("turbo.pipeline.merge_lora", merge)
    before = _bytes_held()

    VideoPipeline.load(card, "cpu")

    assert at_the_worst[0] - before < 1.5 * 4 * measure_footprint(card).unet


def test_half_precision_changes_a_video_but_little(saved_card):
    exact, half = (
        VideoPipeline.load(saved_card, "cpu", dtype=dtype)("a cat", steps=2).frames.astype(int)
        for dtype in ("float32", "bfloat16")
    )

    assert 0 < np.abs(exact - half).mean() < 4  # of 255


def test_slices_change_no_frame_by_more_than_a_level(saved_card):
    whole, sliced = (
        VideoPipeline.load(saved_card, "cpu", memory=memory)("a cat").frames.astype(int)
        for memory in ("full", "sliced")
    )

    assert np.abs(whole - sliced).max() <= 1


def test_a_cpu_computes_in_float32_and_half_models_in_half_elsewhere(saved_card):
    half = replace(saved_card, half=True)

    assert place(half, device="cpu").dtype == torch.float32
    assert choose_dtype(half, torch.device("xpu"), "auto") == torch.bfloat16
    assert choose_dtype(half, torch.device("mps"), "auto") == torch.float16
    assert choose_dtype(saved_card, torch.device("mps"), "auto") == torch.float32


def test_a_card_has_its_number_of_threads_only_while_it_computes(saved_card, two_threads):
    pipeline = VideoPipeline.load(replace(saved_card, cpu_threads=1), "cpu")
    during = []
    pipeline.unet.register_forward_hook(lambda *_: during.append(torch.get_num_threads()))

    between = [torch.get_num_threads() for _ in pipeline.stream(["a cat"], [0], steps=2)]

    assert set(during) == {1}
    assert {*between, torch.get_num_threads()} == {2}


@pytest.mark.slow
def test_a_card_without_a_number_of_threads_has_torchs_beside_one_with(saved_card, two_threads):
    VideoPipeline.load(replace(saved_card, cpu_threads=1), "cpu")("a dog")
    pipeline = VideoPipeline.load(saved_card, "cpu")
    during = []
    pipeline.unet.register_forward_hook(lambda *_: during.append(torch.get_num_threads()))

    pipeline("a cat")

    assert set(during) == {2}


def test_a_model_goes_to_the_accelerator_unless_its_frames_are_fixed_on_the_cpu(
    saved_card, monkeypatch
):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: CUDA)
    monkeypatch.setattr(placement, "free_memory", lambda _: 10**12)
    tiny = replace(saved_card, cpu_threads=1)

    assert place(saved_card).device == CUDA
    assert place(tiny).device == CPU
    assert place(tiny, device="cuda").device.type == "cuda"


@pytest.mark.parametrize(
    "device", ["cuda", "cuda:9", "bogus", "", "meta", "mps", torch.device("meta"), CUDA]
)
def test_a_device_that_is_not_there_is_refused_with_those_that_are(device, saved_card, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)

    with pytest.raises(
        ValueError, match=f"'{device}' is not available; this machine has cpu. Choose"
    ):
        VideoPipeline.load(saved_card, device)


def test_the_devices_of_a_machine_are_its_cpu_and_each_of_its_accelerators(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)

    assert placement.available_devices() == ["cpu", "cuda", "cuda:0", "cuda:1"]


def test_loading_by_name_goes_where_the_card_says(tiny_pipeline, monkeypatch):
    asked = []

    def load(card, device, **options):
        asked.append(device)
        return tiny_pipeline

    monkeypatch.setattr(VideoPipeline, "load", load)

    load_pipeline("shapes-turbo")

    assert asked == ["auto"]


def test_a_model_that_fits_nowhere_is_refused_with_what_it_needs(saved_card, monkeypatch):
    monkeypatch.setattr(placement, "free_memory", lambda _: 1000)

    with pytest.raises(MemoryError, match=r"tiny-student needs about .* on cpu .* --dtype bf"):
        VideoPipeline.load(saved_card, "cpu")
    assert VideoPipeline.load(saved_card, "cpu", memory="full").placement.memory == "full"


def test_what_a_model_wants_is_told_for_the_chosen_device_precision_and_memory(
    saved_card, accelerators, monkeypatch
):
    half = replace(saved_card, half=True)
    footprint = measure_footprint(half)
    rooms = {"cpu": 10**12, "cuda": 1000}
    monkeypatch.setattr(placement, "free_memory", lambda device: rooms[device.type])

    assert missing_memory(half, device="cpu") == 0
    assert missing_memory(half, device="cuda", dtype="float16") == footprint.peak("offload", 2)
    assert missing_memory(half, device="cuda", dtype="float32") == footprint.peak("offload", 4)
    assert missing_memory(half, device="cuda", memory="sliced") == 0  # insisted on, not checked


@pytest.mark.parametrize(
    "memory, said",
    [
        ("full", "The next smaller option is memory 'sliced'"),
        ("sliced", "The next smaller option is memory 'offload'"),
        ("offload", "There is no smaller option"),
    ],
)
def test_out_of_memory_names_the_next_smaller_option(memory, said, tiny_pipeline, monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    # As if on an accelerator: nothing is moved, since the parts stay on the CPU.
    tiny_pipeline.placement = Placement(CUDA, torch.float32, memory, peak=6_200_000_000)
    monkeypatch.setattr(tiny_pipeline, "_sample_batch", fail)

    with pytest.raises(MemoryError, match=f"6.2 GB. {said}"):
        list(tiny_pipeline.stream(["a cat"], [0]))


def test_out_of_memory_while_loading_names_the_next_smaller_option(saved_card, monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("turbo.pipeline.load_network", fail)

    with pytest.raises(MemoryError, match="The next smaller option is memory 'sliced'"):
        VideoPipeline.load(saved_card, "cpu", memory="full")


def test_other_failures_stay_what_they_are(tiny_pipeline, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(tiny_pipeline, "_sample_batch", fail)

    with pytest.raises(RuntimeError, match="shapes do not match"):
        list(tiny_pipeline.stream(["a cat"], [0]))


def test_the_options_end_with_the_smallest():
    assert next_smaller(Placement(CPU, torch.float32, "sliced")) is None
    assert next_smaller(Placement(CUDA, torch.float32, "sliced")) == "offload"


def test_offloaded_parts_are_on_the_device_only_while_they_work(tiny_pipeline, monkeypatch):
    """With the CPU in place of the device: which parts are moved, in which order."""
    moves = []
    parts = {
        "text": tiny_pipeline.text_encoder.model,
        "unet": tiny_pipeline.unet,
        "vae": tiny_pipeline.vae,
    }
    tiny_pipeline.placement = Placement(CPU, torch.float32, "offload")
    for name, network in parts.items():
        monkeypatch.setattr(
            network, "to", lambda where, name=name: moves.append((name, isinstance(where, str)))
        )

    stream = tiny_pipeline.stream(["a cat"], [0], steps=2)
    list(stream)

    there_and_back = [False, True]  # the device, then "cpu"
    assert moves == [(name, back) for name in parts for back in there_and_back]


@pytest.mark.parametrize("memory, home", [("full", "meta"), ("offload", "cpu")])
def test_offloaded_parts_wait_on_the_cpu_from_the_beginning(memory, home, tiny_pipeline):
    parts = [tiny_pipeline.unet, tiny_pipeline.vae, tiny_pipeline.text_encoder]
    placement = Placement(torch.device("meta"), torch.float32, memory)

    pipeline = VideoPipeline(
        tiny_pipeline.card, *deepcopy(parts), tiny_pipeline.schedule, placement=placement
    )

    networks = (pipeline.unet, pipeline.vae, pipeline.text_encoder.model)
    assert [network.device.type for network in networks] == [home] * 3


def test_a_stopped_video_leaves_the_device(tiny_pipeline, monkeypatch):
    moves = []
    tiny_pipeline.placement = Placement(CPU, torch.float32, "offload")
    monkeypatch.setattr(tiny_pipeline.unet, "to", moves.append)
    updates = tiny_pipeline.stream(["a cat"], [0], steps=3)
    while next(updates).step < 1:
        pass

    updates.close()

    assert moves == [CPU, "cpu"]
