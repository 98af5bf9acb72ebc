"""The command `python -m turbo.models`: list, show, fetch, convert, export and verify models.

python -m turbo.models list
python -m turbo.models fetch t2v-turbo-v2

`list` and `show` are fast: they do not import torch.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from contextlib import closing
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from turbo.card import describe_state
from turbo.models.registry import (
    MODELS,
    PUBLISHED,
    check_home,
    check_local,
    check_published,
    find_card,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        check_published(PUBLISHED)
        check_local()
        options.run(options)
    except (ValueError, OSError) as refusal:  # ConnectionError and FileNotFoundError are OSErrors
        sys.exit(f"{parser.prog}: {refusal}")
    except KeyboardInterrupt:
        sys.exit("\nStopped. Run the same command again to continue.")


def _list(options: argparse.Namespace) -> None:
    width = max(map(len, MODELS))
    for card in MODELS.values():
        clip = f"{card.num_frames} x {card.height} x {card.width}, {card.default_steps} steps"
        state = describe_state(card)
        print(
            f"{card.name:{width}}  {state:24}  {clip:24}  {card.memory_gb:3.1f} GB  {card.licence}"
        )


def _show(options: argparse.Namespace) -> None:
    card = find_card(options.name)
    sampling = f"{card.default_steps} steps of {card.sampler}"
    if card.sigmas:
        sampling += f" at noise levels of its own: {', '.join(f'{s:.3g}' for s in card.sigmas)}"
    elif card.sampler == "consistency":
        sampling += f" on a grid of {card.origin_steps}"
    else:
        sampling += f", eta {card.eta:g}"
    if card.flow_shift is not None:
        sampling += f", flow matching with shift {card.flow_shift:g}"
    if card.motion_strength is not None:
        sampling += f", motion guidance {card.motion_strength:g}"
    if card.family == "videocrafter2":  # the only network that takes a frame rate
        sampling += f"; conditioned on {card.network_fps} frames per second"
    lines = {
        "model": f"{card.title} ({card.role}), {card.licence}",
        "state": describe_state(card),
        "folder": f"{card.folder}: {', '.join(card.parts)}, tokenizer",
        "clips": f"{card.num_frames} frames of {card.width} x {card.height}, {card.fps} per second",
        "sampling": sampling,
        "guidance": f"{card.default_guidance:g} ({card.min_guidance:g} to {card.max_guidance:g}). "
        f"{card.guidance_kind}",
        "memory": f"{card.memory_gb:g} GB on an accelerator, in half precision, with all parts on "
        "it (estimate)",
    }
    if card.simulated_votes:
        lines["votes"] = "It was trained on SIMULATED votes, which say nothing about people."
    for source in card.sources:
        lines[source.path] = f"{source.size / 1e9:.2f} GB, {source.address}"
        if source.sha256:
            lines[source.path] += f" SHA-256 {source.sha256}"
    width = max(map(len, lines))
    for name, text in lines.items():
        print(f"{name:{width}}  {text}")


def _fetch(options: argparse.Namespace) -> None:
    from turbo.models.fetch import check_request, fetch_model, find_cached

    card = find_card(options.name)
    check_request(card, options.projection)
    absent = [source for source in card.needed if find_cached(source) is None]
    size = sum(source.size for source in absent)
    for source in absent:
        print(f"{source.size / 1e9:5.2f} GB  {source.address}")
    if size and not options.yes:
        if not sys.stdin.isatty():
            raise ValueError(f"The download is {size / 1e9:.1f} GB. Confirm it with --yes.")
        try:
            answer = input(f"Download {size / 1e9:.1f} GB ({card.licence})? [y/N] ")
        except EOFError:  # Ctrl-D
            answer = ""
            print()
        if answer.lower() != "y":
            raise ValueError("Nothing was downloaded.")
    steps = fetch_model(card, projection=options.projection)
    show_progress((step.stage, step.done, step.total) for step in steps)
    print(f"{card.name} is ready in {card.folder}")


def _convert(options: argparse.Namespace) -> None:
    from turbo.convert.model import convert_model

    card = find_card(options.name)
    check_home(card.folder)
    written = convert_model(
        card, options.files, projection=options.projection, replace=options.replace
    )
    show_progress(("convert", done, total) for done, total in written)
    if card.missing:
        print(f"Converted. Still missing in {card.folder}: {', '.join(card.missing)}")
    else:
        print(f"{card.name} is ready in {card.folder}")


def _export(options: argparse.Namespace) -> None:
    from turbo.convert.adapters import export_adapters

    export_adapters(find_card(options.name), options.file)
    print(f"The adapters are in {options.file}. They belong to a guidance projection of zeros.")


def _verify(options: argparse.Namespace) -> None:
    from turbo.convert.model import files_at
    from turbo.models.verify import verify_file, verify_model

    card = find_card(options.name)
    if options.files:
        files = [file for path in options.files for file in files_at(path)]
        findings = [verify_file(card, file) for file in files]
    else:
        findings = list(verify_model(card))
    for finding in findings:
        print(finding)
    if any(finding.problems for finding in findings):
        sys.exit(1)


def show_progress(steps: Iterable[tuple[str, int, int]]) -> None:
    """Draw one progress bar per stage from (stage, done, total) in bytes."""
    from tqdm import tqdm

    for (stage, total), part in groupby(steps, key=itemgetter(0, 2)):
        # Closed on an error too, so that its message starts on a new line.
        with closing(tqdm(desc=stage, total=total, unit="B", unit_scale=True)) as bar:
            for _, done, _ in part:
                bar.update(done - bar.n)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m turbo.models",
        description="List the models; fetch, convert, export and verify their weights.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Any, help: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help, description=help)
        command.set_defaults(run=run)
        return command

    add("list", _list, "list all models and whether they are ready")
    show = add("show", _show, "show one model: sampling settings, files and sizes")
    fetch = add("fetch", _fetch, "download a model's published files and convert them")
    convert = add(
        "convert", _convert, "convert published files into the layout that is loaded here"
    )
    verify = add(
        "verify", _verify, "check a model's weights, or published files before their conversion"
    )
    export = add("export", _export, "write a student's adapters as the list of the published code")
    for command in (show, fetch, convert, verify, export):
        command.add_argument("name", metavar="NAME", help=f"one of {', '.join(MODELS)}")
    fetch.add_argument("--yes", action="store_true", help="download without asking")
    for command, nargs in ((convert, "+"), (verify, "*")):
        command.add_argument(
            "files", type=Path, nargs=nargs, metavar="FILE",
            help="a file, or a folder in diffusers' layout",
        )  # fmt: skip
    convert.add_argument(
        "--replace", action="store_true", help="overwrite parts that are converted already"
    )
    export.add_argument("file", type=Path, metavar="FILE", help="to write, such as unet_lora.pt")
    for command in (fetch, convert):
        command.add_argument(
            "--projection", metavar="zeros|random:SEED|FILE",
            help="guidance projection, which published adapters lack",
        )  # fmt: skip
    return parser
