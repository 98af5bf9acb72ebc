"""Checkpoints of a run: one file per saved step, complete or absent, the newest ones kept."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from turbo.whole_file import PARTIAL, open_whole, whole_file

SUFFIX = ".pt"
STUDENT, FAKE = "student.", "fake."  # before the names of weights, where two networks are trained


def save_checkpoint(folder: Path, step: int, content: dict[str, Any], keep: int) -> None:
    """Write the checkpoint of a step, then delete all but the `keep` newest.

    A file that has its name is complete, whenever the process or the machine stops.

    Raises:
        OSError: it could not be written; the earlier ones are still there.
    """
    for partial in folder.glob(f"*{PARTIAL}"):  # of a killed process, which was the only one
        partial.unlink()
    path = folder / f"{step:08d}{SUFFIX}"
    try:
        with open_whole(path) as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as failure:
        raise OSError(
            f"The checkpoint of step {step} could not be written to {folder}: {failure}. Free some "
            f"space and run the same command again: it continues from {find_newest(folder)}."
        ) from failure
    for old in saved_checkpoints(folder)[:-keep]:
        old.unlink()


def saved_checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints, oldest first."""
    return sorted(folder.glob(f"*{SUFFIX}"))


def find_newest(folder: Path) -> Path | None:
    """Return the newest complete checkpoint; None if there is none."""
    return next(reversed(saved_checkpoints(folder)), None)


def load_newest(folder: Path) -> dict[str, Any] | None:
    """Return the content of the newest checkpoint; None if there is none."""
    newest = find_newest(folder)
    return None if newest is None else load_checkpoint(folder, int(newest.stem))


def load_checkpoint(folder: Path, step: int) -> dict[str, Any]:
    """Return the content of the checkpoint of a step. Tensors only, no code."""
    path = folder / f"{step:08d}{SUFFIX}"
    return torch.load(path, map_location="cpu", weights_only=True)


def averaged_student(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a checkpoint's averaged weights of the student.

    With method matching the checkpoint holds both networks, named student and fake.
    """
    average = content["average"]
    own = {n.removeprefix(STUDENT): w for n, w in average.items() if n.startswith(STUDENT)}
    return own or average


def save_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, as by `whole_file`.

    Raises:
        OSError: it could not be written.
    """
    try:
        with whole_file(path) as partial:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)
    except SafetensorError as failure:
        raise OSError(f"{path} could not be written: {failure}. Free some space.") from failure


@contextmanager
def only_process_in(folder: Path) -> Iterator[None]:
    """Refuse a second job in a folder. The system releases the lock of a killed process.

    Raises:
        ValueError: another process writes to the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout as failure:
        raise ValueError(
            f"Another process writes to {folder}. Wait for it, or choose another folder."
        ) from failure
    try:
        yield
    finally:
        lock.release()
