"""Temporal flickering, the one dimension of VBench that needs no network."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from turbo.video import load_video


def temporal_flickering(frames: UInt8[np.ndarray, "F H W 3"]) -> float:
    """Return 1 minus the mean absolute difference of neighbouring frames, in units of 255.

    Meant for still scenes: motion lowers it, too. 1 is a still image.

    Source: VBench, arXiv:2311.17982, section 3.2; `vbench/temporal_flickering.py`.
    """
    if len(frames) < 2:
        raise ValueError(f"Expected at least two frames, got {len(frames)}.")
    pairs = zip(frames[:-1].astype(np.float32), frames[1:].astype(np.float32), strict=True)
    return 1 - float(np.mean([np.abs(after - before).mean() for before, after in pairs])) / 255


def score_clips(paths: list[Path]) -> tuple[float, list[dict[str, object]]]:
    """Return the mean score and the score of each clip, in the public package's format."""
    scores = [temporal_flickering(load_video(path).frames) for path in paths]
    videos = [
        {"video_path": str(path), "video_results": score}
        for path, score in zip(paths, scores, strict=True)
    ]
    return float(np.mean(scores)), videos
