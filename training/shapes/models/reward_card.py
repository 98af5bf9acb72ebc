"""Accuracy of the reward models on scenes that no model was trained on, and their model card."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from training.shapes.models.rewards import (
    FLAWS,
    SEEN_IN_A_FRAME,
    break_motion,
    draw_frame_pair,
    draw_half_rate_clip,
    to_tensor,
)
from training.shapes.world.scenes import HELD_OUT_SCENES, WORDS, reword
from turbo.rewards.image_text import ImageTextReward
from turbo.rewards.viclip import VideoTextReward

ROUNDS = 2  # clips per held-out scene


@torch.no_grad()
def measure_image_reward(reward: ImageTextReward) -> pd.Series:
    """Return, per wrong word and per flaw, the share of pairs whose better frame scores higher."""
    rng = np.random.default_rng(21)
    won: dict[str, list[bool]] = {}
    for scene in HELD_OUT_SCENES * ROUNDS:
        pairs = {flaw: draw_frame_pair(scene, rng, flaw) for flaw in FLAWS}
        if not all(shown for *_, shown in pairs.values()):
            continue  # the blinking sprite is hidden
        good = to_tensor(np.stack([pair[0] for pair in pairs.values()]))
        bad = to_tensor(np.stack([pair[1] for pair in pairs.values()]))
        own = reward(torch.cat([good, bad])[:, None], [scene.caption()] * 2 * len(FLAWS))
        for flaw, better in zip(FLAWS, (own[: len(FLAWS)] > own[len(FLAWS) :]), strict=True):
            won.setdefault(f"flaw: {flaw}", []).append(bool(better))
        for name in SEEN_IN_A_FRAME:
            other = reward(good[:1, None], [reword(scene, name, rng).caption()])
            won.setdefault(f"wrong {name}", []).append(bool(own[0] > other))
    return pd.Series({name: float(np.mean(wins)) for name, wins in won.items()})


@torch.no_grad()
def measure_video_reward(reward: VideoTextReward) -> pd.Series:
    """Return the same for wrong words and for clips that are frozen or shuffled."""
    rng = np.random.default_rng(22)
    won: dict[str, list[bool]] = {}
    for scene in HELD_OUT_SCENES * ROUNDS:
        clip = draw_half_rate_clip(scene, rng)
        prompts = [scene.caption(), *(reword(scene, name, rng).caption() for name in WORDS)]
        own, *others = reward(to_tensor(clip[None]).expand(len(prompts), -1, -1, -1, -1), prompts)
        for name, other in zip(WORDS, others, strict=True):
            won.setdefault(f"wrong {name}", []).append(bool(own > other))
        if scene.motion != "standing still":
            broken = reward(to_tensor(break_motion(clip, rng)[None]), prompts[:1])
            won.setdefault("flaw: frozen or shuffled", []).append(bool(own > broken))
    return pd.Series({name: float(np.mean(wins)) for name, wins in won.items()})


def write_reward_card(image: ImageTextReward, video: VideoTextReward, folder: Path) -> None:
    """Measure both reward models and write their card beside their weights."""
    table = pd.DataFrame(
        {"image-text": measure_image_reward(image), "video-text": measure_video_reward(video)}
    )
    count = len(HELD_OUT_SCENES) * ROUNDS
    shown = (100 * table).round(1).astype(object).where(table.notna(), None).to_markdown()
    (folder / "README.md").write_text(_CARD.format(count=count, table=shown))


_CARD = """# Reward models of the shapes world

Trained by `python -m training.shapes rewards` (`training/shapes/models/rewards.py`) for
distillation with reward feedback (`turbo/rewards/`). They are small counterparts of HPSv2.1 and
ViCLIP, and the same classes load them.

- `image/`: a CLIP (`transformers.CLIPModel`) that scores a frame against a caption. It is trained
  to prefer the right caption to captions with one wrong word, and clean frames to flawed ones.
- `video/`: a ViCLIP that scores every other frame of a clip against a caption. It is trained to
  prefer the right caption to captions with one wrong word, and a clip to the same clip frozen or
  shuffled.

Both are trained on one half of the training scenes. The table gives the share of pairs, in per
cent, in which the better one scores higher, on {count} clips of held-out scenes, which no model was
trained on:

{table}

The models know this world only. A student that is trained with too large reward weights exploits
their errors (reward hacking, see `training/LOG.md`). Licence: Apache-2.0.
"""
