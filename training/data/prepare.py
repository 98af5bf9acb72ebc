"""Decode and encode training videos once: clips as moments of the VAE's posterior, and captions."""

from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from einops import rearrange
from torch import Tensor
from torch.nn.functional import interpolate

from training.build import load_teacher, teacher_card
from training.config import Config
from training.data.job import Place, run_job
from training.data.shards import PICTURES, DatasetSettings
from training.data.source import PreparedClip, describe_clips, hash_captions, open_clips
from training.data.video_folder import Clip, VideoFolder, stack_frames
from turbo.networks.vae import encode_moments
from turbo.pipeline import fixed_threads

BATCH = 4  # clips that are encoded together
PICTURE_HEIGHT = 64


def prepare(
    config: Config,
    folder: Path,
    accelerator: Accelerator,
    *,
    passes: int = 1,
    clips_per_shard: int = 64,
) -> dict[str, str]:
    """Write the clips of the configured videos to a folder that `data.folder` can name.

    Tensors have the precision in which the teacher computes, so nothing is rounded.

    Args:
        passes: clips per video, each of another window; a run shows one per epoch, in turn.

    Returns:
        the unusable videos, and why they are not used.

    Raises:
        ValueError: the videos cannot be read, too many are unusable, or `folder` has other clips.
    """
    with accelerator.main_process_first():  # it writes tiny models
        card = teacher_card(config)
    videos = open_clips(config, card)
    if not isinstance(videos, VideoFolder):
        raise ValueError(f"{config.data.folder} is prepared already. Name a folder of videos.")
    pipeline = load_teacher(card, config, accelerator.device)
    vae = pipeline.vae
    settings = DatasetSettings(
        kind="clips",
        weights_sha256=pipeline.weights_sha256,
        seed=config.run.seed,
        passes=passes,
        videos=len(videos),
        captions_sha256=hash_captions(videos.captions, Path(config.data.folder)),
        clips_per_shard=clips_per_shard,
        dtype=str(vae.dtype).removeprefix("torch."),
        **describe_clips(config, card),
    )

    @torch.no_grad()
    def encode(places: Sequence[Place], clips: Sequence[Clip | PreparedClip]) -> dict[str, Tensor]:
        frames = stack_frames([clip for clip in clips if isinstance(clip, Clip)])
        return {
            "moments": encode_moments(vae, frames.to(accelerator.device)).cpu(),
            "prompt_embeds": pipeline.text_encoder.encode([clip.text for clip in clips]).cpu(),
            PICTURES: shrink(frames),
        }

    with fixed_threads(card, accelerator.device):
        return run_job(folder, settings, videos, encode, accelerator, config.data, batch=BATCH)


def shrink(frames: Tensor) -> Tensor:
    """Return the first, the middle and the last frame of clips, small, as bytes (B 3 h w rgb)."""
    _, count, _, height, width = frames.shape
    chosen = rearrange(frames[:, [0, count // 2, count - 1]], "B F rgb H W -> (B F) rgb H W")
    tall = min(height, PICTURE_HEIGHT)
    size = (tall, max(1, round(width * tall / height)))
    small = interpolate(chosen, size, mode="bilinear", antialias=True)
    levels = (255 * small).round().clamp(0, 255).byte()
    return rearrange(levels, "(B F) rgb h w -> B F h w rgb", F=3)
