"""Where a model runs, in which precision, and how much of it is on the device at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import get_args

import psutil
import torch

from turbo.card import Dtype, Memory, ModelCard
from turbo.models.footprint import Footprint, measure_footprint

# Activations per decoded frame above which a CPU is no faster at several frames at a time.
LARGE_FRAME = 10**6

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class Placement:
    """A device, a precision, and a memory option."""

    device: torch.device
    dtype: torch.dtype
    memory: Memory = "full"
    peak: int = 0  # estimated peak memory, bytes


def place(
    card: ModelCard,
    *,
    device: torch.device | str = "auto",
    dtype: Dtype = "auto",
    memory: Memory | None = None,
) -> Placement:
    """Choose a placement for a model on this disk.

    Args:
        device: "auto" is the first available of CUDA, XPU, MPS and the CPU; always the CPU for
            models that fix their number of CPU threads.
        dtype: "auto" is float32 on a CPU; elsewhere the device's half precision for models that
            were published in half precision.
        memory: None chooses the fastest option that fits the free memory; a name is used as given,
            without a check.

    Raises:
        MemoryError: no option fits; the message says what would.
        ValueError: the device does not exist, or the memory option does not apply to it.
    """
    device = choose_device(card, device)
    precision = choose_dtype(card, device, dtype)
    footprint, options = measure_footprint(card), memory_options(device)
    if memory is not None and memory not in options:
        raise ValueError(
            f"Memory {memory!r} is not possible on {device}: only a device with memory of its own "
            f"can offload. Leave --memory out, choose {' or '.join(map(repr, options))}, or choose "
            "another --device."
        )
    options = default_options(device, footprint)
    chosen = memory or largest_fit(footprint, free_memory(device), precision.itemsize, options)
    if chosen is None:
        raise MemoryError(_nothing_fits(card, footprint, device, precision))
    return Placement(device, precision, chosen, footprint.peak(chosen, precision.itemsize))


def missing_memory(
    card: ModelCard,
    *,
    device: torch.device | str = "auto",
    dtype: Dtype = "auto",
    memory: Memory | None = None,
) -> int:
    """Return 0 if `place` with these arguments would find room now, else the bytes needed."""
    if memory is not None:  # not checked by `place`
        return 0
    device = choose_device(card, device)
    itemsize = choose_dtype(card, device, dtype).itemsize
    footprint = measure_footprint(card)
    options = default_options(device, footprint)
    if largest_fit(footprint, free_memory(device), itemsize, options):
        return 0
    return footprint.peak(options[-1], itemsize)


def memory_options(device: torch.device) -> tuple[Memory, ...]:
    """Return the memory options that apply to a device, largest first.

    Offloading needs a second memory: it does not apply to a CPU, nor to a device that shares the
    CPU's memory.
    """
    every = get_args(Memory)
    return every if device.type in ("cuda", "xpu") else every[:-1]


def default_options(device: torch.device, footprint: Footprint) -> tuple[Memory, ...]:
    """Return the memory options from which `place` chooses.

    A CPU decodes large frames faster one by one than eight at a time, with an eighth of the
    memory: at 256 x 256 in 2.2 s each instead of 2.8 s.
    """
    options = memory_options(device)
    return options[1:] if device.type == "cpu" and footprint.decode > LARGE_FRAME else options


def largest_fit(
    footprint: Footprint, free: int, itemsize: int, options: tuple[Memory, ...]
) -> Memory | None:
    """Return the first option whose peak fits into `free` bytes, or None."""
    fitting = (option for option in options if footprint.peak(option, itemsize) <= free)
    return next(fitting, None)


def next_smaller(placement: Placement) -> Memory | None:
    """Return the memory option to try after this one ran out of memory, or None."""
    options = memory_options(placement.device)
    following = options.index(placement.memory) + 1
    return options[following] if following < len(options) else None


@contextmanager
def explained_shortage(placement: Placement) -> Iterator[None]:
    """Turn torch's out-of-memory errors into a `MemoryError` that names a remedy."""
    try:
        yield
    except RuntimeError as failure:
        if not _is_shortage(failure):
            raise
        # Drop the traceback: its frames would keep alive what is loaded already.
        raise MemoryError(_describe_shortage(placement)) from failure.with_traceback(None)


def _is_shortage(error: RuntimeError) -> bool:
    """Return whether torch ran out of memory; only CUDA and XPU have an exception for it."""
    phrases = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, torch.OutOfMemoryError) or any(
        phrase in str(error) for phrase in phrases
    )


def _describe_shortage(placement: Placement) -> str:
    smaller = next_smaller(placement)
    advice = (
        f"The next smaller option is memory {smaller!r}: load the model with it (--memory "
        f"{smaller})."
        if smaller
        else "There is no smaller option: free memory, or choose another device (--device cpu)."
    )
    return (
        f"{placement.device} ran out of memory with memory {placement.memory!r}, which needs about "
        f"{_gigabytes(placement.peak)}. {advice}"
    )


def choose_device(card: ModelCard, device: torch.device | str) -> torch.device:
    """Resolve "auto" to this machine's accelerator, or to its CPU.

    A model that fixes its number of CPU threads stays on the CPU, where its frames are
    reproducible.

    Raises:
        ValueError: this machine has no such device.
    """
    if device != "auto":
        available = available_devices()
        if str(device) not in available:
            raise ValueError(
                f"Device {str(device)!r} is not available; this machine has {', '.join(available)}."
                " Choose one of these, or leave --device out. An accelerator is available once its "
                "driver and a torch built for it are installed."
            )
        return torch.device(device)
    if card.cpu_threads is not None:
        return torch.device("cpu")
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def available_devices() -> list[str]:
    """Return the names of this machine's devices."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return ["cpu"]
    kind = accelerator.type
    return ["cpu", kind, *(f"{kind}:{index}" for index in range(torch.accelerator.device_count()))]


def choose_dtype(card: ModelCard, device: torch.device, dtype: Dtype) -> torch.dtype:
    """Resolve "auto" to the precision of the card on this device."""
    if dtype != "auto":
        return DTYPES[dtype]
    if device.type == "cpu" or not card.half:
        return torch.float32
    if device.type == "xpu" or (device.type == "cuda" and torch.cuda.is_bf16_supported(False)):
        return torch.bfloat16
    return torch.float16


def free_memory(device: torch.device) -> int:
    """Return the bytes that a model may use on a device now.

    Includes memory that torch caches from models that are gone, which the driver reports as used.
    """
    if device.type in ("cuda", "xpu"):
        module = torch.get_device_module(device)
        cached = module.memory_reserved(device) - module.memory_allocated(device)
        return module.mem_get_info(device)[0] + cached
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    return psutil.virtual_memory().available


def _nothing_fits(
    card: ModelCard, footprint: Footprint, device: torch.device, dtype: torch.dtype
) -> str:
    smallest = memory_options(device)[-1]
    needed = _gigabytes(footprint.peak(smallest, dtype.itemsize))
    advice = "Close other programs, or choose another device."
    if dtype.itemsize > 2:
        half = _gigabytes(footprint.peak(smallest, 2))
        advice = f"With --dtype bfloat16 it needs about {half}."
    return (
        f"{card.name} needs about {needed} of free memory on {device} in {_name(dtype)} with "
        f"memory {smallest!r}, but {_gigabytes(free_memory(device))} are free. {advice}"
    )


def _gigabytes(number: int) -> str:
    return f"{number / 1e9:.1f} GB"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
