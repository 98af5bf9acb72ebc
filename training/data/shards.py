"""Shards: what is computed from a data set before training, so that a killed job can resume.

A folder of shards holds

    dataset.json          what was computed, of which videos, by which model (`DatasetSettings`)
    shards/000000.safetensors, ...   tensors; the first axis is the clip
    shards/000000.json, ...          the index of a shard (`ShardIndex`): its SHA-256 and its clips

Shards are numbered by pass over the videos, then by row of the table of captions. A shard without
an index is not complete, and is written again. So each process can write shards of its own.
"""

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import safetensors
from jaxtyping import UInt8
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save
from torch import Tensor

from turbo.manifest import sha256_of
from turbo.whole_file import write_whole

SETTINGS = "dataset.json"
_REMEDY = "It is damaged: delete it, and run the command that made it again."
PICTURES = "pictures"  # a tensor of every shard of clips, for people


class _Json(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RecordSettings(_Json):
    """How the teacher was recorded."""

    grid_steps: int
    conditioning_fps: str = Field(  # told_fps in earlier folders
        validation_alias=AliasChoices("conditioning_fps", "told_fps")
    )
    energy: str | None  # None: no video was guided by one
    percentage: float | None
    layers: list[str] | None


class DatasetSettings(_Json):
    """The settings of a folder of shards."""

    format: Literal[1, 2] = 2  # 1: colours, rotation and pixels of videos were read otherwise
    kind: Literal["clips", "teacher"]
    teacher: str
    weights_sha256: str
    frames: int
    height: int
    width: int
    fps: float
    stride: str
    resize: str
    seed: int
    passes: int  # clips per video
    videos: int  # rows of the table of captions
    captions_sha256: str
    clips_per_shard: int
    dtype: str
    record: RecordSettings | None = None

    @property
    def shards_per_pass(self) -> int:
        return -(-self.videos // self.clips_per_shard)

    @property
    def shards(self) -> int:
        return self.passes * self.shards_per_pass

    def items(self, shard: int) -> list[tuple[int, int]]:
        """Return pass and row of the clips of a shard."""
        epoch, place = divmod(shard, self.shards_per_pass)
        first = place * self.clips_per_shard
        return [
            (epoch, row) for row in range(first, min(first + self.clips_per_shard, self.videos))
        ]


class ClipFacts(_Json):
    """What is known about one clip."""

    row: int  # of the table of captions, from 0
    path: str
    text: str
    short_text: str
    fps: float  # at which the frames were taken
    native_fps: float  # of the video
    seconds: float  # of the video
    motion: bool = True  # as for `Caption`


class ShardIndex(_Json):
    """What a shard holds."""

    sha256: str  # of its file
    bytes: int
    clips: list[ClipFacts]
    broken: dict[str, str]  # videos that are left out, and why


def start_folder(folder: Path, settings: DatasetSettings) -> None:
    """Write the settings of a new folder, or check that the same job continues.

    Raises:
        ValueError: the folder holds another data set.
    """
    path = folder / SETTINGS
    if not path.exists():
        write_file(path, settings.model_dump_json(indent=2).encode())
        return
    check_settings(path, read_settings(folder), settings.model_dump())


def read_settings(folder: Path) -> DatasetSettings:
    """Read what a folder of shards holds.

    Raises:
        ValueError: it is not one, or of another version.
    """
    path = folder / SETTINGS
    try:
        return DatasetSettings.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as failure:
        raise ValueError(f"{path} cannot be read: {failure}.") from failure


def check_settings(path: Path, found: BaseModel, wanted: dict[str, Any]) -> None:
    """Refuse a data set that differs in one of the `wanted` settings.

    Raises:
        ValueError: the message names the first setting that differs.
    """
    for name, value in wanted.items():
        if (there := found.model_dump()[name]) != value:
            if name == "captions_sha256":
                raise ValueError(
                    f"{path} is of other captions: a path, a text or their order differs; or an "
                    "earlier version began it, which read only the names of videos in subfolders. "
                    "Restore the table of captions, or prepare the data into another folder."
                )
            raise ValueError(
                f"{path} has {name} = {there!r}, expected {value!r}. Restore that setting, or "
                "prepare the data into another folder."
            )


def shard_path(folder: Path, number: int) -> Path:
    """Return the file of a shard."""
    return folder / "shards" / f"{number:06d}.safetensors"


def write_shard(
    folder: Path,
    number: int,
    tensors: dict[str, Tensor],
    clips: list[ClipFacts],
    broken: dict[str, str],
) -> None:
    """Write a shard, then its index.

    Raises:
        OSError: it could not be written; complete shards are still there.
    """
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    index = ShardIndex(
        sha256=hashlib.sha256(content).hexdigest(), bytes=len(content), clips=clips, broken=broken
    )
    path = shard_path(folder, number)
    write_file(path, content)
    write_file(path.with_suffix(".json"), index.model_dump_json().encode())


def write_file(path: Path, content: bytes) -> None:
    """Write a file that is complete or absent, whenever the process or the machine stops."""
    try:
        write_whole(path, content)
    except OSError as failure:
        raise OSError(
            f"{path} could not be written: {failure}. Free some space and run the same command "
            "again: it continues."
        ) from failure


def read_index(folder: Path, number: int) -> ShardIndex | None:
    """Return the index of a shard; None if the shard is not complete.

    Raises:
        ValueError: the index cannot be read, or the file of the shard has another size.
    """
    path = shard_path(folder, number)
    try:
        index = ShardIndex.model_validate_json(path.with_suffix(".json").read_bytes())
        size = path.stat().st_size
    except FileNotFoundError:
        return None
    except ValidationError as failure:
        raise ValueError(
            f"{path.with_suffix('.json')} cannot be read: {failure}. {_REMEDY}"
        ) from failure
    if size != index.bytes:
        raise ValueError(f"{path} has {size} bytes, expected {index.bytes}. {_REMEDY}")
    return index


def verify_shard(folder: Path, number: int, index: ShardIndex) -> None:
    """Compare a shard with its checksum.

    Raises:
        ValueError: they differ.
    """
    path = shard_path(folder, number)
    if sha256_of(path) != index.sha256:
        raise ValueError(f"{path} does not have its checksum. {_REMEDY}")


@lru_cache(maxsize=256)
def _open(path: Path) -> Any:
    return safetensors.safe_open(path, framework="pt")


class ShardFolder:
    """A complete folder of shards: clips by pass and row."""

    def __init__(self, folder: Path, settings: DatasetSettings) -> None:
        """Read all indexes.

        Raises:
            ValueError: the data set is not complete, or damaged.
        """
        self.folder, self.settings = folder, settings
        indexes = [read_index(folder, number) for number in range(settings.shards)]
        if missing := indexes.count(None):
            raise ValueError(
                f"{folder} is not complete: {missing} of {settings.shards} shards are missing. "
                "Run the command that made it again: it continues."
            )
        self.indexes = [index for index in indexes if index is not None]
        places: dict[tuple[int, int], tuple[int, int, ClipFacts]] = {}
        for number, index in enumerate(self.indexes):
            for place, clip in enumerate(index.clips):
                places[number // settings.shards_per_pass, clip.row] = (number, place, clip)
        self._places = places
        passes = range(settings.passes)
        self.rows = [  # whose video is usable in every pass
            row for row in range(settings.videos) if all((epoch, row) in places for epoch in passes)
        ]
        if not self.rows:
            raise ValueError(f"{folder} has no clips.")

    def facts(self, epoch: int, row: int) -> ClipFacts:
        """Return what is known about a clip."""
        return self._places[epoch % self.settings.passes, row][2]

    def tensors(self, epoch: int, row: int) -> dict[str, Tensor]:
        """Read the tensors of a clip, except its pictures."""
        number, place, _ = self._places[epoch % self.settings.passes, row]
        opened = _open(shard_path(self.folder, number))
        names = set(opened.keys()) - {PICTURES}
        return {name: opened.get_slice(name)[place] for name in names}

    def pictures(self, epoch: int, row: int) -> UInt8[Tensor, "3 H W 3"]:
        """Read three small frames of a clip: the first, the middle and the last one."""
        number, place, _ = self._places[epoch % self.settings.passes, row]
        return _open(shard_path(self.folder, number)).get_slice(PICTURES)[place]
