"""Write safetensors one tensor at a time: in the memory of the largest, not of all."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
}


@dataclass(frozen=True)
class Slot:
    """The place of one tensor in the file to be written."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Return its bytes."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Written:
    """The end of a stream."""

    sha256: str  # of the file, in hexadecimal


def write_tensors(
    path: Path, slots: Mapping[str, Slot], read: Callable[[str], Tensor]
) -> Iterator[int | Written]:
    """Write one safetensors file; yield the bytes of every tensor, then its hash.

    safetensors' own `save_file` wants all tensors at once, which for merged adapters would be a
    second copy of the network in memory.

    Args:
        read: returns the tensor of a name, of the dtype and shape of its slot.

    Source: https://github.com/huggingface/safetensors, "Format".
    """
    digest = hashlib.sha256()
    with path.open("wb") as file:

        def put(part: bytes | memoryview) -> None:
            digest.update(part)
            file.write(part)

        put(_header(slots))
        for name, slot in slots.items():
            tensor = read(name)
            assert (tensor.dtype, tuple(tensor.shape)) == (slot.dtype, slot.shape), name
            put(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            yield slot.size
    yield Written(digest.hexdigest())


def _header(slots: Mapping[str, Slot]) -> bytes:
    """Return the length of the table, and the table: name to dtype, shape and place."""
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}  # which transformers asks for
    begin = 0
    for name, slot in slots.items():
        end = begin + slot.size
        place = [begin, end]
        table[name] = {
            "dtype": _NAMES[slot.dtype],
            "shape": list(slot.shape),
            "data_offsets": place,
        }
        begin = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
