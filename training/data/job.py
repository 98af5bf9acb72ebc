"""A job over all clips of a data set: resumable, on any number of processes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from training.config import DataTable
from training.data.captions import Caption, count_videos
from training.data.order import as_list
from training.data.shards import (
    ClipFacts,
    DatasetSettings,
    ShardIndex,
    read_index,
    start_folder,
    write_shard,
)
from training.data.source import PreparedClip, PreparedClips
from training.data.video_folder import Clip, VideoFolder
from turbo.batch import exit_with_launcher, exit_with_parent

Place = tuple[int, int]  # pass over the data, and row of the table of captions
# Compute what a shard holds of some clips: tensors whose first axis is the clip.
Encode = Callable[[Sequence[Place], Sequence[Clip | PreparedClip]], dict[str, Tensor]]


class _Attempts(Dataset["Clip | PreparedClip | str"]):
    """Clips, or why there is none."""

    def __init__(self, source: VideoFolder | PreparedClips) -> None:
        self.source = source

    def __getitem__(self, place: Place) -> Clip | PreparedClip | str:
        try:
            return self.source.read(*place)
        except ValueError as refusal:
            return str(refusal)


def long_accelerator() -> Accelerator:
    """Return an accelerator whose processes may finish days apart."""
    patience = InitProcessGroupKwargs(timeout=timedelta(days=30))
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[patience])
    exit_with_launcher(accelerator.num_processes)
    return accelerator


def run_job(
    folder: Path,
    settings: DatasetSettings,
    source: VideoFolder | PreparedClips,
    encode: Encode,
    accelerator: Accelerator,
    data: DataTable,
    *,
    batch: int,
) -> dict[str, str]:
    """Compute and write the shards that are missing; each process writes its own.

    Args:
        data: for the number of decoding processes and the share of videos that may be unusable.
        batch: clips that are encoded together.

    Returns:
        the unusable videos, and why they are not used.

    Raises:
        ValueError: the folder holds another data set, or too many videos are unusable.
        OSError: the disk is full.
    """
    with accelerator.main_process_first():
        start_folder(folder, settings)
    own = range(accelerator.process_index, settings.shards, accelerator.num_processes)
    done = {number: index for number in own if (index := read_index(folder, number))}
    captions = source.captions
    count = count_videos(captions)
    broken = _broken(done.values(), data.max_broken, count)
    missing = [number for number in own if number not in done]
    batches = _read(source, settings, missing, batch, data.workers)
    with tqdm(
        total=sum(len(settings.items(number)) for number in own),
        initial=sum(len(settings.items(number)) for number in done),
        desc=folder.name,
        unit="clip",
        disable=not accelerator.is_local_main_process,
    ) as bar:
        for number in missing:
            tensors: list[dict[str, Tensor]] = []
            facts: list[ClipFacts] = []
            refused: dict[str, str] = {}
            for places in _split(settings.items(number), batch):
                usable: list[tuple[Place, Clip | PreparedClip]] = []
                for place, clip in zip(places, next(batches), strict=True):
                    caption = captions[place[1]]
                    if isinstance(clip, str):
                        refused[caption.name] = clip
                    else:
                        facts.append(_facts(place[1], caption, clip))
                        usable.append((place, clip))
                if usable:
                    tensors.append(encode(*zip(*usable, strict=True)))
                bar.update(len(places))
            write_shard(folder, number, _concatenate(tensors), facts, refused)
            broken = _limited(broken | refused, data.max_broken, count)
            bar.set_postfix(broken=len(broken))
    accelerator.wait_for_everyone()
    indexes = (read_index(folder, number) for number in range(settings.shards))
    return _broken((index for index in indexes if index), data.max_broken, count)


def _read(
    source: VideoFolder | PreparedClips,
    settings: DatasetSettings,
    shards: Sequence[int],
    batch: int,
    workers: int,
) -> Iterator[list[Clip | PreparedClip | str]]:
    places = [part for number in shards for part in _split(settings.items(number), batch)]
    return iter(
        DataLoader(
            _Attempts(source),
            batch_sampler=places,
            num_workers=workers,
            collate_fn=as_list,
            worker_init_fn=exit_with_parent,
        )
    )


def _split(places: list[Place], batch: int) -> list[list[Place]]:
    return [places[first : first + batch] for first in range(0, len(places), batch)]


def _facts(row: int, caption: Caption, clip: Clip | PreparedClip) -> ClipFacts:
    if isinstance(clip, PreparedClip):
        return clip.facts.model_copy(update={"row": row})
    window = clip.window
    return ClipFacts(
        row=row,
        path=caption.name,
        text=clip.text,
        short_text=clip.short_text,
        fps=window.fps,
        native_fps=window.native_fps,
        seconds=window.seconds,
        motion=clip.motion,
    )


def _concatenate(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in (parts or [{}])[0]}


def _broken(indexes: Iterable[ShardIndex], max_broken: float, count: int) -> dict[str, str]:
    broken: dict[str, str] = {}
    for index in indexes:
        broken |= index.broken
    return _limited(broken, max_broken, count)


def _limited(broken: dict[str, str], max_broken: float, count: int) -> dict[str, str]:
    if len(broken) > max_broken * count:
        path, reason = [*broken.items()][-1]
        raise ValueError(
            f"{len(broken)} of {count} videos are unusable, more than data.max_broken "
            f"allows. The last: {path}: {reason}. To continue without them, raise data.max_broken. "
            "Complete shards are kept."
        )
    return broken
