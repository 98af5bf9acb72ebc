"""A student's estimates of clean clips from noisy ones: training data of the image reward.

During distillation a reward scores such estimates. A reward that was trained on drawn clips alone
misjudges the blurred estimates at high noise and pushes them to wrong scenes.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from einops import rearrange
from jaxtyping import Int, UInt8
from safetensors.torch import load_file
from torch import Tensor

from training.checkpoints import save_weights
from training.shapes.models.student import GRID, draw_guidance
from training.shapes.models.teacher import UNET
from training.shapes.world.scenes import Scene, draw_clip
from turbo.diffusion.consistency import bind_consistency_function
from turbo.networks.text import CLIPTextEncoder
from turbo.networks.unet import VideoUNet
from turbo.networks.vae import decode_latents, encode_frames

BATCH = 8
LOW_NOISE, HIGH_NOISE = (0, 5), (8, GRID.num_steps)  # grid indices: timesteps to 249, from 449


@dataclass(frozen=True)
class StudentEstimates:
    """Estimates of the same clips from a low and from a high noise level."""

    low_noise: UInt8[Tensor, "N F H W 3"]
    high_noise: UInt8[Tensor, "N F H W 3"]
    scene: Int[Tensor, " N"]  # index into the scenes they were drawn from

    def __len__(self) -> int:
        return len(self.scene)


@torch.no_grad()
def draw_student_estimates(
    student: VideoUNet,
    vae: AutoencoderKL,
    encoder: CLIPTextEncoder,
    scenes: tuple[Scene, ...],
    count: int,
    seed: int,
    path: Path,
) -> StudentEstimates:
    """Draw clips of `scenes`, add noise and denoise in one step; or read the result from `path`."""
    if path.exists():
        return StudentEstimates(**load_file(path))
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    device, schedule = vae.device, UNET.schedule.to(vae.device)
    drawn = torch.from_numpy(rng.integers(len(scenes), size=count))
    pixels: dict[str, list[Tensor]] = {"low_noise": [], "high_noise": []}
    for rows in drawn.split(BATCH):
        batch = [scenes[row] for row in rows.tolist()]
        clips = torch.from_numpy(np.stack([draw_clip(scene, rng) for scene in batch])) / 255
        latents = encode_frames(vae, rearrange(clips, "B F H W C -> B F C H W").to(device))
        embeds = encoder.encode([scene.caption() for scene in batch])
        scale = draw_guidance(len(batch), generator).to(device)
        estimate = bind_consistency_function(student, schedule, embeds, scale)
        for level, indices in (("low_noise", LOW_NOISE), ("high_noise", HIGH_NOISE)):
            start, _ = GRID.interval(torch.randint(*indices, (len(batch),), generator=generator))
            start, noise = start.to(device), torch.randn(latents.shape, generator=generator)
            clean = estimate(schedule.add_noise(latents, noise.to(device), start), start)
            frames = rearrange(decode_latents(vae, clean), "B F C H W -> B F H W C")
            pixels[level].append((255 * frames).round().to("cpu", torch.uint8))
    estimates = StudentEstimates(
        torch.cat(pixels["low_noise"]), torch.cat(pixels["high_noise"]), drawn
    )
    save_weights(path, vars(estimates))
    return estimates
