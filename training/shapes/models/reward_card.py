"""What the reward models can tell apart, measured on combinations no model was trained on."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from training.shapes.models.rewards import (
    FLAWS,
    SEEN_IN_A_FRAME,
    break_motion,
    draw_frame_pair,
    draw_half_clip,
    reword,
    to_images,
    to_videos,
)
from training.shapes.models.text import ATTRIBUTES
from training.shapes.world.world import HELD_OUT_SCENES
from turbo.rewards import ImageTextReward, VideoTextReward

ROUNDS = 2  # draws of every held-out combination


@torch.no_grad()
def measure_image_reward(reward: ImageTextReward) -> pd.Series:
    """Return, per wrong word and per flaw, how often the better of two scores more, in [0, 1]."""
    rng = np.random.default_rng(21)
    won: dict[str, list[bool]] = {}
    for scene in HELD_OUT_SCENES * ROUNDS:
        pairs = {flaw: draw_frame_pair(scene, rng, flaw) for flaw in FLAWS}
        if not all(shown for *_, shown in pairs.values()):
            continue  # a blink
        good = to_images(np.stack([pair[0] for pair in pairs.values()]))
        bad = to_images(np.stack([pair[1] for pair in pairs.values()]))
        own = reward(torch.cat([good, bad])[:, None], [scene.caption()] * 2 * len(FLAWS))
        for flaw, better in zip(FLAWS, (own[: len(FLAWS)] > own[len(FLAWS) :]), strict=True):
            won.setdefault(f"flaw: {flaw}", []).append(bool(better))
        for name in SEEN_IN_A_FRAME:
            other = reward(good[:1, None], [reword(scene, name, rng).caption()])
            won.setdefault(f"wrong {name}", []).append(bool(own[0] > other))
    return pd.Series({name: float(np.mean(wins)) for name, wins in won.items()})


@torch.no_grad()
def measure_video_reward(reward: VideoTextReward) -> pd.Series:
    """Return, per wrong word and for broken motion, how often the better of two scores more."""
    rng = np.random.default_rng(22)
    won: dict[str, list[bool]] = {}
    for scene in HELD_OUT_SCENES * ROUNDS:
        clip = draw_half_clip(scene, rng)
        prompts = [scene.caption(), *(reword(scene, name, rng).caption() for name in ATTRIBUTES)]
        own, *others = reward(to_videos(clip[None]).expand(len(prompts), -1, -1, -1, -1), prompts)
        for name, other in zip(ATTRIBUTES, others, strict=True):
            won.setdefault(f"wrong {name}", []).append(bool(own > other))
        if scene.motion != "standing still":
            broken = reward(to_videos(break_motion(clip, rng)[None]), prompts[:1])
            won.setdefault("flaw: frozen or shuffled", []).append(bool(own > broken))
    return pd.Series({name: float(np.mean(wins)) for name, wins in won.items()})


def write_reward_card(image: ImageTextReward, video: VideoTextReward, folder: Path) -> None:
    """Write the card of both reward models beside their weights."""
    table = pd.DataFrame(
        {"image-text": measure_image_reward(image), "video-text": measure_video_reward(video)}
    )
    count = len(HELD_OUT_SCENES) * ROUNDS
    shown = (100 * table).round(1).astype(object).where(table.notna(), None).to_markdown()
    (folder / "README.md").write_text(_CARD.format(count=count, table=shown))


_CARD = """# Reward models of the shapes world

Trained by `python -m training.shapes rewards` (`training/shapes/models/rewards.py`) for
distillation with reward feedback (`turbo/rewards/`). They are small counterparts of HPSv2.1 and of
ViCLIP: the same classes load those.

- `image/`: a CLIP (`transformers.CLIPModel`) that scores a frame against a caption. Trained on the
  right caption against captions wrong in one word, and on clean frames against flawed ones.
- `video/`: a ViCLIP that scores every other frame of a clip against a caption. Trained on the right
  caption against captions wrong in one word, and on clips against the same frozen or shuffled.

Trained on every other trained-on combination. Share of pairs, in per cent, in which the better one
scores more, on {count} clips of combinations no model was trained on:

{table}

They know this world only, and a student that is rewarded too much learns to please them rather
than people. Licence: Apache-2.0.
"""
