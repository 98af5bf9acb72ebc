"""Open weight files from others: pickles and safetensors, read lazily, never executed."""

import io
import json
import mmap
import pickletools
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

LFS_POINTER = b"version https://git-lfs"
FETCH_AGAIN = "Download it again."
WEIGHTS_ONLY = "Use a file of weights only, from its publisher."
# Keys under which trainers store the weights; CausVid stores its critic beside the generator.
NESTS = ("state_dict", "module", "model", "generator")
MAX_NESTING = 4  # published files have two levels
WRAPPER = "module."  # prefix of every name in a saved torch DataParallel
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COUNTERS = (  # integers beside the weights: in old files, and of rCM's trainer
    "position_ids",
    "accum_video_sample_counter",
    "accum_image_sample_counter",
    "accum_iteration",
)
PICKLES = 4  # in a file of torch < 1.6: magic number, version, system, content
SEARCHED = 8 * 2**20  # bytes at the beginning of a pickle that are searched for code


class Checkpoint:
    """The tensors of one file, by name; their bytes are read on access.

    A list of tensors without names, such as T2V-Turbo's published adapters, is `positional`: its
    names are "0", "1", ...
    """

    def __init__(
        self,
        path: Path,
        tensors: Mapping[str, Tensor],
        *,
        positional: bool = False,
        checksums: frozenset[int] = frozenset(),
    ) -> None:
        self.path = path
        self.tensors = tensors
        self.positional = positional
        self.checksums = checksums  # CRC-32 of the archive's records; empty without any
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of a weight.

        Raises:
            ValueError: the tensor is not dense, or of a dtype that weights do not have.
        """
        tensor = self.tensors[name]
        if not _is_dense(tensor) or tensor.dtype not in DTYPES:
            raise ValueError(
                f"{name!r} in {self.path} is {_describe(tensor)}, but weights are float16, "
                "bfloat16, float32 or float64. Use the file as it was published, not a quantised "
                "or otherwise packed copy."
            )
        return tensor.dtype

    def read(self, name: str) -> Tensor:
        """Return one tensor, after checking its bytes.

        Raises:
            ValueError: its checksum differs, it holds NaN or infinity, or it is no weight.
        """
        tensor = self.tensors[name]
        if not (name.endswith(COUNTERS) and tensor.dtype == torch.int64 and _is_dense(tensor)):
            self.dtype(name)
        if self.checksums and zlib.crc32(_bytes_of(tensor)) not in self.checksums:
            raise ValueError(
                f"{self.path} is damaged: the checksum of {name!r} does not match. {FETCH_AGAIN}"
            )
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(
                f"{self.path} is damaged: {name!r} contains NaN or infinity. {FETCH_AGAIN}"
            )
        return tensor


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a weight file. Its format is found from its content; no code in it is run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has no weights, is truncated or damaged, or contains code.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. Check the path.")
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(LFS_POINTER):
        raise ValueError(
            f"{path} is the pointer that git-lfs leaves in place of a large file. Run `git lfs "
            "pull` in its repository, or download the file itself."
        )
    named = path.suffix == ".safetensors"
    has_table = head[8:9] == b"{" and (
        named or _table_fits(path, head)
    )  # its length may look like a pickle
    is_pickle = head.startswith((b"PK", b"\x80")) and not has_table
    guess = _guess_text(head)
    if has_table or (named and not is_pickle and not guess):
        return _open_safetensors(path, head)
    if named and is_pickle:  # torch goes by the name
        raise ValueError(
            f"{path} is named .safetensors but is a torch pickle. Rename it to end in .pt."
        )
    if head.startswith(b"PK"):
        checksums = _read_checksums(path)
        return _from_object(path, _unpickle(path, mmap=True), checksums)
    if is_pickle:  # written by torch < 1.6, which cannot be memory-mapped
        return _from_object(path, _unpickle(path, mmap=False))
    raise ValueError(
        f"{path} is not a weight file: it begins with {head[:24]!r}{guess}. {FETCH_AGAIN}"
    )


def _table_fits(path: Path, head: bytes) -> bool:
    """Return whether the header of a safetensors file ends within the file."""
    return int.from_bytes(head[:8], "little") <= path.stat().st_size - 8


def _guess_text(head: bytes) -> str:
    """Say what a text file may be in place of weights; "" if it is not text."""
    if head.lstrip()[:1] == b"<":
        return ": a web page, perhaps one that asks you to log in"
    if head.lstrip()[:1] == b"{" or (head[:16].isascii() and head[:16].decode().isprintable()):
        return ": text, perhaps the message of a server or a pointer to the file"
    return ""


def _read_checksums(path: Path) -> frozenset[int]:
    """Return the CRC-32 of every record; none if the file was saved without them."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            _refuse_other_archives(path, [record.filename for record in records])
            checksums = frozenset(record.CRC for record in records)
            if checksums == {0}:
                return frozenset()
            for record in records:
                if record.filename.endswith(
                    "/data.pkl"
                ):  # names and shapes; the rest is read later
                    archive.read(record)
    except (MemoryError, _Refusal):
        raise
    except Exception as error:  # zipfile raises many kinds for a damaged archive
        raise ValueError(
            f"{path} is damaged or cut short: it ends after {path.stat().st_size} bytes, in "
            f"{_last_record(path)!r} ({error}). {FETCH_AGAIN}"
        ) from error
    return checksums


class _Refusal(ValueError):
    """A complete message, which `_read_checksums` passes on unchanged."""


def _refuse_other_archives(path: Path, names: list[str]) -> None:
    if any(name.endswith("/constants.pkl") for name in names):
        raise _Refusal(f"{path} contains code (TorchScript), which was not run. {WEIGHTS_ONLY}")
    if not any(name.endswith("/data.pkl") for name in names):
        raise _Refusal(
            f"{path} is an archive of {names[:3]}, not weights saved by torch. "
            "Unpack it if the weights are inside, or choose another file."
        )


def _last_record(path: Path) -> str:
    """Return the name of the last record that begins in a truncated archive."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content.rfind(b"PK\x03\x04")
        length = int.from_bytes(content[start + 26 : start + 28], "little")
        return content[start + 30 : start + 30 + length].decode(errors="replace")


def _unpickle(path: Path, *, mmap: bool) -> Any:
    """Unpickle tensors only.

    torch's own message for a refused file is replaced: it advises to run the code.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (MemoryError, OSError):  # the machine's fault, not the file's
        raise
    except Exception as error:  # torch raises many kinds for damaged bytes
        named = re.search(r"GLOBAL (\S+)", str(error))
        raise ValueError(_explain(path, named[1] if named else None)) from error


def _explain(path: Path, code: str | None) -> str:
    """Return why a pickle was refused.

    Args:
        code: name of the code in it, if torch reported one.
    """
    content = _read_pickle(path)
    code = code or _find_code(content)
    if code:
        return f"{path} contains code ({code}), which was not run. {WEIGHTS_ONLY}"
    if content[:1] == b"\x80" and content[1:2] in (b"\x03", b"\x04", b"\x05"):
        return (
            f"{path} is a pickle of protocol {content[1]}, which torch cannot read without running "
            "it; protocol 2 is safe. Ask its publisher for safetensors, or a copy saved by "
            "torch.save with its default protocol."
        )
    return f"{path} is damaged: torch cannot read it. {FETCH_AGAIN}"


def _find_code(content: bytes) -> str | None:
    """Return the first name in a pickle that is neither torch's nor collections', or None."""
    stream, texts = io.BytesIO(content), ["?", "?"]
    try:
        for _ in range(PICKLES):
            for operation, argument, _ in pickletools.genops(stream):
                if isinstance(argument, str):
                    texts.append(argument)
                if operation.name not in ("GLOBAL", "STACK_GLOBAL"):
                    continue
                # GLOBAL has module and name as argument, STACK_GLOBAL takes them from the stack.
                name = argument.replace(" ", ".") if argument else ".".join(texts[-2:])
                if not name.startswith(("torch.", "collections.")):
                    return name
    except (ValueError, LookupError, OverflowError):  # the end, or not a pickle further on
        pass
    return None


def _read_pickle(path: Path) -> bytes:
    """Return the beginning of a pickle, or of the pickle in an archive."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            return file.read(SEARCHED)
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(name) as record:
                return record.read(SEARCHED)
    except MemoryError:
        raise
    except Exception:  # damaged, as in `_read_checksums`: no code can be found
        return b""


def _from_object(path: Path, content: Any, checksums: frozenset[int] = frozenset()) -> Checkpoint:
    if isinstance(content, list):
        names = {str(index): tensor for index, tensor in enumerate(content)}
        return Checkpoint(path, _only_tensors(path, names), positional=True, checksums=checksums)
    for _ in range(MAX_NESTING):
        inner: Mapping[Any, Any] = content if isinstance(content, Mapping) else {}
        nests = [key for key in NESTS if isinstance(inner.get(key), Mapping)]
        if not nests:
            break
        content = content[nests[0]]
    else:
        raise ValueError(
            f"The weights in {path} are nested more than {MAX_NESTING - 1} levels deep, or in "
            "themselves. Save the innermost dictionary alone."
        )
    if isinstance(content, Mapping):
        return Checkpoint(path, _only_tensors(path, content), checksums=checksums)
    raise ValueError(
        f"{path} holds a {type(content).__name__}, not tensors by name or a list of tensors. "
        "Choose a file of a network's weights."
    )


def _only_tensors(path: Path, content: Mapping[Any, Any]) -> dict[str, Tensor]:
    for name, value in content.items():
        if not isinstance(value, Tensor) or value.is_nested:  # a nested tensor has no shape
            raise ValueError(
                f"{name!r} in {path} is {_describe(value)}, not a tensor. "
                "Choose a file of a network's weights only."
            )
    if not content:
        raise ValueError(f"{path} holds no tensors. {FETCH_AGAIN}")
    wrapped = all(str(name).startswith(WRAPPER) for name in content)
    return {
        str(name).removeprefix(WRAPPER if wrapped else ""): tensor.detach()
        for name, tensor in content.items()
    }


def _is_dense(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_nested


def _describe(value: Any) -> str:
    """Return the kind of a value; for a tensor its dtype, and its layout if it is not dense."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    layout = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
    if value.is_meta:
        layout = "meta, a tensor without data"
    return str(value.dtype).removeprefix("torch.") + ("" if _is_dense(value) else f" ({layout})")


def _open_safetensors(path: Path, head: bytes) -> Checkpoint:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged or cut short: it ends after {path.stat().st_size} bytes, "
            f"{_first_lost(path, head)} ({error}). {FETCH_AGAIN}"
        ) from error
    return Checkpoint(path, _only_tensors(path, tensors))


def _first_lost(path: Path, head: bytes) -> str:
    """Return the first tensor of a truncated safetensors file whose bytes are incomplete."""
    if not _table_fits(path, head):
        return "in its header"
    length, size = int.from_bytes(head[:8], "little"), path.stat().st_size
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(8 + length)[8:])
        header.pop("__metadata__", None)
        ends = sorted((entry["data_offsets"][1], name) for name, entry in header.items())
        lost = [name for end, name in ends if 8 + length + end > size]
    except (LookupError, ValueError, TypeError, AttributeError, RecursionError):  # not a header
        return "in its header"
    return f"in {lost[0]!r}" if lost else "in its header"


def _bytes_of(tensor: Tensor) -> memoryview:
    """Return the bytes of the record that stores a tensor; the tensor may be a view of it."""
    storage = tensor.untyped_storage()
    whole = torch.empty(0, dtype=torch.uint8).set_(storage)
    return whole.numpy().data
