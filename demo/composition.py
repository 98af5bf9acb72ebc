"""Compose the web application from models, study and page."""

import argparse
from collections.abc import Callable
from functools import partial

from fastapi import FastAPI

from demo.clip_store import ClipStore
from demo.context import PageContext
from demo.dropped_clips import DroppedClips
from demo.engine import Engine, Generate
from demo.models import (
    COMPARE_ROWS,
    availability,
    describe_models,
    download_model,
    fetch_missing,
    load_model,
    models_to_preload,
)
from demo.page import build_page
from demo.starter import PRESET, open_or_create
from demo.web.server import create_page_app
from demo.zero_gpu import load_in_fork, on_zero_gpu
from human_eval.server.study_mount import StudyMount
from human_eval.study.store import open_study


def compose(flags: argparse.Namespace, clips: ClipStore) -> FastAPI:
    """Create the application. Nothing is loaded yet.

    Args:
        flags: from `app.read_flags`.
    """
    context = create_context(flags, clips)
    return create_page_app(build_page(context), context, deployment=flags.deployment)


def create_context(flags: argparse.Namespace, clips: ClipStore) -> PageContext:
    """Create everything that the page needs. Nothing is loaded yet."""
    placement = {"device": flags.device, "dtype": flags.dtype, "memory": flags.memory}
    load: Callable[[str], Generate] = partial(
        load_model, **placement, visible_mark=flags.visible_mark
    )
    if on_zero_gpu():
        load = load_in_fork(load, flags.port)

    def fetch_and_load(name: str) -> Generate:
        if name in flags.preload:
            fetch_missing(name)
        return load(name)

    preloaded = models_to_preload(flags.model, flags.preload)
    engine = Engine(fetch_and_load, preloaded, clips, flags.prompt_filter)

    def current_availability(name: str) -> str:
        # Measuring memory needs torch, which the engine imports with the first model, and a GPU,
        # which this process never has on ZeroGPU.
        if on_zero_gpu() or engine.is_loaded(name) or engine.readiness(flags.model) == "loading":
            return availability(name)
        return availability(name, placement)

    if flags.study is not None:
        open_store = partial(open_study, flags.study)
    else:
        open_store = partial(open_or_create, flags.data_dir / "studies" / PRESET)
    return PageContext(
        models=describe_models(),
        default_model=flags.model,
        rows=COMPARE_ROWS,
        engine=engine,
        study=StudyMount(open_store, frames=flags.deployment.frames),
        dropped=DroppedClips(clips.folder.parent / "dropped"),
        availability=current_availability,
        download=download_model if flags.allow_download else None,
        contact=flags.contact,
    )
