"""Metrics of image and motion quality that do not depend on the prompt."""

import numpy as np
from jaxtyping import Bool, Float, UInt8

from training.shapes.evaluation.probes import (
    SHOWN_PIXELS,
    SPRITE_DISTANCE,
    match_silhouettes,
    split_sprite,
)

Clip = UInt8[np.ndarray, "F H W 3"]


def flicker(clip: Clip) -> float:
    """Return the mean change of the background from frame to frame, in 0..255.

    A pixel counts in frames where it and its successor are near its median over time, which leaves
    out the sprite. A clean clip has 0, or up to 0.2 where dark eyes pass over a dark background.
    """
    pixels = clip.astype(np.float32)
    near = np.linalg.norm(pixels - np.median(pixels, axis=0), axis=-1) < SPRITE_DISTANCE
    change = np.abs(np.diff(pixels, axis=0)).mean(axis=-1)
    at_rest = near[1:] & near[:-1]
    return float(change[at_rest].mean()) if at_rest.any() else 0.0


def frame_change(clip: Clip) -> float:
    """Return the mean change of all pixels from frame to frame, in 0..255: motion and flicker."""
    return float(np.abs(np.diff(clip.astype(np.float32), axis=0)).mean())


def find_sprite(clip: Clip) -> Bool[np.ndarray, "F H W"]:
    """Return which pixels show the sprite; none in frames, or in a clip, without one."""
    _, _, mask = split_sprite(clip)
    return mask & (mask.sum(axis=(1, 2), keepdims=True) >= SHOWN_PIXELS)


def sprite_row(clip: Clip) -> float | None:
    """Return the mean row of the sprite's pixels, from the top; None if no frame shows one."""
    rows = find_sprite(clip).nonzero()[1]
    return float(rows.mean()) if len(rows) else None


def displacement(clip: Clip) -> float:
    """Return the mean displacement of the sprite per frame, in pixels; 0 if no sprite is found.

    The sprite is tracked by the silhouette that matches best, even if it matches badly.
    """
    mask = find_sprite(clip)
    shown = mask.sum(axis=(1, 2)) > 0
    both = shown[1:] & shown[:-1]
    if not both.any():
        return 0.0
    overlap, corners = match_silhouettes(mask)
    track = corners[:, overlap[shown].mean(axis=0).argmax()]
    return float(np.linalg.norm(np.diff(track, axis=0), axis=1)[both].mean())


def frechet_distance(
    features: Float[np.ndarray, "N D"], reference: Float[np.ndarray, "M D"], ridge: float = 1e-3
) -> float:
    """Return the Fréchet distance of two sets of features, modelled as normal distributions.

        |m1 - m2|^2 + trace(C1 + C2 - 2 (C1 C2)^(1/2))

    Args:
        ridge: added to the diagonal of both covariances, as a share of the mean variance of the
            reference. It keeps the square root stable in directions without variance.

    Two samples of one distribution have a distance above 0. Report this floor beside the number.

    Source: Heusel et al. (2017), arXiv:1706.08500, Eq. 6; with another feature extractor.
    """
    if min(len(features), len(reference)) < 2:
        raise ValueError(
            f"Expected at least two clips on each side, got {len(features)} and {len(reference)}."
        )
    ours, theirs = (np.cov(side, rowvar=False) for side in (features, reference))
    loading = ridge * np.trace(theirs) / len(theirs) * np.eye(len(theirs))
    ours, theirs = ours + loading, theirs + loading
    values, vectors = np.linalg.eigh(ours)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ theirs @ root).clip(0)).sum()
    apart = features.mean(axis=0) - reference.mean(axis=0)
    return float(apart @ apart + np.trace(ours) + np.trace(theirs) - 2 * cross)
