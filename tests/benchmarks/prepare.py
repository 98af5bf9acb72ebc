"""Prepare synthetic videos of mixed codecs, 1 % broken, with one kill in the middle.

    python -m tests.benchmarks.prepare [--clips 1000] [--workers 2]

Clips have 16 frames of 64 x 40, and the VAE is a tiny random one; with a real one it is the limit.
`cpu seconds of decoding` counts decoding and scaling alone, per clip of 512 x 320, the size of the
published models. On a busy machine, compare CPU seconds, not the rate.
Prints a table for people and, last, one JSON line for machines.
"""

import argparse
import itertools
import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
from tqdm import tqdm

from training.data.captions import Caption
from training.data.shards import ShardFolder, read_settings
from training.data.video_folder import ClipShape, read_clip
from training.tiny import write_tiny

ROOT = Path(__file__).parents[2]
CODECS = (("libx264", "mp4"), ("libx265", "mp4"), ("libvpx-vp9", "webm"), ("mpeg4", "avi"))
CODECS += (("mjpeg", "mov"),)
SIZES = ((640, 360), (480, 270), (360, 640))
RATES = (Fraction(24), Fraction(30000, 1001), Fraction(25), Fraction(60))
SECONDS = 4
BROKEN = 100  # one video in so many
BAR = 10_000  # clips


def write_video(path: Path, codec: str, size: tuple[int, int], rate: Fraction) -> None:
    """Write a picture that moves."""
    width, height = size
    rng = np.random.default_rng(len(path.name))
    small = rng.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    image = small.repeat(8, axis=0).repeat(8, axis=1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = image.shape[:2]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if codec == "libvpx-vp9":
            stream.options = {"cpu-used": "8", "deadline": "realtime"}
        elif codec.startswith("libx"):
            stream.options = {"preset": "ultrafast", "x265-params": "log-level=none"}
        for index in range(round(SECONDS * rate)):
            shifted = np.roll(image, 2 * index, axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shifted, format="rgb24")))
        container.mux(stream.encode())


def write_videos(folder: Path, clips: int) -> set[str]:
    """Write the videos and their captions; return the names of the broken ones.

    Every combination of codec, size and rate is encoded once, then copied.
    """
    originals = []
    kinds = list(itertools.product(CODECS, SIZES, RATES))
    for (codec, ending), size, rate in tqdm(kinds, desc="encode", leave=False):
        path = folder / f"original-{len(originals)}.{ending}"
        write_video(path, codec, size, rate)
        originals.append(path)
    rows, broken = ["path,text"], set()
    for index in range(clips):
        source = originals[index % len(originals)]
        path = folder / f"{index:06d}{source.suffix}"
        shutil.copy(source, path)
        if index % BROKEN == BROKEN // 2:
            broken.add(str(path))
            content = path.read_bytes()
            kind = index // BROKEN % 3
            path.write_bytes((b"", b"no video", content[: len(content) // 50])[kind])
        rows.append(f"{path.name},the video number {index}")
    (folder / "captions.csv").write_text("\n".join(rows))
    return broken


def write_teacher(folder: Path) -> None:
    """Write a teacher with clips of 64 x 40."""
    write_tiny("tiny-vc2", folder)
    card = json.loads((folder / "card.json").read_text())
    card |= {"num_frames": 16, "height": 40, "width": 64}
    (folder / "card.json").write_text(json.dumps(card))


def time_decoding(folder: Path) -> float:
    """Return the CPU seconds per clip of decoding and scaling, over all kinds of video."""
    shape = ClipShape(frames=16, height=320, width=512, fps=8, stride="exact", resize="crop")
    videos = [Caption(path, "") for path in folder.glob("original-*")]
    began = time.process_time()
    for video in videos:
        read_clip(video, shape, np.random.default_rng(0))
    return (time.process_time() - began) / len(videos)


def start(folder: Path, workers: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "training.data", "prepare", folder / "videos", folder / "out"]
    config = ["--config", ROOT / "training/configs/tiny_vc2.toml", "--clips-per-shard", "50"]
    changes = [f"teacher.model={folder / 'teacher'}", f"data.workers={workers}"]
    return subprocess.Popen(
        [*map(str, [*command, *config, *changes, "data.max_broken=0.02"])],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )


def bench(folder: Path, clips: int, workers: int) -> dict[str, float]:
    """Prepare the videos, killed once, and check what is there."""
    (folder / "videos").mkdir()
    broken = write_videos(folder / "videos", clips)
    write_teacher(folder / "teacher")
    began = time.perf_counter()
    job = start(folder, workers)
    while job.poll() is None and not (folder / "out/shards" / f"{clips // 100:06d}.json").exists():
        time.sleep(0.05)
    job.send_signal(signal.SIGKILL)
    job.wait()
    written = len([*(folder / "out/shards").glob("*.json")])
    assert start(folder, workers).wait() == 0
    seconds = time.perf_counter() - began
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)  # workers of the killed job are not in it

    shards = ShardFolder(folder / "out", read_settings(folder / "out"))
    found = Counter(clip.path for index in shards.indexes for clip in index.clips)
    named = {path for index in shards.indexes for path in index.broken}
    wanted = {str(path) for path in (folder / "videos").glob("[0-9]*")}
    assert found.keys() == wanted - broken, "a video is lost"
    assert max(found.values()) == 1, "a video is there twice"
    assert named == broken, "the broken videos are not those that are named"
    return {
        "clips": len(found),
        "broken": len(broken),
        "shards_before_the_kill": written,
        "seconds": seconds,
        "clips_per_second": clips / seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "cpu_seconds_of_decoding": time_decoding(folder / "videos"),
        "megabytes": sum(index.bytes for index in shards.indexes) / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        found = bench(Path(folder), options.clips, options.workers)
    load = os.getloadavg()[1]
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f}, av {av.__version__}")
    for name, value in found.items():
        print(f"{name.replace('_', ' '):24}{value:10.2f}")
    if options.clips < BAR:
        print(f"{BAR:,} clips at this rate: {BAR / found['clips_per_second'] / 60:.0f} minutes")
        print("(extrapolated, not measured)")
    print(json.dumps({"bench": "prepare", "workers": options.workers, "load": load, **found}))


if __name__ == "__main__":
    main()
