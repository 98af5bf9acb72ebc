"""The command `python -m turbo.rewards`: list, fetch and check rewards."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from turbo.manifest import sha256_of
from turbo.models.cli import show_progress
from turbo.models.errors import DAMAGE
from turbo.models.fetch import SHA256_DIGITS, check_proxies, download_files, find_cached
from turbo.rewards.contract import check_reward
from turbo.rewards.published import EMBEDDED, REWARDS, find_reward, load_reward

WEIGHTS_FROM = 1_000_000  # bytes: files of this size must have a known hash


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m turbo.rewards", description="List, fetch and check the rewards."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("list", help="list all rewards and their files").set_defaults(run=_list)
    fetch = commands.add_parser("fetch", help="download the published files of a reward")
    fetch.add_argument("--sha256", help="of its weights, where it is not known here")
    fetch.set_defaults(run=_fetch)
    check = commands.add_parser("check", help="load a reward and check its contract")
    check.set_defaults(run=_check)
    for command in (fetch, check):
        command.add_argument("name", help="as in the list")
        command.add_argument("--folder", type=Path, help="default: rewards/NAME")
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError) as refusal:
        sys.exit(f"{parser.prog}: {refusal}")
    except KeyboardInterrupt:
        sys.exit("\nStopped. Run the same command again to continue.")


def _list(options: argparse.Namespace) -> None:
    width = max(map(len, [*REWARDS, *EMBEDDED]))
    for name, card in REWARDS.items():
        size = sum(file.size for file in card.files) / 1e9
        print(f"{name:{width}}  {size:4.1f} GB  {card.title}: {card.files[0].address}")
    for name in EMBEDDED:
        print(f"{name:{width}}  included  for clips of the shapes model")


def _fetch(options: argparse.Namespace) -> None:
    if options.name in EMBEDDED:
        raise ValueError(f"{options.name} is included in the package. There is nothing to fetch.")
    card = find_reward(options.name)
    if options.sha256 and len(options.sha256) != SHA256_DIGITS:
        raise ValueError(f"--sha256 must have {SHA256_DIGITS} digits. {options.sha256!r} has not.")
    files = []
    for file in card.files:
        if file.sha256 is None and file.size >= WEIGHTS_FROM:
            if not options.sha256:
                raise ValueError(
                    f"The SHA-256 of {file.path} is not known here, so its download could not be "
                    f"checked. Copy it from {file.address} and add --sha256 HASH, or put a file "
                    f"that you trust into {_folder(options)}."
                )
            file = replace(file, sha256=options.sha256.lower())
        files.append(file)
    check_proxies()
    show_progress((step.stage, step.done, step.total) for step in download_files(files))
    folder = _folder(options)
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        cached, link = find_cached(file), folder / file.path
        if cached and not link.exists():
            link.unlink(missing_ok=True)  # a link to a file that was removed from the cache
            link.symlink_to(cached.resolve())
        elif cached and link.resolve() != cached.resolve():
            wanted, found = file.sha256 or sha256_of(cached), sha256_of(link)
            if found != wanted:
                raise ValueError(
                    f"{link} is damaged or another file: its SHA-256 is {found}, not {wanted}. "
                    "Remove it and fetch again."
                )
    print(f"{card.title} is ready in {folder}")


def _folder(options: argparse.Namespace) -> Path:
    return options.folder or Path("rewards") / options.name


def _check(options: argparse.Namespace) -> None:
    folder = _folder(options)
    try:
        reward = load_reward(options.name, folder)
    except OSError:  # names its file
        raise
    except DAMAGE as error:
        raise ValueError(
            f"The files of {options.name} cannot be read ({type(error).__name__}: {error}). "
            f"Restore those in {folder}, or remove them and fetch them again."
        ) from error
    check_reward(reward, getattr(reward, "num_frames", 2))
    print(f"{options.name} keeps the contract of a reward.")


if __name__ == "__main__":
    main()
