"""What all groups of commands use: a parser for each command, an open study, a progress bar."""

import argparse
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeAlias

from tqdm import tqdm

from human_eval.errors import StudyError
from human_eval.study.store import StudyStore, open_study

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_command(
    commands: Commands, name: str, run: Callable[[Namespace], None], summary: str
) -> argparse.ArgumentParser:
    """Add a command whose first argument is the folder of a study."""
    parser = commands.add_parser(name, help=summary, description=summary)
    parser.add_argument("study", type=Path, metavar="STUDY", help="folder of the study")
    parser.set_defaults(run=run)
    return parser


def add_address(parser: argparse.ArgumentParser) -> None:
    """Add where a server listens, and from where its page is reached."""
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument(
        "--root-path",
        metavar="PATH",
        help="path of the public address behind a reverse proxy, such as /study (T2V_ROOT_PATH)",
    )
    parser.add_argument(
        "--frame-ancestors",
        metavar="SITES",
        help="other sites that may show the page in a frame, such as 'https://lab.example "
        "https://*.qualtrics.com' (T2V_FRAME_ANCESTORS), besides frame_ancestors of the definition",
    )


def is_export(folder: Path) -> bool:
    """Return whether a folder holds exported votes and no study, which keeps them in a database."""
    return any(folder.glob("votes.*"))


def opened(options: Namespace) -> closing[StudyStore]:
    """Open the study of a command until the end of the block.

    Raises:
        StudyError: the folder is an export; or as for `open_study`.
    """
    if is_export(options.study):
        raise StudyError(
            f"{options.study} is an export: it holds votes, but no study that could be changed. "
            "Use it with `report` or `audit`, or name the folder of a study."
        )
    return closing(open_study(options.study))


def split_settings(settings: Sequence[str], pattern: str) -> dict[str, str]:
    """Split settings such as "NAME=VALUE".

    Raises:
        StudyError: one lacks a part, or a name occurs twice.
    """
    named: dict[str, str] = {}
    for setting in settings:
        name, separator, value = setting.partition("=")
        if not separator or not name or not value:
            raise StudyError(f"{setting!r} is not of the form {pattern}. Write it without spaces.")
        if name in named:
            raise StudyError(f"{pattern} names {name!r} twice. Leave one out.")
        named[name] = value
    return named


@contextmanager
def progress_bar(title: str, unit: str, **options: float) -> Iterator[Callable[..., None]]:
    """Show a progress bar; its function takes what is done, the total and a note."""
    with tqdm(desc=title, unit=unit, **options) as bar:

        def advance(done: int, total: int, note: str = "") -> None:
            bar.total = total
            bar.set_postfix_str(note, refresh=False)
            bar.update(done - bar.n)

        yield advance
