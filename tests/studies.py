"""Small studies with made-up clips, on SQLite and on a private PostgreSQL."""

import os
import pwd
import random
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from human_eval.clips import Clip
from human_eval.definition import StudyDefinition, parse_definition
from human_eval.prompts import Prompt
from human_eval.store import StudyStore, create_study
from human_eval.submission import Answer, Ballot

DEFINITION = """
name = "test"
raters_per_pair = {k}
anonymous = true

[[systems]]
key = "ours"
title = "Ours"

[[systems]]
key = "theirs"
title = "Theirs"

[[systems]]
key = "third"
title = "Third"

[[comparisons]]
key = "C1"
a = "ours"
b = "theirs"

[[comparisons]]
key = "C2"
a = "ours"
b = "third"

[[questions]]
key = "Q1"
wording = "Which is more appealing?"
ties = "tie"

[[questions]]
key = "Q2"
wording = "Which do you prefer?"
primary = true

[viewing]
min_loops = {loops}
"""


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1_800_000_000_000  # milliseconds

    def __call__(self) -> int:
        return self.now

    def pass_seconds(self, seconds: float) -> None:
        self.now += round(1000 * seconds)


def define(k: int = 2, extra: str = "", loops: int = 1) -> StudyDefinition:
    return parse_definition(DEFINITION.format(k=k, loops=loops) + extra)


def make_clip(system: str, prompt_index: int, text: str = "", **changes) -> Clip:
    name = f"{system}-{prompt_index}"
    about = {
        "prompt": text or f"prompt {prompt_index}",
        "seed": 0,
        "source_sha256": name,
        "stored_name": f"{name}.mp4",
        "sha256": name,
        "width": 32,
        "height": 32,
        "fps": 8.0,
        "frames": 16,
        "bytes": 1000,
    }
    return Clip(system=system, prompt_index=prompt_index, **{**about, **changes})


def fill(store: StudyStore, num_prompts: int) -> None:
    """Give a study every clip it needs."""
    store.add_clips(
        make_clip(system.key, index)
        for system in store.definition.systems
        for index in range(num_prompts)
    )


def answer(store: StudyStore, lease, shown: str = "left", **changes) -> Ballot:
    """Fill in a ballot."""
    answers = {question.key: Answer(shown, 1.0) for question in store.definition.questions}
    about = {
        "assignment_id": lease.assignment_id,
        "attempt": lease.attempt,
        "rater_id": lease.rater_id,
        "answers": answers,
        "loops": 2,
    }
    return Ballot(**{**about, **changes})


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """Start a throw-away server and return its URL, or that of one that is running already."""
    if url := os.environ.get("TEST_POSTGRESQL"):
        yield url
        return
    found = shutil.which("initdb")
    folders = [*Path("/usr/lib/postgresql").glob("*/bin"), *([Path(found).parent] if found else [])]
    folder = next((found for found in folders if (found / "initdb").exists()), None)
    if folder is None:
        message = "no PostgreSQL on this machine; on Debian: apt-get install postgresql"
        assert "CI" not in os.environ, message
        pytest.skip(message)
    with tempfile.TemporaryDirectory(prefix="pg") as place:
        user, port = _unprivileged_user(), _free_port()
        if user:
            shutil.chown(place, user)
        become = ["setpriv", f"--reuid={user}", "--clear-groups", "--"] if user else []
        data = ["-D", f"{place}/data"]

        def run(program: str, *arguments: str) -> None:
            command = [*become, folder / program, *data, *arguments]
            with open(f"{place}/output", "w") as output:
                subprocess.run(command, check=True, cwd=place, stdout=output, stderr=output)

        run("initdb", "-U", "study", "-A", "trust", "--no-sync")
        # Whether the server keeps its word to the disk is not ours to test.
        settings = ["listen_addresses=127.0.0.1", "max_connections=200", "fsync=off"]
        options = f"-p {port} -k {place} " + " ".join(f"-c {setting}" for setting in settings)
        run("pg_ctl", "-w", "-o", options, "-l", f"{place}/log", "start")
        try:
            yield f"postgresql://study@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "-m", "immediate", "stop")


def _unprivileged_user() -> str | None:
    """PostgreSQL refuses to run as root."""
    if os.getuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request) -> str | None:
    """Run a test on both databases; None is SQLite."""
    return None if request.param in ("sqlite", None) else request.getfixturevalue("postgresql")


def fresh_schema(url: str) -> str:
    """Return a URL to an empty part of a PostgreSQL server."""
    name = f"study_{secrets.token_hex(6)}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}")
    return f"{url}?options=-csearch_path%3D{name}"


@pytest.fixture
def make_store(tmp_path, database_url):
    """Create studies: `make_store(k=2, num_prompts=3, extra="...")`; over HTTP loops take time."""
    opened = []

    def make(
        k: int = 2, num_prompts: int = 3, extra: str = "", seed: int = 0, loops: int = 1
    ) -> StudyStore:
        prompts = [Prompt(index, f"prompt {index}") for index in range(num_prompts)]
        url = database_url and fresh_schema(database_url)
        folder = tmp_path / f"study{len(opened)}"
        made = create_study(folder, define(k, extra, loops), prompts, database_url=url)
        store = StudyStore(
            folder, made.database, made.definition, made.keys, Clock(), random.Random(seed)
        )
        fill(store, num_prompts)
        opened.append(store)
        return store

    yield make
    for store in opened:
        store.close()
