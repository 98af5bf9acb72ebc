"""Time a batch over two processes against one clip after the other, in one run.

    python -m tests.benchmarks.batch [CLIPS]

Loading is not timed. Prints a table for people and, last, one JSON line for machines.
"""

import json
import sys
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from turbo.batch import Share, clip_name, make_clips
from turbo.manifest import Manifest
from turbo.pipeline import VideoPipeline, load_pipeline
from turbo.request import Request, check_request

SYSTEMS = (("shapes-turbo", 4, 1), ("shapes-vcm", 4, 1), ("shapes-teacher", 50, 10))
WAYS = {  # processes, clips at once
    "one process": (1, 1),
    "two processes": (2, 1),
    "two processes, 8 clips at once": (2, 8),
}


def _requests(pipeline: VideoPipeline, steps: int, count: int) -> dict[str, Request]:
    requests = [
        check_request(pipeline.card, f"a red star moving left, number {n}", seed=n, steps=steps)
        for n in range(count)
    ]
    return {clip_name(pipeline, request): request for request in requests}


def time_single(pipeline: VideoPipeline, requests: dict[str, Request], folder: Path) -> float:
    """Return the seconds that it takes to make one clip after the other."""
    began = perf_counter()
    for path, request in requests.items():
        video = pipeline(request.prompt, seed=request.seed, steps=request.steps)
        video.save(folder / path, enlarge=pipeline.card.enlarge)
    return perf_counter() - began


def _share(
    model: str, steps: int, count: int, folder: Path, share: Share, size: int, start: Barrier
) -> None:
    pipeline = load_pipeline(model)
    pipeline("a red star", steps=2)  # warm-up
    start.wait()
    requests = _requests(pipeline, steps, count)
    make_clips(pipeline, requests, folder, share=share, batch_size=size)
    start.wait()


def time_batch(
    model: str, steps: int, count: int, folder: Path, processes: int, size: int
) -> float:
    """Return the seconds that a batch takes over so many processes."""
    context = get_context("spawn")
    start = context.Barrier(processes + 1)
    running = [
        context.Process(
            target=_share,
            args=(model, steps, count, folder, Share(rank, processes), size, start),
        )
        for rank in range(processes)
    ]
    for process in running:
        process.start()
    start.wait()
    began = perf_counter()
    start.wait()
    seconds = perf_counter() - began
    for process in running:
        process.join()
    return seconds


def main() -> None:
    clips, results = int((*sys.argv[1:], "40")[0]), []
    for model, steps, divisor in SYSTEMS:
        count = max(4, clips // divisor)
        with TemporaryDirectory() as place:
            pipeline = load_pipeline(model)
            pipeline("a red star", steps=2)  # warm-up
            requests = _requests(pipeline, steps, count)
            seconds = {"one by one": time_single(pipeline, requests, Path(place))}
            made = {path: (Path(place) / path).read_bytes() for path in requests}
            equal = {}
            for way, (processes, size) in WAYS.items():
                folder = Path(place, way)
                seconds[way] = time_batch(model, steps, count, folder, processes, size)
                rows = Manifest(folder).rows()
                assert len(rows) == count
                equal[way] = sum((folder / path).read_bytes() == made[path] for path in rows)
        for way, taken in seconds.items():
            ratio = seconds["one by one"] / taken
            same = f", {equal[way]} of {count} files equal" if way in equal else ""
            print(f"{model}:{steps} {way:32} {count / taken:6.2f} clips/s {ratio:5.2f} x{same}")
        results.append({"system": f"{model}:{steps}", "seconds": seconds, "equal": equal})
    print(json.dumps({"bench": "batch", "clips": clips, "results": results}))


if __name__ == "__main__":
    main()
