"""Where a model runs, in which precision, and how much of it lies on the device at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import get_args

import psutil
import torch

from turbo.card import Dtype, Memory, ModelCard
from turbo.models.footprint import Footprint, measure_footprint

# Numbers alive while a frame is decoded, beyond which a CPU is no quicker with several at a time.
LARGE_FRAME = 10**6

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class Placement:
    """A device, a precision, and a way to share the memory."""

    device: torch.device
    dtype: torch.dtype
    memory: Memory = "full"
    peak: int = 0  # bytes foretold for the worst moment

    def __str__(self) -> str:
        return (
            f"{self.device} in {_name(self.dtype)}, memory {self.memory}, "
            f"about {_gigabytes(self.peak)} at the worst moment"
        )


def place(
    card: ModelCard,
    *,
    device: torch.device | str = "auto",
    dtype: Dtype = "auto",
    memory: Memory | None = None,
) -> Placement:
    """Choose for a model on this disk: the largest use of memory that fits what is free.

    Args:
        device: "auto" is the first of CUDA, XPU, MPS and the CPU that is there, and always the CPU
            for the models that fix their number of threads on it.
        dtype: "auto" is float32 on a CPU, and else the half precision of the device for the models
            that were published in it.
        memory: None chooses; a name insists, and nothing is checked.

    Raises:
        MemoryError: nothing fits; the message says what would.
        ValueError: this machine has no such device, or this use of memory makes no sense on it.
    """
    device = choose_device(card, device)
    precision = choose_dtype(card, device, dtype)
    footprint, options = measure_footprint(card), memory_options(device)
    if memory is not None and memory not in options:
        raise ValueError(
            f"Expected memory {' or '.join(map(repr, options))} on {device}, got {memory!r}. "
            "Only a device with memory of its own can offload: leave --memory out, or choose "
            "another --device."
        )
    options = worthwhile_options(device, footprint)
    chosen = memory or fit(footprint, free_memory(device), precision.itemsize, options)
    if chosen is None:
        raise MemoryError(_nothing_fits(card, footprint, device, precision))
    return Placement(device, precision, chosen, footprint.peak(chosen, precision.itemsize))


def memory_wanting(
    card: ModelCard,
    *,
    device: torch.device | str = "auto",
    dtype: Dtype = "auto",
    memory: Memory | None = None,
) -> int:
    """Return 0 where `place` with these arguments finds room now, or the bytes that it needs."""
    if memory is not None:  # which `place` does not check
        return 0
    device = choose_device(card, device)
    itemsize = choose_dtype(card, device, dtype).itemsize
    footprint = measure_footprint(card)
    options = worthwhile_options(device, footprint)
    if fit(footprint, free_memory(device), itemsize, options):
        return 0
    return footprint.peak(options[-1], itemsize)


def memory_options(device: torch.device) -> tuple[Memory, ...]:
    """Return the uses of memory that make sense on a device, the largest first.

    Offloading needs another memory to put things: not on a CPU, nor where the two share one.
    """
    every = get_args(Memory)
    return every if device.type in ("cuda", "xpu") else every[:-1]


def worthwhile_options(device: torch.device, footprint: Footprint) -> tuple[Memory, ...]:
    """Return the uses of memory to choose from unasked.

    A CPU decodes large frames quicker one by one than eight at a time, in an eighth of the room: at
    256 x 256 in 2.2 s each, not 2.8.
    """
    options = memory_options(device)
    return options[1:] if device.type == "cpu" and footprint.decode > LARGE_FRAME else options


def fit(
    footprint: Footprint, free: int, itemsize: int, options: tuple[Memory, ...]
) -> Memory | None:
    """Return the largest use of memory whose peak fits into the free bytes, or None."""
    fitting = (option for option in options if footprint.peak(option, itemsize) <= free)
    return next(fitting, None)


def next_smaller(placement: Placement) -> Memory | None:
    """Return the use of memory to try where this one ran out, or None."""
    options = memory_options(placement.device)
    following = options.index(placement.memory) + 1
    return options[following] if following < len(options) else None


def explain_shortage(placement: Placement) -> str:
    """Say, when the memory ran out all the same, what to do about it."""
    smaller = next_smaller(placement)
    advice = (
        f"The next smaller option is memory {smaller!r}: load the model with it (--memory "
        f"{smaller})."
        if smaller
        else "There is no smaller option: free memory, or choose another device (--device cpu)."
    )
    return (
        f"Expected about {_gigabytes(placement.peak)} to be enough on {placement.device} with "
        f"memory {placement.memory!r}, got out of memory. {advice}"
    )


@contextmanager
def explained_shortage(placement: Placement) -> Iterator[None]:
    """Turn torch's running out of memory into a `MemoryError` that says what to do."""
    try:
        yield
    except RuntimeError as failure:
        if not is_shortage(failure):
            raise
        # Without its frames, which would hold on to what is loaded already.
        raise MemoryError(explain_shortage(placement)) from failure.with_traceback(None)


def is_shortage(error: RuntimeError) -> bool:
    """Return whether torch ran out of memory; only CUDA and XPU have an exception of their own."""
    phrases = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, torch.OutOfMemoryError) or any(
        phrase in str(error) for phrase in phrases
    )


def choose_device(card: ModelCard, device: torch.device | str) -> torch.device:
    """Return that device; of "auto", the accelerator of this machine, or its CPU.

    "auto" leaves a model that fixes its number of CPU threads there, where its frames are fixed.

    Raises:
        ValueError: this machine has no such device.
    """
    if device != "auto":
        there = available_devices()
        if str(device) not in there:
            raise ValueError(
                f"Expected a device of this machine: {', '.join(there)}, got {str(device)!r}. "
                "Choose one of these, or leave --device out; an accelerator counts once its driver "
                "and a torch built for it are installed."
            )
        return torch.device(device)
    if card.cpu_threads is not None:
        return torch.device("cpu")
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def available_devices() -> list[str]:
    """Return the names of what this machine can compute on."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return ["cpu"]
    kind = accelerator.type
    return ["cpu", kind, *(f"{kind}:{index}" for index in range(torch.accelerator.device_count()))]


def choose_dtype(card: ModelCard, device: torch.device, dtype: Dtype) -> torch.dtype:
    """Return that precision; of "auto", the one of the card on this device."""
    if dtype != "auto":
        return DTYPES[dtype]
    if device.type == "cpu" or not card.half:
        return torch.float32
    if device.type == "xpu" or (device.type == "cuda" and torch.cuda.is_bf16_supported(False)):
        return torch.bfloat16
    return torch.float16


def free_memory(device: torch.device) -> int:
    """Return the bytes that a model may take on a device now.

    What torch keeps of models that have gone is free, though the driver does not know it.
    """
    if device.type in ("cuda", "xpu"):
        module = torch.get_device_module(device)
        kept = module.memory_reserved(device) - module.memory_allocated(device)
        return module.mem_get_info(device)[0] + kept
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    return psutil.virtual_memory().available


def _nothing_fits(
    card: ModelCard, footprint: Footprint, device: torch.device, dtype: torch.dtype
) -> str:
    smallest = memory_options(device)[-1]
    needs = _gigabytes(footprint.peak(smallest, dtype.itemsize))
    advice = "Close other programs, or choose another device."
    if dtype.itemsize > 2:
        half = _gigabytes(footprint.peak(smallest, 2))
        advice = f"With --dtype bfloat16 it needs about {half}."
    return (
        f"Expected about {needs} of free memory on {device} for {card.name} in {_name(dtype)}, "
        f"memory {smallest!r}, got {_gigabytes(free_memory(device))}. {advice}"
    )


def _gigabytes(number: int) -> str:
    return f"{number / 1e9:.1f} GB"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
