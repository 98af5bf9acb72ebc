"""The demo: read the flags, prepare the process, compose the page and serve it.

The page opens at once. Models and study load behind it.
"""

import argparse
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

from demo.clip_store import ClipStore
from demo.prompt_filter import read_prompt_filter
from human_eval.errors import StudyError
from human_eval.hosting.deployment import SPACE_FRAMES, on_a_space, read_deployment
from human_eval.hosting.environment import hidden, read_setting, read_switch, read_variable
from human_eval.hosting.listener import listen, resolve
from turbo.card import Dtype, Memory, describe_remedy, describe_state, needs_choice
from turbo.models.registry import DEFAULT_MODEL, MODELS, check_local

MAX_PORT = 2**16 - 1
FREE_PORTS = range(7860, 7960)  # the first free one of these, unless a port is named
# Gradio fails at its import on values of these that it cannot use. The page needs no proxy, and
# `read_flags` checks the port.
HIDDEN_FROM_GRADIO = ["GRADIO_SERVER_PORT", "GRADIO_NUM_PORTS"] + [
    spelling
    for name in ("all_proxy", "http_proxy", "https_proxy", "no_proxy")
    for spelling in (name, name.upper())
]


def main() -> None:
    """Serve the page until it is interrupted."""
    try:
        check_local()
    except ValueError as refusal:
        sys.exit(f"app.py: {refusal}")
    flags = read_flags()
    clips = open_clip_store(flags.data_dir)
    try:
        listener = listen(flags.host or "127.0.0.1", [flags.port] if flags.port else FREE_PORTS)
    except StudyError as refusal:
        sys.exit(f"app.py: {refusal} Use --host (T2V_HOST) and --port (T2V_PORT).")
    keep_temporary_files_in(clips.folder.parent / "temporary")
    with hidden(HIDDEN_FROM_GRADIO):
        from demo.composition import compose
        from demo.web.server import serve

        app = compose(flags, clips)
    serve(app, listener)


def open_clip_store(data_dir: Path) -> ClipStore:
    """Create the data folder with its clip store, or exit and say what prevents it.

    A folder that exists but is read-only is reported here and by /healthz. The page opens.
    """
    remedy = "Choose another with --data-dir (T2V_DATA_DIR)."
    try:
        clips = ClipStore(data_dir / "clips")
    except OSError as failure:
        sys.exit(f"app.py: Cannot create the data folder {data_dir}: {failure.strerror}. {remedy}")
    if problem := clips.problem():
        logging.getLogger(__name__).warning("app.py: %s: %s. %s", data_dir, problem, remedy)
    return clips


def keep_temporary_files_in(folder: Path) -> None:
    """Let Gradio copy files below the data folder: /tmp/gradio may belong to another user.

    What is there is deleted first, since Gradio forgets its copies when it is killed. If that is
    read-only, they go to a new folder among the temporary files of the machine. Where the machine
    has none that can be written, all libraries use the data folder. GRADIO_TEMP_DIR names another
    folder, from which nothing is deleted.
    """
    named = read_variable("GRADIO_TEMP_DIR")
    if named is not None and not _can_write(Path(named)):
        sys.exit(f"app.py: GRADIO_TEMP_DIR: {named} cannot be written. Name another folder.")
    try:
        tempfile.gettempdir()
    except FileNotFoundError as missing:
        if not _can_write(folder):
            sys.exit(f"app.py: Neither {folder} nor a temporary folder can be written: {missing}.")
        tempfile.tempdir = str(folder)
    if named is None:
        if _can_write(folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(exist_ok=True)
            own = str(folder)
        else:
            own = tempfile.mkdtemp(prefix="t2v-turbo-")
        os.environ["GRADIO_TEMP_DIR"] = own


def _can_write(folder: Path) -> bool:
    """Return whether folders can be made in a folder. It is created if it does not exist."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryDirectory(dir=folder).cleanup()
    except OSError:
        return False
    return True


def read_flags() -> argparse.Namespace:
    """Read the command line, and the environment for each flag that is not given."""
    parser = argparse.ArgumentParser(
        description="Serve the text-to-video demo.",
        epilog="Environment variables set the defaults: T2V_HOST, T2V_DATA_DIR and so on.",
    )
    for flag, (_, _, about) in SETTINGS.items():
        parser.add_argument(f"--{flag}", help=about)
    parser.add_argument("--root-path", metavar="PATH", help=ROOT_PATH_HELP)
    parser.add_argument("--frame-ancestors", metavar="SITES", help=FRAMES_HELP)
    parser.add_argument(
        "--allow-download",
        action="store_true",
        help="let visitors download published models: gigabytes onto this machine",
    )
    parser.add_argument(
        "--visible-mark",
        action="store_true",
        help='write "AI-generated" into a corner of every frame',
    )
    parser.add_argument(
        "--mcp", action="store_true", help="serve MCP at /mcp: tools generate, compare, verify"
    )
    flags = parser.parse_args()
    try:
        for flag, (parse, default, _) in SETTINGS.items():
            name = flag.replace("-", "_")
            variables = f"T2V_{name.upper()} {ON_A_SPACE.get(flag, '')}"
            setattr(
                flags,
                name,
                read_setting(f"--{flag}", getattr(flags, name), variables, parse, default),
            )
        if flags.model not in flags.preload:
            _check_ready(flags.model)
        flags.allow_download = flags.allow_download or read_switch("T2V_ALLOW_DOWNLOAD")
        flags.visible_mark = flags.visible_mark or read_switch("T2V_VISIBLE_MARK")
        flags.mcp = flags.mcp or read_switch("T2V_MCP")
        if flags.mcp and find_spec("mcp") is None:
            raise StudyError("--mcp (T2V_MCP) needs a package. Install it: pip install mcp.")
        frames = SPACE_FRAMES if on_a_space() else ()
        flags.deployment = read_deployment(flags.root_path, flags.frame_ancestors, frames=frames)
    except StudyError as refusal:
        parser.exit(2, f"app.py: {refusal}\n")
    if flags.host is None and on_a_space():
        flags.host = "0.0.0.0"
    return flags


def _host(text: str) -> str:
    resolve(text)
    return text


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) <= MAX_PORT):
        raise StudyError(
            f"{text or 'Nothing'} is not a port. Ports go up to {MAX_PORT}. Leave it out to use "
            "the first free one from 7860."
        )
    return int(text)


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = -1.0
    if not 0 <= minutes < float("inf"):
        raise StudyError(f"{text!r} is not a number of minutes. 0 keeps the models in memory.")
    return minutes


def _folder(text: str) -> Path:
    if not text.strip():
        raise StudyError("Name a folder, or leave it out.")
    return Path(text)


def _contact(text: str) -> str:
    if not re.fullmatch(r"https://\S+|[^@\s:/?&]+@[^@\s:/?&]+", text):
        raise StudyError(f"{text!r} is neither a mailbox nor an address that begins with https://.")
    return text


def _model(name: str) -> str:
    if name not in MODELS:
        raise StudyError(f"There is no model {name!r}. Choose one of: {', '.join(MODELS)}.")
    return name


def _models(text: str) -> list[str]:
    """Read names of models that are on this machine, or can be fetched."""
    names = [_model(name.strip()) for name in text.split(",")]
    for card in map(MODELS.__getitem__, names):
        if card.unpublished or needs_choice(card):
            raise StudyError(f"{card.name} cannot be fetched as it is. {describe_remedy(card)}")
    return names


def _check_ready(name: str) -> None:
    card = MODELS[name]
    if not card.is_ready():
        raise StudyError(
            f"--model (T2V_MODEL): {name} is not on this machine ({describe_state(card)}). "
            f"{describe_remedy(card)}"
        )


def _one_of(choices: Any) -> Callable[[str], str]:
    def check(text: str) -> str:
        if text not in get_args(choices):
            raise StudyError(f"{text!r} is not one of {', '.join(get_args(choices))}.")
        return text

    return check


# Each flag with the function that checks its text, its default, and its help.
SETTINGS: dict[str, tuple[Callable[[str], Any], Any, str]] = {
    "host": (_host, None, "address to listen on; default: this machine only, all on a Space"),
    "port": (_port, None, "default: the first free one from 7860"),
    "model": (_model, DEFAULT_MODEL, f"model to show first; default: {DEFAULT_MODEL}"),
    "preload": (
        _models,
        [],
        "models to load at the start and to keep in memory, such as t2v-turbo-v2; they are "
        "downloaded if they are not on this machine",
    ),
    "idle-minutes": (
        _minutes,
        5.0,
        "minutes without an open page after which the models leave the memory; default: 5; "
        "0 and --preload keep them",
    ),
    "data-dir": (_folder, Path("data"), "folder for clips and the starter study; default: data"),
    "study": (_folder, None, "folder of a study; default: the starter study in the data folder"),
    "contact": (_contact, None, "mailbox or address where visitors report videos"),
    "prompt-filter": (
        read_prompt_filter,
        None,
        "refuse prompts with words of these lists: languages, or files that end in .txt, such as "
        "english,words.txt",
    ),
    "device": (str, "auto", "device to compute on; default: the fastest of this machine"),
    "dtype": (_one_of(Dtype), "auto", f"precision: {', '.join(get_args(Dtype))}"),
    "memory": (_one_of(Memory), None, f"use of memory: {', '.join(get_args(Memory))}"),
}
ON_A_SPACE = {"host": "GRADIO_SERVER_NAME", "port": "GRADIO_SERVER_PORT"}
ROOT_PATH_HELP = "path of the public address behind a reverse proxy, such as /t2v"
FRAMES_HELP = (
    "other sites that may show the page in a frame, such as 'https://lab.example "
    f"https://*.qualtrics.com'; a Space also allows {' and '.join(SPACE_FRAMES)}"
)


if __name__ == "__main__":
    main()
