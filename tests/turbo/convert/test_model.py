"""Complete conversions through the command, and refused files."""

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

from tests.support import published
from tests.support.golden import variant_of
from turbo.convert.model import convert_model, files_at
from turbo.convert.stream import Slot, write_tensors
from turbo.convert.unet import modelscope_part, videocrafter_part
from turbo.diffusion.distillation import student_of
from turbo.models import cli
from turbo.models.cli import main
from turbo.models.registry import CARDS
from turbo.networks.lora import add_lora, save_lora
from turbo.networks.text import tokenize
from turbo.pipeline import VideoPipeline

ROOT = Path(__file__).parents[3]
KEY_MAP = "vc2_unet_v2_key_map_to_diffusers"
SUFFIXES = (".ckpt", ".pt", ".bin")  # of pickled files
UNREAD_OF_THE_TOWER = ("text_projection", "logit_scale")


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Path:
    """Write every kind of published file, with tiny networks."""
    folder = tmp_path_factory.mktemp("published")
    teacher = published.videocrafter_unet()
    student = published.videocrafter_unet(1, **published.STUDENT)
    v2 = published.videocrafter_unet(2, **published.V2)
    torch.save({"state_dict": published.videocrafter_checkpoint(teacher)}, folder / "model.ckpt")
    torch.save(published.videocrafter_checkpoint(student), folder / "t2v_turbo_vc2.pt")
    torch.save(published.publish(videocrafter_part(v2)), folder / "unet_mg.pt")
    torch.save(published.publish(videocrafter_part(student)), folder / "unet_no_mg.pt")
    torch.save(published.adapter_list(videocrafter_part(student)), folder / "unet_lora.pt")
    published.save_diffusers_layout(folder / "modelscope", published.modelscope_unet())
    save_lora(add_lora(student_of(teacher), rank=3), folder / "lora.safetensors")
    guided = modelscope_part(published.modelscope_unet(**published.STUDENT))
    torch.save(published.adapter_list(guided), folder / "ms_lora.pt")
    return folder


@pytest.fixture
def cards(tmp_path, monkeypatch):
    """The papers' cards, with empty folders, and without the check of sizes."""
    monkeypatch.setattr("turbo.models.verify.find_strange_size", lambda card, part: [])
    own = {card.name: replace(card, folder=tmp_path / card.family) for card in CARDS}
    for name, card in own.items():
        monkeypatch.setitem(cli.MODELS, name, card)
    return own


def convert(*arguments) -> None:
    main(["convert", *map(str, arguments)])


@pytest.mark.slow
@pytest.mark.parametrize(
    "steps",
    [
        ["videocrafter2 model.ckpt"],
        ["t2v-turbo-vc2 t2v_turbo_vc2.pt"],
        ["videocrafter2 model.ckpt", "t2v-turbo-vc2 unet_lora.pt --projection zeros"],
        ["t2v-turbo-vc2 model.ckpt unet_lora.pt --projection random:7"],
        ["t2v-turbo-v2 model.ckpt unet_mg.pt"],
        ["t2v-turbo-v2-no-mg model.ckpt unet_no_mg.pt"],
        ["t2v-turbo-v2-no-mg model.ckpt unet_mg.pt"],
        ["vcm-vc2 model.ckpt unet_lora.pt --projection random:7"],
        ["vcm-vc2 model.ckpt lora.safetensors"],
        ["modelscope modelscope"],
        ["t2v-turbo-ms modelscope ms_lora.pt --projection zeros"],
        ["vcm-ms modelscope ms_lora.pt --projection zeros"],
    ],
    ids=lambda steps: steps[-1],
)
def test_published_files_become_a_model_that_loads(steps, files, cards, capsys):
    for step in steps:
        name, *arguments = step.split()
        convert(name, *(files / word if (files / word).exists() else word for word in arguments))

    pipeline = VideoPipeline.load(cards[name], "cpu")

    assert f"{name} is ready in" in capsys.readouterr().out
    assert tokenize(pipeline.text_encoder.tokenizer, ["a cat"]).shape == (1, 77)
    assert pipeline.vae.config.scaling_factor == 0.18215
    assert (pipeline.unet.config.time_cond_proj_dim is None) == (cards[name].role == "teacher")
    assert len(pipeline.weights_sha256) == 16
    main(["verify", name])  # would exit with an error


def test_converted_numbers_are_the_published_ones(files, cards):
    convert("videocrafter2", files / "model.ckpt")

    folder = cards["videocrafter2"].folder
    unet = load_file(folder / "teacher" / "diffusion_pytorch_model.safetensors")
    assert_close(unet, dict(published.videocrafter_unet().state_dict()), rtol=0, atol=0)
    vae = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    assert_close(vae, dict(published.vae().state_dict()), rtol=0, atol=0)
    text = load_file(folder / "text_encoder" / "model.safetensors")
    assert_close(text, dict(published.text_tower().state_dict()), rtol=0, atol=0)


def test_conversion_of_the_recorded_checkpoint_parity(golden, cards, tmp_path):
    """A checkpoint with recorded weights, from the file to the recorded frames."""
    networks = {
        "model.diffusion_model.": variant_of(golden("vc2_unet_tiny").weights(), "teacher"),
        "first_stage_model.": golden("vae_tiny").weights(),
    }
    whole = published.videocrafter_checkpoint(published.videocrafter_unet())
    tower = {n: t for n, t in whole.items() if n.startswith("cond_stage_model.")}
    state = tower | {f"{prefix}{n}": t for prefix, own in networks.items() for n, t in own.items()}
    torch.save({"state_dict": {**published.SCHEDULE, **state}}, tmp_path / "model.ckpt")

    convert("videocrafter2", tmp_path / "model.ckpt")

    folder = cards["videocrafter2"].folder
    saved = load_file(folder / "teacher" / "diffusion_pytorch_model.safetensors")
    count = sum(tensor.numel() for tensor in networks["model.diffusion_model."].values())
    assert sum(tensor.numel() for tensor in saved.values()) == count
    vae = VideoPipeline.load(cards["videocrafter2"], "cpu").vae
    decoded = vae.decode(golden("vae_tiny")["decode/z"]).sample
    assert_close(decoded, golden("vae_tiny")["decode/out"], rtol=0, atol=2e-5)


@pytest.fixture
def inventories(golden):
    """Return the inventories of the published files; skip the test without them."""
    folder = golden("vc2_unet_recipe").folder
    return partial(published.read_inventory, folder)


def expected_unet(file: dict[str, Tensor], inventories) -> dict[str, Tensor]:
    """Return a VideoCrafter2 UNet by our names, renamed by an independent table."""
    table = inventories(KEY_MAP)
    unet = {}
    for theirs, tensor in file.items():
        own = "fps_embedding.", "motion_cond_proj.", "combine_proj."
        ours = f"time_embedding.{table[theirs]}" if theirs.startswith(own) else table[theirs]
        conv1d = theirs in ("init_attn.0.proj_in.weight", "init_attn.0.proj_out.weight")
        unet[ours] = tensor[..., 0] if conv1d else tensor
    return unet


def expected_folders(file: dict[str, Tensor], inventories) -> dict[str, dict[str, Tensor]]:
    """Return a whole checkpoint by our names, renamed by diffusers' own converters."""
    prefix = "model.diffusion_model."
    unet = {n.removeprefix(prefix): t for n, t in file.items() if n.startswith(prefix)}
    levels = {"down_block_types": range(4), "up_block_types": range(4)}
    words = convert_open_clip_checkpoint(None, file)
    return {
        "unet": expected_unet(unet, inventories),
        "vae": convert_ldm_vae_checkpoint(file, levels),
        "text_encoder": {name.removeprefix("text_model."): t for name, t in words.items()},
    }


def named(
    adapters: list[Tensor], table: list[dict[str, Any]], names: dict[str, str]
) -> dict[str, Tensor]:
    """Return a list of adapters by our names, with the projection: zeros plus its adapter."""
    tensors = {}
    for row, up, down in zip(table, adapters[0::2], adapters[1::2], strict=True):
        theirs = f"{row['module']}.weight"
        layer = names.get(theirs, theirs).removesuffix(".weight")
        if layer.startswith("fps_embedding"):
            layer = f"time_embedding.{layer}"
        if layer == "time_embedding.cond_proj":
            tensors[f"{layer}.weight"] = up @ down
        else:
            tensors[f"{layer}.lora_A.default.weight"] = down
            tensors[f"{layer}.lora_B.default.weight"] = up
    return tensors


def saved(folder: Path) -> dict[str, Tensor]:
    [file] = folder.glob("*.safetensors")
    return load_file(file)


def size_of(weights: dict[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in weights.values())


@pytest.mark.slow
@pytest.mark.parametrize("name, file", [
    ("videocrafter2", "model.ckpt"), ("t2v-turbo-vc2", "t2v_turbo_vc2.pt")
])  # fmt: skip
def test_every_key_of_a_full_checkpoint_comes_to_its_place(
    name, file, inventories, cards, tmp_path
):
    listed = inventories("vc2_latentdiffusion_ckpt")
    if name == "t2v-turbo-vc2":
        guided = inventories("vc2_unet_v1_student")["time_cond_proj.weight"]
        listed["model.diffusion_model.time_cond_proj.weight"] = guided
    weights = published.full_file(listed)
    torch.save({"state_dict": weights}, tmp_path / file)

    convert(name, tmp_path / file)

    card, expected = cards[name], expected_folders(weights, inventories)
    for part, folder in {"unet": card.unet, "vae": "vae", "text_encoder": "text_encoder"}.items():
        assert_close(saved(card.folder / folder), expected[part], rtol=0, atol=0)
    tower = "cond_stage_model.model."
    unread = {n: t for n, t in weights.items() if "." not in n or "resblocks.23." in n}
    unread |= {tower + n: weights[tower + n] for n in UNREAD_OF_THE_TOWER}
    assert sum(map(size_of, expected.values())) == size_of(weights) - size_of(unread)


def test_every_key_of_a_full_unet_comes_to_its_place(inventories, cards, tmp_path):
    weights = published.full_file(inventories("vc2_unet_v2_student"))
    torch.save(weights, tmp_path / "unet_mg.pt")

    convert("t2v-turbo-v2", tmp_path / "unet_mg.pt")

    found = saved(cards["t2v-turbo-v2"].folder / "t2v-turbo-v2")
    assert_close(found, expected_unet(weights, inventories), rtol=0, atol=0)
    assert size_of(found) == size_of(weights)


@pytest.mark.slow
def test_every_pair_of_a_full_list_for_videocrafter_comes_to_its_layer(
    inventories, cards, tmp_path
):
    """As a named adapter, or merged into the weight."""
    table, names = inventories("lora_vc2_v1_r64"), inventories(KEY_MAP)
    teacher = published.full_file(inventories("vc2_unet_teacher"))
    adapters = published.full_adapters(table)
    torch.save(teacher, tmp_path / "teacher.pt")
    torch.save(adapters, tmp_path / "unet_lora.pt")

    convert("vcm-vc2", *tmp_path.glob("*.pt"), "--projection", "zeros")
    convert("t2v-turbo-vc2", tmp_path / "unet_lora.pt", "--projection", "zeros")

    found = saved(cards["vcm-vc2"].folder / "vcm")
    assert_close(found, named(adapters, table, names), rtol=0, atol=1e-5)
    student = {**teacher, "time_cond_proj.weight": torch.zeros(32, 256)}
    for row, up, down in zip(table, adapters[0::2], adapters[1::2], strict=True):
        weight = student[f"{row['module']}.weight"]
        weight += (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    found = saved(cards["t2v-turbo-vc2"].folder / "t2v-turbo")
    assert_close(found, expected_unet(student, inventories), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_every_key_of_full_files_for_modelscope_comes_to_its_place(inventories, cards, tmp_path):
    """VAE and text encoder have diffusers' and transformers' names."""
    expected = expected_folders(
        published.full_file(inventories("vc2_latentdiffusion_ckpt")), inventories
    )
    expected["unet"] = published.full_file(inventories("ms_unet_teacher"))
    words = {f"text_model.{name}": t for name, t in expected["text_encoder"].items()}
    for part, weights in {**expected, "text_encoder": words}.items():
        (tmp_path / "files" / part).mkdir(parents=True)
        whole = {name: tensor.contiguous() for name, tensor in weights.items()}
        save_file(whole, tmp_path / "files" / part / "model.safetensors")
    table = inventories("lora_ms_v1_r32")
    adapters = published.full_adapters(table)
    torch.save(adapters, tmp_path / "unet_lora.pt")

    files = tmp_path / "files", tmp_path / "unet_lora.pt"
    convert("t2v-turbo-ms", *files, "--projection", "zeros")

    folder = cards["t2v-turbo-ms"].folder
    for part, own in {"unet": "teacher", "vae": "vae", "text_encoder": "text_encoder"}.items():
        assert_close(saved(folder / own), expected[part], rtol=0, atol=0)
    assert_close(saved(folder / "t2v-turbo"), named(adapters, table, {}), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (
            "videocrafter2 t2v_turbo_vc2.pt",
            "is a student, not .*: it holds the guidance projection",
        ),
        ("t2v-turbo-vc2 model.ckpt", "is a teacher, not .*: it lacks the guidance projection"),
        ("t2v-turbo-v2 unet_no_mg.pt", "lacks motion_cond_proj.weight. Convert it as"),
        ("t2v-turbo-vc2 unet_mg.pt", "is T2V-Turbo-v2, not .*: it holds motion_cond_proj.weight"),
        ("modelscope model.ckpt", "not a file of modelscope: it is a VideoCrafter2 checkpoint"),
        ("videocrafter2 modelscope", "a ModelScope UNet"),
        ("modelscope ms_lora.pt", "a list of adapters, not .* Convert it as a student"),
        ("t2v-turbo-v2 model.ckpt unet_lora.pt --projection zeros", "as t2v-turbo-vc2"),
        ("vcm-vc2 model.ckpt unet_lora.pt", "random, frozen and never saved"),
        ("vcm-vc2 unet_lora.pt --projection zeros", "need the weights of their teacher in"),
        (
            "vcm-vc2 model.ckpt ms_lora.pt --projection zeros",
            "belongs to another network|adapted layers",
        ),
        ("t2v-turbo-vc2 lora.safetensors", "from your own distillation.* Convert it as vcm-vc2"),
        ("vcm-vc2 lora.safetensors", "need the weights of their teacher in .* fetch videocrafter2"),
        ("vcm-ms modelscope lora.safetensors", "does not hold adapters of this network"),
        ("shapes-turbo model.ckpt", "not a file of shapes-turbo"),
    ],
)
def test_a_file_of_another_model_is_refused_with_the_reason(arguments, reason, files, cards):
    name, *words = arguments.split()
    paths = [files / word if (files / word).exists() else word for word in words]

    with pytest.raises(SystemExit, match=re.compile(reason, re.DOTALL)):
        convert(name, *paths)

    assert not any(cards[name].folder.glob("[!.]*"))


@pytest.mark.parametrize(
    "change, line",
    [
        (lambda w: w.pop("first_stage_model.decoder.conv_in.bias"),
         "missing first_stage_model.decoder.conv_in.bias: expected .*; the VAE"),
        (lambda w: w.update({"model_ema.decay": torch.ones(())}),
         "unexpected model_ema.decay: .*a.* moving average"),
        (lambda w: w.update({"model.diffusion_model.out.2.bias": torch.ones(7)}),
         r"mis-shaped model.diffusion_model.out.2.bias: expected \(4,\), got \(7,\)"),
        (lambda w: drop(w, "fps_embedding"),
         "missing model.diffusion_model.fps_embedding.0.weight: .*the frame-rate embedding"),
        (lambda w: drop(w, r"resblocks\.2[23]"),
         r"missing \S+.resblocks.22.attn.in_proj_weight: .*the text encoder"),
    ],
    ids=["missing", "unexpected", "mis-shaped", "no frame rate", "a block too few"],
)  # fmt: skip
def test_a_tensor_too_many_too_few_or_too_large_is_named(change, line, files, cards, tmp_path):
    weights = torch.load(files / "model.ckpt")["state_dict"]
    change(weights)
    torch.save(weights, tmp_path / "model.ckpt")

    with pytest.raises(SystemExit, match=f"model.ckpt are not those of .*:\n.*{line}"):
        convert("videocrafter2", tmp_path / "model.ckpt")


def drop(weights: dict[str, Tensor], pattern: str) -> None:
    for name in [name for name in weights if re.search(pattern, name)]:
        del weights[name]


def test_the_block_that_nobody_reads_may_be_missing(files, cards, tmp_path):
    weights = torch.load(files / "model.ckpt")["state_dict"]
    drop(weights, r"resblocks\.23")
    torch.save(weights, tmp_path / "model.ckpt")

    convert("videocrafter2", tmp_path / "model.ckpt")

    found = saved(cards["videocrafter2"].folder / "text_encoder")
    assert_close(found, dict(published.text_tower().state_dict()), rtol=0, atol=0)


def test_a_damaged_file_leaves_nothing_that_looks_ready(files, cards, tmp_path):
    content = bytearray((files / "unet_mg.pt").read_bytes())
    last = torch.load(files / "unet_mg.pt")["out.2.weight"]
    content[content.index(last.numpy().tobytes()) + 100] ^= 1
    (tmp_path / "unet_mg.pt").write_bytes(content)

    with pytest.raises(SystemExit, match="unet_mg.pt is damaged"):
        convert("t2v-turbo-v2", tmp_path / "unet_mg.pt")

    assert not list(cards["t2v-turbo-v2"].folder.iterdir())


def test_a_stopped_conversion_leaves_nothing_and_can_be_begun_again(files, cards):
    card = cards["t2v-turbo-v2"]
    steps = convert_model(card, [files / "unet_mg.pt"])
    assert next(steps) < next(steps)

    steps.close()

    assert not list(card.folder.iterdir())
    *_, (done, total) = convert_model(card, [files / "unet_mg.pt"])
    assert done == total > 0


def test_what_is_there_is_kept_unless_replaced(files, cards):
    card = cards["t2v-turbo-v2-no-mg"]
    convert(card.name, files / "model.ckpt", files / "unet_mg.pt")
    before = card.weights_sha256()

    with pytest.raises(SystemExit, match="already converted.*--replace"):
        convert(card.name, files / "unet_no_mg.pt")
    assert card.weights_sha256() == before

    convert(card.name, files / "unet_no_mg.pt", "--replace")

    assert card.weights_sha256() != before
    assert {path.name for path in (card.folder / card.unet).iterdir()} == {
        "config.json", "conversion.json", "diffusion_pytorch_model.safetensors",
    }  # fmt: skip


def test_the_projection_that_was_chosen_is_noted(files, cards):
    convert("vcm-vc2", files / "model.ckpt", files / "unet_lora.pt", "--projection", "random:7")

    note = json.loads((cards["vcm-vc2"].folder / "vcm" / "conversion.json").read_text())
    assert note["file"] == "unet_lora.pt"
    assert note["projection"] == "random:7"


def test_adapters_of_ones_own_are_taken_as_they_are(files, cards):
    convert("vcm-vc2", files / "model.ckpt", files / "lora.safetensors")

    own = load_file(files / "lora.safetensors")
    assert_close(saved(cards["vcm-vc2"].folder / "vcm"), own, rtol=0, atol=0)


@pytest.mark.slow
def test_merged_adapters_are_those_of_the_adapted_network(files, cards):
    """The same list, merged into a network and as named adapters, gives the same weights."""
    convert("videocrafter2", files / "model.ckpt")
    for name in ("t2v-turbo-vc2", "vcm-vc2"):
        convert(name, files / "unet_lora.pt", "--projection", "random:7")

    merged, adapted = (
        VideoPipeline.load(cards[name], "cpu").unet.state_dict()
        for name in ("t2v-turbo-vc2", "vcm-vc2")
    )

    assert_close(merged, adapted, rtol=0, atol=1e-6)


def test_a_full_disk_is_noticed_before_anything_is_written(files, cards, monkeypatch):
    card = cards["t2v-turbo-v2"]
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10))

    with pytest.raises(SystemExit, match="0.0 GB.*Make room"):
        convert(card.name, files / "unet_mg.pt")

    assert not list(card.folder.glob("*"))


def test_what_a_killed_conversion_left_is_removed(files, cards):
    left = cards["t2v-turbo-v2"].folder / ".converting-vae-left"
    left.mkdir(parents=True)

    convert("t2v-turbo-v2", files / "unet_mg.pt")

    assert not left.exists()


def test_conversions_into_one_folder_wait_for_each_other(files, cards):
    """Also if each step of a conversion runs in another thread, as in a page."""
    card = cards["t2v-turbo-v2"]
    first = convert_model(card, [files / "unet_mg.pt"])
    with ThreadPoolExecutor() as pool:
        pool.submit(next, first).result()
        second = pool.submit(list, convert_model(card, [files / "unet_mg.pt"]))
        with pytest.raises(TimeoutError):
            second.result(timeout=0.3)

        first.close()

        assert second.result(timeout=60)
    assert [folder.name for folder in card.folder.iterdir()] == [card.unet, "tokenizer"]


def test_a_tokenizer_without_its_words_is_missing_and_written_again(files, cards):
    card = cards["t2v-turbo-v2"]
    convert(card.name, files / "model.ckpt", files / "unet_mg.pt")
    words = card.folder / "tokenizer" / "tokenizer.json"
    written = words.read_bytes()

    words.unlink()
    assert card.missing == ["tokenizer"]
    convert(card.name, files / "unet_mg.pt")
    assert words.read_bytes() == written

    words.write_text("{}")
    convert(card.name, files / "unet_mg.pt", "--replace")
    assert words.read_bytes() == written
    assert not list(card.folder.glob(".*"))


def test_streamed_tensors_are_read_back_by_safetensors(tmp_path):
    tensors = {
        "half": torch.randn(3, 5).half(),
        "brain": torch.randn(7).bfloat16(),
        "number": torch.tensor(3.0),
        "whole": torch.arange(6).reshape(2, 3),
        "turned": torch.randn(4, 6).T,
    }
    slots = {name: Slot(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}

    sizes = [*write_tensors(tmp_path / "file.safetensors", slots, tensors.__getitem__)]

    assert sizes == [tensor.nbytes for tensor in tensors.values()]
    assert_close(load_file(tmp_path / "file.safetensors"), tensors, rtol=0, atol=0)


MEMORY_SCRIPT = """
import re, sys
from dataclasses import replace
from pathlib import Path
from turbo.convert.model import convert_model
from turbo.models.registry import CARDS
from turbo.networks.text import clip_tokenizer

def peak():  # ru_maxrss would begin at that of the process that started this one
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

card = replace(next(c for c in CARDS if c.name == sys.argv[1]), folder=Path(sys.argv[2]))
clip_tokenizer()  # what it takes is the same for every file
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = peak()
projection = "zeros" if "lora" in sys.argv[3] else None
for _ in convert_model(card, [Path(path) for path in sys.argv[3:]], projection=projection):
    pass
print(peak() - before)
"""


WIDE = {"block_out_channels": (224, 448), "cross_attention_dim": 512}


def wide_teacher(folder: Path) -> list[Path]:
    unet = published.videocrafter_unet(**WIDE)
    torch.save({"state_dict": published.videocrafter_checkpoint(unet)}, folder / "model.ckpt")
    return [folder / "model.ckpt"]


def wide_student(folder: Path) -> list[Path]:
    unet = published.videocrafter_unet(**WIDE, **published.STUDENT)
    torch.save(published.publish(videocrafter_part(unet)), folder / "unet_no_mg.pt")
    return [folder / "unet_no_mg.pt"]


def wide_modelscope(folder: Path) -> list[Path]:
    return [published.save_diffusers_layout(folder / "ms", published.modelscope_unet(**WIDE))]


def wide_adapters(folder: Path) -> list[Path]:
    """With the teacher they are merged into, already converted."""
    card = next(c for c in CARDS if c.name == "vcm-vc2")
    list(convert_model(replace(card, folder=folder / "converted"), wide_teacher(folder)))
    guided = videocrafter_part(published.videocrafter_unet(**WIDE, **published.STUDENT))
    torch.save(published.adapter_list(guided, rank=8), folder / "unet_lora.pt")
    return [folder / "unet_lora.pt"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize(
    "name, write",
    [
        ("videocrafter2", wide_teacher),
        ("t2v-turbo-v2-no-mg", wide_student),
        ("modelscope", wide_modelscope),
        ("t2v-turbo-vc2", wide_adapters),
    ],
)
def test_conversion_takes_little_more_memory_than_the_file(name, write, tmp_path):
    """In a process of its own, with a file larger than the memory of Python itself."""
    torch.manual_seed(0)
    paths = [str(path) for path in write(tmp_path)]

    measured = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT, name, str(tmp_path / "converted"), *paths],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip

    read = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.suffix in SUFFIXES)
    assert read > 200e6
    assert 0.5 * read < int(measured.stdout) < 1.3 * read


def test_half_precision_files_are_taken_where_there_are_no_others(tmp_path):
    for part in ("unet", "vae", "text_encoder"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "model.fp16.safetensors").touch()
    (tmp_path / "vae" / "model.safetensors").touch()

    assert {str(file.relative_to(tmp_path)) for file in files_at(tmp_path)} == {
        "unet/model.fp16.safetensors",
        "vae/model.safetensors",
        "text_encoder/model.fp16.safetensors",
    }


@pytest.mark.parametrize(
    "others",
    [
        ["diffusion_pytorch_model.non_ema.safetensors"],
        ["adapter.safetensors", "diffusion_pytorch_model.FP16.safetensors"],
        ["diffusion_pytorch_model.bin", "a-00001-of-00002.safetensors"],
    ],
)
def test_the_plain_weights_win_over_variants_and_other_files(tmp_path, others):
    for part in ("unet", "vae", "text_encoder"):
        (tmp_path / part).mkdir()
        for name in ["diffusion_pytorch_model.safetensors", *others]:
            (tmp_path / part / name).touch()

    assert {file.name for file in files_at(tmp_path)} == {"diffusion_pytorch_model.safetensors"}


def test_split_weights_are_refused_as_such(tmp_path):
    (tmp_path / "unet").mkdir()
    for number in (1, 2):
        (tmp_path / "unet" / f"model-0000{number}-of-00002.safetensors").touch()

    with pytest.raises(ValueError, match="split"):
        files_at(tmp_path)
