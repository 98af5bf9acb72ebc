"""Prepare training data, and look at what was prepared.

python -m training.data prepare videos prepared --config training/configs/vc2.toml
python -m training.data inspect prepared
"""

import argparse
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import transformers
from accelerate import Accelerator

from training.checkpoints import only_process_in
from training.config import Config, load_config
from training.data.job import long_accelerator
from training.data.prepare import prepare
from training.data.shards import SETTINGS
from training.data.summary import inspect


def _load(options: argparse.Namespace, *changes: str) -> Config:
    return load_config(options.config, [*options.changes, *changes, f"run.out={options.out}"])


def _lock(options: argparse.Namespace, accelerator: Accelerator) -> AbstractContextManager[None]:
    return only_process_in(options.out) if accelerator.is_main_process else nullcontext()


def _prepare(options: argparse.Namespace) -> str:
    config = _load(options, f"data.folder={options.videos}")
    accelerator = long_accelerator()
    with _lock(options, accelerator):
        broken = prepare(
            config,
            options.out,
            accelerator,
            passes=options.passes,
            clips_per_shard=options.clips_per_shard,
        )
    return f"{options.out / SETTINGS} is complete; {len(broken)} videos are unusable." + (
        f"\nLook at it: python -m training.data inspect {options.out}\n"
        f"Train on it: python -m training.distil {options.config} data.folder={options.out}"
    )


def _inspect(options: argparse.Namespace) -> str:
    return inspect(options.out)


def _count(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.data", description="Training data.")
    commands = parser.add_subparsers(required=True)

    command = commands.add_parser("prepare", help="decode and encode videos once")
    command.add_argument("videos", type=Path, help="folder with a table of captions")
    command.add_argument("out", type=Path, help="folder of shards, for data.folder")
    command.add_argument("--config", type=Path, required=True, help="of the distillation")
    command.add_argument("--passes", type=_count, default=1, help="clips per video (1)")
    command.add_argument("--clips-per-shard", type=_count, default=64, help="(64)")
    command.add_argument("changes", nargs="*", metavar="table.key=value", help="of the config")
    command.set_defaults(run=_prepare)

    command = commands.add_parser("inspect", help="check shards, and describe them")
    command.add_argument("out", type=Path, help="folder of shards")
    command.set_defaults(run=_inspect)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command."""
    parser = _parser()
    options = parser.parse_args(arguments)
    transformers.utils.logging.disable_progress_bar()  # of loading weights
    try:
        print(options.run(options))
    except (ValueError, OSError, FloatingPointError) as refusal:
        parser.error(str(refusal))


if __name__ == "__main__":
    main()
