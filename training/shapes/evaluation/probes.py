"""Analytic probes: read the attributes of a clip from its pixels, without a network.

A probe returns None if nothing matches, such as a blob for a shape or jitter for a motion. Forced
choices would count some of these as correct by chance. The price is that a few good clips are
rejected.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import reduce
from jaxtyping import Bool, Float
from torch.nn.functional import conv2d

from training.shapes.world.scenes import (
    BACKGROUNDS,
    COLOURS,
    FRAMES,
    REACH,
    SIZE,
    SPRITE,
    SPRITES,
    WASH_OUT,
    WASH_OUT_GREY,
    WATERMARK,
    WATERMARK_AT,
    WATERMARK_GREY,
    Scene,
    draw_background,
)
from turbo.video import load_video

SCENE_ERROR = 28.0  # largest median error of the background, in 0..255 per channel
SPRITE_DISTANCE = 60.0  # pixels further from the background belong to the sprite
COLOUR_DISTANCE = 65.0  # largest distance of the sprite's median colour to its palette entry
SHAPE_OVERLAP = 0.72  # smallest intersection over union with the sprite's silhouette
SHOWN_PIXELS = 20  # smallest number of sprite pixels in a frame that shows one

_SILHOUETTES = torch.from_numpy(
    np.stack([bitmap != "." for bitmap in SPRITES.values()]).astype(np.float32)
)


@dataclass(frozen=True)
class Reading:
    """The attributes that the probes read; None where nothing matches."""

    colour: str | None
    shape: str | None
    motion: str | None
    background: str | None
    washed_out: bool = False  # a flaw of the image, not of the colour: a pale red is red

    def matches(self, scene: Scene) -> dict[str, bool]:
        """Return, per attribute and for "all" of them, whether the clip matches the scene."""
        hits = {name: getattr(self, name) == word for name, word in vars(scene).items()}
        return hits | {"all": all(hits.values())}


def read_shapes(file: Path) -> np.ndarray:
    """Read a clip in the size of the world, uint8 (F, SIZE, SIZE, 3).

    Raises:
        ValueError: it is not a clip of the shapes world.
    """
    frames = load_video(file).frames.astype(np.float32)
    height, width = frames.shape[1:3]
    if height != width or height % SIZE:
        raise ValueError(
            f"{file}: expected a square clip of a multiple of {SIZE} pixels, as the shapes models "
            f"make, got {width} x {height}. Choose their clips."
        )
    enlarged = height // SIZE
    small = reduce(frames, "F (H y) (W x) rgb -> F H W rgb", "mean", y=enlarged, x=enlarged)
    return small.round().astype(np.uint8)


def read_clip(clip: np.ndarray) -> Reading:
    """Read the attributes of a clip, uint8 (FRAMES, SIZE, SIZE, 3)."""
    background, plain, mask = split_sprite(clip)
    washed_out = plain is not clip
    shown = mask.sum(axis=(1, 2)) >= SHOWN_PIXELS
    if not shown.any():
        return Reading(None, None, None, background, washed_out)
    overlap, corners = match_silhouettes(mask)
    mean_overlap = overlap[shown].mean(axis=0)
    best = int(mean_overlap.argmax())
    shape = list(SPRITES)[best] if mean_overlap[best] >= SHAPE_OVERLAP else None
    colour = read_colour(plain[shown], corners[shown, best], list(SPRITES)[best])
    motion = read_motion(corners[:, best], shown)
    return Reading(colour, shape, motion, background, washed_out)


def split_sprite(clip: np.ndarray) -> tuple[str | None, np.ndarray, Bool[np.ndarray, "F H W"]]:
    """Return the background, the clip without a wash-out, and its pixels far from the background.

    Without a background these are the clip as it is, and no pixels.
    """
    plain, background = clip, read_background(clip)
    if background is None:
        plain = undo_wash_out(clip)
        background = read_background(plain)
    if background is None:
        return None, clip, np.zeros(clip.shape[:3], dtype=bool)
    away = np.linalg.norm(plain.astype(np.float32) - draw_background(background), axis=-1)
    return background, plain, away > SPRITE_DISTANCE


def undo_wash_out(clip: np.ndarray) -> np.ndarray:
    """Invert the wash-out defect: x = (y - (1 - c) grey) / c with contrast c."""
    pixels = (clip.astype(np.float32) - (1 - WASH_OUT) * WASH_OUT_GREY) / WASH_OUT
    return pixels.clip(0, 255).astype(np.uint8)


def read_background(clip: np.ndarray) -> str | None:
    """Return the background with the smallest median error, if that is small enough."""
    errors = {
        name: float(np.median(np.abs(clip.astype(np.float32) - draw_background(name)).max(axis=-1)))
        + float(np.median(_ground_error(clip, name)))
        for name in BACKGROUNDS
    }
    name = min(errors, key=lambda key: errors[key])
    return name if errors[name] < 2 * SCENE_ERROR else None


def _ground_error(clip: np.ndarray, name: str) -> np.ndarray:
    """Return the error in the bottom strip, where the meadow and the desert have a ground."""
    return np.abs(clip[:, -5:].astype(np.float32) - draw_background(name)[-5:]).max(axis=-1)


def match_silhouettes(mask: Bool[np.ndarray, "F H W"]) -> tuple[np.ndarray, np.ndarray]:
    """Match every sprite's silhouette with every frame, at every position.

    Returns:
        the best intersection over union (F, sprites), and the top left corner where it is reached
        (F, sprites, 2) as (row, column).
    """
    pixels = torch.from_numpy(mask.astype(np.float32))[:, None]
    kernels = _SILHOUETTES[:, None]
    intersection = conv2d(pixels, kernels)  # F sprites REACH+1 REACH+1
    union = pixels.sum(dim=(2, 3), keepdim=True) + kernels.sum(dim=(1, 2, 3))[None, :, None, None]
    ratio = (intersection / (union - intersection)).flatten(2)
    overlap, where = ratio.max(dim=2)
    corners = torch.stack([where // (REACH + 1), where % (REACH + 1)], dim=-1)
    return overlap.numpy(), corners.numpy()


def read_colour(frames: np.ndarray, corners: np.ndarray, shape: str) -> str | None:
    """Return the colour nearest to the median pixel of the sprite's body, if it is near enough."""
    body = SPRITES[shape] == "#"
    pixels = np.concatenate(
        [
            frame[row : row + SPRITE, column : column + SPRITE][body]
            for frame, (row, column) in zip(frames, corners, strict=True)
        ]
    )
    median = np.median(pixels, axis=0)
    distance = {name: np.linalg.norm(median - rgb) for name, rgb in COLOURS.items()}
    name = min(distance, key=lambda key: distance[key])
    return name if distance[name] < COLOUR_DISTANCE else None


def read_motion(corners: np.ndarray, shown: np.ndarray) -> str | None:
    """Return the motion of a track: corners (FRAMES, 2) as (row, column), shown (FRAMES,).

    A direction needs steady movement, jumping two hops in place, circling a round track. Jitter
    matches none of them.
    """
    track = corners[shown].astype(np.float32)
    still = bool((np.ptp(track, axis=0) <= 2).all())
    switches = int((shown[1:] != shown[:-1]).sum())
    if not shown.all():
        blinks = switches >= 2 and 4 <= shown.sum() <= 12
        return "blinking" if blinks and still else None
    if still:
        return "standing still"
    for name, axis, sign in (
        ("moving up", 0, -1),
        ("moving down", 0, 1),
        ("moving left", 1, -1),
        ("moving right", 1, 1),
    ):
        if _is_run(sign * track[:, axis]) and np.ptp(track[:, 1 - axis]) <= 3:
            return name
    if _is_jump(track):
        return "jumping"
    return "circling" if _is_circle(track) else None


def _is_run(along: Float[np.ndarray, " F"]) -> bool:
    """Return whether a coordinate grows by at least 9 pixels, steadily."""
    steps = np.diff(along)
    return bool(along[-1] - along[0] >= 9 and steps.min() >= -2 and steps.max() <= 5)


def _is_jump(track: Float[np.ndarray, "F 2"]) -> bool:
    """Return whether the sprite leaves the ground twice and stays in its column."""
    height = track[:, 0].max() - track[:, 0]
    up = height > height.max() / 2
    hops = int((np.diff(up.astype(int)) == 1).sum()) + int(up[0])
    return bool(np.ptp(track[:, 1]) <= 3 and height.max() >= 7 and hops == 2)


def _is_circle(track: Float[np.ndarray, "F 2"]) -> bool:
    """Return whether the track keeps its radius and turns by at least 270 degrees."""
    centre = (track.max(axis=0) + track.min(axis=0)) / 2
    arm = track - centre
    radius = np.linalg.norm(arm, axis=1)
    turns = np.unwrap(np.arctan2(arm[:, 0], arm[:, 1]))
    return bool(
        radius.mean() >= 4
        and np.abs(radius - radius.mean()).max() <= 3
        and abs(turns[-1] - turns[0]) >= 1.5 * np.pi
        and np.abs(np.diff(turns)).max() <= 1.6
    )


def has_watermark(clip: np.ndarray) -> bool:
    """Return whether the watermark is visible: strokes much nearer to its grey than gaps."""
    row, column = WATERMARK_AT
    height, width = WATERMARK.shape
    window = clip[:, row : row + height, column : column + width].astype(np.float32)
    distance = np.abs(window - WATERMARK_GREY).mean(axis=(0, 3))
    return bool(distance[WATERMARK == "#"].mean() < 0.65 * distance[WATERMARK != "#"].mean())


def sharpness(clip: np.ndarray) -> float:
    """Return the mean absolute difference of neighbouring pixels, in 0..255."""
    pixels = clip.astype(np.float32)
    return float(
        (np.abs(np.diff(pixels, axis=1)).mean() + np.abs(np.diff(pixels, axis=2)).mean()) / 2
    )


assert (FRAMES, SIZE) == (16, 32)  # the thresholds above were chosen for this size
