"""Let 50 raters vote while 20 generations stand in line, through the whole mounted application.

    python -m tests.benchmarks.mixed_load                  # on the fake engine, about a minute
    python -m tests.benchmarks.mixed_load --real           # on the models
    python -m tests.benchmarks.mixed_load --seconds 5      # a quick look

Server and raters are two processes that share the machine. Every receipt is held against the
database afterwards. Prints a table for people and, last, one JSON line for machines.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np

from demo.models import models_to_preload
from human_eval.study.queries import read_votes
from human_eval.study.store import StudyStore, open_study
from tests.benchmarks.study_load import prepare
from tests.support.vote_load import ROOT, Browser, Load
from turbo.models.registry import DEFAULT_MODEL

WAITING, RATERS, PROMPTS = 20, 50, 2_000
STARTING = 180  # seconds to wait for the server
WARM_UP = 8.0  # seconds in which the server imports its statistics
PLACES: dict[int, list[int]] = {}  # in the line, as each generation was told


def main() -> None:
    """Measure, print, and end the server."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--think", type=float, default=1.0, help="mean, between two pairs")
    parser.add_argument("--real", action="store_true", help="generate with the models")
    parser.add_argument("--port", type=int, default=7999)
    options = parser.parse_args()
    with TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder / "study", PROMPTS).close()
        server = _start(folder, options)
        try:
            row = asyncio.run(_measure(options))
        finally:
            server.terminate()
            server.wait()
        store = open_study(folder / "study")
        row["lost"] = _count_lost(store, row.pop("receipts"))
        store.close()
    for name, value in row.items():
        print(f"{name:>22}  {value}")
    print(json.dumps({"bench": "mixed_load", **row}))


def _start(folder: Path, options: argparse.Namespace) -> subprocess.Popen[bytes]:
    module = ["app.py"] if options.real else ["-m", "tests.support.servers.fake_engine_server"]
    slow = [] if options.real else ["--seconds-per-step", str(max(options.seconds / 60, 0.2))]
    flags = ["--port", str(options.port), "--data-dir", str(folder), "--study", folder / "study"]
    server = subprocess.Popen(
        [sys.executable, *module, *flags, *slow],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "HF_HUB_OFFLINE": "1"},
    )
    deadline = time.monotonic() + STARTING
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"http://127.0.0.1:{options.port}/study/api/study").status_code == 200:
                return server
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    server.terminate()
    raise SystemExit(f"Expected a server within {STARTING} s, got none.")


async def _measure(options: argparse.Namespace) -> dict[str, Any]:
    load, rng = Load(), random.Random(0)
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{options.port}",
        timeout=None,
        limits=httpx.Limits(max_connections=200),
    ) as client:
        index = await _find_generate(client)
        if options.real:  # models load one after the other, for seconds; begin when all are there
            last = models_to_preload(DEFAULT_MODEL)[-1]
            await _generate(client, index, WAITING + 1, model=last, steps=4, guidance=1.5)
            PLACES.clear()
        model = "shapes-teacher" if options.real else "fake-teacher"
        watching = [
            asyncio.create_task(_generate(client, index, number, model=model))
            for number in range(WAITING + 1)  # one of them runs
        ]
        await asyncio.sleep(WARM_UP)
        end = time.monotonic() + options.seconds
        await asyncio.gather(
            *(_rate(options, load, random.Random(rng.random()), end) for _ in range(RATERS))
        )
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
    shown = [places for places in PLACES.values() if places]
    if not load.submits:
        raise SystemExit(f"Expected answers, got none. First failures: {load.failures[:3]}")
    submits = np.array(load.submits)
    return {
        "raters": RATERS,
        "generations": WAITING,
        "place_shown": len(shown),
        "last_place": max(max(places) for places in shown) if shown else None,
        "submits": len(submits),
        "submit_p50_ms": round(float(np.percentile(submits, 50)), 1),
        "submit_p99_ms": round(float(np.percentile(submits, 99)), 1),
        "submit_max_ms": round(float(submits.max()), 1),
        "claim_p99_ms": round(float(np.percentile(load.claims, 99)), 1),
        "media_p99_ms": round(float(np.percentile(load.media, 99)), 1),
        "errors": len(load.failures),
        "receipts": load.receipts,
    }


async def _find_generate(client: httpx.AsyncClient) -> int:
    config = (await client.get("/config")).json()
    [index] = [entry["id"] for entry in config["dependencies"] if entry["api_name"] == "generate"]
    return int(index)


async def _generate(
    client: httpx.AsyncClient,
    index: int,
    number: int,
    *,
    model: str,
    steps: int = 50,
    guidance: float = 2.0,
) -> None:
    """Stand in the line, and write down what the page would show."""
    session = f"bench{number}"
    PLACES[number] = []
    data = ["a red star moving left on a black background", model, steps, guidance, number]
    body = {"fn_index": index, "session_hash": session, "data": data}
    reply = await client.post("/gradio_api/queue/join", json=body)
    assert reply.status_code == 200, reply.text
    address = f"/gradio_api/queue/data?session_hash={session}"
    async with client.stream("GET", address) as stream:
        async for line in stream.aiter_lines():
            if line.startswith("data:"):
                message = json.loads(line[5:])
                if message["msg"] == "estimation":
                    PLACES[number].append(message["rank"] + 1)
                if message["msg"] == "process_completed":
                    return


async def _rate(options: argparse.Namespace, load: Load, rng: random.Random, end: float) -> None:
    """Enter, then claim, load both clips and answer, until the time is over."""
    browser = Browser(options.port)
    await asyncio.sleep(rng.random() * options.think)
    try:
        await browser.request("POST", "/study/api/enter", {"consent": True})
        while time.monotonic() < end:
            pair = await _timed(browser, load, load.claims, "POST", "/study/api/claim", {})
            if pair is None or pair["assignment"] is None:
                return
            for side in ("left", "right"):
                await _timed(browser, load, load.media, "GET", f"/study/{pair[side]}")
            await asyncio.sleep(rng.expovariate(1 / options.think))
            answers = {
                key: {"choice": rng.choice(["left", "right"]), "seconds": 1.0}
                for key in ("Q1", "Q2", "Q3")
            }
            body = {"assignment": pair["assignment"], "answers": answers, "loops": 0}
            receipt = await _timed(browser, load, load.submits, "POST", "/study/api/submit", body)
            if receipt is not None:
                load.receipts[pair["assignment"]] = receipt["answers"]
    finally:
        await browser.close()


async def _timed(
    browser: Browser, load: Load, times: list[float], *request: Any
) -> dict[str, Any] | None:
    began = time.perf_counter()
    status, body = await browser.request(*request)
    times.append(1000 * (time.perf_counter() - began))
    if status not in (200, 206):
        load.failures.append(f"{request[1]}: {status} {body[:200]!r}")
        return None
    return json.loads(body) if body[:1] == b"{" else {}


def _count_lost(store: StudyStore, receipts: dict[str, dict[str, str]]) -> int:
    """Count acknowledged pairs that the database does not hold."""
    answered = len(read_votes(store)) // len(store.definition.questions)
    return max(0, len(receipts) - answered)


if __name__ == "__main__":
    main()
