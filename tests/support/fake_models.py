"""Models for another process, which imports this module: no torch, so that it starts at once."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from demo.models import Request
from demo.session import GeneratedClip, Update, Updates


def load(name: str) -> Callable[[Request, Path], Updates]:
    """Load a model that is named after what happens."""
    if name == "unloadable":
        raise MemoryError("It needs 90 GB. Choose another device.")
    if name == "endless":
        time.sleep(600)
    return {"killed": _die, "failing": _fail}.get(name, _generate)


def _generate(request: Request, path: Path) -> Updates:
    """Write the id of this process and, step by step, what it has done."""
    path.write_text(f"{os.getpid()}\n")
    for step in range(request.steps):
        time.sleep(0.01)
        with path.open("a") as file:
            file.write(f"{step}\n")
        yield Update(stage="denoise", step=step, steps=request.steps)
    clip = GeneratedClip(path=path, seconds={}, unet_calls=0, frames=1, fps=8, recipe={})
    yield Update(stage="done", clip=clip)


def _die(request: Request, path: Path) -> Updates:
    yield Update(stage="text")
    os.kill(os.getpid(), signal.SIGKILL)


def _fail(request: Request, path: Path) -> Updates:
    yield Update(stage="text")
    raise RuntimeError(f"no kernel for {request.prompt}")
