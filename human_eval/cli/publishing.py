"""Commands that put a study on the web and bring its votes back: publish, host, collect."""

import argparse
import os
from argparse import Namespace
from contextlib import closing
from pathlib import Path

from human_eval.cli.command import Commands, add_address, add_command, opened
from human_eval.errors import StudyError
from human_eval.hosting.deployment import SPACE_FRAMES, on_a_space, read_deployment
from human_eval.hosting.environment import read_variable

EVERY = 120.0  # seconds; the Hub limits how many commits it takes per hour


def add_commands(commands: Commands) -> None:
    """Add publish, host and collect."""
    parser = add_command(
        commands, "publish", publish, "Put a study on a Space; its votes go to a private data set."
    )
    parser.add_argument("--space", metavar="OWNER/NAME", help="created if it does not exist")
    parser.add_argument("--data-set", metavar="OWNER/NAME", help="default: the Space's, -votes")
    parser.add_argument(
        "--dry-run", type=Path, metavar="FOLDER", help="write what would be uploaded, and stop"
    )

    parser = add_command(
        commands,
        "collect",
        collect,
        "Take in the votes that a published study has in its data set.",
    )
    parser.add_argument("--data-set", metavar="OWNER/NAME", required=True)

    parser = commands.add_parser(
        "host", help="Serve a published study.", description="Serve a published study."
    )
    parser.set_defaults(run=host)
    add_address(parser)
    parser.add_argument(
        "--data-set", metavar="OWNER/NAME", help="where its votes go (HUMAN_EVAL_DATA_SET)"
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        metavar="FOLDER",
        default=Path("data"),
        help="where the study is kept while it is served, or `data/` of a dry run; default: data",
    )
    parser.add_argument("--every", type=float, default=EVERY, help=argparse.SUPPRESS)


def publish(options: Namespace) -> None:
    """Publish the study, or write what would be published."""
    from human_eval.publishing import space_folder

    data_set = options.data_set or f"{options.space or 'OWNER/NAME'}-votes"
    with opened(options) as store:
        if options.dry_run:
            space_folder.write_folders(store, options.dry_run, data_set)
            print(f"Written: {options.dry_run / 'space'} would go to a public Space,")
            print(f"{options.dry_run / 'data'} to the private data set {data_set}. To try it:")
            print(f"cd {options.dry_run / 'space'} && python -m human_eval host --data-dir ../data")
            return
        if not options.space:
            raise StudyError("Name the Space: --space OWNER/NAME, or look first: --dry-run FOLDER.")
        space_folder.publish(store, options.space, data_set, _token())
    print(f"Published: https://huggingface.co/spaces/{options.space}")
    print(
        f"One step is left. Create a token with write access to {data_set} only, and add it as "
        f"the secret HF_TOKEN: https://huggingface.co/spaces/{options.space}/settings"
    )
    print(f"Votes: python -m human_eval collect {options.study} --data-set {data_set}")


def collect(options: Namespace) -> None:
    """Take in the journals of the servers."""
    from tempfile import TemporaryDirectory

    from human_eval.publishing.data_set import DataSet
    from human_eval.publishing.replica import merge_all

    with opened(options) as store, TemporaryDirectory() as place:
        data_set = DataSet(options.data_set, _token())
        files = data_set.list_journal()
        done = merge_all(
            store, files, lambda file: data_set.read(file, Path(place)), actor="collect"
        )
    print(f"{sum(merged.submissions for merged in done)} new submissions collected.")
    if contradicting := sum(merged.contradicting for merged in done):
        print(f"{contradicting} left out: the same rater had answered the same pair elsewhere.")


def host(options: Namespace) -> None:
    """Serve a published study until interrupted."""
    from human_eval.hosting.listener import address_of, listen, serve_on
    from human_eval.hosting.proxies import BehindProxy
    from human_eval.publishing.data_set import DataSet
    from human_eval.publishing.hosted_app import create_hosted_app
    from human_eval.publishing.replica import Place, Replica
    from human_eval.publishing.space_folder import DATA_SET_VARIABLE

    space = on_a_space()
    deployment = read_deployment(
        options.root_path,
        options.frame_ancestors,
        frames=SPACE_FRAMES if space else (),
        proxies="127.0.0.1",
    )
    options.data_dir.mkdir(parents=True, exist_ok=True)
    in_container = space or Path("/.dockerenv").exists()
    place = Place(options.data_dir, kept=not in_container or os.path.ismount(options.data_dir))
    name, token = options.data_set or read_variable(DATA_SET_VARIABLE), read_variable("HF_TOKEN")
    replica = Replica(place, DataSet(name, token) if name and token else None)
    app = create_hosted_app(replica, deployment, every=options.every)
    with closing(listen(options.host, [options.port])) as listener:
        print(f"Raters' page: {address_of(listener)}/study/rate", flush=True)
        serve_on(listener, BehindProxy(app, deployment), timeout_graceful_shutdown=10)


def _token() -> str:
    """Return the token of this user."""
    from huggingface_hub import get_token

    token = get_token()
    if token is None:
        raise StudyError("There is no token of the Hub. Run `hf auth login`, or set HF_TOKEN.")
    return token
