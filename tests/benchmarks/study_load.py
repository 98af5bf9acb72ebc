"""Let raters claim, watch and answer over HTTP and, without HTTP, through the writer alone.

    python -m tests.benchmarks.study_load                # about four minutes
    python -m tests.benchmarks.study_load --scale 0.05   # a few seconds of each

Server and raters are two processes that share the machine. Every receipt is held against the
database afterwards. The rows:

    steady      200 raters, about one submit a second each, for a minute
    crowd       500 raters, about one submit in two seconds each
    ceiling     64 raters who never pause
    writer      64 clients of the writer itself, on SQLite
    patient     256 of them, pausing for half a second
    postgresql  64 of them, on a PostgreSQL of our own, where there is one
    sessions    10,000 raters enter; by how much the server grows

Prints a table for people and, last, one JSON line for machines.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from human_eval.clips.ingest import Clip
from human_eval.collection import assignment, submission
from human_eval.collection.submission import Answer, Submission
from human_eval.definition.definition import load_definition, parse_definition
from human_eval.definition.prompts import Prompt
from human_eval.storage.writer import Writer
from human_eval.study.queries import read_votes
from human_eval.study.store import StudyStore, create_study
from tests.support.studies import add_clips, enter_rater, find_defects, run_postgresql
from tests.support.vote_load import ROOT, Browser, Load, VoteServer, lost_receipts, rate

CLIP_BYTES = 60_000  # of one second of 512 x 320
PROMPTS = 10_000
COLUMNS = ["clients", "think_s", "seconds", "submits", "per_s", "p50_ms", "p95_ms", "p99_ms"]
COLUMNS += ["max_ms", "claim_p99_ms", "media_p99_ms", "errors", "retries", "lost", "least_share"]
Row = dict[str, Any]


def prepare(folder: Path, prompts: int, database_url: str | None = None) -> StudyStore:
    """Make a study with more pairs than the raters can answer, and clips of random bytes."""
    preset = load_definition("shapes-demo")
    # Nobody watches here: what is measured is the server, not the length of the clips.
    definition = parse_definition(preset.source.replace("min_loops = 1", "min_loops = 0"))
    listed = [Prompt(index, f"prompt {index}") for index in range(prompts)]
    store = create_study(folder, definition, listed, database_url=database_url)
    about = {"prompt": "", "seed": 0, "source_sha256": "", "sha256": ""}
    shape = {"width": 512, "height": 320, "fps": 16.0, "frames": 16, "bytes": CLIP_BYTES}
    clips = [
        Clip(
            system=system.key, prompt_index=index, stored_name=f"{system.key}-{index}.mp4",
            **about, **shape,
        )
        for system in definition.systems
        for index in range(prompts)
    ]  # fmt: skip
    content = random.Random(0).randbytes(CLIP_BYTES)
    (store.media / clips[0].stored_name).write_bytes(content)
    for clip in clips[1:]:
        os.link(store.media / clips[0].stored_name, store.media / clip.stored_name)
    add_clips(store, clips)
    return store


async def crowd(port: int, raters: int, seconds: float, think: float) -> tuple[Load, float]:
    """Let raters work for a while; return what they saw and how long it took."""
    load, rng = Load(), random.Random(0)
    began = time.perf_counter()

    def going() -> bool:
        return time.perf_counter() < began + seconds

    await asyncio.gather(*(rate(port, load, rng, going, think=think) for _ in range(raters)))
    return load, time.perf_counter() - began


def measure(store: StudyStore, port: int, raters: int, seconds: float, think: float) -> Row:
    """Run a crowd over HTTP and check every receipt against the database."""
    load, took = asyncio.run(crowd(port, raters, seconds, think))
    row = describe(raters, think, took, load.submits)
    row["claim_p99_ms"] = percentile(load.claims, 99)
    row["media_p99_ms"] = percentile(load.media, 99)
    row |= {"errors": len(load.failures), "retries": load.retries}
    return row | {"lost": len(lost_receipts(store, load))}


def describe(clients: int, think: float, took: float, submits: list[float]) -> Row:
    """Return the columns that every row has."""
    row: Row = {"clients": clients, "think_s": think, "seconds": round(took, 1)}
    row |= {"submits": len(submits), "per_s": round(len(submits) / took, 1)}
    row |= {f"p{share}_ms": percentile(submits, share) for share in (50, 95, 99)}
    return row | {"max_ms": percentile(submits, 100)}


def percentile(times: list[float], share: int) -> float | None:
    """Return None where nothing was done in the time."""
    return round(float(np.percentile(times, share)), 1) if times else None


def measure_writer(store: StudyStore, clients: int, seconds: float, think: float) -> Row:
    """Let clients claim and submit through the writer alone; only submits are timed."""
    raters = [enter_rater(store, "bench", str(number)) for number in range(clients)]
    writer, rng, times, each = Writer(store.database), random.Random(0), [], Counter[int]()
    answers = {question.key: Answer("left", 1.0) for question in store.definition.questions}

    async def carry_out(job: Any) -> Any:
        return await asyncio.wrap_future(writer.submit(job))

    async def work(rater: int, end: float) -> None:
        while time.perf_counter() < end:
            lease = await carry_out(
                lambda connection: assignment.claim(
                    connection, store.definition, rater, now=store.clock(), rng=store.rng
                )
            )
            ballot = Submission(lease.assignment_id, lease.attempt, rater, answers, loops=2)
            await asyncio.sleep(rng.expovariate(1 / think) if think else 0)
            started = time.perf_counter()
            await carry_out(
                lambda connection, ballot=ballot: submission.submit(
                    connection, store.definition, ballot, now=store.clock()
                )
            )
            times.append(1000 * (time.perf_counter() - started))
            each[rater] += 1

    async def everybody() -> None:
        end = time.perf_counter() + seconds
        await asyncio.gather(*(work(rater, end) for rater in raters))

    began = time.perf_counter()
    asyncio.run(everybody())
    took = time.perf_counter() - began
    writer.close()
    stored = len(read_votes(store)) // len(store.definition.questions)
    row = describe(clients, think, took, times)
    share = min(each[rater] for rater in raters) / max(1, sum(each.values()) / clients)
    return row | {"lost": len(times) - stored, "least_share": round(share, 2)}


async def open_sessions(port: int, count: int, at_once: int = 64) -> list[float]:
    """Let new raters enter, and return the milliseconds each took."""
    times: list[float] = []

    async def enter(number: int) -> None:
        for _ in range(count // at_once + (number < count % at_once)):
            browser, started = Browser(port), time.perf_counter()
            status, _ = await browser.request("POST", "/api/enter", {"consent": True})
            times.append(1000 * (time.perf_counter() - started))
            await browser.close()
            assert status == 200

    await asyncio.gather(*(enter(number) for number in range(at_once)))
    return times


def measure_sessions(server: VoteServer, count: int) -> Row:
    """Open sessions; return what they took and by how many MB the server grew."""
    before, began = resident(server.child), time.perf_counter()
    times = asyncio.run(open_sessions(server.port, count))
    took = time.perf_counter() - began
    grown = (resident(server.child) - before) / 2**20
    return describe(count, 0.0, took, times) | {"errors": 0, "grown_mb": round(grown, 1)}


def resident(process: int) -> int:
    """Return the bytes of memory that a process occupies."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def served(store: StudyStore) -> Iterator[VoteServer]:
    server = VoteServer(store.folder)
    server.start()
    try:
        yield server
    finally:
        server.kill(signal.SIGTERM)
        server.close()


def run(place: Path, scale: float) -> dict[str, Row]:
    """Measure every row, each for `scale` of its time."""
    rows: dict[str, Row] = {}
    store = prepare(place / "http", max(200, round(PROMPTS * scale)))
    with served(store) as server:
        rows["steady"] = measure(store, server.port, 200, 60 * scale, think=1.0)
        rows["crowd"] = measure(store, server.port, 500, 30 * scale, think=2.0)
        rows["ceiling"] = measure(store, server.port, 64, 10 * scale, think=0.0)
        rows["sessions"] = measure_sessions(server, round(10_000 * scale))
    rows["steady"]["defects"] = len(find_defects(store))
    store.close()
    for name, clients, seconds, think in (("writer", 64, 8, 0.0), ("patient", 256, 10, 0.5)):
        store = prepare(place / name, max(200, round(4000 * scale)))
        rows[name] = measure_writer(store, clients, seconds * scale, think)
        store.close()
    with suppress(FileNotFoundError), run_postgresql() as database:
        store = prepare(place / "postgresql", max(200, round(4000 * scale)), database.url)
        rows["postgresql"] = measure_writer(store, 64, 8 * scale, 0.0)
        store.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", type=float, default=1.0, help="of times and numbers")
    scale = parser.parse_args().scale
    with TemporaryDirectory(dir=ROOT) as place:
        rows = run(Path(place), scale)
    print(f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{'':12}" + "".join(f"{name:>13}" for name in COLUMNS))
    for name, row in rows.items():
        print(f"{name:12}" + "".join(f"{row.get(column, '')!s:>13}" for column in COLUMNS))
    print(f"{rows['sessions']['grown_mb']} MB more for {rows['sessions']['clients']:,} sessions")
    print(json.dumps({"bench": "study_load", **rows}))


if __name__ == "__main__":
    main()
