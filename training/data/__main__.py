"""Prepare training data, record a teacher, and look at what there is.

    python -m training.data prepare videos prepared --config training/configs/vc2.toml
    python -m training.data record training/configs/v2.toml recorded data.folder=videos
    python -m training.data inspect prepared

`accelerate launch -m training.data ...` divides the work among processes. The same command again
continues what was stopped.
"""

import argparse
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import transformers
from accelerate import PartialState

from training.checkpoints import only_process_in
from training.config import load_config
from training.data.job import long_accelerator
from training.data.prepare import prepare
from training.data.record import record
from training.data.summary import inspect


def _prepare(options: argparse.Namespace) -> str:
    return _run(prepare, options, "data.folder", f"data.folder={options.videos}")


def _record(options: argparse.Namespace) -> str:
    return _run(record, options, "data.record")


def _run(
    job: Callable[..., dict[str, str]], options: argparse.Namespace, key: str, *changes: str
) -> str:
    """Run a job; return what to do with its folder, which the `key` of a configuration names."""
    config = load_config(options.config, [*options.changes, *changes, f"run.out={options.out}"])
    accelerator = long_accelerator()
    alone = only_process_in(options.out) if accelerator.is_main_process else nullcontext()
    sizes = {"passes": options.passes, "clips_per_shard": options.clips_per_shard}
    with alone:
        broken = job(config, options.out, accelerator, **sizes)
    return (
        f"{options.out} is complete; {len(broken)} videos are left out.\n"
        f"Look at it: python -m training.data inspect {options.out}\n"
        f"Train on it: python -m training.distil {options.config} {key}={options.out}"
    )


def _count(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.data", description="Training data.")
    commands = parser.add_subparsers(required=True)

    command = commands.add_parser("prepare", help="decode and encode videos once")
    command.add_argument("videos", type=Path, help="folder with a table of captions, or tar files")
    command.add_argument("out", type=Path, help="folder of shards, for data.folder")
    command.add_argument("--config", type=Path, required=True, help="of the distillation")
    _add_options(command, "clips per video", clips_per_shard=64)
    command.set_defaults(run=_prepare)

    command = commands.add_parser("record", help="compute the teacher's outputs once")
    command.add_argument("config", type=Path, help="of the distillation")
    command.add_argument("out", type=Path, help="folder of shards, for data.record")
    _add_options(command, "draws of noise and timestep per video", clips_per_shard=16)
    command.set_defaults(run=_record)

    command = commands.add_parser("inspect", help="check shards, and describe them")
    command.add_argument("out", type=Path, help="folder of shards")
    command.set_defaults(run=lambda options: inspect(options.out))
    return parser


def _add_options(command: argparse.ArgumentParser, passes: str, clips_per_shard: int) -> None:
    command.add_argument("--passes", type=_count, default=1, help=f"{passes} (1)")
    command.add_argument(
        "--clips-per-shard", type=_count, default=clips_per_shard, help=f"({clips_per_shard})"
    )
    command.add_argument("changes", nargs="*", metavar="table.key=value", help="of the config")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if any(not re.match(r"[\w.]+=", text) for text in rest) or (rest and "changes" not in options):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # changes after an option, which argparse does not take as positional
        options.changes = [*options.changes, *rest]
    transformers.utils.logging.disable_progress_bar()  # of loading weights
    try:
        text = options.run(options)
        if PartialState().is_main_process:
            print(text)
    except (ValueError, OSError, FloatingPointError) as refusal:
        parser.error(str(refusal))


if __name__ == "__main__":
    main()
