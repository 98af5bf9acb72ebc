"""Make videos from the command line: one prompt, or a file of prompts and a manifest.

python -m turbo.generate "a red star moving left on a black background" --out clip.mp4
python -m turbo.generate --prompts prompts.txt --out clips/
"""

import argparse
import hashlib
import io
import json
import os
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import transformers
from tqdm import tqdm

from turbo.card import Dtype, Memory
from turbo.manifest import Manifest, ManifestRow, sha256_of
from turbo.models.registry import DEFAULT_MODEL, MODELS
from turbo.pipeline import Progress, Result, VideoPipeline, load_pipeline
from turbo.request import Request, check_request, check_seed
from turbo.text_files.prompts import read_prompt_file
from turbo.video import SUFFIX, Video, remove_unfinished

VIDEO_SUFFIXES = {SUFFIX, ".gif", ".webm", ".mov", ".mkv", ".avi", ".m4v", ".png"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    for stream in (sys.stdout, sys.stderr):  # a name may have characters that they cannot show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    parser = _parser()
    options = parser.parse_args(arguments)
    if (options.prompt is None) == (options.prompts is None):
        parser.error("Give either a PROMPT or --prompts FILE.")
    transformers.utils.logging.disable_progress_bar()  # of loading weights
    try:
        _run(options)
    except (ValueError, MemoryError) as refusal:
        parser.error(str(refusal))
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


def _run(options: argparse.Namespace) -> None:
    """Check everything before loading the model; then make the clips."""
    requests = _read_requests(options)
    batch = options.prompts is not None
    default = "clips" if batch else "clip.mp4"
    out = check_out(default if options.out is None else options.out, batch=batch)
    pipeline = load_pipeline(
        options.model,
        options.device,
        dtype=options.dtype,
        memory=options.memory,
        compiled=options.compile,
    )
    placement = pipeline.placement
    print(
        f"{options.model} on {placement.device} in {str(placement.dtype).removeprefix('torch.')}, "
        f"memory {placement.memory}, about {placement.peak / 1e9:.1f} GB at peak"
    )
    if batch:
        make_batch(pipeline, requests, out)
    else:
        make_one(pipeline, requests[0], out)


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
        Manifest(folder)  # refuses one that is not ours
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


def make_one(pipeline: VideoPipeline, request: Request, out: Path) -> Path:
    """Make one clip, with a progress bar over its steps."""
    _warn_of_unread(pipeline, request)
    steps = tqdm(total=request.steps, unit="step", desc=pipeline.card.name)
    with steps:
        for update in _stream(pipeline, request):
            if isinstance(update, Progress):
                steps.update(update.step - steps.n)
            else:
                video, timings = update.videos[0], update.timings
    video.save(out, enlarge=pipeline.card.enlarge)
    stages = ", ".join(f"{stage} {timings[stage]:.2f} s" for stage in ("text", "denoise", "decode"))
    print(f"{out}: {stages}, {timings['unet_calls']:.0f} network calls")
    return out


def make_batch(pipeline: VideoPipeline, requests: list[Request], folder: Path) -> None:
    """Make the clips missing in `folder`; add each to its manifest when the file is complete."""
    manifest = Manifest(folder)
    paths = {clip_path(pipeline, request): request for request in requests}
    missing = manifest.missing(list(paths))
    print(f"{len(paths) - len(missing)} of {len(paths)} clips exist already.")
    for path in tqdm(missing, unit="clip", desc=pipeline.card.name):
        request = paths[path]
        _warn_of_unread(pipeline, request)
        *_, result = _stream(pipeline, request)
        assert isinstance(result, Result)
        result.videos[0].save(folder / path, enlarge=pipeline.card.enlarge)
        manifest.add(_row(pipeline, request, result.videos[0], folder, path))


def _warn_of_unread(pipeline: VideoPipeline, request: Request) -> None:
    if unread := pipeline.unread(request.prompt):
        tqdm.write(
            f"The prompt is too long for {pipeline.card.name}, which will not read these words: "
            f"{unread}",
            file=sys.stderr,
        )


def clip_path(pipeline: VideoPipeline, request: Request) -> str:
    """Name a clip after everything that determines it, so that one folder can hold many runs."""
    precision = str(pipeline.placement.dtype)
    recipe = [pipeline.card.name, pipeline.weights_sha256, asdict(request), precision]
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:10]
    slug = re.sub(r"[^a-z0-9]+", "-", request.prompt.lower())[:48].strip("-")
    return "-".join(filter(None, [pipeline.card.name, slug, digest])) + ".mp4"


def _row(
    pipeline: VideoPipeline, request: Request, video: Video, folder: Path, path: str
) -> ManifestRow:
    return ManifestRow(
        path=path,
        model=pipeline.card.name,
        prompt=request.prompt,
        seed=request.seed,
        num_steps=request.steps,
        guidance=request.guidance,
        fps=video.fps,
        sha256=sha256_of(folder / path),
        weights_sha256=pipeline.weights_sha256,
    )


def _stream(pipeline: VideoPipeline, request: Request) -> Iterator[Progress | Result]:
    return pipeline.stream(
        [request.prompt], [request.seed], steps=request.steps, guidance=request.guidance
    )


def _read_requests(options: argparse.Namespace) -> list[Request]:
    """Return one request per prompt; prompt n of a file (from 0) gets the seed `--seed` + n."""
    card = MODELS[options.model]
    settings = {"steps": options.steps, "guidance": options.guidance}
    if options.prompts is None:
        return [check_request(card, options.prompt, seed=options.seed, **settings)]
    entries = read_prompt_file(options.prompts)
    if not any(entry.text.strip() for entry in entries):
        raise ValueError(f"{options.prompts} contains no prompts. Write one per line.")
    first = check_seed(options.seed)
    requests = []
    for entry in entries:
        if not entry.text.strip():
            continue
        try:
            seed = first + entry.number
            requests.append(check_request(card, entry.text, seed=seed, **settings))
        except ValueError as refusal:
            raise ValueError(f"{options.prompts}, {entry.place}: {refusal}") from refusal
    return requests


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
        default=DEFAULT_MODEL,
        choices=list(MODELS),
        metavar="NAME",
        help=f"one of {', '.join(MODELS)}; default: {DEFAULT_MODEL}",
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
        "--out",
        help="an mp4, default clip.mp4; with --prompts a folder, default clips: those that exist "
        "there are not made again",
    )
    return parser


if __name__ == "__main__":
    main()
