"""Weight files from others: read in every format, never run, refused when damaged."""

import os
import pickle
import random
import zipfile

import pytest
import torch
from safetensors.torch import save, save_file
from torch.testing import assert_close

from turbo.convert.checkpoint import open_checkpoint


@pytest.fixture
def weights():
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(40, 50, generator=generator) for name in ("first", "second", "third")}


class Bomb:
    """Writes a file when it is unpickled; a malicious file might do worse."""

    def __init__(self, target) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("nest", [None, "state_dict", "module"])
def test_pickles_are_read_with_or_without_a_nest(nest, weights, tmp_path):
    content = {nest: weights, "epoch": 3} if nest else weights
    torch.save(content, tmp_path / "model.ckpt")

    checkpoint = open_checkpoint(tmp_path / "model.ckpt")

    assert checkpoint.shapes == dict.fromkeys(weights, (40, 50))
    assert_close({name: checkpoint.read(name) for name in weights}, weights, rtol=0, atol=0)
    assert not checkpoint.positional


def test_pickles_of_old_are_read(weights, tmp_path):
    torch.save(weights, tmp_path / "old.pt", _use_new_zipfile_serialization=False)

    checkpoint = open_checkpoint(tmp_path / "old.pt")

    assert_close(checkpoint.read("second"), weights["second"], rtol=0, atol=0)


def test_safetensors_are_read(weights, tmp_path):
    save_file(weights, tmp_path / "model.safetensors")

    checkpoint = open_checkpoint(tmp_path / "model.safetensors")

    assert_close(checkpoint.read("third"), weights["third"], rtol=0, atol=0)


def test_a_list_is_read_by_position(weights, tmp_path):
    torch.save([torch.nn.Parameter(tensor) for tensor in weights.values()], tmp_path / "lora.pt")

    checkpoint = open_checkpoint(tmp_path / "lora.pt")

    assert checkpoint.positional
    assert_close(checkpoint.read("1"), weights["second"], rtol=0, atol=0)
    assert not checkpoint.read("1").requires_grad


def test_views_of_one_storage_are_read(weights, tmp_path):
    whole = weights["first"]
    torch.save({"top": whole[:20], "bottom": whole[20:]}, tmp_path / "views.pt")

    checkpoint = open_checkpoint(tmp_path / "views.pt")

    assert_close(checkpoint.read("bottom"), whole[20:], rtol=0, atol=0)


@pytest.mark.parametrize("modern", [True, False])
def test_code_in_a_pickle_does_not_run_and_is_named(modern, weights, tmp_path):
    content = {"state_dict": weights, "payload": Bomb(tmp_path / "ran")}
    torch.save(content, tmp_path / "evil.ckpt", _use_new_zipfile_serialization=modern)

    with pytest.raises(
        ValueError, match=r"evil.ckpt contains code \(posix.system\), which was not run"
    ):
        open_checkpoint(tmp_path / "evil.ckpt")

    assert not (tmp_path / "ran").exists()


def test_a_bare_pickle_does_not_run_either(tmp_path):
    (tmp_path / "evil.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "ran"), protocol=2))

    with pytest.raises(ValueError, match="evil.bin"):
        open_checkpoint(tmp_path / "evil.bin")

    assert not (tmp_path / "ran").exists()


def test_a_flipped_bit_is_found_under_the_name_of_its_tensor(weights, tmp_path):
    path = tmp_path / "model.pt"
    torch.save(weights, path)
    content = bytearray(path.read_bytes())
    place = content.index(weights["second"].numpy().tobytes()) + 1234
    content[place] ^= 1
    path.write_bytes(content)

    checkpoint = open_checkpoint(path)

    assert_close(checkpoint.read("first"), weights["first"], rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"model.pt is damaged.*'second'.*again"):
        checkpoint.read("second")


def test_a_flipped_bit_in_the_table_of_names_is_found(weights, tmp_path):
    path = tmp_path / "model.pt"
    torch.save(weights, path)
    content = bytearray(path.read_bytes())
    content[content.index(b"second")] ^= 1
    path.write_bytes(content)

    with pytest.raises(ValueError, match=r"model.pt is damaged .*data.pkl"):
        open_checkpoint(path)


def test_an_archive_saved_without_checksums_is_read(weights, tmp_path):
    torch.serialization.set_crc32_options(False)
    torch.save(weights, tmp_path / "model.pt")
    torch.serialization.set_crc32_options(True)
    with zipfile.ZipFile(tmp_path / "model.pt") as archive:
        assert {record.CRC for record in archive.infolist()} == {0}

    checkpoint = open_checkpoint(tmp_path / "model.pt")

    assert_close(checkpoint.read("third"), weights["third"], rtol=0, atol=0)


@pytest.mark.parametrize("share", [0.4, 0.9, 0.999])
def test_a_pickle_cut_short_is_refused_with_where_it_ends(share, weights, tmp_path):
    path = tmp_path / "model.ckpt"
    torch.save(weights, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])

    with pytest.raises(
        ValueError, match=r"model.ckpt is .*cut short: .* after \d+ bytes, in 'model/"
    ):
        open_checkpoint(path)


def test_safetensors_cut_short_are_refused_with_the_first_tensor_lost(weights, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(weights, path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])

    with pytest.raises(ValueError, match=r"model.safetensors is .* in 'second'.*Download it again"):
        open_checkpoint(path)


def test_safetensors_cut_in_their_header_are_refused(weights, tmp_path):
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:20])

    with pytest.raises(ValueError, match=r"cut.safetensors is .* in its header"):
        open_checkpoint(tmp_path / "cut.safetensors")


@pytest.mark.parametrize(
    "content, hint",
    [
        (b"<!DOCTYPE html><html>Log in", "a web page, perhaps one that asks you to log in"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "the pointer that git-lfs leaves"),
        (b"", "begins with b''"),
        (b"anything", "begins with b'anything'"),
    ],
)
def test_what_is_not_weights_is_refused_with_what_it_is(content, hint, tmp_path):
    (tmp_path / "model.ckpt").write_bytes(content)

    with pytest.raises(ValueError, match=hint):
        open_checkpoint(tmp_path / "model.ckpt")


@pytest.mark.parametrize(
    "content, message",
    [
        ({"a": torch.ones(2), "step": 4}, "'step' in .* is int, not a tensor"),
        ({}, "holds no tensors"),
        (torch.ones(2), "holds a Tensor, not tensors by name or a list"),
        ([torch.ones(2), "b"], "'1' in .* is str, not a tensor"),
    ],
)
def test_other_content_is_refused(content, message, tmp_path):
    torch.save(content, tmp_path / "model.pt")

    with pytest.raises(ValueError, match=message):
        open_checkpoint(tmp_path / "model.pt")


def test_a_tensor_that_is_no_number_is_refused(weights, tmp_path):
    weights["second"][3, 4] = float("nan")
    torch.save(weights, tmp_path / "model.pt")

    with pytest.raises(ValueError, match="'second' contains NaN or infinity"):
        open_checkpoint(tmp_path / "model.pt").read("second")


UNFIT = {
    "int8": lambda tensor: tensor.to(torch.int8),
    "int64": lambda tensor: tensor.to(torch.int64),
    "bool": lambda tensor: tensor > 0,
    "complex64": lambda tensor: tensor.to(torch.complex64),
    "float8_e4m3fn": lambda tensor: tensor.to(torch.float8_e4m3fn),
    "qint8": lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
    r"float32 \(sparse_coo\)": lambda tensor: tensor.to_sparse(),
    r"float32 \(meta, a tensor without data\)": lambda tensor: tensor.to("meta"),
}


@pytest.mark.filterwarnings("ignore")  # of torch: quantised tensors age, sparse ones are slow
@pytest.mark.parametrize("dtype, change", UNFIT.items(), ids=UNFIT)
def test_what_no_weight_can_be_is_refused(dtype, change, weights, tmp_path):
    weights["second"] = change(weights["second"])
    torch.save(weights, tmp_path / "model.pt")
    checkpoint = open_checkpoint(tmp_path / "model.pt")

    for use in (checkpoint.read, checkpoint.dtype):
        with pytest.raises(ValueError, match=f"'second' in .*model.pt is {dtype}, but weights"):
            use("second")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weights_of_every_precision_are_read(dtype, weights, tmp_path):
    torch.save({"second": weights["second"].to(dtype)}, tmp_path / "model.pt")

    checkpoint = open_checkpoint(tmp_path / "model.pt")

    assert checkpoint.read("second").dtype == checkpoint.dtype("second") == dtype


def test_positions_that_old_files_count_are_read_and_no_weight(tmp_path):
    name = "text_model.embeddings.position_ids"
    torch.save({name: torch.arange(77)}, tmp_path / "model.pt")
    checkpoint = open_checkpoint(tmp_path / "model.pt")

    assert_close(checkpoint.read(name), torch.arange(77), rtol=0, atol=0)
    with pytest.raises(ValueError, match="position_ids' in .* is int64"):
        checkpoint.dtype(name)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80",
        b"\x80\x02junk",
        b"\x80\x04\x95",
        b"\x80\x02N.",
        b"PK",
        b"PK\x05\x06" + bytes(18),
    ],
)
def test_pickles_that_are_none_are_refused(content, tmp_path):
    (tmp_path / "model.pt").write_bytes(content)

    with pytest.raises(ValueError, match=r"model.pt (is|holds)"):
        open_checkpoint(tmp_path / "model.pt")


def damaged(content: bytes, count: int) -> list[bytes]:
    """Return copies of a file, some truncated, some with wrong bytes."""
    chance = random.Random(0)
    cut = [content[:end] for end in range(1, len(content), len(content) // count)]
    changed = []
    for index in range(count):
        mutant = bytearray(content)
        for _ in range(1 + index % 4):
            mutant[chance.randrange(len(mutant))] = chance.randrange(256)
        changed.append(bytes(mutant))
    return cut + changed


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["legacy", "archive", "safetensors"])
def test_damaged_files_are_read_or_refused(kind, tmp_path):
    """An unpickler raises almost any exception on damaged bytes."""
    path = tmp_path / ("model.safetensors" if kind == "safetensors" else "model.pt")
    tensors = {name: torch.ones(2) for name in "abc"}
    if kind == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "archive")
    refused = 0

    for content in damaged(path.read_bytes(), 150):
        path.write_bytes(content)
        try:
            checkpoint = open_checkpoint(path)
            for name in checkpoint.shapes:
                checkpoint.read(name)
        except ValueError as refusal:
            refused += 1
            assert str(path) in str(refusal) and "weights_only" not in str(refusal)

    assert refused > 50


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_what_is_no_fault_of_the_file_is_not_blamed_on_it(error, weights, tmp_path, monkeypatch):
    def interrupt(*arguments, **options):
        raise error

    torch.save(weights, tmp_path / "model.pt")
    monkeypatch.setattr("turbo.convert.checkpoint.torch.load", interrupt)

    with pytest.raises(error):
        open_checkpoint(tmp_path / "model.pt")


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":{"dtype":"F32","shape":[2]}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[]}}',
        b'{"a":3}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,"x"]}}',
        b"{" * 5000,
    ],
)
def test_safetensors_with_a_wrong_table_are_refused(header, tmp_path):
    content = len(header).to_bytes(8, "little") + header + bytes(8)
    (tmp_path / "model.safetensors").write_bytes(content)

    with pytest.raises(
        ValueError, match="model.safetensors is .* in its header .*Download it again"
    ):
        open_checkpoint(tmp_path / "model.safetensors")


@pytest.mark.parametrize("modern", [True, False])
def test_a_pickle_under_the_name_of_safetensors_is_to_be_renamed(modern, weights, tmp_path):
    path = tmp_path / "model.safetensors"
    torch.save(weights, path, _use_new_zipfile_serialization=modern)

    with pytest.raises(ValueError, match="model.safetensors is .* a torch pickle. Rename it"):
        open_checkpoint(path)


@pytest.mark.parametrize("length", [None, 0x80])  # a pickle begins with this byte, too
def test_safetensors_under_another_name_are_read(length, weights, tmp_path):
    metadata = None
    if length:  # pad the table until its length ends in that byte
        plain = save(weights, metadata={"note": ""})[0]
        metadata = {"note": " " * ((length - plain) % 256)}
    content = save(weights, metadata=metadata)
    assert length in (None, content[0])
    (tmp_path / "model.pt").write_bytes(content)

    checkpoint = open_checkpoint(tmp_path / "model.pt")

    assert_close(checkpoint.read("third"), weights["third"], rtol=0, atol=0)


def test_a_nest_in_itself_is_refused(tmp_path):
    content = {}
    content["model"] = content
    torch.save(content, tmp_path / "model.pt")

    with pytest.raises(ValueError, match="model.pt are nested more than 3 levels deep, or in"):
        open_checkpoint(tmp_path / "model.pt")


def test_names_of_a_wrapped_network_are_unwrapped(weights, tmp_path):
    torch.save({f"module.{name}": tensor for name, tensor in weights.items()}, tmp_path / "a.pt")

    checkpoint = open_checkpoint(tmp_path / "a.pt")

    assert_close({name: checkpoint.read(name) for name in weights}, weights, rtol=0, atol=0)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["bare", "archive", "legacy"])
def test_code_is_named_in_every_protocol_without_advice_to_run_it(
    protocol, kind, weights, tmp_path
):
    path, content = tmp_path / "evil.pt", {**weights, "payload": Bomb(tmp_path / "ran")}
    options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": kind == "archive"}
    if kind == "bare":
        path.write_bytes(pickle.dumps({"payload": content["payload"]}, protocol=protocol))
    else:
        torch.save(content, path, **options)

    with pytest.raises(ValueError, match=r"contains code \(posix.system\)") as refusal:
        open_checkpoint(path)

    assert "weights_only" not in str(refusal.value)
    assert not (tmp_path / "ran").exists()


def test_weights_in_a_new_protocol_are_not_called_code(weights, tmp_path):
    torch.save(weights, tmp_path / "model.pt", pickle_protocol=4)

    with pytest.raises(ValueError, match="model.pt is a pickle of protocol 4"):
        open_checkpoint(tmp_path / "model.pt")


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_called_what_it_is(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "model.pt")

    with pytest.raises(
        ValueError, match=r"model.pt contains code \(TorchScript\), which was not run"
    ) as refusal:
        open_checkpoint(tmp_path / "model.pt")

    assert "weights_only" not in str(refusal.value)


def test_an_archive_of_other_things_is_refused_with_what_is_in_it(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("model.safetensors", "")

    with pytest.raises(ValueError, match=r"archive of \['model.safetensors'\], .* Unpack it"):
        open_checkpoint(tmp_path / "model.pt")


def test_a_path_that_leads_nowhere_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        open_checkpoint(tmp_path / "nothing.pt")


def test_a_git_lfs_pointer_is_named_whatever_its_ending(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")

    with pytest.raises(ValueError, match="git-lfs"):
        open_checkpoint(file)
