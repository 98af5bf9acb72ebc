"""The human study from the command line.

python -m human_eval create study --definition shapes-demo --prompts prompts.txt
python -m human_eval ingest study student=clips/few teacher=clips/many
python -m human_eval serve study
python -m human_eval report study
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from human_eval.cli import commands, serving
from human_eval.definition.definition import PRESETS
from human_eval.errors import StudyError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; a `StudyError` is its last line, and the exit status is 2."""
    options = build_parser().parse_args(arguments)
    try:
        options.run(options)
    except StudyError as refusal:
        print(f"human_eval {options.command}: {refusal}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            sys.exit(141)  # what a shell reports for `... | head`
        print(
            f"human_eval {options.command}: Expected files that can be read and written, got: "
            f"{error}. Check the path, its permissions and the free space.",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print("Stopped. Run the same command again to go on.", file=sys.stderr)
        sys.exit(130)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="python -m human_eval",
        description="Compare videos by human votes: clips in, pairs out to raters, charts back.",
    )
    parser.set_defaults(run=None)
    commands_ = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in (_add_making, _add_running, _add_reading, _add_keeping):
        add(commands_)
    return parser


_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _command(subparsers: _Commands, name: str, summary: str) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(name, help=summary, description=summary)
    parser.add_argument("study", type=Path, metavar="STUDY", help="folder of the study")
    parser.set_defaults(run=(commands.COMMANDS | serving.COMMANDS)[name])
    return parser


def _add_making(subparsers: _Commands) -> None:
    presets = ", ".join(sorted(path.stem for path in PRESETS.glob("*.toml")))
    create = _command(subparsers, "create", "Make a new study; its definition is frozen from then.")
    create.add_argument(
        "--definition", default="shapes-demo", help=f"a TOML file or a preset: {presets}"
    )
    create.add_argument("--prompts", help="text or CSV file, or evalcrafter; else as defined")
    create.add_argument("--column", default="prompt", help="of a CSV file, the one with prompts")
    create.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a preset's parameter"
    )
    create.add_argument("--database", metavar="URL", help="postgresql://...; SQLite without it")

    ingest = _command(subparsers, "ingest", "Take clips in: decoded, made alike, renamed, paired.")
    ingest.add_argument(
        "clips",
        nargs="+",
        metavar="SYSTEM=FOLDER",
        help="one per system, or one folder that holds a folder for each",
    )
    ingest.add_argument("--partial", action="store_true", help="pair what is there so far")
    ingest.add_argument("--no-gold", action="store_true", help="make no gold pairs yet")

    imports = _command(
        subparsers, "import-votes", "Take a crowd platform's results in, in MTurk's format; legacy."
    )
    imports.add_argument("file", type=Path, metavar="CSV")
    imports.add_argument(
        "--answer",
        action="append",
        default=[],
        metavar="QUESTION=COLUMN",
        help="where it is not Answer.QUESTION",
    )

    simulate = _command(subparsers, "simulate", "Let simulated raters answer; always marked.")
    simulate.add_argument("--raters", type=int, default=60)
    simulate.add_argument("--win-rate", type=float, default=0.55, help="of A, planted")
    simulate.add_argument("--ties", type=float, default=0.0, help="share, where allowed")
    simulate.add_argument("--side-bias", type=float, default=0.0, help="share of blind left clicks")
    simulate.add_argument("--spammers", type=float, default=0.0, help="share of the raters")
    simulate.add_argument("--spread", type=float, default=0.3, help="of prompts and of raters")
    simulate.add_argument("--max-pairs", type=int, help="stop after so many")
    simulate.add_argument("--seed", type=int, default=0)


def _add_running(subparsers: _Commands) -> None:
    serve = _command(subparsers, "serve", "Serve the page for raters and its routes.")
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, default=8000)
    serve.add_argument("--embedded", action="store_true", help="inside another site's frame")

    invite = _command(subparsers, "invite", "Print a rater's invitation.")
    invite.add_argument("provider", help="such as prolific")
    invite.add_argument("rater", help="as the provider knows them; stored as a keyed hash")
    invite.add_argument("--page", default="", help="address of the page: print the whole link")

    links = _command(subparsers, "links", "Print the addresses to hand out, by whom they are for.")
    links.add_argument("page", metavar="ADDRESS", help="of the page, such as https://.../rate")

    staff = _command(subparsers, "staff", "Add an account; asks for its password.")
    staff.add_argument("name")
    staff.add_argument("--role", choices=["rater", "admin"], default="rater")

    close = _command(subparsers, "close", "Take no more answers.")
    close.add_argument("--reopen", action="store_true", help="take them again")
    close.add_argument("--author", default="researcher")


def _add_reading(subparsers: _Commands) -> None:
    status = _command(subparsers, "status", "Say how far the study is, and check its database.")
    status.add_argument("--simulated", action="store_true", help="of the simulation")

    report = _command(subparsers, "report", "Write tables, charts and methods into a folder.")
    report.add_argument(
        "--out", type=Path, help="default: report/ in the study; of an export, report/ right here"
    )
    report.add_argument("--simulated", action="store_true", help="on the simulation, and says so")
    report.add_argument("--as-of", metavar="TIME", help="ISO time; later answers are left out")

    export = _command(subparsers, "export", "Write votes, clips and preferences for others.")
    export.add_argument("--out", type=Path, help="default: export/ in the study")
    export.add_argument("--simulated", action="store_true", help="of the simulation, marked")
    export.add_argument("--mturk", metavar="URL", help="instead, batches of pairs; legacy")

    forecast = _command(subparsers, "forecast", "Say what the study costs and what it can decide.")
    forecast.add_argument("--simulated", action="store_true", help="from the simulation's votes")

    screen = _command(subparsers, "screen", "Propose raters for exclusion; exclude; revoke.")
    screen.add_argument("--simulated", action="store_true", help="simulated raters")
    screen.add_argument("--apply", action="store_true", help="exclude those proposed")
    screen.add_argument("--revoke", type=int, metavar="EVENT", help="take an exclusion back")
    screen.add_argument("--reason", default="", help="of a revocation")
    screen.add_argument("--author", default="researcher")


def _add_keeping(subparsers: _Commands) -> None:
    _command(subparsers, "backup", "Copy the database while it is in use.")

    restore = _command(subparsers, "restore", "Put a backup in the place of the database.")
    restore.add_argument("backup", type=Path, nargs="?", help="default: the newest")

    erase = _command(subparsers, "erase", "Forget a rater, or the simulation.")
    erase.add_argument("provider", nargs="?")
    erase.add_argument("rater", nargs="?", help="as the provider knows them")
    erase.add_argument("--simulated", action="store_true", help="everything simulated")


if __name__ == "__main__":
    main()
