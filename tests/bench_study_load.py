"""Let 200 raters claim, watch and answer over HTTP, each about once a second; then the ceiling.

    python -m tests.bench_study_load [--seconds 60] [--raters 200] [--database postgresql://...]

Server and raters are two processes that share the machine. Afterwards the database is held
against every receipt. Prints a table for people and, last, one JSON line for machines.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from human_eval.clips import Clip
from human_eval.definition import load_definition
from human_eval.prompts import Prompt
from human_eval.store import StudyStore, create_study
from tests.vote_load import Load, lost_receipts, rate

ROOT = Path(__file__).parents[1]
CLIP_BYTES = 60_000  # of one second of 512 x 320
PROMPTS = 6000


def prepare(folder: Path, database_url: str | None) -> StudyStore:
    """Make a study with more pairs than the raters can answer, and clips of random bytes."""
    definition = load_definition("shapes-demo")
    prompts = [Prompt(index, f"prompt {index}") for index in range(PROMPTS)]
    store = create_study(folder, definition, prompts, database_url=database_url)
    content = random.Random(0).randbytes(CLIP_BYTES)
    clips = []
    for system in definition.systems:
        for index in range(PROMPTS):
            name = f"{system.key}-{index}.mp4"
            about = {"prompt": "", "seed": 0, "source_sha256": "", "sha256": ""}
            shape = {"width": 512, "height": 320, "fps": 16.0, "frames": 16, "bytes": CLIP_BYTES}
            clips.append(
                Clip(system=system.key, prompt_index=index, stored_name=name, **about, **shape)
            )
    (store.media / clips[0].stored_name).write_bytes(content)
    for clip in clips[1:]:
        os.link(store.media / clips[0].stored_name, store.media / clip.stored_name)
    store.add_clips(clips)
    return store


async def crowd(port: int, raters: int, seconds: float, think: float) -> tuple[Load, float]:
    """Let raters work for a while; return what they saw and how long it took."""
    load, rng = Load(), random.Random(0)
    began = time.perf_counter()

    def going() -> bool:
        return time.perf_counter() < began + seconds

    await asyncio.gather(*(rate(port, load, rng, going, think=think) for _ in range(raters)))
    return load, time.perf_counter() - began


def measure(store: StudyStore, port: int, raters: int, seconds: float, think: float) -> dict:
    """Run a crowd and check every receipt against the database."""
    load, took = asyncio.run(crowd(port, raters, seconds, think))
    row = {
        "raters": raters,
        "think_s": think,
        "seconds": round(took, 1),
        "submits": len(load.submits),
        "submits_per_s": round(len(load.submits) / took, 1),
    }
    for name, times in (("claim", load.claims), ("media", load.media), ("submit", load.submits)):
        for share in (50, 95, 99):
            row[f"{name}_p{share}_ms"] = round(float(np.percentile(times, share)), 1)
    row["submit_max_ms"] = round(max(load.submits), 1)
    row["errors"] = len(load.failures)
    row["retries"] = load.retries
    row["lost"] = len(lost_receipts(store, load))
    row["defects"] = len(store.list_defects())
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--raters", type=int, default=200)
    parser.add_argument("--database", help="postgresql://... of an empty database")
    options = parser.parse_args()
    with TemporaryDirectory(dir=ROOT) as place:
        store = prepare(Path(place) / "study", options.database)
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.vote_server", store.folder],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert server.stdin is not None and server.stdout is not None
        port = int(server.stdout.readline())
        server.stdin.write("\n")
        server.stdin.flush()
        child = int(server.stdout.readline())
        rows = [
            measure(store, port, options.raters, options.seconds, think=1.0),
            measure(store, port, 64, options.seconds / 4, think=0.0),
        ]
        os.kill(child, signal.SIGTERM)
        server.stdin.close()
        server.wait()
        store.close()
    print(f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for name in rows[0]:
        print(f"{name:>16}" + "".join(f"{row[name]:>12}" for row in rows))
    print(json.dumps({"bench": "study_load", "steady": rows[0], "ceiling": rows[1]}))


if __name__ == "__main__":
    main()
