"""Compose the web application from models, study and page."""

import argparse
from collections.abc import Callable
from functools import partial

from fastapi import FastAPI

from demo.clip_store import ClipStore
from demo.compute.engine import Engine, Generate
from demo.compute.process import ModelProcess
from demo.compute.zero_gpu import load_in_fork, on_zero_gpu
from demo.context import PageContext
from demo.dropped_clips import DroppedClips
from demo.models import (
    COMPARE_ROWS,
    availability,
    describe_models,
    download_model,
    fetch_and_load,
    load_model,
    models_to_preload,
)
from demo.page import build_page
from demo.starter import PRESET, open_or_create
from demo.web.server import create_page_app
from human_eval.server.study_mount import StudyMount
from human_eval.study.store import open_study


def compose(flags: argparse.Namespace, clips: ClipStore) -> FastAPI:
    """Create the application. Nothing is loaded yet.

    Args:
        flags: from `app.read_flags`.
    """
    context = create_context(flags, clips)
    return create_page_app(build_page(context), context, deployment=flags.deployment, mcp=flags.mcp)


def create_context(flags: argparse.Namespace, clips: ClipStore) -> PageContext:
    """Create everything that the page needs. Nothing is loaded yet."""
    placement = {"device": flags.device, "dtype": flags.dtype, "memory": flags.memory}
    load_here: Callable[[str], Generate] = partial(
        load_model, **placement, visible_mark=flags.visible_mark
    )
    preloaded = models_to_preload(flags.model, flags.preload)
    process = None
    if on_zero_gpu():
        load: Callable[[str], Generate] = partial(
            fetch_and_load, load_in_fork(load_here, flags.port), flags.preload
        )
    else:
        idle_seconds = None if flags.preload else flags.idle_minutes * 60 or None
        load_there = partial(fetch_and_load, load_here, flags.preload)
        process = ModelProcess(load_there, preloaded, idle_seconds)
        load = process.load
    engine = Engine(load, preloaded, clips, flags.prompt_filter)

    def current_availability(name: str) -> str:
        # ZeroGPU lends no GPU to this process, whose memory could be measured.
        if process is None or engine.is_loaded(name):
            return availability(name)
        return process.availability(name, placement)

    if flags.study is not None:
        open_store = partial(open_study, flags.study)
    else:
        open_store = partial(open_or_create, flags.data_dir / "studies" / PRESET)
    download = process.download if process else download_model
    return PageContext(
        models=describe_models(),
        default_model=flags.model,
        rows=COMPARE_ROWS,
        engine=engine,
        study=StudyMount(open_store, frames=flags.deployment.frames),
        dropped=DroppedClips(clips.folder.parent / "dropped"),
        availability=current_availability,
        download=download if flags.allow_download else None,
        contact=flags.contact,
        process=process,
    )
