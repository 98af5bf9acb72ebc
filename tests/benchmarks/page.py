"""Time the demo from process start to the open page, and on to the loaded default model.

    python -m tests.benchmarks.page

Prints a table for people and, last, one JSON line for machines.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, sleep

import httpx
from gradio_client import Client

ROOT = Path(__file__).parents[2]
PORT = 7899
URL = f"http://127.0.0.1:{PORT}"


def time_start() -> dict[str, float]:
    """Return seconds from process start to the first answer, and to the first finished video."""
    with TemporaryDirectory() as folder:
        began = perf_counter()
        process = subprocess.Popen(
            [sys.executable, "app.py", "--port", str(PORT), "--data-dir", folder],
            cwd=ROOT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False"},
            stdout=subprocess.DEVNULL,
        )
        try:
            while not _answers():
                sleep(0.05)
            opened = perf_counter()
            client = Client(URL, verbose=False)
            client.predict("a red star moving left on a black background", api_name="/generate")
            return {"page open": opened - began, "first video": perf_counter() - began}
        finally:
            process.terminate()
            process.wait()


def _answers() -> bool:
    try:
        return httpx.get(URL).status_code == 200
    except httpx.TransportError:
        return False


def main() -> None:
    runs = [time_start() for _ in range(3)]
    medians = {key: median(run[key] for run in runs) for key in runs[0]}
    for name, seconds in medians.items():
        print(f"{name:12} {seconds:6.2f} s after the process starts")
    print(json.dumps({"bench": "page", "seconds": medians}))


if __name__ == "__main__":
    main()
