"""The adapter between the page and the library: the only module of `demo` that imports `turbo`.

Imports of torch and diffusers take seconds, so they are inside functions that run behind the open
page. `turbo.card`, `turbo.request` and `turbo.models.registry` are free of torch.
"""

import ctypes
import errno
import gc
import json
import logging
import math
import secrets
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

from demo.session import CompareRow, EngineError, GeneratedClip, Update, Updates
from demo.world import World
from turbo.card import Dtype, Memory, ModelCard, describe_remedy, describe_state
from turbo.manifest import sha256_of as sha256_of
from turbo.models.registry import MODELS
from turbo.request import MAX_SEED, Request, RequestError, check_request

logger = logging.getLogger(__name__)

Loaded = TypeVar("Loaded")

COMPARE_ROWS = [
    CompareRow(model="shapes-teacher", steps=50, title="Teacher · 50 steps"),
    CompareRow(model="shapes-teacher-ode", steps=50, title="Teacher · 50 steps, no fresh noise"),
    CompareRow(model="shapes-teacher", steps=4, title="Teacher · 4 steps"),
    CompareRow(model="shapes-vcm", steps=4, title="VCM · 4 steps"),
    CompareRow(model="shapes-turbo", steps=4, title="Turbo · 4 steps"),
    CompareRow(model="shapes-turbo", steps=8, title="Turbo · 8 steps"),
    CompareRow(model="shapes-turbo-dmd", steps=4, title="Turbo-DMD · 4 steps"),
]
GB_A_SECOND = 0.5  # of weights, from the disk onto a GPU
MEGAPIXELS_A_SECOND = 8  # of a video, through a network on a GPU
READ_SECONDS = 30  # for another process to read a video
# Example prompts of models without a `world.json`.
EXAMPLES = (
    "a corgi surfing at sunset, slow motion",
    "an astronaut riding a horse on the moon",
    "a steam train crossing a viaduct in the snow, aerial view",
    "ink spreading in clear water, macro shot",
)


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """A model as the page shows it: its card, and what its prompts may contain."""

    card: ModelCard
    world: World


def describe_models() -> dict[str, ModelInfo]:
    """Return the models of the library by name, except those that only the recipe makes."""
    return {
        name: ModelInfo(card=card, world=_read_world(card))
        for name, card in MODELS.items()
        if card.sources or card.is_ready()
    }


def models_to_preload(default_model: str, named: Iterable[str] = ()) -> list[str]:
    """Return the models to load at the start: the default, the named, and all small ones."""
    small = [name for name, card in MODELS.items() if not card.sources and card.is_ready()]
    return list(dict.fromkeys([default_model, *named, *small]))


def read_request(
    models: Mapping[str, ModelInfo],
    model: object,
    prompt: object,
    *,
    steps: object = None,
    guidance: object = None,
    seed: object = None,
) -> Request:
    """Check a request from the page or the API, both of which can contain any JSON value.

    Args:
        steps: None is the model's default; so is `guidance`.
        seed: None draws one.

    Raises:
        RequestError: a field cannot be used; visitors see the text.
    """
    if not isinstance(model, str) or model not in models:
        raise RequestError(f"There is no such model. Choose one of: {', '.join(models)}.")
    seed = draw_seed() if seed is None else seed
    return check_request(models[model].card, prompt, seed=seed, steps=steps, guidance=guidance)


def draw_seed() -> int:
    """Return a random seed."""
    return secrets.randbelow(MAX_SEED + 1)


def availability(name: str, placement: Mapping[str, Any] | None = None) -> str:
    """Return "ready", what the model needs (a download, training, memory), or that it is damaged.

    Args:
        placement: device, dtype and memory to load it with. If given, free memory is measured,
            which imports torch.
    """
    card = MODELS[name]
    state = describe_state(card)
    if state != "ready" or placement is None:
        return state
    from turbo.models.placement import missing_memory

    try:
        missing = missing_memory(card, **placement)
    except ValueError as refusal:  # damaged, or this machine has no such device
        logger.error("%s", refusal)
        return "cannot be loaded, see the log"
    return f"needs {missing / 1e9:.1f} GB memory" if missing else state


def load_model(
    name: str,
    *,
    device: str = "auto",
    dtype: Dtype = "auto",
    memory: Memory | None = None,
    visible_mark: bool = False,
) -> Callable[[Request, Path], Updates]:
    """Load a model, warm up a small one, and return the function that generates with it.

    Args:
        visible_mark: write "AI-generated" on the frames of every video.

    Raises:
        EngineError: the model is not on this machine.
        MemoryError: it does not fit into memory; the text has a remedy.
        ValueError: this device does not support the flags. For the log, not for visitors.
    """
    check_ready(name)
    card = MODELS[name]
    import transformers

    from turbo.pipeline import load_pipeline

    transformers.utils.logging.disable_progress_bar()  # of loading weights, in the log
    pipeline = load_pipeline(name, device, dtype=dtype, memory=memory, visible_mark=visible_mark)
    if not card.sources:  # a large model is warmed up by its first visitor
        list(pipeline.stream(["warm up"], [0], steps=card.min_steps))
    _return_freed_memory()
    return partial(generate_clip, pipeline)


def _return_freed_memory() -> None:
    """Return freed memory to the system: 30 MB after imports and loading that glibc keeps."""
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # macOS and musl have none
        trim(0)


def check_ready(name: str) -> None:
    """Check that a model is on this machine.

    Raises:
        EngineError: it is not.
    """
    card = MODELS[name]
    if not card.is_ready():
        raise EngineError(
            f"{card.title} is not on this machine ({describe_state(card)}). {describe_remedy(card)}"
        )


def uses_gpu(name: str) -> bool:
    """Return whether a model runs on a GPU where there is one; tiny models stay on the CPU."""
    return MODELS[name].cpu_threads is None


def forecast_gpu_seconds(name: str, request: Request) -> int:
    """Estimate for how long a video needs a GPU, loading included, from the model's card.

    ZeroGPU stops what takes longer. The two speeds are assumptions on the safe side.
    """
    card = MODELS[name]
    megapixels = card.num_frames * card.height * card.width / 1e6
    calls = request.steps * card.calls_per_step
    return math.ceil(10 + card.memory_gb / GB_A_SECOND + calls * megapixels / MEGAPIXELS_A_SECOND)


def generate_clip(pipeline: Any, request: Request, path: Path) -> Updates:
    """Generate a video and write it as mp4. Closing the generator stops it within a step.

    Args:
        pipeline: a `turbo.pipeline.VideoPipeline`.
    """
    start = perf_counter()
    stream = pipeline.stream(
        [request.prompt], [request.seed], steps=request.steps, guidance=request.guidance
    )
    with closing(stream):
        for progress in stream:
            if hasattr(progress, "videos"):
                break
            yield Update(
                stage=progress.stage,
                step=progress.step,
                steps=progress.steps,
                seconds=progress.seconds,
            )
    encoding = perf_counter()
    yield Update(stage="encode", seconds=encoding - start)
    [video], timings, card = progress.videos, progress.timings, pipeline.card
    video.save(path, enlarge=card.enlarge)
    end = perf_counter()
    seconds = {
        "text": timings["text"],
        "steps": timings["denoise"],
        "decode": timings["decode"],
        "encode": end - encoding,
        "total": end - start,
    }
    clip = GeneratedClip(
        path=path,
        seconds={stage: round(value, 4) for stage, value in seconds.items()},
        unet_calls=int(timings["unet_calls"]),
        frames=card.num_frames,
        fps=card.fps,
        recipe=video.recipe,
    )
    yield Update(stage="done", seconds=seconds["total"], clip=clip)


def download_model(name: str) -> Updates:
    """Download and convert a model's weights, with an update every few megabytes.

    Raises:
        EngineError: the download failed; what has arrived is kept for the next attempt.
    """
    from turbo.models import fetch

    start = perf_counter()
    try:
        for at in fetch.fetch_model(MODELS[name]):
            seconds = perf_counter() - start
            yield Update(stage=at.stage, step=at.done, steps=at.total, seconds=seconds)
    except (ValueError, ConnectionError) as failure:
        raise EngineError(str(failure)) from failure
    except OSError as failure:  # its text may contain paths
        if failure.errno == errno.ENOSPC or "Make room" in str(failure):
            raise EngineError(
                "The download failed: the disk of this machine is full. "
                "Ask its operator to make room, then try again."
            ) from failure
        raise EngineError(
            f"The download failed: {failure.strerror or type(failure).__name__}. "
            "Try again; it resumes where it stopped."
        ) from failure


def fetch_and_load(load: Callable[[str], Loaded], fetched: Collection[str], name: str) -> Loaded:
    """Load a model; download and convert its weights before if it is one of `fetched`.

    Raises:
        EngineError: as for `download_model`.
    """
    card = MODELS[name]
    if name in fetched and not card.is_ready():
        logger.warning("Fetching %s: it %s.", name, describe_state(card))
        deque(download_model(name), maxlen=0)
    return load(name)


def read_apart(*files: Path) -> dict[str, Any]:
    """Read files in a separate process, since a decoder may crash or hang on an untrusted file.

    Args:
        files: an untrusted one, and perhaps one of ours to compare it with.

    Returns:
        The fields of `turbo.provenance.Provenance` of a single file, or of `Comparison` of two.

    Raises:
        ValueError: it is not an mp4 file, or is damaged; visitors see the text.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", "turbo.provenance", *(str(file.resolve()) for file in files)],
            cwd=Path(__file__).parents[1],
            capture_output=True,
            timeout=READ_SECONDS,
            check=True,
        )
    except subprocess.SubprocessError as failure:
        raise ValueError("This file is not an mp4 video, or it is damaged.") from failure
    return json.loads(done.stdout)


def _read_world(card: ModelCard) -> World:
    file = card.folder / "world.json"
    if file.exists():
        return World.from_json(json.loads(file.read_text()))
    return World(slots={}, examples=EXAMPLES)
