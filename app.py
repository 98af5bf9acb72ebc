"""The demo: reads its flags, hands models and study to the page, and serves it.

The page opens at once; torch, diffusers, the weights and the study load behind it.
"""

import argparse
import json
import os
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from time import perf_counter
from typing import Any

from demo.desk import Desk
from demo.engine import Engine
from demo.house import build_house, serve_house
from demo.page import build_page
from demo.session import Clip, Contender, Generate, ModelInfo, Request, Update
from demo.shelf import Shelf
from demo.starter import PRESET, open_or_start
from demo.studio import Studio
from demo.world import World
from human_eval.store import StudyStore, open_study
from turbo.card import ModelCard
from turbo.models import DEFAULT_MODEL, MODELS

# Rows of the Compare tab. Those of models that this checkout lacks are left out.
CONTENDERS = [
    Contender(model="shapes-teacher", steps=50, title="Teacher · 50 steps"),
    Contender(model="shapes-teacher", steps=4, title="Teacher · 4 steps"),
    Contender(model="shapes-vcm", steps=4, title="VCM · 4 steps"),
    Contender(model="shapes-turbo", steps=4, title="Turbo · 4 steps"),
    Contender(model="shapes-turbo", steps=8, title="Turbo · 8 steps"),
]


def main() -> None:
    """Serve the page until it is interrupted."""
    args = read_flags()
    # The default model first.
    engine = Engine(load_model, sorted(MODELS, key=lambda name: name != args.model))
    studio = open_studio(engine, args.model, args.data_dir)
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
    args = parser.parse_args()
    if args.model not in MODELS:
        parser.error(f"Expected a model from {list(MODELS)}, got {args.model!r}.")
    return args


def open_studio(engine: Engine, default_model: str, data_dir: Path) -> Studio:
    """Gather what the page needs."""
    return Studio(
        models={name: describe_model(card) for name, card in MODELS.items()},
        default_model=default_model,
        contenders=[contender for contender in CONTENDERS if contender.model in MODELS],
        generate=engine.generate,
        readiness=engine.readiness,
        shelf=Shelf(data_dir / "clips"),
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
    world = json.loads((card.folder / "world.json").read_text())
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
        world=World.from_json(world),
    )


def load_model(name: str) -> Generate:
    """Load a model, try it once, and return what generates with it."""
    import torch  # takes seconds, which the page need not wait for

    from turbo.models import load_pipeline

    pipeline = load_pipeline(name, "cuda" if torch.cuda.is_available() else "cpu")
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
