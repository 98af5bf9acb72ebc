"""The entry of the command line: parse the arguments, run the command, print its error.

python -m human_eval create study --definition shapes-demo --prompts prompts.txt
python -m human_eval ingest study student=clips/few teacher=clips/many
python -m human_eval serve study
python -m human_eval report study
"""

import argparse
import sys
from collections.abc import Sequence

from human_eval.cli import maintenance, preparation, publishing, raters, results, serving
from human_eval.errors import StudyClosed, StudyError


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser for all commands."""
    parser = argparse.ArgumentParser(
        prog="python -m human_eval",
        description="Compare videos by human votes: clips in, pairs out to raters, charts back.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for group in (preparation, serving, publishing, results, raters, maintenance):
        group.add_commands(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command. If it fails, print one message and exit with status 2."""
    options = build_parser().parse_args(arguments)
    try:
        options.run(options)
    except StudyError as error:
        hint = " `close --reopen` opens it again." if type(error) is StudyClosed else ""
        print(f"human_eval {options.command}: {error}{hint}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        sys.exit(141)  # as a shell reports it for `... | head`
    except OSError as error:
        print(
            f"human_eval {options.command}: a file could not be read or written: {error}. Check "
            "the path, its permissions and the free space.",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print("Stopped. Run the same command again to go on.", file=sys.stderr)
        sys.exit(130)
