"""Foreign files of weights: pickles and safetensors, read lazily, and never run."""

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

FETCH_AGAIN = "Download it again."
WEIGHTS_ALONE = "Use a file that holds weights alone, from its publisher."
NESTS = ("state_dict", "module", "model")  # keys under which trainers keep the weights
DEEPEST = 4  # nests in one another; published files have two
WRAPPER = "module."  # before every name, where torch's DataParallel was saved
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COUNTERS = "position_ids"  # integers that old files hold beside their weights
PICKLES = 4  # in a file of torch before 1.6: a mark, a version, the system, the content
SEARCHED = 8 * 2**20  # bytes at the beginning of a pickle in which the names of code are sought


class Checkpoint:
    """The tensors of one file, by name; their bytes are read when asked for.

    A list of tensors without names, as T2V-Turbo's adapters are published, has "0", "1", ... as
    names and is `positional`.
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
        self.checksums = checksums  # CRC-32 of the archive's records; empty where it has none
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def __repr__(self) -> str:
        return f"{self.path} ({len(self.tensors)} tensors)"

    def dtype(self, name: str) -> torch.dtype:
        """Return the precision of a tensor that is to be a weight.

        Raises:
            ValueError: no weight can be of its kind.
        """
        tensor = self.tensors[name]
        if not _is_dense(tensor) or tensor.dtype not in DTYPES:
            raise ValueError(
                f"Expected a weight of float16, bfloat16, float32 or float64 under {name!r} in "
                f"{self.path}, got {_describe(tensor)}. Use the file as it was published, not a "
                "quantised or otherwise packed copy."
            )
        return tensor.dtype

    def read(self, name: str) -> Tensor:
        """Return one tensor, whose bytes are those that were saved.

        Raises:
            ValueError: they are not, not all of them are numbers, or no weight is of its kind.
        """
        tensor = self.tensors[name]
        if not (name.endswith(COUNTERS) and tensor.dtype == torch.int64 and _is_dense(tensor)):
            self.dtype(name)
        if self.checksums and zlib.crc32(_bytes_of(tensor)) not in self.checksums:
            raise ValueError(
                f"Expected the bytes that were saved under {name!r} in {self.path}, "
                f"got others: the file is damaged. {FETCH_AGAIN}"
            )
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(
                f"Expected finite numbers under {name!r} in {self.path}, got NaN or infinity: "
                f"the file is damaged. {FETCH_AGAIN}"
            )
        return tensor


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a file of weights, by its content. Nothing in it is ever executed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is something else, cut short, damaged, or holds code.
    """
    if not path.is_file():
        raise FileNotFoundError(f"Expected a file of weights at {path}, got none. Check the path.")
    with path.open("rb") as file:
        head = file.read(512)
    named = path.suffix == ".safetensors"
    has_table = head[8:9] == b"{" and (named or _table_fits(path, head))  # may begin as a pickle
    is_pickle = head.startswith((b"PK", b"\x80")) and not has_table
    if has_table or (named and not is_pickle):
        return _open_safetensors(path, head)
    if named:  # torch would go by the name
        raise ValueError(
            f"Expected safetensors in {path}, as its name says, got a pickle of torch's. "
            "Rename it, to end in .pt."
        )
    if head.startswith(b"PK"):
        return _open_archive(path)
    if is_pickle:  # written by torch before 1.6, hence not mappable
        return _from_object(path, _unpickle(path, mmap=False))
    raise ValueError(
        f"Expected weights in {path}, got a file that begins with {head[:24]!r}{_likely(head)} "
        f"{FETCH_AGAIN}"
    )


def _table_fits(path: Path, head: bytes) -> bool:
    """Return whether the table of tensors with which safetensors begin ends in the file."""
    return int.from_bytes(head[:8], "little") <= path.stat().st_size - 8


def _likely(head: bytes) -> str:
    if head.startswith(b"version https://git-lfs"):
        return ": the pointer that git-lfs leaves in place of a large file."
    if head.lstrip()[:1] == b"<":
        return ": a web page, perhaps one that asks to log in."
    return "."


def _open_archive(path: Path) -> Checkpoint:
    checksums = _read_checksums(path)
    return _from_object(path, _unpickle(path, mmap=True), checksums)


def _read_checksums(path: Path) -> frozenset[int]:
    """Return the CRC-32 of every record, or none for a file that was saved without them."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            _refuse_other_archives(path, [record.filename for record in records])
            checksums = frozenset(record.CRC for record in records)
            if checksums == {0}:
                return frozenset()
            for record in records:
                if record.filename.endswith("/data.pkl"):  # names, shapes; the rest is read later
                    archive.read(record)
    except (MemoryError, _Refusal):
        raise
    except Exception as error:  # zipfile lets through what a damaged table leads it to
        raise ValueError(
            f"Expected a whole archive in {path}, got one that is damaged or cut short after "
            f"{path.stat().st_size} bytes, in {_last_record(path)!r} ({error}). {FETCH_AGAIN}"
        ) from error
    return checksums


class _Refusal(ValueError):
    """A refusal that is whole, and needs no further explanation."""


def _refuse_other_archives(path: Path, names: list[str]) -> None:
    if any(name.endswith("/constants.pkl") for name in names):
        raise _Refusal(
            f"Expected only tensors in {path}, got TorchScript, which is code and was not run. "
            f"{WEIGHTS_ALONE}"
        )
    if not any(name.endswith("/data.pkl") for name in names):
        raise _Refusal(
            f"Expected weights that torch saved in {path}, got an archive of {names[:3]}. "
            "Unpack it if the weights are inside, or choose another file."
        )


def _last_record(path: Path) -> str:
    """Return the name of the last record that begins in an archive without its table."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content.rfind(b"PK\x03\x04")
        length = int.from_bytes(content[start + 26 : start + 28], "little")
        return content[start + 30 : start + 30 + length].decode(errors="replace")


def _unpickle(path: Path, *, mmap: bool) -> Any:
    """Return what a pickle of tensors holds.

    What torch says of a refusal is not passed on: it advises to run the code.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (MemoryError, OSError):  # of this machine, not of the file
        raise
    except Exception as error:  # torch lets through what damaged bytes lead its unpickler to
        named = re.search(r"GLOBAL (\S+)", str(error))
        raise ValueError(_explain(path, named[1] if named else None)) from error


def _explain(path: Path, code: str | None) -> str:
    """Return why a pickle is refused; the code in it has a name, if torch came upon it."""
    content = _read_pickle(path)
    code = code or _find_code(content)
    if code:
        return (
            f"Expected only tensors in {path}, got pickled code ({code}), which was not run. "
            f"{WEIGHTS_ALONE}"
        )
    if content[:1] == b"\x80" and content[1:2] in (b"\x03", b"\x04", b"\x05"):
        return (
            f"Expected a pickle of protocol 2 in {path}, got one of protocol {content[1]}, which "
            "torch does not read without running it. Use a copy in safetensors, or one that was "
            "saved in torch's own protocol, from its publisher."
        )
    return (
        f"Expected tensors in {path}, got what torch cannot read: the file is damaged. "
        f"{FETCH_AGAIN}"
    )


def _find_code(content: bytes) -> str | None:
    """Return the first name in a pickle that is neither torch's nor of a dictionary, if any."""
    stream, texts = io.BytesIO(content), ["?", "?"]
    try:
        for _ in range(PICKLES):
            for operation, argument, _ in pickletools.genops(stream):
                if isinstance(argument, str):
                    texts.append(argument)
                if operation.name not in ("GLOBAL", "STACK_GLOBAL"):
                    continue
                # One has module and name for argument, the other takes them from the stack.
                name = argument.replace(" ", ".") if argument else ".".join(texts[-2:])
                if not name.startswith(("torch.", "collections.")):
                    return name
    except (ValueError, LookupError, OverflowError):  # it ends, or is no pickle further on
        pass
    return None


def _read_pickle(path: Path) -> bytes:
    """Return the beginning of a pickle, or of that in an archive."""
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
    except Exception:  # as for the checksums; what cannot be read names no code
        return b""


def _from_object(path: Path, content: Any, checksums: frozenset[int] = frozenset()) -> Checkpoint:
    if isinstance(content, list):
        names = {str(index): tensor for index, tensor in enumerate(content)}
        return Checkpoint(path, _only_tensors(path, names), positional=True, checksums=checksums)
    for _ in range(DEEPEST):
        inner: Mapping[Any, Any] = content if isinstance(content, Mapping) else {}
        nests = [key for key in NESTS if isinstance(inner.get(key), Mapping)]
        if not nests:
            break
        content = content[nests[0]]
    else:
        raise ValueError(
            f"Expected tensors by name in {path}, got {DEEPEST} nests in one another, or one in "
            "itself. Save the innermost, the weights alone."
        )
    if isinstance(content, Mapping):
        return Checkpoint(path, _only_tensors(path, content), checksums=checksums)
    raise ValueError(
        f"Expected tensors by name, or a list of them, in {path}, got {type(content).__name__}. "
        "Choose a file that holds a network's weights."
    )


def _only_tensors(path: Path, content: Mapping[Any, Any]) -> dict[str, Tensor]:
    for name, value in content.items():
        if not isinstance(value, Tensor) or value.is_nested:  # a nested tensor has no shape
            raise ValueError(
                f"Expected a tensor under {name!r} in {path}, got {_describe(value)}. "
                "Choose a file that holds a network's weights alone."
            )
    if not content:
        raise ValueError(f"Expected tensors in {path}, got none. {FETCH_AGAIN}")
    wrapped = all(str(name).startswith(WRAPPER) for name in content)
    return {
        str(name).removeprefix(WRAPPER if wrapped else ""): tensor.detach()
        for name, tensor in content.items()
    }


def _is_dense(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_nested


def _describe(value: Any) -> str:
    """Return the kind of a value: of a tensor also how it is kept, if not number by number."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    kept = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
    if value.is_meta:
        kept = "meta, a tensor without numbers"
    return str(value.dtype).removeprefix("torch.") + ("" if _is_dense(value) else f" ({kept})")


def _open_safetensors(path: Path, head: bytes) -> Checkpoint:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(
            f"Expected a whole safetensors file in {path}, got one of {path.stat().st_size} bytes "
            f"that is damaged or cut short, {_first_lost(path, head)} ({error}). {FETCH_AGAIN}"
        ) from error
    return Checkpoint(path, _only_tensors(path, tensors))


def _first_lost(path: Path, head: bytes) -> str:
    """Name the first tensor of a safetensors file whose bytes are not all there."""
    if not _table_fits(path, head):
        return "in its header"
    length, size = int.from_bytes(head[:8], "little"), path.stat().st_size
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(8 + length)[8:])
        header.pop("__metadata__", None)
        ends = sorted((entry["data_offsets"][1], name) for name, entry in header.items())
        lost = [name for end, name in ends if 8 + length + end > size]
    except (LookupError, ValueError, TypeError, AttributeError, RecursionError):  # not a table
        return "in its header"
    return f"in {lost[0]!r}" if lost else "in its header"


def _bytes_of(tensor: Tensor) -> memoryview:
    """Return the bytes of the record a tensor was saved in, of which it may be a view."""
    storage = tensor.untyped_storage()
    whole = torch.empty(0, dtype=torch.uint8).set_(storage)
    return whole.numpy().data
