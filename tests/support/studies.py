"""Small studies with made-up clips, on SQLite and on a private PostgreSQL."""

import hashlib
import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection

from human_eval.clips.ingest import Clip
from human_eval.collection import pairs, raters
from human_eval.collection.assignment import Assignment, claim, sweep
from human_eval.collection.submission import Answer, Receipt, Submission, submit
from human_eval.definition.definition import StudyDefinition, parse_definition
from human_eval.definition.prompts import Prompt
from human_eval.storage import events, study_state
from human_eval.storage.tables import Base
from human_eval.study.queries import list_defects
from human_eval.study.store import StudyStore, create_study

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


CONTENT = bytes(1000)  # of every made-up clip


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
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
        "width": 32,
        "height": 32,
        "fps": 8.0,
        "frames": 16,
        "bytes": len(CONTENT),
    }
    return Clip(system=system, prompt_index=prompt_index, **{**about, **changes})


def fill(store: StudyStore, num_prompts: int) -> None:
    """Add every clip that the study needs, and pair them."""
    systems = store.definition.systems
    clips = [make_clip(system.key, index) for system in systems for index in range(num_prompts)]
    add_clips(store, clips)
    for clip in clips:
        (store.media / clip.stored_name).write_bytes(CONTENT)


def add_clips(store: StudyStore, clips: Iterable[Clip], *, pair: bool = True) -> dict[str, int]:
    """Store clips and pair those of complete comparisons; return new pairs by comparison."""
    with store.write() as connection:
        for clip in clips:
            pairs.add_clip(connection, clip, now=store.clock())
    return pair_clips(store) if pair else {}


def pair_clips(store: StudyStore, **options) -> dict[str, int]:
    with store.write() as connection:
        return pairs.make_pairs(connection, store.definition, rng=store.rng, **options)


def stored_clips(store: StudyStore) -> list[Clip]:
    with store.read() as connection:
        return pairs.list_clips(connection)


def enter_rater(store: StudyStore, provider: str, name: str, **options) -> int:
    with store.write() as connection:
        now = store.clock()
        return raters.enter(connection, store.keys, provider, name, now=now, **options)


def claim_pair(store: StudyStore, rater: int, **options) -> Assignment | None:
    with store.write() as connection:
        now, rng = store.clock(), store.rng
        return claim(connection, store.definition, rater, now=now, rng=rng, **options)


def submit_answers(store: StudyStore, submission: Submission) -> Receipt:
    with store.write() as connection:
        return submit(connection, store.definition, submission, now=store.clock())


def sweep_expired(store: StudyStore) -> int:
    with store.write() as connection:
        return sweep(connection, store.clock())


def find_defects(store: StudyStore) -> list[str]:
    with store.read() as connection:
        return list_defects(connection)


def find_table_differences(connection: Connection) -> list:
    """Return the differences between a database and `human_eval.storage.tables`."""
    return list(compare_metadata(MigrationContext.configure(connection), Base.metadata))


def exclude(store: StudyStore, subject: str, **about) -> int:
    with store.write() as connection:
        return events.exclude(connection, subject, now=store.clock(), **about)


def revoke(store: StudyStore, event_id: int, **about) -> int:
    with store.write() as connection:
        return events.revoke(connection, event_id, now=store.clock(), **about)


def set_closed(store: StudyStore, closed: bool, *, author: str) -> None:
    with store.write() as connection:
        study_state.set_closed(connection, closed, author=author, now=store.clock())


def set_paused(store: StudyStore, paused: bool, *, author: str) -> None:
    with store.write() as connection:
        study_state.set_paused(connection, paused, author=author, now=store.clock())


def answer(store: StudyStore, lease, shown: str = "left", **changes) -> Submission:
    """Answer every question of an assignment alike."""
    answers = {question.key: Answer(shown, 1.0) for question in store.definition.questions}
    about = {
        "assignment_id": lease.assignment_id,
        "attempt": lease.attempt,
        "rater_id": lease.rater_id,
        "answers": answers,
        "loops": 2,
    }
    return Submission(**{**about, **changes})


@dataclass(frozen=True)
class Postgresql:
    """A server of our own, which may be killed."""

    url: str
    folder: Path
    command: Sequence[str]  # pg_ctl and its settings, but what to do

    def start(self) -> None:
        """Start it, after a kill too; return once it answers."""
        with open(self.folder / "output", "w") as output:
            subprocess.run(
                [*self.command, "-w", "start"],
                check=True, cwd=self.folder, stdout=output, stderr=output,
            )  # fmt: skip

    def kill(self) -> None:
        """End every one of its processes at once, as a crash of the machine would."""
        head = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        with open(f"/proc/{head}/task/{head}/children") as file:
            children = [int(number) for number in file.read().split()]
        for number in (head, *children):
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while any(Path(f"/proc/{number}").exists() for number in (head, *children)):
            assert time.monotonic() < deadline, "processes that do not end"
            time.sleep(0.01)


@contextmanager
def run_postgresql(*settings: str) -> Iterator[Postgresql]:
    """Make an empty server and run it until the end of the block.

    Raises:
        FileNotFoundError: this machine has no PostgreSQL.
    """
    found = shutil.which("initdb")
    folders = [*Path("/usr/lib/postgresql").glob("*/bin"), *([Path(found).parent] if found else [])]
    folder = next((found for found in folders if (found / "initdb").exists()), None)
    if folder is None:
        raise FileNotFoundError("no PostgreSQL here; on Debian: apt-get install postgresql")
    with tempfile.TemporaryDirectory(prefix="pg") as place:
        user, port = _unprivileged_user(), free_port()
        if user:
            shutil.chown(place, user)
        become = ["setpriv", f"--reuid={user}", "--clear-groups", "--"] if user else []
        data = ["-D", f"{place}/data"]
        subprocess.run(
            [*become, folder / "initdb", *data, "-U", "study", "-A", "trust", "--no-sync"],
            check=True, cwd=place, capture_output=True,
        )  # fmt: skip
        all_settings = ["listen_addresses=127.0.0.1", "max_connections=200", *settings]
        options = f"-p {port} -k {place} " + " ".join(f"-c {setting}" for setting in all_settings)
        control = [*become, str(folder / "pg_ctl"), *data, "-o", options, "-l", f"{place}/log"]
        server = Postgresql(f"postgresql://study@127.0.0.1:{port}/postgres", Path(place), control)
        server.start()
        try:
            yield server
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], check=True, capture_output=True)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """Start a throw-away server and return its URL, or that of one that is running already."""
    if url := os.environ.get("TEST_POSTGRESQL"):
        yield url
        return
    try:
        # Whether the server keeps its word to the disk is not ours to test.
        with run_postgresql("fsync=off") as server:
            yield server.url
    except FileNotFoundError as error:
        assert "CI" not in os.environ, error
        pytest.skip(str(error))


def _unprivileged_user() -> str | None:
    """PostgreSQL refuses to run as root."""
    if os.getuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"


def free_port() -> int:
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
    """Create studies: `make_store(k=2, num_prompts=3, extra="...")`; a loop takes two seconds."""
    opened = []

    def make(
        k: int = 2, num_prompts: int = 3, extra: str = "", seed: int = 0, loops: int = 0
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
