"""The reward models of both papers: what to download, and how to load it.

Source: T2V-Turbo, arXiv:2405.18750, section 5; T2V-Turbo-v2, arXiv:2410.05677, section 5.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import BertTokenizer, CLIPModel

from turbo.networks.text import clip_tokenizer
from turbo.rewards.checkpoints import read_internvideo2, read_open_clip, read_viclip
from turbo.rewards.image_text import ImageTextReward
from turbo.rewards.internvideo2 import InternVideo2Reward
from turbo.rewards.preprocess import fit
from turbo.rewards.video_text import VideoTextReward

Reward = ImageTextReward | VideoTextReward | InternVideo2Reward

VICLIP_TOKENS = 32  # length that its text tower was trained on


@dataclass(frozen=True, kw_only=True)
class RewardCard:
    """One published reward."""

    title: str
    files: tuple[tuple[str, str], ...]  # repository on the Hugging Face Hub, path inside it
    load: Callable[[Path], Reward]  # from the folder that holds those files


def load_reward(name: str, folder: Path) -> Reward:
    """Load a published reward, in float32 on the CPU; `.to(device)` moves it.

    Args:
        folder: holds the files of the card, under their published names.

    Raises:
        ValueError: no reward has that name, or a file is damaged or holds something else.
        FileNotFoundError: a file is missing; the message has the command that downloads it.
    """
    if name not in REWARDS:
        raise ValueError(f"Expected a reward from {list(REWARDS)}, got {name!r}.")
    card = REWARDS[name]
    for repository, path in card.files:
        if not (folder / path).is_file():
            raise FileNotFoundError(
                f"Expected {path} of {card.title} in {folder}, got none. "
                f"Run: hf download {repository} {path} --local-dir {folder}"
            )
    return card.load(folder)


def _load_hps(folder: Path) -> ImageTextReward:
    model = read_open_clip(folder / _HPS[1])
    return ImageTextReward(model, clip_tokenizer(), make_square=fit)


def _load_clip(folder: Path) -> ImageTextReward:
    return ImageTextReward(read_open_clip(folder / _CLIP[1]), clip_tokenizer())


def _load_pickscore(folder: Path) -> ImageTextReward:
    model = CLIPModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    return ImageTextReward(model, clip_tokenizer())


def _load_viclip(folder: Path) -> VideoTextReward:
    tokenizer = clip_tokenizer()
    tokenizer.model_max_length = VICLIP_TOKENS
    return VideoTextReward(read_viclip(folder / _VICLIP[1]), tokenizer)


def _load_internvideo2(folder: Path, num_frames: int) -> InternVideo2Reward:
    model = read_internvideo2(folder / _INTERNVIDEO2[1], num_frames)
    return InternVideo2Reward(model, BertTokenizer.from_pretrained(folder, local_files_only=True))


_HPS = ("xswu/HPSv2", "HPS_v2.1_compressed.pt")
_CLIP = ("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "open_clip_pytorch_model.bin")
_PICKSCORE = "yuvalkirstain/PickScore_v1"
_VICLIP = ("OpenGVLab/ViCLIP", "ViClip-InternVid-10M-FLT.pth")
_INTERNVIDEO2 = (
    "OpenGVLab/InternVideo2-Stage2_1B-224p-f4",
    "InternVideo2-stage2_1b-224p-f4.pt",
)
_BERT = (("google-bert/bert-large-uncased", "vocab.txt"),)

REWARDS = {
    "hpsv2.1": RewardCard(title="HPSv2.1", files=(_HPS,), load=_load_hps),
    "clip-h": RewardCard(title="CLIP ViT-H/14", files=(_CLIP,), load=_load_clip),
    "pickscore": RewardCard(
        title="PickScore",
        files=((_PICKSCORE, "config.json"), (_PICKSCORE, "model.safetensors")),
        load=_load_pickscore,
    ),
    "viclip": RewardCard(title="ViCLIP-L/14", files=(_VICLIP,), load=_load_viclip),
    "internvideo2-f8": RewardCard(  # T2V-Turbo
        title="InternVideo2 for 8 frames",
        files=(_INTERNVIDEO2, *_BERT),
        load=lambda folder: _load_internvideo2(folder, 8),
    ),
    "internvideo2-f4": RewardCard(  # T2V-Turbo-v2
        title="InternVideo2 for 4 frames",
        files=(_INTERNVIDEO2, *_BERT),
        load=lambda folder: _load_internvideo2(folder, 4),
    ),
}
