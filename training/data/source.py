"""The training data of a run: videos, or what was prepared from them; and their encoding."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from training.config import Config, DataTable
from training.data.captions import Caption, read_captions
from training.data.hub import read_hub
from training.data.order import EpochOrder
from training.data.shards import (
    SETTINGS,
    ClipFacts,
    RecordSettings,
    ShardFolder,
    check_settings,
    read_settings,
)
from training.data.tar_files import read_tars
from training.data.video_folder import Clip, ClipShape, VideoFolder, stack_frames
from training.settings import EncodedBatch, RecordedBatch
from turbo.card import ModelCard
from turbo.diffusion.teacher_cache import TeacherRecord
from turbo.networks.vae import encode_frames, sample_posterior
from turbo.text_files.prompts import read_prompt_file
from turbo.types import VAE, FrameRate, TextEncoder

RECORDED = ("noisy", "cond", "uncond", "score", "prompt_embeds")  # floating-point tensors


@dataclass(frozen=True)
class PreparedClip:
    """A clip and its caption, encoded before training, or the teacher's outputs for it."""

    facts: ClipFacts
    tensors: dict[str, Tensor]
    unusable: dict[str, str] = field(default_factory=dict)  # none: they are left out

    @property
    def fps(self) -> float:
        return self.facts.fps

    @property
    def text(self) -> str:
        return self.facts.text

    @property
    def short_text(self) -> str:
        return self.facts.short_text

    @property
    def motion(self) -> bool:
        return self.facts.motion


class PreparedClips(Dataset[PreparedClip]):
    """The clips of a folder of shards by position, in the order of `VideoFolder`.

    With a prepared pass for each epoch, these are the clips that `VideoFolder` would decode. With
    fewer passes, they come again.
    """

    def __init__(self, shards: ShardFolder, seed: int) -> None:
        self.shards = shards
        self.order = EpochOrder(seed, len(shards.rows))

    def __len__(self) -> int:
        return len(self.shards.rows)

    def __getitem__(self, position: int) -> PreparedClip:
        return self.read(*self.order(position))

    def read(self, epoch: int, place: int) -> PreparedClip:
        """Return the clip that an epoch shows of one of the usable videos."""
        row = self.shards.rows[place]
        return PreparedClip(self.shards.facts(epoch, row), self.shards.tensors(epoch, row))

    def check_weights(self, sha256: str) -> None:
        """Refuse clips that other weights have encoded.

        Raises:
            ValueError: the teacher's weights are not those that prepared the clips.
        """
        settings = self.shards.settings
        check_settings(self.shards.folder / SETTINGS, settings, {"weights_sha256": sha256})

    @property
    def captions(self) -> list[Caption]:
        """Return the captions of the usable videos."""
        facts = (self.shards.facts(0, row) for row in self.shards.rows)
        return [
            Caption(Path(clip.path), clip.text, clip.short_text, motion=clip.motion)
            for clip in facts
        ]


def clip_shape(config: Config, card: ModelCard) -> ClipShape:
    """Return the shape of training clips: the teacher's, at the rate of the configuration."""
    data = config.data
    return ClipShape(card.num_frames, card.height, card.width, data.fps, data.stride, data.resize)


def describe_clips(config: Config, card: ModelCard) -> dict[str, Any]:
    """Return the settings that prepared clips must share with a run, besides the weights."""
    return {"teacher": card.name, **vars(clip_shape(config, card))}


def describe_record(config: Config) -> RecordSettings:
    """Return how the teacher is recorded for a run."""
    motion = config.motion if config.takes_motion else None
    return RecordSettings(
        grid_steps=config.teacher.grid_steps,
        conditioning_fps=config.data.conditioning_fps,
        energy=motion.energy if motion else None,
        percentage=motion.percentage if motion else None,
        layers=motion.layers if motion else None,
    )


def open_data(config: Config, card: ModelCard) -> VideoFolder | PreparedClips:
    """Open what a run trains on: teacher outputs, if the configuration names them, or clips.

    A record with an energy also serves a run without motion guidance, which does not read it.

    Raises:
        ValueError: it cannot be read, or was made by other settings.
    """
    if not config.data.record:
        return open_clips(config, card)
    folder = Path(config.data.record)
    settings, wanted = read_settings(folder), describe_record(config)
    check_settings(folder / SETTINGS, settings, {"kind": "teacher", **describe_clips(config, card)})
    assert settings.record is not None  # of this kind
    unread = set() if config.takes_motion else {"energy", "percentage", "layers"}
    check_settings(folder / SETTINGS, settings.record, wanted.model_dump(exclude=unread))
    return PreparedClips(ShardFolder(folder, settings), config.run.seed)


def open_clips(config: Config, card: ModelCard) -> VideoFolder | PreparedClips:
    """Open the training data.

    Raises:
        ValueError: it cannot be read, or was prepared by other settings.
    """
    data, seed = config.data, config.run.seed
    folder = Path(data.folder)
    if not data.folder or not (folder / SETTINGS).is_file():
        captions = (
            read_hub(data.hub, data.split) if data.hub else list_captions(folder, data.captions)
        )
        return VideoFolder(captions, clip_shape(config, card), seed)
    settings = read_settings(folder)
    wanted = {"kind": "clips", **describe_clips(config, card)}
    check_settings(folder / SETTINGS, settings, wanted)
    return PreparedClips(ShardFolder(folder, settings), seed)


def list_captions(folder: Path, file: str) -> list[Caption]:
    """List the videos: those of the table of captions, else those of the tar files.

    Tar files take the place of a table with the default name alone: another one was asked for.

    Raises:
        ValueError: they cannot be read.
    """
    usual = file == DataTable.model_fields["captions"].default
    if usual and not (folder / file).exists() and next(folder.glob("*.tar"), None):
        return read_tars(folder)
    return read_captions(folder, file)


def hash_captions(captions: Sequence[Caption], folder: Path | None) -> str:
    """Return the SHA-256 of a table of captions, wherever its folder is.

    Args:
        folder: of the videos. None for prepared clips, whose paths count by their name alone, as
            the videos may have been elsewhere.
    """
    rows = [
        [
            _path_in(folder, caption),
            caption.member and caption.member.name,
            caption.text,
            caption.short_text,
            *([] if caption.motion else ["no motion"]),
        ]
        for caption in captions
    ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _path_in(folder: Path | None, caption: Caption) -> str:
    if folder is None or caption.member is not None or caption.content is not None:
        return caption.path.name
    return Path(os.path.relpath(caption.path, folder)).as_posix()


def encode(
    clips: Sequence[Clip | PreparedClip],
    generator: torch.Generator,
    data: DataTable,
    vae: VAE,
    text_encoder: TextEncoder,
    device: torch.device,
    *,
    takes_fps: bool,
) -> EncodedBatch:
    """Encode clips and captions, as far as they are not prepared.

    The posterior of the VAE is sampled, as in the published code.
    """
    prepared = [clip.tensors for clip in clips if isinstance(clip, PreparedClip)]
    videos = [clip for clip in clips if isinstance(clip, Clip)]
    with torch.no_grad():
        if prepared:
            moments = torch.stack([tensors["moments"] for tensors in prepared]).to(device)
            latents = sample_posterior(vae, moments, generator)
            embeds = torch.stack([tensors["prompt_embeds"] for tensors in prepared]).to(device)
        else:
            latents = encode_frames(vae, stack_frames(videos).to(device), generator)
            embeds = text_encoder.encode([clip.text for clip in clips])
        empty = text_encoder.encode([""]).float().expand(len(clips), -1, -1)
    rates = told_rates(clips, data, device) if takes_fps else None
    guided = torch.tensor([clip.motion for clip in clips], device=device)
    return EncodedBatch(latents, reward_prompts(clips, data), embeds.float(), empty, rates, guided)


def read_prompts(path: Path) -> list[str]:
    """Read a file of prompts, without the empty ones.

    Raises:
        ValueError: the file cannot be read, or has none.
    """
    prompts = [entry.text for entry in read_prompt_file(path) if entry.text.strip()]
    if not prompts:
        raise ValueError(f"{path} has no prompts. Add some.")
    return prompts


def reward_prompts(clips: Sequence[Clip | PreparedClip], data: DataTable) -> list[str | None]:
    """Return what rewards score each clip against; None is not scored."""
    return [
        (clip.short_text or None) if data.rewards_on == "short" else clip.text for clip in clips
    ]


def told_rates(
    clips: Sequence[Clip | PreparedClip], data: DataTable, device: torch.device
) -> FrameRate:
    """Return the frame rates that a network is conditioned on."""
    rates = [clip.fps if data.conditioning_fps == "true" else data.fps for clip in clips]
    return torch.tensor([round(rate) for rate in rates], device=device)


def stack_records(
    clips: Sequence[Clip | PreparedClip], data: DataTable, device: torch.device, *, takes_fps: bool
) -> RecordedBatch:
    """Return the teacher's outputs for clips that have them."""
    recorded = [clip.tensors for clip in clips if isinstance(clip, PreparedClip)]
    kept = {name: torch.stack([t[name] for t in recorded]).to(device) for name in recorded[0]}
    record = TeacherRecord(
        **{name: kept[name].float() for name in RECORDED},
        start=kept["start"],
        end=kept["end"],
        fps=told_rates(clips, data, device) if takes_fps else None,
    )
    guided = torch.tensor([clip.motion for clip in clips], device=device)
    return RecordedBatch(record, reward_prompts(clips, data), guided)
