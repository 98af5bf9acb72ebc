"""Kill servers of a published study at random moments, and wipe their disks: which votes are back?

    python -m tests.kills.journal [KILLS]

Two servers take answers and journal them to a Hub on 127.0.0.1 that is slow, refuses requests, and
cuts connections before and after a commit. Every answer that was reported as synced must be back
once, and every answer on a disk that was not wiped. Two new servers must agree byte for byte.
"""

import os
import queue
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from signal import SIGKILL

import pandas as pd
from pandas.testing import assert_frame_equal

from human_eval.definition.prompts import Prompt
from human_eval.publishing.space_folder import write_folders
from human_eval.reporting.report import write_report
from human_eval.study.queries import list_defects, read_votes
from human_eval.study.store import create_study, open_study
from tests.support.servers.fake_hub import FakeHub, Fault
from tests.support.studies import define, fill

DATA = "me/study-votes"
ROOT = Path(__file__).parents[2]
FAULTS: list[Fault] = ["slow", "refused", "cut", "lost"]
SERVERS = ("one", "two")
PATIENCE = 600  # seconds that a busy machine may take for what an idle one does in two
LIFE_SECONDS = 0.3  # the mean, after a server's first answer


@dataclass
class Told:
    """What a server told, over all its lives."""

    stored: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # by life
    synced: set[str] = field(default_factory=set)
    on_disk: set[str] = field(default_factory=set)  # acknowledged since the disk was wiped
    pid: int = 0


def measure(kills: int, folder: Path, *, seed: int = 0, report: bool = True) -> dict[str, int]:
    """Kill the servers so many times; return what was found.

    Raises:
        AssertionError: a vote is missing or there twice, or two servers disagree.
    """
    rng, servers = random.Random(seed), {name: Told() for name in SERVERS}
    with FakeHub().running() as hub:
        secret = _publish(folder / "study", hub)
        hub.fault = lambda method, path: (
            rng.choice(FAULTS) if "/commit/" in path and rng.random() < 0.3 else ""
        )
        with _servers(folder, hub, secret) as (process, lines):
            wipes = _kill(kills, folder, rng, servers, process, lines)
            hub.fault = lambda method, path: ""
            _finish(servers, process, lines)
        return {"kills": kills, "wipes": wipes} | _check(folder, hub, secret, servers, report)


def _publish(study: Path, hub: FakeHub) -> str:
    prompts = [Prompt(index, f"prompt {index}") for index in range(20)]
    store = create_study(study, define(k=1000, loops=0), prompts)
    fill(store, len(prompts))
    write_folders(store, study.parent / "published", DATA)
    store.close()
    hub.add_data_set(DATA, study.parent / "published" / "data")
    return store.keys.secret


def _environment(hub: FakeHub, secret: str) -> dict[str, str]:
    return {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HUMAN_EVAL_SECRET": secret,
    }


class _servers:
    """The process that forks servers, and the lines that they print."""

    def __init__(self, folder: Path, hub: FakeHub, secret: str) -> None:
        self.log = (folder / "log").open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.servers.replica_server", str(folder), DATA],
            cwd=ROOT,
            env=_environment(hub, secret),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            start_new_session=True,
        )
        self.lines: queue.Queue[str] = queue.Queue()

    def __enter__(self):
        self.reader = threading.Thread(target=self._read)
        self.reader.start()
        return self.process, self.lines

    def _read(self) -> None:
        with self.process.stdout as lines:
            for line in lines:
                self.lines.put(line)

    def __exit__(self, *_) -> None:
        os.killpg(self.process.pid, SIGKILL)  # its servers, too, which hold its output open
        self.process.wait()
        self.reader.join()  # the end of the process ends its output
        self.process.stdin.close()
        self.log.close()


def _listen(servers: dict[str, Told], lines: "queue.Queue[str]", until: float) -> None:
    """Note what the servers print, up to a moment."""
    while (left := until - time.monotonic()) > 0:
        try:
            name, life, kind, value = lines.get(timeout=left).split()
        except queue.Empty:
            return
        told = servers[name]
        if kind == "started":
            told.pid = int(value)
        elif kind == "stored":
            told.stored[life].append(value)
            told.on_disk.add(value)
        else:
            told.synced |= set(told.stored[life][: int(value)])


def _kill(kills, folder, rng, servers, process, lines) -> int:
    """Kill the servers in turn: some while they begin, most after their first answers."""
    wipes, lives = 0, dict.fromkeys(SERVERS, "")
    for life in range(kills + len(SERVERS)):
        name = SERVERS[life % len(SERVERS)]
        told = servers[name]
        if told.pid:
            until = time.monotonic() + PATIENCE
            early = rng.random() < 0.3
            while not early and not told.stored[lives[name]]:
                assert time.monotonic() < until, "a server does not begin"
                _listen(servers, lines, time.monotonic() + 0.05)
            _listen(servers, lines, time.monotonic() + rng.expovariate(1 / LIFE_SECONDS))
            os.kill(told.pid, SIGKILL)
            while _runs(told.pid):
                time.sleep(0.001)
            _listen(servers, lines, time.monotonic() + 0.02)  # what it printed before
            told.pid = 0
            if rng.random() < 0.5:
                shutil.rmtree(folder / name, ignore_errors=True)
                told.on_disk.clear()
                wipes += 1
        lives[name] = str(life)
        process.stdin.write(f"{name} {life}\n")
        process.stdin.flush()
        while not told.pid:
            _listen(servers, lines, time.monotonic() + 0.01)
    return wipes


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def _finish(servers, process, lines) -> None:
    """Let the servers journal what is on their disks, then stop them."""
    before = {name: len(told.synced) for name, told in servers.items()}
    until = time.monotonic() + PATIENCE
    while any(
        not told.on_disk <= told.synced and len(told.synced) == before[name]
        for name, told in servers.items()
    ):
        assert time.monotonic() < until, "a server does not sync"
        _listen(servers, lines, time.monotonic() + 0.2)
    _listen(servers, lines, time.monotonic() + 2)
    for told in servers.values():
        os.kill(told.pid, SIGKILL)
    _listen(servers, lines, time.monotonic() + 0.5)


def _check(folder: Path, hub: FakeHub, secret: str, servers, report: bool) -> dict[str, int]:
    reports, tables = [], []
    for name in ("three", "four"):
        command = "from tests.kills.journal import rebuild; rebuild({!r}, {})"
        subprocess.run(
            [sys.executable, "-c", command.format(str(folder / name), report)],
            cwd=ROOT, check=True, env=_environment(hub, secret), timeout=600,
        )  # fmt: skip
        reports.append({p.name: p.read_bytes() for p in (folder / name / "report").glob("*")})
        tables.append(pd.read_pickle(folder / name / "votes.pickle"))
    assert reports[0] == reports[1], "two servers write different reports"
    assert_frame_equal(*tables)
    with closing(open_study(folder / "study")) as store:
        pseudonym = partial(store.keys.pseudonym, "link")
        stored = {
            name for told in servers.values() for life in told.stored.values() for name in life
        }
        back = set(tables[0]["rater"])
        names = {name for name in stored if pseudonym(name) in back}
    synced = set().union(*(told.synced for told in servers.values()))
    assert not tables[0].duplicated(["rater", "task_id", "question"]).any(), "a vote is twice"
    assert synced <= names, f"{len(synced - names)} synced answers are missing"
    kept = set().union(*(told.on_disk & told.synced for told in servers.values()))
    assert kept <= names
    return {
        "acknowledged": len(stored),
        "told as synced": len(synced),
        "back": len(names & stored),
        "lost, all told as pending": len(stored - names),
    }


def rebuild(place: str, report: bool) -> None:
    """Rebuild the study on an empty disk, and write its votes and perhaps its report."""
    from human_eval.publishing.data_set import DataSet
    from human_eval.publishing.replica import Place, Replica
    from tests.support.servers.fake_hub import TOKEN

    store = Replica(Place(Path(place), kept=False), DataSet(DATA, TOKEN)).open()
    votes = read_votes(store)
    with store.read() as connection:
        assert not list_defects(connection)
    votes.to_pickle(Path(place) / "votes.pickle")
    if report:
        write_report(votes, store.definition, Path(place) / "report")
    store.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        for what, count in measure(int((sys.argv[1:] or ["100"])[0]), Path(scratch)).items():
            print(f"{what:>30} {count:,}")
