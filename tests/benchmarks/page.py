"""Time the demo from process start to the first video, or measure memory and load of the idle app.

    python -m tests.benchmarks.page
    python -m tests.benchmarks.page --idle 10

Prints a table for people and, last, one JSON line for machines. With `--idle` below ten minutes,
the app releases its models after half of them.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, sleep

import httpx
import psutil
from gradio_client import Client

ROOT = Path(__file__).parents[2]
PORT = 7899
URL = f"http://127.0.0.1:{PORT}"
PROMPT = "a red star moving left on a black background"
APART = 10  # seconds over which the use of the processor is measured


@contextmanager
def open_page(*flags: str) -> Iterator[psutil.Process]:
    """Start the app, and wait until its page answers."""
    with TemporaryDirectory() as folder:
        process = psutil.Popen(
            [sys.executable, "app.py", "--port", str(PORT), "--data-dir", folder, *flags],
            cwd=ROOT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False"},
            stdout=subprocess.DEVNULL,
        )
        try:
            while not _answers():
                sleep(0.05)
            yield process
        finally:
            process.terminate()
            process.wait()


def time_start() -> dict[str, float]:
    """Return seconds from process start to the first answer, and to the first finished video."""
    began = perf_counter()
    with open_page():
        opened = perf_counter()
        time_video()
        return {"page open": opened - began, "first video": perf_counter() - began}


def time_video() -> float:
    """Return the seconds from opening the page to its first finished video."""
    start = perf_counter()
    client = Client(URL, verbose=False)
    client.predict(PROMPT, seed=0, api_name="/generate")
    client.close()
    return perf_counter() - start


def measure_idle(minutes: float) -> dict[str, float]:
    """Return what the app uses after its first video, then alone, and how long the next one takes.

    Memory is resident memory in MB (10^6 bytes). Memory and time are those of all its processes.
    """
    flags = ["--idle-minutes", str(minutes / 2)] if minutes < 10 else []
    with open_page(*flags) as process:
        time_video()
        found = {"video, in use (s)": time_video(), "memory, in use (MB)": memory_of(process)}
        sleep(60 * minutes)
        found["memory, idle (MB)"] = memory_of(process)
        before = seconds_of(process)
        sleep(APART)
        found["core, idle (%)"] = 100 * (seconds_of(process) - before) / APART
        found["first video after it (s)"] = time_video()
        found["next video (s)"] = time_video()
        return found


def memory_of(process: psutil.Process) -> float:
    """Return the resident memory of a process and its children, in MB."""
    return sum(each.memory_info().rss for each in _tree(process)) / 1e6


def seconds_of(process: psutil.Process) -> float:
    """Return the processor time of a process and its children."""
    return sum(sum(each.cpu_times()[:2]) for each in _tree(process))


def _tree(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def _answers() -> bool:
    try:
        return httpx.get(URL).status_code == 200
    except httpx.TransportError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--idle", type=float, metavar="MINUTES", help="measure the idle app")
    minutes = parser.parse_args().idle
    if minutes is not None:
        idle = measure_idle(minutes)
        for name, value in idle.items():
            print(f"{name:25} {value:8.2f}")
        print(json.dumps({"bench": "idle", "minutes": minutes, **idle}))
        return
    runs = [time_start() for _ in range(3)]
    medians = {key: median(run[key] for run in runs) for key in runs[0]}
    for name, seconds in medians.items():
        print(f"{name:12} {seconds:6.2f} s after the process starts")
    print(json.dumps({"bench": "page", "seconds": medians}))


if __name__ == "__main__":
    main()
