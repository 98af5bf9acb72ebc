"""The demo: read the flags, compose the page from models and study, and serve it.

The page opens at once. Models and study load behind it.
"""

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

from demo.clip_store import ClipStore
from demo.context import PageContext
from demo.engine import Engine
from demo.models import (
    COMPARE_ROWS,
    availability,
    describe_models,
    download_model,
    load_model,
    models_to_preload,
)
from demo.page import build_page
from demo.starter import PRESET, open_or_create
from demo.web.server import create_page_app, serve
from demo.web.study_mount import StudyMount
from human_eval.study.store import open_study
from turbo.card import Dtype, Memory, describe_remedy, describe_state
from turbo.models.registry import DEFAULT_MODEL, MODELS

MAX_PORT = 2**16 - 1


def main() -> None:
    """Serve the page until it is interrupted."""
    flags = read_flags()
    context = create_context(flags)
    app = create_page_app(build_page(context), context)
    serve(app, host=flags.host, port=flags.port)


def create_context(flags: argparse.Namespace) -> PageContext:
    """Create everything that the page needs. Nothing is loaded yet."""
    placement = {"device": flags.device, "dtype": flags.dtype, "memory": flags.memory}
    engine = Engine(
        partial(load_model, **placement),
        models_to_preload(flags.model),
        open_clip_store(flags.data_dir),
    )

    def current_availability(name: str) -> str:
        # Measuring memory needs torch, which the engine imports with the first model.
        if engine.is_loaded(name) or engine.readiness(flags.model) == "loading":
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
        study=StudyMount(open_store, embedded="SPACE_ID" in os.environ),
        availability=current_availability,
        download=download_model if flags.allow_download else None,
    )


def open_clip_store(data_dir: Path) -> ClipStore:
    """Create the data folder with its clip store, or exit with the reason why not."""
    try:
        return ClipStore(data_dir / "clips")
    except OSError as failure:
        sys.exit(
            f"app.py: Cannot create the data folder {data_dir}: {failure.strerror}. "
            "Choose another with --data-dir (T2V_DATA_DIR)."
        )


def read_flags() -> argparse.Namespace:
    """Read the command line. An environment variable such as T2V_DATA_DIR sets a default."""
    parser = argparse.ArgumentParser(
        description="Serve the text-to-video demo.",
        epilog="Environment variables set the defaults: T2V_HOST, T2V_DATA_DIR and so on.",
    )

    def add(flag: str, default: Any = None, **options: Any) -> None:
        variable = f"T2V_{flag.upper().replace('-', '_')}"
        parser.add_argument(f"--{flag}", default=os.environ.get(variable, default), **options)

    add("host", help="address to listen on; default: this machine only")
    add("port", type=_port, help="default: the first free one from 7860")
    add("model", DEFAULT_MODEL, type=_ready_model, help="model to show first; default: %(default)s")
    add("data-dir", "data", type=Path, help="folder for clips and the starter study")
    add("study", type=Path, help="folder of a study; default: the starter study in the data folder")
    add("device", "auto", help="device to compute on; default: the fastest of this machine")
    add("dtype", "auto", type=_one_of(Dtype), help=f"precision: {', '.join(get_args(Dtype))}")
    add("memory", type=_one_of(Memory), help=f"use of memory: {', '.join(get_args(Memory))}")
    parser.add_argument(
        "--allow-download",
        action="store_true",
        default=os.environ.get("T2V_ALLOW_DOWNLOAD") == "1",
        help="let visitors download published models: gigabytes onto this machine",
    )
    return parser.parse_args()


# argparse applies these to flags and to defaults from the environment, and prints the message.


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > MAX_PORT:
        raise argparse.ArgumentTypeError(
            f"{text} is not a port. Ports go up to {MAX_PORT}. Leave the flag (T2V_PORT) out to "
            "use the first free one from 7860."
        )
    return int(text)


def _ready_model(name: str) -> str:
    if name not in MODELS:
        raise argparse.ArgumentTypeError(
            f"There is no model {name!r} (T2V_MODEL). Choose one of: {', '.join(MODELS)}."
        )
    card = MODELS[name]
    if not card.is_ready():
        raise argparse.ArgumentTypeError(
            f"{name} is not on this machine ({describe_state(card)}). {describe_remedy(card)}"
        )
    return name


def _one_of(choices: Any) -> Callable[[str], str]:
    def check(text: str) -> str:
        if text not in get_args(choices):
            raise argparse.ArgumentTypeError(
                f"{text!r} is not one of {', '.join(get_args(choices))}. "
                "Check the flag and the environment variable of its name."
            )
        return text

    return check


if __name__ == "__main__":
    main()
