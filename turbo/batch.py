"""Make many clips: resumable, over several processes, decoding while the next clip is sampled."""

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from time import perf_counter

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from turbo.card import ModelCard
from turbo.disk_space import check_space
from turbo.manifest import Manifest, ManifestRow, sha256_of
from turbo.pipeline import Result, Samples, VideoPipeline, fixed_threads, warn_of_unread
from turbo.provenance import Signer
from turbo.request import Request
from turbo.video import Video, remove_unfinished

BYTES_PER_PIXEL = 0.25  # of an mp4, for a scene rich in detail; pixel art needs a sixth
PATIENCE = timedelta(days=7)  # of a process that waits for those with slower clips

# What can go wrong with one clip and not with the next; a full disk or memory stops the run.
FAILURES = (ArithmeticError, RuntimeError, ValueError)

Clips = Mapping[str, Request]  # by path in the folder of the clips


@dataclass(frozen=True)
class Share:
    """Which part of the work this process does; all of it, unless `accelerate launch` says more."""

    rank: int = 0
    processes: int = 1

    @classmethod
    def of_launch(cls) -> "Share":
        """Return this process's share, and use its own device if there are several."""
        state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
        exit_with_launcher(state.num_processes)
        return cls(state.process_index, state.num_processes)

    def gather(self, entries: list[str]) -> list[str]:
        """Return the entries of all processes; wait until each of them has called this."""
        return gather_object(entries) if self.processes > 1 else entries


def exit_with_launcher(processes: int) -> None:
    """End this process when the launcher of several is killed.

    Without it they would wait for each other for days, or write beside those of the next launch.
    """
    if processes > 1:
        exit_with_parent()


def exit_with_parent(worker: int = 0) -> None:
    """End this process when its parent is killed, whatever it waits for.

    Args:
        worker: its number, which a data loader passes.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def clip_name(
    pipeline: VideoPipeline, request: Request, batch_size: int = 1, signed: bool = False
) -> str:
    """Name a clip after everything that determines it, so that one folder can hold many runs."""
    precision = str(pipeline.placement.dtype)
    recipe: list[object] = [pipeline.card.name, pipeline.weights_sha256, asdict(request), precision]
    if batch_size > 1:  # changes the last bits
        recipe.append({"batch_size": batch_size})
    if pipeline.visible_mark:
        recipe.append("visible_mark")
    if signed:
        recipe.append("signed")
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:10]
    slug = re.sub(r"[^a-z0-9]+", "-", request.prompt.lower())[:48].strip("-")
    return "-".join(filter(None, [pipeline.card.name, slug, digest])) + ".mp4"


def bytes_of_clip(card: ModelCard) -> int:
    """Estimate the size of one mp4 of a model."""
    pixels = card.num_frames * card.height * card.width * card.enlarge**2
    return int(pixels * BYTES_PER_PIXEL)


def check_room(folder: Path, clips: Iterable[tuple[ModelCard, Request]]) -> int:
    """Return how many bytes the clips that the folder's manifest does not list yet need at most.

    Raises:
        OSError: the disk has less free space.
        ValueError: as for `Manifest`.
    """
    made = Manifest(folder).rows().values() if (folder / "manifest.csv").exists() else ()
    listed = {(row["model"], row["prompt"], row["seed"], row["num_steps"]) for row in made}
    needed = sum(
        bytes_of_clip(card)
        for card, request in clips
        if (card.name, request.prompt, str(request.seed), str(request.steps)) not in listed
    )
    check_space(folder, needed, "Make room, or choose another folder with --out.")
    return needed


def time_clip(pipeline: VideoPipeline, request: Request) -> float:
    """Estimate the seconds of a clip without its encoding, from two clips of the fewest steps."""
    steps = pipeline.card.min_steps
    for _ in range(2):  # the first one warms up
        *_, result = pipeline.stream(
            [request.prompt], [request.seed], steps=steps, guidance=request.guidance
        )
    assert isinstance(result, Result)
    timings = result.timings
    return timings["text"] + timings["denoise"] * request.steps / steps + timings["decode"]


def make_clips(
    pipeline: VideoPipeline,
    clips: Clips,
    folder: Path,
    *,
    batch_size: int = 1,
    share: Share = Share(),  # immutable
    signer: Signer | None = None,
) -> list[str]:
    """Make this process's share of the clips missing in `folder`, and list each in its manifest.

    A clip is listed when its file is complete, so a run that was killed is continued by running
    again. Batches, and the process that makes each, follow from the list of all clips alone:
    neither what exists already nor the number of processes changes a frame.

    Args:
        clips: all clips of the model in this folder, with equal steps.
        batch_size: see `VideoPipeline.stream`; 1 gives the frames of a single request.
        signer: signs the files that are made; None leaves them unsigned.

    Returns:
        The clips that could not be made, each with its reason; the next run tries them again.
    """
    manifest = Manifest(folder)
    for place in {(folder / path).parent for path in clips}:
        place.mkdir(parents=True, exist_ok=True)
        remove_unfinished(place)
    paths = list(clips)
    batches = [paths[first : first + batch_size] for first in range(0, len(paths), batch_size)]
    mine = batches[share.rank :: share.processes]
    missing = set(manifest.missing([path for batch in mine for path in batch]))
    title = pipeline.card.name
    if share.processes > 1:
        title += f", process {share.rank + 1} of {share.processes}"
    listed = sum(map(len, mine))
    print(f"{title}: {listed - len(missing)} of {listed} clips exist already.")
    bar = tqdm(total=len(missing), unit="clip", desc=title, disable=share.rank > 0)
    writer = _Writer(pipeline, clips, manifest, bar, signer)
    began = perf_counter()
    with (
        bar,
        fixed_threads(pipeline.card, pipeline.placement.device),  # for the other thread, too
        ThreadPoolExecutor(1) as thread,
    ):
        writing: Future[None] | None = None
        for batch in mine:
            wanted = missing.intersection(batch)
            sampled = writer.sample(batch, wanted) if wanted else None
            if sampled is None:
                continue
            if writing is not None:
                writing.result()  # one batch waits at most; raises what stopped the other thread
            writing = thread.submit(writer.write, batch, sampled, wanted)
        if writing is not None:
            writing.result()
    seconds, made = perf_counter() - began, len(missing) - len(writer.failures)
    if made:
        print(f"{title}: {made} clips in {seconds:.1f} s, {made / seconds:.2f} a second")
    return writer.failures


class _Writer:
    """Samples batches, and turns the samples into listed files in another thread."""

    def __init__(
        self,
        pipeline: VideoPipeline,
        clips: Clips,
        manifest: Manifest,
        progress: tqdm,
        signer: Signer | None,
    ) -> None:
        self.pipeline, self.clips, self.manifest = pipeline, clips, manifest
        self.progress, self.signer = progress, signer
        self.failures: list[str] = []
        # A model on one thread leaves a core for decoding. Elsewhere sampling takes all there is.
        on_cpu = pipeline.placement.device.type == "cpu"
        self.decodes_apart = on_cpu and pipeline.card.cpu_threads == 1

    def sample(self, batch: list[str], wanted: set[str]) -> Samples | list[Video] | None:
        """Return the samples, decoded unless the other thread does that; None if they failed."""
        requests = [self.clips[path] for path in batch]
        for request in requests:
            warn_of_unread(self.pipeline, request)
        try:
            samples = self.pipeline.sample(requests)
            return samples if self.decodes_apart else self.pipeline.decode(samples)
        except FAILURES as failure:
            self._fail(wanted, failure)
            return None

    def write(self, batch: list[str], made: Samples | list[Video], wanted: set[str]) -> None:
        """Encode the wanted clips of a batch and list them."""
        left = set(wanted)
        try:
            videos = self.pipeline.decode(made) if isinstance(made, Samples) else made
            for path, video in zip(batch, videos, strict=True):
                if path in wanted:
                    file = self.manifest.folder / path
                    video.save(file, enlarge=self.pipeline.card.enlarge, signer=self.signer)
                    self.manifest.add(self._row(path, video))
                    self.progress.update()
                    left.remove(path)
        except FAILURES as failure:
            self._fail(left, failure)

    def _fail(self, paths: set[str], failure: Exception) -> None:
        self.failures += [f"{path}: {failure}" for path in sorted(paths)]
        self.progress.update(len(paths))

    def _row(self, path: str, video: Video) -> ManifestRow:
        request = self.clips[path]
        return ManifestRow(
            path=path,
            model=self.pipeline.card.name,
            prompt=request.prompt,
            seed=request.seed,
            num_steps=request.steps,
            guidance=request.guidance,
            fps=video.fps,
            sha256=sha256_of(self.manifest.folder / path),
            weights_sha256=self.pipeline.weights_sha256,
        )
