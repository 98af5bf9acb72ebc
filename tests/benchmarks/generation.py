"""Time prompt to mp4 per stage, few-step students against the guided teacher, in one run.

    python -m tests.benchmarks.generation

Prints a table for people and, last, one JSON line for machines.
"""

import json
import platform
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import torch
from tqdm import tqdm

from turbo.models.registry import find_card
from turbo.pipeline import Result, VideoPipeline, load_pipeline

SYSTEMS = (("shapes-turbo", 4), ("shapes-turbo", 8), ("shapes-teacher", 4), ("shapes-teacher", 50))
STAGES = ("text", "denoise", "decode", "encode", "total")
PROMPT = "a red star moving left on a black background"
REPEATS = 7


def time_once(pipeline: VideoPipeline, steps: int, folder: Path) -> dict[str, float]:
    """Return seconds by stage, and the number of network calls."""
    began = perf_counter()
    *_, result = pipeline.stream([PROMPT], [0], steps=steps)
    assert isinstance(result, Result)
    encoding = perf_counter()
    result.videos[0].save(folder / "clip.mp4", enlarge=pipeline.card.enlarge)
    ended = perf_counter()
    return {**result.timings, "encode": ended - encoding, "total": ended - began}


def bench(repeats: int = REPEATS) -> dict[str, dict[str, float]]:
    """Return the median of `repeats` warm runs per system."""
    medians = {}
    with TemporaryDirectory() as folder:
        for model, steps in tqdm(SYSTEMS, desc="bench", leave=False):
            pipeline = load_pipeline(model)
            time_once(pipeline, steps, Path(folder))  # warm-up
            runs = [time_once(pipeline, steps, Path(folder)) for _ in range(repeats)]
            medians[f"{model} {steps} steps"] = {
                key: median(run[key] for run in runs) for key in (*STAGES, "unet_calls")
            }
    return medians


def main() -> None:
    medians = bench()
    threads = find_card(SYSTEMS[0][0]).cpu_threads
    print(f"{platform.machine()}, {threads} thread a video, torch {torch.__version__}")
    print(f"{'median seconds':28}" + "".join(f"{s:>9}" for s in (*STAGES, "UNet calls")))
    for name, row in medians.items():
        cells = "".join(f"{row[stage]:9.3f}" for stage in STAGES)
        print(f"{name:28}{cells}{row['unet_calls']:9.0f}")
    student, teacher = medians["shapes-turbo 4 steps"], medians["shapes-teacher 50 steps"]
    ratios = {key: teacher[key] / student[key] for key in ("total", "denoise", "unet_calls")}
    print(
        "teacher 50 / student 4: "
        + ", ".join(f"{key} {ratio:.1f}x" for key, ratio in ratios.items())
    )
    print(json.dumps({"bench": "generation", "seconds": medians, "ratios": ratios}))


if __name__ == "__main__":
    main()
