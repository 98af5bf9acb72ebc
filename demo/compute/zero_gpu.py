"""ZeroGPU Spaces: a function gets a GPU for some seconds, in a process that is forked for it.

The package `spaces` is installed there, and imported nowhere else.
https://huggingface.co/docs/hub/spaces-zerogpu
"""

import gc
from collections.abc import Callable, Generator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from demo.compute.engine import Generate, explained_failure, explained_load
from demo.models import Request, check_ready, forecast_gpu_seconds, uses_gpu
from demo.session import EngineError, Update, Updates
from human_eval.hosting.environment import read_switch


def on_zero_gpu() -> bool:
    """Return whether this is a ZeroGPU Space."""
    return read_switch("SPACES_ZERO_GPU")


def load_in_fork(load: Callable[[str], Generate], port: int | None) -> Callable[[str], Generate]:
    """Let models that use a GPU load and compute in the forked process; others stay in this one.

    The forked process may serve several videos, and keeps the model of the last one.

    Args:
        load: loads a model by name, see `Engine`.
        port: of this server, whose connections the forked process closes.
    """
    import spaces
    from spaces.reloading import reload_server_ports

    loaded: dict[str, Generate] = {}  # the model of the last video

    def generate(name: str, request: Request, path: Path) -> Updates:
        yield Update(stage="load")
        # `spaces` logs other exceptions with their text, and shows visitors their class alone.
        try:
            if name not in loaded:
                loaded.clear()  # before the next one takes its memory
                gc.collect()
                with explained_load(name):
                    loaded[name] = load(name)
            with explained_failure(name), closing(loaded[name](request, path)) as updates:
                yield from updates
        except EngineError as failure:
            raise gr.Error(str(failure), print_exception=False) from None

    def forecast(name: str, request: Request, path: Path) -> int:
        return forecast_gpu_seconds(name, request)

    computing = spaces.GPU(generate, duration=forecast)
    if port is not None:
        reload_server_ports.add(port)
    # Reports to the platform that this Space uses a GPU, or it would be stopped. `Blocks.launch`
    # does so, which this server does not call. Read from spaces 0.51.3.
    spaces.zero.startup()

    def run(name: str, request: Request, path: Path) -> Generator[Update, None, Any]:
        try:
            yield from computing(name, request, path)
        except gr.Error as refusal:  # also of the platform: no GPU is free, a quota is used up
            raise EngineError(refusal.message) from refusal

    def load_or_fork(name: str) -> Generate:
        check_ready(name)
        return partial(run, name) if uses_gpu(name) else load(name)

    return load_or_fork
