"""The clip at each position of a run, and the process that decodes it.

The order depends on the seed alone, so a resumed run continues with the clips that it would have
seen.
"""

from collections.abc import Iterator, Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader

from training.data.captions import Caption, count_videos
from training.loop import Slot
from turbo.batch import exit_with_parent


class EpochOrder:
    """Every row once per epoch, in an order drawn from the seed."""

    def __init__(self, seed: int, count: int) -> None:
        self.seed, self.count = seed, count
        self._epoch, self._order = -1, np.zeros(0, dtype=np.int64)

    def __call__(self, position: int) -> tuple[int, int]:
        """Return the epoch and the row of a position."""
        epoch, place = divmod(position, self.count)
        if epoch != self._epoch:
            rng = np.random.default_rng([self.seed, epoch, 1])
            self._epoch, self._order = epoch, rng.permutation(self.count)
        return epoch, int(self._order[place])


class _Item(Protocol):
    @property
    def unusable(self) -> dict[str, str]:
        """Return the videos that were tried before this one, and why they are not used."""
        ...


Item = TypeVar("Item", bound=_Item)
Item_co = TypeVar("Item_co", bound=_Item, covariant=True)


class ItemsByPosition(Protocol[Item_co]):
    """A data set of what is at each position of an endless run."""

    @property
    def captions(self) -> Sequence[Caption]:
        """Return the captions by row."""
        ...

    def __getitem__(self, position: int) -> Item_co:
        """Return what is at a position; there are endlessly many positions."""
        ...


class ClipSource(Generic[Item]):
    """The micro-batches of one process, read ahead by its workers.

    Each process counts the unusable videos that it has met itself.

    Raises:
        ValueError: more videos than `max_broken` of the data set are unusable.
    """

    def __init__(
        self, videos: ItemsByPosition[Item], micro_batch: int, *, workers: int, max_broken: float
    ) -> None:
        self.videos, self.micro_batch, self.workers = videos, micro_batch, workers
        self.count = count_videos(videos.captions)
        self.limit = max_broken * self.count
        self.unusable: dict[str, str] = {}  # by path
        self._ahead: Iterator[list[Item]] | None = None
        self._next: tuple[int, int] | None = None  # step and slot that `_ahead` yields next

    def __call__(self, slot: Slot, processes: int) -> list[Item]:
        """Return the clips of a slot. Slots are asked for in the order of a run."""
        if self._ahead is None or self._next != (slot.step, slot.index):
            order = _positions(slot, processes, self.micro_batch)
            self._ahead = iter(self._loader(order))
        clips = next(self._ahead)
        after = slot.index + processes
        self._next = (
            (slot.step, after) if after < slot.count else (slot.step + 1, after - slot.count)
        )
        for clip in clips:
            self.unusable |= clip.unusable
        if len(self.unusable) > self.limit:
            path, reason = [*self.unusable.items()][-1]
            raise ValueError(
                f"{len(self.unusable)} of {self.count} videos are unusable, more than "
                f"data.max_broken allows. The last: {path}: {reason}. Repair or remove them."
            )
        return clips

    def _loader(self, positions: Iterator[list[int]]) -> DataLoader[Item]:
        return DataLoader(
            self.videos,  # type: ignore[arg-type]  # anything with a length and items will do
            batch_sampler=positions,
            num_workers=self.workers,
            collate_fn=as_list,
            worker_init_fn=exit_with_parent,
            generator=torch.Generator(),  # else it draws from the generator of dropout masks
        )


def as_list(clips: list[Item]) -> list[Item]:
    """Return a batch as it is, without torch's stacking."""
    return clips


def _positions(slot: Slot, processes: int, micro_batch: int) -> Iterator[list[int]]:
    """Yield the positions of this process' slots, from `slot` on, without end."""
    step, index = slot.step, slot.index
    while True:
        first = (step * slot.count + index) * micro_batch
        yield list(range(first, first + micro_batch))
        index += processes
        if index >= slot.count:
            step, index = step + 1, index - slot.count
