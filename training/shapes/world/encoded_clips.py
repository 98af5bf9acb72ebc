"""The training clips, encoded once: latents, sprite masks and captions."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file
from torch import Tensor

from training.checkpoints import save_weights
from training.shapes.world.scenes import (
    SCENES,
    TEMPLATES,
    TRAIN_SCENES,
    Defects,
    corrupt_clip,
    draw_background,
    draw_caption,
    draw_clip,
)
from turbo.networks.vae import encode_frames

CAPTIONS = tuple(scene.caption(template) for scene in SCENES for template in TEMPLATES)
CELL = 4  # pixels per latent


@dataclass(frozen=True)
class EncodedClips:
    """Training clips as the UNet is trained on them."""

    latents: Float[Tensor, "N C F h w"]  # float16, unit variance
    sprite: Bool[Tensor, "N F h w"]  # whether a latent shows the sprite
    caption: Int[Tensor, " N"]  # index into CAPTIONS

    def __len__(self) -> int:
        return len(self.caption)

    def to(self, device: torch.device) -> "EncodedClips":
        return EncodedClips(**{name: tensor.to(device) for name, tensor in vars(self).items()})


@torch.no_grad()
def encode_clips(vae: AutoencoderKL, count: int, seed: int, path: Path) -> EncodedClips:
    """Draw and encode `count` clips of training scenes, or read them from `path`.

    Raises:
        ValueError: the file has another number of clips.
    """
    if path.exists():
        stored = EncodedClips(**load_file(path))
        if len(stored) != count:
            raise ValueError(
                f"{path} has {len(stored)} clips, not {count}. Delete it, or ask for as many."
            )
        return stored
    rng = np.random.default_rng(seed)
    defects = Defects()
    index = {caption: i for i, caption in enumerate(CAPTIONS)}
    pixels, sprites, captions = [], [], []
    for _ in range(count):
        scene = TRAIN_SCENES[rng.integers(len(TRAIN_SCENES))]
        clean = draw_clip(scene, rng)
        changed = (clean != draw_background(scene.background)).any(axis=-1)
        sprites.append(reduce(changed, "F (h a) (w b) -> F h w", "max", a=CELL, b=CELL))
        pixels.append(torch.from_numpy(corrupt_clip(clean, defects, rng)))
        captions.append(index[draw_caption(scene, defects, rng)])
    chunk = 8 if vae.device.type == "cpu" else 1024
    latents = []
    for part in torch.stack(pixels).split(64):
        frames = rearrange(part.to(vae.device) / 255, "B F H W C -> B F C H W")
        latents.append(encode_frames(vae, frames, chunk=chunk).half().cpu())
    clips = EncodedClips(
        torch.cat(latents).contiguous(), torch.from_numpy(np.stack(sprites)), torch.tensor(captions)
    )
    save_weights(path, vars(clips))
    return clips
