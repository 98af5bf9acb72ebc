"""Write safetensors one tensor at a time, with only one tensor in memory."""

import hashlib
import json
from collections.abc import Callable, Generator, Mapping
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
    """Dtype and shape of one tensor in the file to be written."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Return the size in bytes."""
        return prod(self.shape) * self.dtype.itemsize


def write_tensors(
    path: Path, slots: Mapping[str, Slot], read: Callable[[str], Tensor]
) -> Generator[int, None, str]:
    """Write one safetensors file; yield the size of each tensor, and return the file's SHA-256.

    safetensors' `save_file` needs all tensors at once: for merged adapters, a second copy of the
    network in memory.

    Args:
        read: returns the tensor of a name, in the dtype and shape of its slot.

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
    return digest.hexdigest()


def _header(slots: Mapping[str, Slot]) -> bytes:
    """Return the header: its length, then a table from name to dtype, shape and offsets."""
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}  # required by transformers
    begin = 0
    for name, slot in slots.items():
        end = begin + slot.size
        table[name] = {
            "dtype": _NAMES[slot.dtype],
            "shape": list(slot.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
