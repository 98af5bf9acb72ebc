"""Make videos from the command line: one prompt, or a file of prompts and a manifest.

python -m turbo.generate "a red star moving left on a black background" --out clip.mp4
python -m turbo.generate --prompts prompts.txt --out clips/
accelerate launch -m turbo.generate --prompts prompts.txt --seeds 5 \\
    --systems shapes-teacher:50,shapes-turbo:4 --out clips/
"""

import argparse
import io
import math
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import numpy as np
import transformers
from tqdm import tqdm

from turbo.batch import Share, bytes_of_clip, check_room, clip_name, make_clips, time_clip
from turbo.card import Dtype, Memory, ModelCard, describe_state
from turbo.manifest import Manifest
from turbo.models.registry import DEFAULT_MODEL, MODELS, check_local
from turbo.pipeline import Progress, VideoPipeline, check_loading, load_pipeline, warn_of_unread
from turbo.provenance import Signer
from turbo.request import Request, check_request, check_seed
from turbo.text_files.prompts import read_prompt_file
from turbo.video import SUFFIX, Video, remove_unfinished

VIDEO_SUFFIXES = {SUFFIX, ".gif", ".webm", ".mov", ".mkv", ".avi", ".m4v", ".png"}


@dataclass(frozen=True)
class System:
    """A model and its settings; None takes the model's own."""

    card: ModelCard
    steps: object = None  # these two are checked with the prompts
    guidance: object = None
    folder: str = ""  # of its clips, in that of the batch


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    for stream in (sys.stdout, sys.stderr):  # a name may have characters that they cannot show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    parser = _parser()
    try:
        check_local()  # before a name of --model is refused
    except ValueError as refusal:
        parser.error(str(refusal))
    options = parser.parse_args(arguments)
    if (options.prompt is None) == (options.prompts is None):
        parser.error("Give either a PROMPT or --prompts FILE.")
    of_files = options.systems or options.seeds or options.batch_size > 1 or options.dry_run
    if options.prompts is None and of_files:
        parser.error("--systems, --seeds, --batch-size and --dry-run need --prompts FILE.")
    transformers.utils.logging.disable_progress_bar()  # of loading weights
    try:
        failures = _run_one(options) if options.prompts is None else _run_batch(options)
    except (ValueError, MemoryError, ArithmeticError) as refusal:
        parser.error(str(refusal))
    except BrokenPipeError:
        parser.error("The standard output was closed. Run the command again with it open.")
    except OSError as failure:
        if failure.errno is None:  # raised by this library, with advice
            parser.error(str(failure))
        parser.error(
            f"A file could not be read or written: {failure}. "
            "Check the path, its permissions and the free space."
        )
    except KeyboardInterrupt:
        advice = "" if options.prompts is None else " Run the same command again to continue."
        parser.exit(130, f"\nStopped.{advice}\n")
    if failures:
        listed = "\n  ".join(failures)
        parser.exit(1, f"{len(failures)} clips failed. Run again to retry:\n  {listed}\n")


def _run_one(options: argparse.Namespace) -> list[str]:
    """Check everything before loading the model; then make the clip."""
    card = MODELS[options.model or DEFAULT_MODEL]
    settings = {"steps": options.steps, "guidance": options.guidance}
    request = check_request(card, options.prompt, seed=options.seed, **settings)
    out = check_out("clip.mp4" if options.out is None else options.out, batch=False)
    signer = _read_signer(options)
    make_one(_load(options, card), request, out, signer)
    return []


def _run_batch(options: argparse.Namespace) -> list[str]:
    """Check everything before loading a model; then make the clips of one system after another.

    Returns:
        What failed, in any process.
    """
    systems = _read_systems(options)
    requests = [_read_requests(options, system) for system in systems]
    sizes = [
        bytes_of_clip(system.card) * len(made)
        for system, made in zip(systems, requests, strict=True)
    ]
    every = [
        (system.card, request)
        for system, made in zip(systems, requests, strict=True)
        for request in made
    ]
    out_name, signer = "clips" if options.out is None else options.out, _read_signer(options)
    share = Share.of_launch()
    if options.dry_run:
        if share.rank == 0:
            for line in _plan(options, systems, requests, sizes):
                print(line)
            check_room(Path(out_name), every)
        return []
    for system in systems:
        check_loading(
            system.card,
            options.device,
            dtype=options.dtype,
            memory=options.memory,
            visible_mark=options.visible_mark,
        )
    out = check_out(out_name, batch=True)
    failures: list[str] = []
    needed = check_room(out, every)
    if share.rank == 0:
        print(f"{sum(map(len, requests))} clips in all; at most {needed / 1e9:.2f} GB to write.")
    load = _Loader(options, quiet=share.rank > 0)
    for system, wanted in zip(systems, requests, strict=True):
        pipeline = load(system.card)
        clips = {
            Path(
                system.folder,
                clip_name(pipeline, request, options.batch_size, signed=signer is not None),
            ).as_posix(): request
            for request in wanted
        }
        failures += make_clips(
            pipeline, clips, out, batch_size=options.batch_size, share=share, signer=signer
        )
        del pipeline  # the loader frees it before it loads the next one
    return share.gather(failures)


def _plan(
    options: argparse.Namespace,
    systems: Sequence[System],
    requests: Sequence[Sequence[Request]],
    sizes: Sequence[int],
) -> Iterator[str]:
    """Yield the lines of a table: what a batch makes, and what it needs at most."""
    layout = "{:32} {:>6} {:>14} {:>7}  {}"
    yield layout.format("system", "clips", "network calls", "GB", "time in one process, about")
    load = _Loader(options, quiet=True)
    for system, wanted, size in zip(systems, requests, sizes, strict=True):
        card = system.card
        need = describe_state(card)
        if card.is_ready():
            seconds = len(wanted) * time_clip(load(card), wanted[0])
            need = str(timedelta(seconds=math.ceil(seconds)))
        calls = sum(request.steps for request in wanted) * card.calls_per_step
        name = system.folder or card.name
        yield layout.format(name, len(wanted), calls, f"{size / 1e9:.2f}", need)
    total = sum(map(len, requests))
    yield layout.format("in all", total, "", f"{sum(sizes) / 1e9:.2f}", "").rstrip()


class _Loader:
    """Loads a model on the chosen device. The next system of the same model uses it again."""

    def __init__(self, options: argparse.Namespace, *, quiet: bool) -> None:
        self._options, self._quiet = options, quiet
        self._last: VideoPipeline | None = None

    def __call__(self, card: ModelCard) -> VideoPipeline:
        if self._last is None or self._last.card.name != card.name:
            self._last = None  # frees its memory: two large models may not fit
            self._last = _load(self._options, card, quiet=self._quiet)
        return self._last


def _load(options: argparse.Namespace, card: ModelCard, *, quiet: bool = False) -> VideoPipeline:
    pipeline = load_pipeline(
        card.name,
        options.device,
        dtype=options.dtype,
        memory=options.memory,
        compiled=options.compile,
        visible_mark=options.visible_mark,
    )
    placement = pipeline.placement
    if not quiet:
        print(
            f"{card.name} on {placement.device} in {str(placement.dtype).removeprefix('torch.')}, "
            f"memory {placement.memory}, about {placement.peak / 1e9:.1f} GB at peak"
        )
    return pipeline


def check_out(name: str, *, batch: bool) -> Path:
    """Return the path of --out, with its folder created, before minutes of computing.

    Raises:
        ValueError: it is no place for a clip, or for a folder of clips.
    """
    out = Path(name)
    if batch and out.suffix.lower() in VIDEO_SUFFIXES and not out.is_dir():
        raise ValueError(f"--out {name} names a video. Name a folder: --prompts makes many clips.")
    if not batch:
        _check_clip_path(out, name)
    folder = out if batch else out.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        raise ValueError(
            f"The folder {folder} of --out cannot be created: {failure.strerror}. Choose another."
        ) from failure
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"The folder {folder} of --out is not writable. Choose another.")
    if batch:
        manifest = Manifest(folder).path  # refuses one that is not ours
        if manifest.exists() and not os.access(manifest, os.W_OK):
            raise ValueError(f"{manifest} is not writable. Make it so, or choose another --out.")
    elif len(os.fsencode(out.name)) > os.pathconf(folder, "PC_NAME_MAX"):
        raise ValueError(f"The name of --out {name} is too long. Shorten it.")
    remove_unfinished(folder)
    return out


def _check_clip_path(out: Path, name: str) -> None:
    try:
        kind = out.stat().st_mode
    except OSError:  # does not exist yet; `check_out` finds what prevents it
        kind = stat.S_IFREG
    if stat.S_ISDIR(kind) or name.endswith(("/", os.sep)):
        raise ValueError(f"--out {name} is a folder. Name a file, such as {out / 'clip.mp4'}.")
    if not stat.S_ISREG(kind):
        raise ValueError(f"--out {name} is not a regular file. Name a file, such as clip.mp4.")
    if out.suffix.lower() != SUFFIX:
        raise ValueError(
            f"--out {name} does not end in {SUFFIX}, the only format that is written. Name a file "
            f"such as {out.with_suffix(SUFFIX).name}; convert it with ffmpeg if you need another."
        )


def _read_signer(options: argparse.Namespace) -> Signer | None:
    """Return the signer of the files after testing it; None without its options."""
    files = (options.c2pa_certificate, options.c2pa_key)
    if files == (None, None):
        return None
    if None in files:
        raise ValueError("Give both --c2pa-certificate and --c2pa-key.")
    signer = Signer(*files)
    with TemporaryDirectory() as folder:
        black = Video(np.zeros((1, 2, 2, 3), np.uint8), 1)
        black.save(Path(folder) / "black.mp4", signer=signer)
    return signer


def make_one(
    pipeline: VideoPipeline, request: Request, out: Path, signer: Signer | None = None
) -> None:
    """Make one clip, with a progress bar over its steps."""
    warn_of_unread(pipeline, request)
    updates = pipeline.stream(
        [request.prompt], [request.seed], steps=request.steps, guidance=request.guidance
    )
    with tqdm(total=request.steps, unit="step", desc=pipeline.card.name) as steps:
        for update in updates:
            if isinstance(update, Progress):
                steps.update(update.step - steps.n)
            else:
                video, timings = update.videos[0], update.timings
    video.save(out, enlarge=pipeline.card.enlarge, signer=signer)
    stages = ", ".join(f"{stage} {timings[stage]:.2f} s" for stage in ("text", "denoise", "decode"))
    print(f"{out}: {stages}, {timings['unet_calls']:.0f} network calls")


def _read_systems(options: argparse.Namespace) -> list[System]:
    """Return the systems of a batch; that of --model, --steps and --guidance has no folder."""
    if options.systems is None:
        return [System(MODELS[options.model or DEFAULT_MODEL], options.steps, options.guidance)]
    if {options.model, options.steps, options.guidance} != {None}:
        raise ValueError(
            "--systems names the models, their steps and guidance. Leave --model, --steps and "
            "--guidance out."
        )
    systems = [_read_system(text.strip()) for text in options.systems.split(",")]
    folders = [system.folder for system in systems]
    if repeated := [folder for folder in folders if folders.count(folder) > 1]:
        raise ValueError(f"--systems names {repeated[0]} twice. Remove one.")
    return systems


def _read_system(text: str) -> System:
    name, *settings = text.split(":")
    if name not in MODELS or len(settings) > 2:
        raise ValueError(
            f"{text!r} in --systems is not a system. Write MODEL, MODEL:STEPS or "
            f"MODEL:STEPS:GUIDANCE; the models are {', '.join(MODELS)}."
        )
    steps, guidance, *_ = [*map(_number, settings), None, None]
    return System(MODELS[name], steps, guidance, "-".join([name, *settings]))


def _read_requests(options: argparse.Namespace, system: System) -> list[Request]:
    """Return the requests of a file of prompts.

    With `--seeds` N, each prompt gets the seeds `--seed` to `--seed` + N - 1. Otherwise prompt n
    of the file (from 0) gets the one seed `--seed` + n.
    """
    settings = {"steps": system.steps, "guidance": system.guidance}
    entries = read_prompt_file(options.prompts)
    if not any(entry.text.strip() for entry in entries):
        raise ValueError(f"{options.prompts} contains no prompts. Write one per line.")
    if seeded := next((entry for entry in entries if entry.seed), None):
        raise ValueError(
            f"{options.prompts}, {seeded.place}: the seed {seeded.seed} would be ignored, since "
            "seeds are numbered from --seed on. Remove the seeds from the file."
        )
    first, requests = check_seed(options.seed), []
    for entry in entries:
        if not entry.text.strip():
            continue
        seeds = (
            [first + n for n in range(options.seeds)] if options.seeds else [first + entry.number]
        )
        try:
            requests += [
                check_request(system.card, entry.text, seed=seed, **settings) for seed in seeds
            ]
        except ValueError as refusal:
            raise ValueError(f"{options.prompts}, {entry.place}: {refusal}") from refusal
    return requests


def positive(text: str) -> int:
    """Read a positive whole number for argparse."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _number(text: str) -> int | float | str:
    """Return a number as the page and the API send it; other text for `check_request` to refuse."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:  # also an int of more than 4,300 digits
            continue
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m turbo.generate",
        description="Make a video from a prompt, or a folder of videos from a file of prompts.",
    )
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="what the video should show")
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="text, one prompt per line; or .csv, .tsv, .json, .jsonl with a column or key prompt, "
        "text, caption or prompt_en",
    )
    parser.add_argument(
        "--model",
        choices=list(MODELS),
        metavar="NAME",
        help=f"one of {', '.join(MODELS)}; default: {DEFAULT_MODEL}",
    )
    parser.add_argument(
        "--systems",
        metavar="MODEL[:STEPS[:GUIDANCE]],...",
        help="several models, each with a folder of its own in --out; the same prompt and seed "
        "start all of one family from the same noise",
    )
    parser.add_argument("--steps", type=_number, help="denoising steps; default: the model's")
    parser.add_argument("--guidance", type=_number, help="guidance scale; default: the model's")
    parser.add_argument(
        "--seed",
        type=_number,
        default=0,
        help="default: 0; prompt n of FILE, from 0, gets SEED + n",
    )
    parser.add_argument(
        "--seeds",
        type=positive,
        metavar="N",
        help="N clips of each prompt of FILE, with the seeds SEED to SEED + N - 1",
    )
    parser.add_argument(
        "--batch-size",
        type=positive,
        default=1,
        metavar="N",
        help="clips of FILE to make at once, default 1; more can be faster, needs more memory, and "
        "changes frames in their last bits",
    )
    parser.add_argument(
        "--device",
        default="auto",
        help="such as cuda, mps or cpu; default: an accelerator if there is one",
    )
    parser.add_argument("--dtype", choices=get_args(Dtype), default="auto")
    parser.add_argument(
        "--memory",
        choices=get_args(Memory),
        help="full: whole model on the device; sliced: decode frames one by one; offload: only "
        "the part in use on the device; default: the first that fits",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the networks: slow first clip, faster later ones",
    )
    parser.add_argument(
        "--visible-mark",
        action="store_true",
        help='write "AI-generated" into a corner of every frame',
    )
    parser.add_argument(
        "--c2pa-certificate",
        type=Path,
        metavar="PEM",
        help="sign the files with Content Credentials; needs c2pa-python",
    )
    parser.add_argument("--c2pa-key", type=Path, metavar="PEM", help="its ECDSA P-256 key")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the clips, network calls, disk space and time that a batch needs; make nothing",
    )
    parser.add_argument(
        "--out",
        help="an mp4, default clip.mp4; with --prompts a folder, default clips: those that exist "
        "there are not made again",
    )
    return parser


if __name__ == "__main__":
    main()
