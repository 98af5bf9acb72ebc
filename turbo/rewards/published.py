"""The registry of published rewards, those of both papers; and loading a reward by its name.

Source: T2V-Turbo, arXiv:2405.18750, section 5; T2V-Turbo-v2, arXiv:2410.05677, section 5.
"""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from turbo.models.registry import WEIGHTS
from turbo.rewards.checkpoints import RewardCard
from turbo.rewards.image_text import CLIP_H, HPS, PICKSCORE, ImageTextReward
from turbo.rewards.imagereward import IMAGEREWARD
from turbo.rewards.internvideo2 import INTERNVIDEO2_F4, INTERNVIDEO2_F8
from turbo.rewards.viclip import VICLIP, VideoTextReward
from turbo.rewards.vote_reward import CARD, VoteReward, hash_weights

REWARDS: dict[str, RewardCard] = {
    "hpsv2.1": HPS,
    "clip-h": CLIP_H,
    "pickscore": PICKSCORE,
    "imagereward": IMAGEREWARD,
    "viclip": VICLIP,
    "internvideo2-f8": INTERNVIDEO2_F8,  # T2V-Turbo
    "internvideo2-f4": INTERNVIDEO2_F4,  # T2V-Turbo-v2
}
_SHAPES = WEIGHTS / "shapes"
EMBEDDED: dict[str, tuple[Path, Callable[[Path, Path], nn.Module]]] = {  # by name: folder, reader
    "shapes-image": (_SHAPES / "rewards" / "image", ImageTextReward.load),
    "shapes-video": (_SHAPES / "rewards" / "video", VideoTextReward.load),
}


def find_reward(name: str) -> RewardCard:
    """Return a reward's card.

    Raises:
        ValueError: there is no such reward.
    """
    if name not in REWARDS:
        raise ValueError(
            f"There is no reward {name!r}. Choose one of {', '.join([*REWARDS, *EMBEDDED])}, or "
            "give the folder of a reward that `python -m training.reward` wrote."
        )
    return REWARDS[name]


def load_reward(name: str, folder: Path, question: str | None = None) -> nn.Module:
    """Load a published reward, or one that was trained on votes, in float32 on the CPU.

    Args:
        folder: contains the files of the card under their published names, or what
            `python -m training.reward` wrote.
        question: of the votes, by which such a reward scores; default: the study's primary one.

    Raises:
        ValueError: there is no such reward or question, or a file is damaged or another one.
        FileNotFoundError: a file is missing; the message has the command to download it.
    """
    if name in EMBEDDED:
        weights, read = EMBEDDED[name]
        return read(weights, _SHAPES / "tokenizer")
    if name not in REWARDS and (folder / CARD).is_file():
        return VoteReward.load(folder, load_backbone, question)
    card = find_reward(name)
    for file in card.files:
        if not (folder / file.path).is_file():
            raise FileNotFoundError(
                f"{file.path} of {card.title} is missing in {folder}. "
                f"Run: python -m turbo.rewards fetch {name} --folder {folder}"
            )
    return card.load(folder)


def load_backbone(name: str, folder: Path) -> tuple[nn.Module, str]:
    """Load a reward whose features another reward uses; return it with its weights' SHA-256.

    Raises: as for `load_reward`.
    """
    reward = load_reward(name, folder)
    if name in EMBEDDED:
        return reward, hash_weights([EMBEDDED[name][0] / "model.safetensors"])
    return reward, hash_weights([folder / file.path for file in find_reward(name).files])
