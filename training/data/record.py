"""Record the teacher's outputs for training clips: what makes T2V-Turbo-v2's motion affordable.

Noise and timestep of a clip are drawn once, here; training draws only the guidance scale.

Source: T2V-Turbo-v2, arXiv:2410.05677, section 4, and its released code.
"""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from torch import Tensor

from training.build import build_motion, load_teacher, teacher_card
from training.config import Config
from training.data.job import Place, run_job
from training.data.shards import DatasetSettings
from training.data.source import (
    RECORDED,
    PreparedClip,
    PreparedClips,
    describe_clips,
    describe_record,
    encode,
    hash_captions,
    open_clips,
)
from training.data.video_folder import Clip
from turbo.diffusion.distillation import DistillationBatch, SolverGrid, draw_batch
from turbo.diffusion.teacher_cache import record_teacher
from turbo.pipeline import fixed_threads

DRAWS = 3  # separates the draws of a record from those of order and windows


def record(
    config: Config,
    folder: Path,
    accelerator: Accelerator,
    *,
    passes: int = 1,
    clips_per_shard: int = 16,
) -> dict[str, str]:
    """Write the teacher's outputs for the configured clips to a folder that `data.record` can name.

    They are kept in float32, or in float16 where the configuration computes in half precision, as
    in the published code. `run.micro_batch` clips are computed together.

    Args:
        passes: draws of noise and timestep per video; a run shows one per epoch, in turn.

    Returns:
        the unusable videos, and why they are not used.

    Raises:
        ValueError: as for `prepare`.
        FloatingPointError: the teacher's outputs are not finite.
    """
    with accelerator.main_process_first():  # it writes tiny models
        card = teacher_card(config)
    clips_of = open_clips(config, card)
    pipeline = load_teacher(card, config, accelerator.device)
    videos = None if isinstance(clips_of, PreparedClips) else Path(config.data.folder)
    if isinstance(clips_of, PreparedClips):
        clips_of.check_weights(pipeline.weights_sha256)
    teacher, vae = pipeline.unet.eval().requires_grad_(False), pipeline.vae
    if not isinstance(vae, AutoencoderKL):
        raise ValueError(
            f"The clips of {card.title} cannot be encoded before training. Name the folder of "
            "videos in data.folder."
        )
    if config.run.recompute:
        teacher.enable_gradient_checkpointing()
    motion = build_motion(config, pipeline.schedule, teacher)
    grid, seed = SolverGrid(config.teacher.grid_steps), config.run.seed
    dtype = torch.float16 if config.run.precision == "bf16" else torch.float32
    settings = DatasetSettings(
        kind="teacher",
        weights_sha256=pipeline.weights_sha256,
        seed=seed,
        passes=passes,
        videos=len(clips_of),
        captions_sha256=hash_captions(clips_of.captions, videos),
        clips_per_shard=clips_per_shard,
        dtype=str(dtype).removeprefix("torch."),
        record=describe_record(config),
        **describe_clips(config, card),
    )

    def draw(place: Place, clip: Clip | PreparedClip) -> DistillationBatch:
        """Draw what depends on the clip alone, not on those beside it."""
        state = np.random.SeedSequence([seed, DRAWS, *place]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(state[0]) >> 1)
        encoded = encode(
            [clip],
            generator,
            config.data,
            vae,
            pipeline.text_encoder,
            accelerator.device,
            takes_fps=teacher.takes_fps,
        )
        return draw_batch(
            encoded.latents,
            encoded.prompt_embeds,
            encoded.uncond_embeds,
            torch.zeros(1),  # a record has no guidance scale
            grid=grid,
            generator=generator,
            fps=encoded.fps,
        )

    def compute(places: Sequence[Place], clips: Sequence[Clip | PreparedClip]) -> dict[str, Tensor]:
        batch = concatenate([draw(place, clip) for place, clip in zip(places, clips, strict=True)])
        energy, guided = None, None
        if motion is not None:
            energy = motion.energy
            flags = torch.tensor([clip.motion for clip in clips], device=batch.start.device)
            guided = motion.strength_at(batch.start, len(pipeline.schedule), flags) > 0
        found = record_teacher(teacher, pipeline.schedule, batch, energy, guided)
        kept = {name: getattr(found, name).to(dtype).cpu() for name in RECORDED}
        for name, tensor in kept.items():
            if not tensor.isfinite().all():
                raise FloatingPointError(
                    f"The teacher's outputs ({name}) are not finite for one of these videos: "
                    f"{', '.join(clip.text for clip in clips)}. Try run.precision=no."
                )
        return kept | {"start": found.start.cpu(), "end": found.end.cpu()}

    with fixed_threads(card, accelerator.device):
        return run_job(
            folder,
            settings,
            clips_of,
            compute,
            accelerator,
            config.data,
            batch=config.run.micro_batch,
        )


def concatenate(batches: Sequence[DistillationBatch]) -> DistillationBatch:
    """Return one batch of all videos."""

    def join(name: str) -> Any:
        kept = [getattr(batch, name) for batch in batches]
        return None if kept[0] is None else torch.cat(kept)

    return DistillationBatch(**{field.name: join(field.name) for field in fields(batches[0])})
