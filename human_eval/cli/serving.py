"""Commands that open a study to people: serve it, hand out links, add staff, close it."""

import getpass
import sys
from argparse import Namespace
from contextlib import closing

from human_eval.cli.command import Commands, add_address, add_command, opened
from human_eval.collection.pairs import list_clips
from human_eval.errors import StudyError
from human_eval.hosting.deployment import read_deployment
from human_eval.storage import lock
from human_eval.storage.study_state import set_closed
from human_eval.study.media_check import describe_lost, find_lost_clips
from human_eval.study.store import StudyStore


def add_commands(commands: Commands) -> None:
    """Add serve, invite, links, staff and close."""
    parser = add_command(commands, "serve", serve, "Serve the page for raters and its API.")
    add_address(parser)

    parser = add_command(commands, "invite", invite, "Print a rater's invitation.")
    parser.add_argument("provider", help="such as prolific")
    parser.add_argument("rater", help="the rater's name at the provider; stored as a keyed hash")
    parser.add_argument("--page", default="", help="address of the page: print the whole link")

    parser = add_command(commands, "links", links, "Print the links to hand out to raters.")
    parser.add_argument("page", metavar="ADDRESS", help="of the page, such as https://.../rate")

    parser = add_command(commands, "staff", staff, "Add an account; asks for its password.")
    parser.add_argument("name")
    parser.add_argument("--role", choices=["rater", "admin"], default="rater")

    parser = add_command(commands, "close", close, "Take no more answers.")
    parser.add_argument("--yes", action="store_true", help="do not ask in a terminal")
    parser.add_argument("--reopen", action="store_true", help="take answers again")
    parser.add_argument("--author", default="researcher")


def serve(options: Namespace) -> None:
    """Serve the routes and the page for raters."""
    from human_eval.hosting.listener import address_of, listen, serve_on
    from human_eval.hosting.proxies import BehindProxy
    from human_eval.server.vote_api import create_app

    deployment = read_deployment(options.root_path, options.frame_ancestors, proxies="127.0.0.1")
    with opened(options) as store:
        with lock.serving(store.database, store.folder):
            pass  # a refusal is a message here; inside uvicorn it would be a traceback
        _check_some_clip(store)
        app = create_app(store, frames=deployment.frames)
        with closing(listen(options.host, [options.port])) as listener:
            print(f"Raters' page: {address_of(listener)}/rate", flush=True)
            serve_on(listener, BehindProxy(app, deployment), timeout_graceful_shutdown=10)


def _check_some_clip(store: StudyStore) -> None:
    """Refuse to serve a study without any of its video files, as after an incomplete move."""
    with store.read() as connection:
        clips = list_clips(connection, None)
    lost = find_lost_clips(store)
    if clips and len(lost) == len(clips):
        raise StudyError(describe_lost(lost))


def invite(options: Namespace) -> None:
    """Print a rater's invitation."""
    with opened(options) as store:
        token = store.keys.sign("invitation", [options.provider, options.rater])
    print(f"{options.page}?invitation={token}" if options.page else token)


def links(options: Namespace) -> None:
    """Print the links to hand out."""
    from human_eval.server.sign_in import entry_links

    with opened(options) as store:
        for provider, address in entry_links(store, options.page.rstrip("/")).items():
            print(f"{provider:>10}  {address}")


def staff(options: Namespace) -> None:
    """Add an account, with a password from the keyboard or from a pipe."""
    from human_eval.server.accounts import add_account

    with opened(options) as store:
        if sys.stdin.isatty():
            password = getpass.getpass("Password: ")
            if getpass.getpass("Once more: ") != password:
                raise StudyError("The two passwords differ. Try again.")
        else:
            password = sys.stdin.readline().rstrip("\n")
        add_account(store.folder, options.name, password, options.role)
    print(f"{options.name} may sign in as {options.role}.")


def close(options: Namespace) -> None:
    """Close the study, or open it again."""
    closed = not options.reopen
    if closed and not options.yes and sys.stdin.isatty():
        print("Raters can no longer answer, and readers of the Results page see system names.")
        if input("Close the study? [y/N] ").strip().lower() not in ("y", "yes"):
            raise StudyError("The study stays open.")
    with opened(options) as store, store.write() as connection:
        now = store.clock()
        set_closed(connection, closed, author=options.author, now=now)
    print("The study is closed." if closed else "The study takes answers again.")
