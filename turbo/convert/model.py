"""Convert the published files of one model into its folders."""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPTextModel

from turbo.card import CONVERSION, ModelCard
from turbo.convert.checkpoint import open_checkpoint
from turbo.convert.plan import Job, plan_jobs
from turbo.convert.stream import write_tensors
from turbo.disk_space import check_space
from turbo.networks.text import clip_tokenizer
from turbo.networks.unet import VideoUNet

TOKENIZER_SIZE = 5_000_000  # bytes, and some
PARTIAL = ".converting-"  # how the name of an unfinished folder begins
DIFFUSERS_PARTS = ("unet", "vae", "text_encoder")  # folders of a published diffusers layout


def convert_model(
    card: ModelCard,
    paths: list[Path],
    *,
    projection: str | None = None,
    replace: bool = False,
) -> Iterator[tuple[int, int]]:
    """Write the folders of a model, one tensor at a time; yield bytes written, and those in all.

    Each folder appears whole or not at all. Those that are there already are kept. What a killed
    conversion left is removed.

    Args:
        paths: published files, or folders in diffusers' layout.
        projection: which guidance projection the published adapters get; see `adapters.THE_TRAP`.
        replace: write also what is there already.

    Raises:
        FileNotFoundError: a path leads nowhere.
        ValueError: a file is damaged, holds code, or does not suit the model.
        OSError: the disk is full.
    """
    checkpoints = [open_checkpoint(file) for path in paths for file in files_at(path)]
    jobs = plan_jobs(card, checkpoints, projection)
    missing = set(card.missing)
    wants_tokenizer = replace or "tokenizer" in missing
    own = [job for job in jobs if job.folder in card.parts]  # not a teacher that is only merged
    wanted = [job for job in own if replace or job.folder in missing]
    if not wanted and not wants_tokenizer:
        raise ValueError(
            f"Expected something to convert for {card.name}, got only what is in {card.folder} "
            "already. Convert again with --replace."
        )
    total, done = sum(job.size for job in wanted), 0
    card.folder.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(card.folder)
    check_space(card.folder, total + TOKENIZER_SIZE)
    for job in wanted:
        for written in _write(job, card.folder):
            done += written
            yield done, total
    if wants_tokenizer:
        with _whole_or_not_at_all(card.folder / "tokenizer") as partial:
            clip_tokenizer().save_pretrained(partial)


def _write(job: Job, folder: Path) -> Iterator[int]:
    """Write the folder of a job."""
    with _whole_or_not_at_all(folder / job.folder) as partial:
        for written in write_tensors(partial / job.file, job.slots, job.read):
            if isinstance(written, int):
                yield written
            else:
                note = {"sha256": written.sha256, **job.origin}
                (partial / CONVERSION).write_text(json.dumps(note, indent=2) + "\n")
        _save_configuration(job.network, partial)


@contextmanager
def _whole_or_not_at_all(folder: Path) -> Iterator[Path]:
    """Yield a folder of another name to write into, which takes this one's name when it is whole.

    Meanwhile it is locked, so that another conversion does not take it for abandoned.
    """
    partial = Path(tempfile.mkdtemp(prefix=f"{PARTIAL}{folder.name}-", dir=folder.parent))
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        partial.chmod(0o755)
        yield partial
        if folder.exists():
            folder.rename(partial / "former")
        partial.rename(folder)
        shutil.rmtree(folder / "former", ignore_errors=True)
    finally:
        os.close(descriptor)
        shutil.rmtree(partial, ignore_errors=True)


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed conversions left; that of a living one is locked."""
    for partial in folder.glob(f"{PARTIAL}*"):
        try:
            descriptor = os.open(partial, os.O_RDONLY)
        except FileNotFoundError:  # whole by now, and renamed
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)
        shutil.rmtree(partial, ignore_errors=True)


def _save_configuration(network: nn.Module | None, folder: Path) -> None:
    """Write a network's configuration; adapters have none of their own."""
    if isinstance(network, CLIPTextModel):
        network.config.save_pretrained(folder)
    elif isinstance(network, VideoUNet | AutoencoderKL):
        network.save_config(folder)


def files_at(path: Path) -> list[Path]:
    """Return the weights in a folder of diffusers' layout, or the path of a file itself."""
    if not path.is_dir():
        return [path]
    found = []
    for part in DIFFUSERS_PARTS:
        whole = [
            file
            for file in sorted((path / part).glob("*"))
            if file.suffix in (".safetensors", ".bin") and ".fp16." not in file.name
        ]
        safe = [file for file in whole if file.suffix == ".safetensors"]
        if not whole:
            raise FileNotFoundError(
                f"Expected weights in {path / part}, got none. "
                "Give the folder that holds unet/, vae/ and text_encoder/."
            )
        found += (safe or whole)[:1]
    return found
