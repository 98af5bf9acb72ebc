"""The picture of the README: what the default model makes of its example prompts, as one GIF."""

from pathlib import Path

import numpy as np
from einops import rearrange
from PIL import Image

from training.shapes.models.export import EXAMPLES
from turbo.models.registry import DEFAULT_MODEL
from turbo.pipeline import load_pipeline

COLUMNS, ENLARGE = 4, 4
MILLISECONDS = 125  # per frame, 8 frames per second


def draw_picture(path: Path, model: str = DEFAULT_MODEL, seed: int = 0) -> None:
    """Generate every example at the card's defaults and tile the clips, looping."""
    pipeline = load_pipeline(model)
    clips = np.stack([pipeline(prompt, seed=seed).frames for prompt in EXAMPLES])
    tiled = rearrange(clips, "(rows columns) F H W C -> F (rows H) (columns W) C", columns=COLUMNS)
    images = [
        Image.fromarray(frame).resize(
            (frame.shape[1] * ENLARGE, frame.shape[0] * ENLARGE), Image.Resampling.NEAREST
        )
        for frame in tiled
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    images[0].save(path, save_all=True, append_images=images[1:], duration=MILLISECONDS, loop=0)
