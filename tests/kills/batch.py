"""Kill a batch over two processes at random moments, and compare it with an undisturbed one.

    python -m tests.kills.batch [KILLS] [PROMPTS]

Prints a line for people and, last, one JSON line for machines.
"""

import csv
import json
import random
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from tests.kills.programs import kill_tree, start_program, wait_for
from turbo.batch import clip_name, make_clips
from turbo.manifest import Manifest
from turbo.pipeline import load_pipeline
from turbo.request import check_request

MODEL, STEPS = "shapes-turbo", 4


def _prompts(count: int) -> list[str]:
    return [f"a red star moving left, {n}" for n in range(count)]


def undisturbed(folder: Path, *, prompts: int) -> dict[str, str]:
    """Make all clips in this process; return their SHA-256 by path."""
    pipeline = load_pipeline(MODEL)
    requests = [
        check_request(pipeline.card, prompt, seed=n, steps=STEPS)
        for n, prompt in enumerate(_prompts(prompts))
    ]
    make_clips(pipeline, {clip_name(pipeline, request): request for request in requests}, folder)
    return {path: row["sha256"] for path, row in Manifest(folder).rows().items()}


def disturb(folder: Path, *, prompts: int, kills: int, seed: int) -> list[dict[str, str]]:
    """Make them over two processes, killed so many times; return every row of the manifest.

    Each kill comes a random time after the first new clip, or for every fourth at a random moment
    of the start. It ends the launcher and both processes at once, or one of the two.
    """
    folder.mkdir(parents=True)
    (folder / "prompts.txt").write_text("\n".join(_prompts(prompts)))
    draw = random.Random(seed)
    for kill in range(kills):
        running = _start(folder)
        before = len(_rows(folder))
        if kill % 4 < 3:
            while len(_rows(folder)) == before and running.is_alive():
                time.sleep(0.02)
            time.sleep(draw.uniform(0, 0.1 * prompts / kills))
        else:
            time.sleep(draw.uniform(0, 4))
        assert running.is_alive(), "The batch ended before it was killed. Add prompts."
        workers = psutil.Process(running.pid).children()
        if workers and draw.random() < 0.5:
            draw.choice(workers).kill()
            time.sleep(draw.uniform(0, 0.3))  # the launcher stops the other within a tenth
        kill_tree(running)
    assert wait_for(_start(folder)) == 0
    rows = _rows(folder)
    assert not Manifest(folder).missing([row["path"] for row in rows])
    assert not list(folder.glob(".unfinished*"))
    assert {file.name for file in folder.glob("*.mp4")} == {row["path"] for row in rows}
    return rows


def _start(folder: Path) -> BaseProcess:
    options = ["--model", MODEL, "--steps", str(STEPS), "--prompts", str(folder / "prompts.txt")]
    return start_program("turbo.generate", *options, "--out", str(folder), processes=2)


def _rows(folder: Path) -> list[dict[str, str]]:
    """Return every row of the manifest, also repeated ones."""
    if not (folder / "manifest.csv").exists():
        return []
    with (folder / "manifest.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def main() -> None:
    kills, prompts = map(int, (*sys.argv[1:], *("20", "200")[len(sys.argv) - 1 :]))
    with TemporaryDirectory() as place:
        expected = undisturbed(Path(place, "whole"), prompts=prompts)
        rows = disturb(Path(place, "killed"), prompts=prompts, kills=kills, seed=0)
    equal = {row["path"]: row["sha256"] for row in rows} == expected
    repeated = len(rows) - len({row["path"] for row in rows})
    print(f"{kills} kills, {prompts} clips: equal {equal}, listed twice {repeated}")
    print(json.dumps({"bench": "batch_kills", "kills": kills, "equal": equal, "twice": repeated}))


if __name__ == "__main__":
    main()
