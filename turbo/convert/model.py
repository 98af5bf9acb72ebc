"""Convert the published files of one model into its folders."""

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffusers import ModelMixin
from filelock import FileLock
from transformers import PreTrainedModel

from turbo.card import CONVERSION, ModelCard
from turbo.convert.checkpoint import open_checkpoint
from turbo.convert.plan import Job, plan_jobs
from turbo.convert.stream import write_tensors
from turbo.disk_space import LOCK_SECONDS, check_space
from turbo.networks.text import clip_tokenizer, read_umt5_tokenizer

TOKENIZER_SIZE = 40_000_000  # bytes, rounded up
PARTIAL = ".converting-"  # prefix of an unfinished folder
TOKENIZER_FILE = "tokenizer.json"  # published beside Wan's weights
DIFFUSERS_PARTS = ("unet", "vae", "text_encoder")  # folders of diffusers' layout


def convert_model(
    card: ModelCard, paths: list[Path], *, projection: str | None = None, replace: bool = False
) -> Iterator[tuple[int, int]]:
    """Write the folders of a model tensor by tensor; yield (bytes written, bytes in total).

    Each folder is written completely or not at all. Existing folders are kept. Unfinished folders
    of killed conversions are removed. Conversions into one folder wait for each other.

    Args:
        paths: published files, or folders in diffusers' layout.
        projection: guidance projection for published adapters; see `adapters.read_projection`.
        replace: overwrite existing folders.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a file is damaged, contains code, or does not belong to the model.
        OSError: the disk is full.
    """
    words = [path for path in paths if path.name == TOKENIZER_FILE]
    checkpoints = [
        open_checkpoint(file) for path in paths if path not in words for file in files_at(path)
    ]
    jobs = plan_jobs(card, checkpoints, projection)
    card.folder.parent.mkdir(parents=True, exist_ok=True)
    lock = card.folder.with_name(f".{card.folder.name}.lock")
    # The caller may resume us in another thread of a pool. The wait has a limit because filelock
    # refuses an endless one in the thread of the first conversion as a deadlock.
    with FileLock(lock, timeout=LOCK_SECONDS, thread_local=False):
        yield from _convert_jobs(card, jobs, words, replace=replace)


def _convert_jobs(
    card: ModelCard, jobs: list[Job], words: list[Path], *, replace: bool
) -> Iterator[tuple[int, int]]:
    missing = set(card.missing)
    published = any("tokenizer" in source.gives for source in card.sources)
    wants_tokenizer = bool(words) if published else replace or "tokenizer" in missing
    own = [job for job in jobs if job.folder in card.parts]  # without a teacher that is only merged
    wanted = [job for job in own if replace or job.folder in missing]
    if not wanted and not wants_tokenizer:
        raise ValueError(
            f"These files are already converted in {card.folder}. To convert them again, pass "
            "--replace."
        )
    total, done = sum(job.size for job in wanted), 0
    card.folder.mkdir(exist_ok=True)
    for abandoned in card.folder.glob(f"{PARTIAL}*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    check_space(card.folder, total + TOKENIZER_SIZE)
    for job in wanted:
        for written in _write(job, card.folder):
            done += written
            yield done, total
    if wants_tokenizer:
        with _complete_folder(card.folder / "tokenizer") as partial:
            # CLIP's is published nowhere beside the weights.
            tokenizer = read_umt5_tokenizer(words[0]) if words else clip_tokenizer()
            tokenizer.save_pretrained(partial)


def _write(job: Job, folder: Path) -> Iterator[int]:
    """Write the folder of a job."""
    with _complete_folder(folder / job.folder) as partial:
        sha256 = yield from write_tensors(partial / job.file, job.slots, job.read)
        record = {"sha256": sha256, **job.origin}
        (partial / CONVERSION).write_text(json.dumps(record, indent=2) + "\n")
        if isinstance(job.network, PreTrainedModel):
            job.network.config.save_pretrained(partial)
        elif isinstance(job.network, ModelMixin):  # adapters have no configuration
            job.network.save_config(partial)


@contextmanager
def _complete_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder to write to, and rename it to `folder` when it is complete."""
    partial = Path(tempfile.mkdtemp(prefix=f"{PARTIAL}{folder.name}-", dir=folder.parent))
    try:
        partial.chmod(0o755)
        yield partial
        if folder.exists():
            folder.rename(partial / "former")
        partial.rename(folder)
        shutil.rmtree(folder / "former", ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def files_at(path: Path) -> list[Path]:
    """Return the weight files in a folder of diffusers' layout; of a file, the file itself.

    Raises:
        FileNotFoundError: a part has none.
        ValueError: those of a part are split.
    """
    if not path.is_dir():
        return [path]
    found = []
    for part in DIFFUSERS_PARTS:
        weights = [
            file
            for file in sorted((path / part).glob("*"))
            if file.suffix in (".safetensors", ".bin")
        ]
        weights.sort(key=_rank)
        safe = [file for file in weights if file.suffix == ".safetensors"]
        if not weights:
            raise FileNotFoundError(
                f"There are no weights in {path / part}. "
                "Choose the folder that contains unet/, vae/ and text_encoder/."
            )
        chosen = (safe or weights)[0]
        if re.search(r"-\d{5}-of-\d{5}", chosen.name):
            raise ValueError(
                f"The weights in {chosen.parent} are split into several files. Save them as one, "
                'in diffusers by save_pretrained(..., max_shard_size="100GB").'
            )
        found.append(chosen)
    return found


def _rank(file: Path) -> tuple[bool, int, str]:
    """Order weight files: those named as libraries name them, without a variant such as fp16."""
    usual = file.name.startswith(("diffusion_pytorch_model", "model", "pytorch_model"))
    return not usual, file.name.count("."), file.name
