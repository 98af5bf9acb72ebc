"""Half-made clips: what a student, not yet rewarded, jumps to from little and from much noise.

A reward is asked about jumps like these, so it is trained on them; one that has seen drawn clips
alone misjudges the blurs of the first jump and pushes it to wrong scenes.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from einops import rearrange
from jaxtyping import Int, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.shapes.models.student import GRID, draw_guidance
from training.shapes.models.teacher import SCHEDULE
from training.shapes.world.world import Scene, draw_clip
from turbo.diffusion.consistency import bind_consistency_function
from turbo.networks.text import CLIPTextEncoder
from turbo.networks.unet import VideoUNet
from turbo.networks.vae import decode_latents, encode_frames

BATCH = 8
NEAR, FAR = (0, 5), (8, GRID.num_steps)  # ranges of the grid: timesteps up to 249, from 449


@dataclass(frozen=True)
class Jumps:
    """Clips jumped to from a little noise, and the same clips jumped to from much."""

    near: UInt8[Tensor, "N F H W 3"]
    far: UInt8[Tensor, "N F H W 3"]
    scene: Int[Tensor, " N"]  # index into the scenes they were drawn from

    def __len__(self) -> int:
        return len(self.scene)


@torch.no_grad()
def draw_jumps(
    student: VideoUNet,
    vae: AutoencoderKL,
    encoder: CLIPTextEncoder,
    scenes: tuple[Scene, ...],
    count: int,
    seed: int,
    path: Path,
) -> Jumps:
    """Draw clips of `scenes`, noise them little and much, jump; or read them from `path`."""
    if path.exists():
        return Jumps(**load_file(path))
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    drawn = torch.from_numpy(rng.integers(len(scenes), size=count))
    sides: dict[str, list[Tensor]] = {"near": [], "far": []}
    for rows in drawn.split(BATCH):
        shown = [scenes[row] for row in rows.tolist()]
        pixels = torch.from_numpy(np.stack([draw_clip(scene, rng) for scene in shown])) / 255
        latents = encode_frames(vae, rearrange(pixels, "B F H W C -> B F C H W"))
        embeds = encoder.encode([scene.caption() for scene in shown])
        scale = draw_guidance(len(shown), generator)
        jump = bind_consistency_function(student, SCHEDULE, embeds, scale)
        for side, steps in (("near", NEAR), ("far", FAR)):
            start, _ = GRID.interval(torch.randint(*steps, (len(shown),), generator=generator))
            noise = torch.randn(latents.shape, generator=generator)
            frames = decode_latents(vae, jump(SCHEDULE.add_noise(latents, noise, start), start))
            frames = rearrange(frames, "B F C H W -> B F H W C")
            sides[side].append((255 * frames).round().to(torch.uint8))
    jumps = Jumps(torch.cat(sides["near"]), torch.cat(sides["far"]), drawn)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(vars(jumps), path)
    return jumps
