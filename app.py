"""The demo: reads its flags, hands models and study to the page, and serves it.

The page opens at once; torch, diffusers, the weights and the study load behind it.
"""

import argparse
import errno
import json
import logging
import os
import sys
from collections.abc import Generator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, get_args

from demo.clip_store import Shelf
from demo.context import Studio
from demo.engine import Engine, EngineError
from demo.page import build_page
from demo.session import Clip, Contender, Generate, ModelInfo, Request, Update
from demo.starter import PRESET, open_or_start
from demo.web.server import build_house, serve_house
from demo.web.study_mount import Desk
from demo.world import World
from human_eval.study.store import StudyStore, open_study
from turbo.card import Dtype, Memory, ModelCard, describe_remedy, describe_state
from turbo.models.registry import DEFAULT_MODEL, MODELS

logger = logging.getLogger(__name__)

# Rows of the Compare tab. Those of models that this checkout lacks are left out.
CONTENDERS = [
    Contender(model="shapes-teacher", steps=50, title="Teacher · 50 steps"),
    Contender(model="shapes-teacher", steps=4, title="Teacher · 4 steps"),
    Contender(model="shapes-vcm", steps=4, title="VCM · 4 steps"),
    Contender(model="shapes-turbo", steps=4, title="Turbo · 4 steps"),
    Contender(model="shapes-turbo", steps=8, title="Turbo · 8 steps"),
]
LAST_PORT = 2**16 - 1
# Prompts to try on models that know the whole world.
EXAMPLES = (
    "a corgi surfing at sunset, slow motion",
    "an astronaut riding a horse on the moon",
    "a steam train crossing a viaduct in the snow, aerial view",
    "ink spreading in clear water, macro shot",
)


def main() -> None:
    """Serve the page until it is interrupted."""
    args = read_flags()
    make_data_dir(args.data_dir)
    placing = {"device": args.device, "dtype": args.dtype, "memory": args.memory}
    engine = Engine(partial(load_model, **placing), models_to_keep(args.model))
    studio = open_studio(
        engine, args.model, args.data_dir, placing, allow_download=args.allow_download
    )
    desk = open_desk(args.study, args.data_dir)
    house = build_house(build_page(studio, desk), studio, desk, when_open=engine.start)
    serve_house(house, host=args.host, port=args.port)


def read_flags() -> argparse.Namespace:
    """Read the command line; environment variables of the same meaning set the defaults."""
    parser = argparse.ArgumentParser(description="Serve the text-to-video demo.")
    environment = os.environ.get
    parser.add_argument("--host", default=environment("T2V_HOST"), help="address to listen on")
    parser.add_argument("--port", type=int, default=environment("T2V_PORT"), help="else from 7860")
    parser.add_argument("--model", default=environment("T2V_MODEL", DEFAULT_MODEL))
    parser.add_argument("--data-dir", type=Path, default=environment("T2V_DATA_DIR", "data"))
    parser.add_argument(
        "--study",
        type=Path,
        default=environment("T2V_STUDY"),
        help="folder of a study; else the starter study in the data folder",
    )
    parser.add_argument("--device", default=environment("T2V_DEVICE", "auto"))
    parser.add_argument(
        "--dtype",
        choices=get_args(Dtype),
        default=environment("T2V_DTYPE", "auto"),
        help="precision of the networks; else the model's own on this device",
    )
    parser.add_argument(
        "--memory",
        choices=get_args(Memory),
        default=environment("T2V_MEMORY"),
        help="how to use the device's memory; else as much as is free",
    )
    parser.add_argument(
        "--allow-download",
        action="store_true",
        default=environment("T2V_ALLOW_DOWNLOAD") == "1",
        help="let visitors fetch published models: gigabytes onto this machine",
    )
    args = parser.parse_args()
    for flag, known in {"dtype": get_args(Dtype), "memory": get_args(Memory)}.items():
        value = getattr(args, flag)  # argparse holds no default against its choices
        if value is not None and value not in known:
            parser.error(f"Expected T2V_{flag.upper()} from {list(known)}, got {value!r}.")
    if args.port is not None and not 0 <= args.port <= LAST_PORT:
        parser.error(
            f"Expected a --port (T2V_PORT) up to {LAST_PORT}, got {args.port}. "
            "Leave it out for the first free one from 7860."
        )
    if args.model not in MODELS:
        parser.error(f"Expected a model from {list(MODELS)}, got {args.model!r}.")
    if not MODELS[args.model].is_ready():
        parser.error(
            f"Expected a model that is ready, got {args.model} ({state_of(args.model)}). "
            f"{describe_remedy(MODELS[args.model])}"
        )
    return args


def make_data_dir(folder: Path) -> None:
    """Make the data folder with its place for clips, or end the program with what is amiss."""
    try:
        (folder / "clips").mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        sys.exit(
            f"app.py: Expected a --data-dir (T2V_DATA_DIR) to write to, got {folder}: "
            f"{failure.strerror}. Name another folder."
        )


def models_to_keep(default_model: str) -> list[str]:
    """Return the models to load at the start: the default one first, then all small ones."""
    small = [name for name, card in MODELS.items() if not card.sources and card.is_ready()]
    return [default_model, *(name for name in small if name != default_model)]


def open_studio(
    engine: Engine,
    default_model: str,
    data_dir: Path,
    placing: Mapping[str, Any],
    *,
    allow_download: bool = False,
) -> Studio:
    """Gather what the page needs.

    Args:
        placing: the device, dtype and memory that models are loaded with; see `placement.place`.
    """

    def need(name: str) -> str:
        # Before the first model is there, torch is not, which knows the device.
        if engine.holds(name) or engine.readiness(default_model) == "loading":
            return describe_state(MODELS[name])
        return state_of(name, placing)

    return Studio(
        models={name: describe_model(card) for name, card in MODELS.items()},
        default_model=default_model,
        contenders=[contender for contender in CONTENDERS if contender.model in MODELS],
        generate=engine.generate,
        readiness=engine.readiness,
        shelf=Shelf(data_dir / "clips"),
        need=need,
        fetch=fetch_model if allow_download else None,
    )


def open_desk(study: Path | None, data_dir: Path) -> Desk:
    """Offer the study in a folder, or the starter study, which the first start makes."""

    def open_store() -> StudyStore:
        if study is not None:
            return open_study(study)
        return open_or_start(data_dir / "studies" / PRESET)

    return Desk(open_store, embedded="SPACE_ID" in os.environ)


def describe_model(card: ModelCard) -> ModelInfo:
    """Return what the page shows of a card."""
    file = card.folder / "world.json"
    if file.exists():
        world = World.from_json(json.loads(file.read_text()))
    else:
        world = World(slots={}, examples=EXAMPLES)
    return ModelInfo(
        name=card.name,
        title=card.title,
        min_steps=card.min_steps,
        max_steps=card.max_steps,
        default_steps=card.default_steps,
        min_guidance=card.min_guidance,
        max_guidance=card.max_guidance,
        default_guidance=card.default_guidance,
        guidance_note=card.guidance_kind,
        world=world,
    )


def state_of(name: str, placing: Mapping[str, Any] | None = None) -> str:
    """Return "ready", what a model needs (download, training, memory), or that nothing helps.

    Args:
        placing: what it would be loaded with, to look at the memory; imports torch, which takes
            seconds the first time.
    """
    card = MODELS[name]
    state = describe_state(card)
    if state == "ready" and placing is not None:
        from turbo.models.placement import memory_wanting

        try:
            wanting = memory_wanting(card, **placing)
        except ValueError as refusal:  # it is damaged, or this machine has no such device
            logger.error("%s", refusal)
            return "cannot be loaded, see the log"
        return f"needs {wanting / 1e9:.1f} GB memory" if wanting else state
    return state


def fetch_model(name: str) -> Generator[Update, None, None]:
    """Bring the weights of a model, and tell every few megabytes."""
    from turbo.models import fetch

    began = perf_counter()
    try:
        for at in fetch.fetch_model(MODELS[name]):
            seconds = perf_counter() - began
            yield Update(stage=at.stage, step=at.done, steps=at.total, seconds=seconds)
    except (ValueError, ConnectionError) as refusal:
        raise EngineError(str(refusal)) from refusal
    except OSError as failure:  # its text may hold paths
        full = failure.errno == errno.ENOSPC or "Make room" in str(failure)
        reason = "the disk of this machine is too full" if full else failure.strerror
        remedy = "Its operator can make room. Then" if full else "What came is kept;"
        raise EngineError(
            f"The download failed: {reason or type(failure).__name__}. {remedy} try again."
        ) from failure


def load_model(
    name: str, *, device: str = "auto", dtype: Dtype = "auto", memory: Memory | None = None
) -> Generate:
    """Load a model, try it once, and return what generates with it.

    Raises:
        EngineError: the model is not on this machine.
        MemoryError: it does not fit into the memory.
        ValueError: the flags ask for what this device cannot do; for the log, not for visitors.
    """
    state = state_of(name)
    if state != "ready":
        remedy = describe_remedy(MODELS[name])
        raise EngineError(f"{MODELS[name].title} is not on this machine ({state}). {remedy}")

    from turbo.pipeline import load_pipeline  # brings torch: seconds, which the page need not wait

    pipeline = load_pipeline(name, device, dtype=dtype, memory=memory)
    if not pipeline.card.sources:  # a large model is tried by its first visitor
        list(pipeline.stream(["warm up"], [0], steps=pipeline.card.min_steps))

    def generate(request: Request, path: Path) -> Generator[Update, None, None]:
        return make_clip(pipeline, request, path)

    return generate


def make_clip(pipeline: Any, request: Request, path: Path) -> Generator[Update, None, None]:
    """Run the pipeline, write the mp4, and tell every stage; the last update has the clip."""
    began = perf_counter()
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
    yield Update(stage="encode", seconds=encoding - began)
    [video], timings, card = progress.videos, progress.timings, pipeline.card
    video.save(path, enlarge=card.enlarge)
    ended = perf_counter()
    seconds = {
        "text": timings["text"],
        "steps": timings["denoise"],
        "decode": timings["decode"],
        "encode": ended - encoding,
        "total": ended - began,
    }
    clip = Clip(
        path=path,
        seconds={stage: round(value, 4) for stage, value in seconds.items()},
        unet_calls=int(timings["unet_calls"]),
        frames=card.num_frames,
        fps=card.fps,
        recipe=video.recipe,
    )
    yield Update(stage="done", seconds=seconds["total"], clip=clip)


if __name__ == "__main__":
    main()
