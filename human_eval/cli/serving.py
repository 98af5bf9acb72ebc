"""The commands that open a study to people: serve it, hand out links, let staff in."""

import getpass
import sys
from argparse import Namespace
from collections.abc import Callable
from contextlib import closing

from human_eval.errors import StudyError
from human_eval.server.accounts import add_account
from human_eval.storage import lock
from human_eval.study.store import open_study

Command = Callable[[Namespace], None]


def serve(options: Namespace) -> None:
    """Serve the vote path and the page for raters."""
    import uvicorn

    from human_eval.server.vote_api import create_app

    with closing(open_study(options.study)) as store:
        with lock.serving(store.database, store.folder):
            pass  # refused here it is a message; once uvicorn runs, a traceback
        print(f"Raters' page: http://{options.host}:{options.port}/rate")
        uvicorn.run(
            create_app(store, embedded=options.embedded),
            host=options.host,
            port=options.port,
            server_header=False,
            access_log=False,
            timeout_keep_alive=20,
            timeout_graceful_shutdown=10,
        )


def invite(options: Namespace) -> None:
    """Print a rater's invitation."""
    with closing(open_study(options.study)) as store:
        token = store.keys.sign("invitation", [options.provider, options.rater])
    print(f"{options.page}?invitation={token}" if options.page else token)


def links(options: Namespace) -> None:
    """Print the addresses to hand out."""
    from human_eval.server.sign_in import entry_links

    page = options.page.rstrip("/")
    with closing(open_study(options.study)) as store:
        for who, address in entry_links(store, page).items():
            print(f"{who:>10}  {address}")


def staff(options: Namespace) -> None:
    """Add an account, with a password from the keyboard or from a pipe."""
    with closing(open_study(options.study)) as store:
        if sys.stdin.isatty():
            password = getpass.getpass("Password: ")
            if getpass.getpass("Once more: ") != password:
                raise StudyError("Expected the same password twice, got two. Try again.")
        else:
            password = sys.stdin.readline().rstrip("\n")
        add_account(store.folder, options.name, password, options.role)
    print(f"{options.name} may log in as {options.role}.")


COMMANDS: dict[str, Command] = {
    "serve": serve,
    "invite": invite,
    "links": links,
    "staff": staff,
}
