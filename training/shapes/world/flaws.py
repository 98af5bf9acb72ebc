"""Flaws of clips, and pairs of clips of which one has one more flaw: training data of the judge.

The flaws are those of few-step video models, not only those of the training data. Some are made by
decoding corrupted latents, so that they look like errors of a network.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from einops import rearrange
from jaxtyping import UInt8
from numpy.random import Generator
from safetensors.torch import load_file
from scipy.ndimage import uniform_filter
from torch.nn.functional import avg_pool3d

from training.checkpoints import save_weights
from training.shapes.world.scenes import (
    FRAMES,
    WORDS,
    Defects,
    Scene,
    corrupt_clip,
    draw_background,
    draw_clip,
    reword,
)
from turbo.networks.vae import decode_latents, encode_frames
from turbo.types import Latents

Clip = UInt8[np.ndarray, "F H W 3"]
WRONG = tuple(f"wrong {attribute}" for attribute in WORDS)
CLEAN = Defects(watermark=0, washed_out=0, noise=0, wrong_caption=0)


def _to_uint8(pixels: np.ndarray) -> Clip:
    return pixels.clip(0, 255).round().astype(np.uint8)


def _watermark(clip: Clip, scene: Scene, rng: Generator) -> Clip:
    return corrupt_clip(clip, replace(CLEAN, watermark=1), rng)


def _wash_out(clip: Clip, scene: Scene, rng: Generator) -> Clip:
    share, grey = rng.uniform(0.35, 0.75), rng.uniform(110, 200)
    return _to_uint8(share * clip.astype(np.float32) + (1 - share) * grey)


def _add_noise(clip: Clip, scene: Scene, rng: Generator) -> Clip:
    return _to_uint8(clip + rng.normal(0, rng.uniform(10, 30), clip.shape))


def _blur(clip: Clip, scene: Scene, rng: Generator) -> Clip:
    soft = uniform_filter(clip.astype(np.float32), size=(1, 3, 3, 1), mode="nearest")
    share = rng.uniform(0.6, 1)
    return _to_uint8(share * soft + (1 - share) * clip)


def _flicker(clip: Clip, scene: Scene, rng: Generator) -> Clip:
    return _to_uint8(clip + rng.normal(0, rng.uniform(8, 25), (FRAMES, 1, 1, 1)))


def _oversaturate(clip: Clip, scene: Scene, rng: Generator) -> Clip:
    grey = clip.mean(axis=-1, keepdims=True)
    return _to_uint8(grey + rng.uniform(1.5, 2.5) * (clip - grey) + rng.uniform(-40, 40))


def _punch_holes(clip: Clip, scene: Scene, rng: Generator) -> Clip:
    ground = draw_background(scene.background)
    away = (np.abs(clip.astype(int) - ground).max(axis=-1) > 30) & (
        rng.random(clip.shape[:3]) < 0.3
    )
    return np.where(away[..., None], ground, clip)


def _freeze(clip: Clip, scene: Scene, rng: Generator) -> Clip:
    first = rng.integers(0, 6)
    return np.concatenate([clip[:first], np.repeat(clip[first : first + 1], FRAMES - first, 0)])


def _shuffle(clip: Clip, scene: Scene, rng: Generator) -> Clip:
    return clip[rng.permutation(FRAMES)]


def _shake(clip: Clip, scene: Scene, rng: Generator) -> Clip:
    offsets = rng.integers(-2, 3, size=(FRAMES, 2))
    return np.stack([np.roll(f, tuple(o), axis=(0, 1)) for f, o in zip(clip, offsets, strict=True)])


def _vanish(clip: Clip, scene: Scene, rng: Generator) -> Clip:
    length = rng.integers(4, 11)
    first = rng.integers(0, FRAMES - length + 1)
    gone = clip.copy()
    gone[first : first + length] = draw_background(scene.background)
    return gone


def _morph(clip: Clip, scene: Scene, rng: Generator) -> Clip:
    return _change(scene, "shape", rng)


def _drift(clip: Clip, scene: Scene, rng: Generator) -> Clip:
    return _change(scene, "colour", rng)


def _change(scene: Scene, attribute: str, rng: Generator) -> Clip:
    """Draw a clip whose sprite changes one attribute within a few frames."""
    other = reword(scene, attribute, rng)
    seed = rng.integers(2**32)  # the same track for both
    before, after = (draw_clip(s, np.random.default_rng(seed)) for s in (scene, other))
    middle, length = rng.uniform(4, 11), rng.uniform(1, 6)
    share = ((np.arange(FRAMES) - middle) / length + 0.5).clip(0, 1)[:, None, None, None]
    return _to_uint8((1 - share) * before + share * after)


CorruptClip = Callable[[Clip, Scene, Generator], Clip]
PIXEL_FLAWS: dict[str, CorruptClip] = {
    "watermark": _watermark,
    "washed out": _wash_out,
    "noise": _add_noise,
    "blur": _blur,
    "flicker": _flicker,
    "oversaturated": _oversaturate,
    "holes": _punch_holes,
    "frozen": _freeze,
    "shuffled": _shuffle,
    "shaking": _shake,
    "vanishing": _vanish,
    "morphing": _morph,
    "colour drift": _drift,
}
SHARED_FLAWS = ("watermark", "washed out", "noise", "blur")  # both clips of a pair may have one
INVISIBLE_WHEN_STILL = ("frozen", "shuffled")


def _latent_noise(latents: Latents, other: Latents, generator: torch.Generator) -> Latents:
    strength = torch.empty(()).uniform_(0.35, 1.0, generator=generator)
    return latents + strength * torch.randn(latents.shape, generator=generator)


def _latent_smear(latents: Latents, other: Latents, generator: torch.Generator) -> Latents:
    share = torch.empty(()).uniform_(0.5, 1.0, generator=generator)
    return latents.lerp(avg_pool3d(latents, (1, 3, 3), 1, (0, 1, 1), False, False), share)


def _latent_trail(latents: Latents, other: Latents, generator: torch.Generator) -> Latents:
    return avg_pool3d(latents, (5, 1, 1), 1, (2, 0, 0), False, False)


def _latent_blend(latents: Latents, other: Latents, generator: torch.Generator) -> Latents:
    return latents.lerp(other, torch.empty(()).uniform_(0.25, 0.5, generator=generator))


def _latent_patches(latents: Latents, other: Latents, generator: torch.Generator) -> Latents:
    _, _, frames, height, width = latents.shape
    still = bool(torch.rand((), generator=generator) < 0.5)  # the same patches in every frame
    chance = torch.rand((1, 1, 1 if still else frames, height, width), generator=generator)
    return torch.where(chance < 0.12, other, latents)


def _latent_pattern(latents: Latents, other: Latents, generator: torch.Generator) -> Latents:
    strength = torch.empty(()).uniform_(0.5, 1.2, generator=generator)
    return latents + strength * torch.randn(latents[:, :, :1].shape, generator=generator)


CorruptLatents = Callable[[Latents, Latents, torch.Generator], Latents]
LATENT_FLAWS: dict[str, CorruptLatents] = {
    "grainy blobs": _latent_noise,
    "soft shapes": _latent_smear,
    "trails": _latent_trail,
    "two clips in one": _latent_blend,
    "patches": _latent_patches,
    "static pattern": _latent_pattern,
}
KINDS = (*WRONG, *PIXEL_FLAWS, *LATENT_FLAWS)


@dataclass(frozen=True)
class Bank:
    """For every scene, a clip reconstructed by the VAE and two decoded from corrupted latents."""

    reconstructed: UInt8[torch.Tensor, "N F H W 3"]
    corrupted: UInt8[torch.Tensor, "N two F H W 3"]
    flaw: torch.Tensor  # (N, two) index into LATENT_FLAWS


@torch.inference_mode()
def draw_bank(
    vae: AutoencoderKL, scenes: Sequence[Scene], seed: int, path: Path | None = None
) -> Bank:
    """Draw every scene once and pass it through the VAE: about 0.1 s per scene on one core.

    Args:
        path: where the bank is stored. If the file exists, it is read and `seed` is ignored.
    """
    if path is not None and path.exists():
        return Bank(**load_file(path))
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    clips = np.stack([draw_clip(scene, rng) for scene in scenes])
    frames = rearrange(torch.from_numpy(clips), "N F H W rgb -> N F rgb H W")
    parts = ((part / 255).to(vae.device) for part in frames.split(8))
    latents = torch.cat([encode_frames(vae, part).cpu() for part in parts])
    flaw = torch.from_numpy(rng.integers(0, len(LATENT_FLAWS), (len(scenes), 2)))
    reconstructed, corrupted = [], []
    for row, kinds in enumerate(flaw.tolist()):
        other_row = (row + int(rng.integers(1, len(scenes)))) % len(scenes)
        clean, other = latents[row : row + 1], latents[other_row : other_row + 1]
        wrong = [list(LATENT_FLAWS.values())[kind](clean, other, generator) for kind in kinds]
        decoded = 255 * decode_latents(vae, torch.cat([clean, *wrong]).to(vae.device))
        pixels = rearrange(decoded.round().byte().cpu(), "N F rgb H W -> N F H W rgb")
        reconstructed.append(pixels[0])
        corrupted.append(pixels[1:])
    bank = Bank(torch.stack(reconstructed), torch.stack(corrupted), flaw)
    if path is not None:
        save_weights(path, vars(bank))
    return bank


@dataclass(frozen=True)
class Pair:
    """Two clips of one scene. `worse` has one more flaw, named by `kind`."""

    scene: Scene
    better: Clip
    worse: Clip
    kind: str
    shared: str | None  # a flaw of both clips


class PairSource:
    """Draws pairs of clips of the given scenes only."""

    def __init__(self, scenes: Sequence[Scene], bank: Bank) -> None:
        if len(scenes) != len(bank.reconstructed):
            raise ValueError(
                f"Expected a bank of {len(scenes)} scenes, got {len(bank.reconstructed)}. "
                "Draw it from the same scenes."
            )
        self.scenes, self.bank = tuple(scenes), bank
        self.rows = {scene: row for row, scene in enumerate(scenes)}

    def draw(self, rng: Generator) -> Pair:
        """Draw a pair. A quarter of the flaws are wrong attributes, a quarter corrupted latents."""
        while True:  # draw again if the scene cannot have the flaw
            row = int(rng.integers(len(self.scenes)))
            scene = self.scenes[row]
            family = rng.choice(3, p=(1 / 4, 1 / 2, 1 / 4))
            if family == 0:
                attribute = str(rng.choice(list(WORDS)))
                others = self._neighbours(scene, attribute)
                if others:
                    other = others[rng.integers(len(others))]
                    return self._finish(scene, self._clean(other, rng), f"wrong {attribute}", rng)
            elif family == 1:
                kind = str(rng.choice(list(PIXEL_FLAWS)))
                if not (scene.motion == "standing still" and kind in INVISIBLE_WHEN_STILL):
                    corrupted = PIXEL_FLAWS[kind](self._clean(scene, rng), scene, rng)
                    return self._finish(scene, corrupted, kind, rng)
            else:
                column = int(rng.integers(2))
                kind = list(LATENT_FLAWS)[int(self.bank.flaw[row, column])]
                if not (scene.motion == "standing still" and kind == "trails"):
                    return self._finish(scene, self.bank.corrupted[row, column].numpy(), kind, rng)

    def _clean(self, scene: Scene, rng: Generator) -> Clip:
        """Draw the scene or take its reconstruction, so that VAE errors do not count as a flaw."""
        if rng.random() < 0.4:
            return self.bank.reconstructed[self.rows[scene]].numpy()
        return draw_clip(scene, rng)

    def _neighbours(self, scene: Scene, attribute: str) -> list[Scene]:
        others = (replace(scene, **{attribute: word}) for word in WORDS[attribute])
        return [other for other in others if other in self.rows and other != scene]

    def _finish(self, scene: Scene, worse: Clip, kind: str, rng: Generator) -> Pair:
        better, shared = self._clean(scene, rng), None
        if rng.random() < 0.25:
            shared = str(rng.choice([name for name in SHARED_FLAWS if name != kind]))
            better = PIXEL_FLAWS[shared](better, scene, rng)
            worse = PIXEL_FLAWS[shared](worse, scene, rng)
        return Pair(scene, better, worse, kind, shared)


assert tuple(WORDS) == tuple(field.name for field in fields(Scene))
