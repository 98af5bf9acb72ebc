"""The registry of published rewards, those of both papers.

Source: T2V-Turbo, arXiv:2405.18750, section 5; T2V-Turbo-v2, arXiv:2410.05677, section 5.
"""

from pathlib import Path

from torch import nn

from turbo.rewards.checkpoints import RewardCard
from turbo.rewards.image_text import CLIP_H, HPS, PICKSCORE
from turbo.rewards.imagereward import IMAGEREWARD
from turbo.rewards.internvideo2 import INTERNVIDEO2_F4, INTERNVIDEO2_F8
from turbo.rewards.viclip import VICLIP

REWARDS: dict[str, RewardCard] = {
    "hpsv2.1": HPS,
    "clip-h": CLIP_H,
    "pickscore": PICKSCORE,
    "imagereward": IMAGEREWARD,
    "viclip": VICLIP,
    "internvideo2-f8": INTERNVIDEO2_F8,  # T2V-Turbo
    "internvideo2-f4": INTERNVIDEO2_F4,  # T2V-Turbo-v2
}


def find_reward(name: str) -> RewardCard:
    """Return a reward's card.

    Raises:
        ValueError: there is no such reward.
    """
    if name not in REWARDS:
        raise ValueError(f"There is no reward {name!r}. Choose one of {', '.join(REWARDS)}.")
    return REWARDS[name]


def load_reward(name: str, folder: Path) -> nn.Module:
    """Load a published reward, in float32 on the CPU.

    Args:
        folder: contains the files of the card under their published names.

    Raises:
        ValueError: there is no such reward, or a file is damaged or another one.
        FileNotFoundError: a file is missing; the message has the command to download it.
    """
    card = find_reward(name)
    for file in card.files:
        if not (folder / file.path).is_file():
            raise FileNotFoundError(
                f"{file.path} of {card.title} is missing in {folder}. "
                f"Run: python -m turbo.rewards fetch {name} --folder {folder}"
            )
    return card.load(folder)
