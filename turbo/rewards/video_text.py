"""The reward of whole videos by ViCLIP."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import cosine_similarity
from transformers import CLIPTokenizer

from turbo.networks.text import tokenize
from turbo.rewards.preprocess import check_videos, prepare_videos
from turbo.rewards.viclip import ViCLIP, ViCLIPConfig
from turbo.types import Embedding, Frames, PerVideo


class VideoTextReward(nn.Module):
    """The cosine between a video and its prompt; gradients reach the frames only."""

    def __init__(self, model: ViCLIP, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer

    @classmethod
    def load(cls, model: Path, tokenizer: Path) -> "VideoTextReward":
        """Load from two folders, written by `save_viclip` and `save_pretrained`, in float32."""
        return cls(
            load_viclip(model), CLIPTokenizer.from_pretrained(tokenizer, local_files_only=True)
        )

    @property
    def num_frames(self) -> int:
        """The number of frames it reads: no more, no fewer."""
        return self.model.config.num_frames

    def forward(self, frames: Frames, prompts: list[str]) -> PerVideo:
        """Score videos of exactly `num_frames` frames.

        Raises:
            ValueError: another number of frames, or of prompts than videos.
        """
        check_videos(frames, prompts, self.num_frames)
        with torch.no_grad():
            texts = self.model.text_encoder(tokenize(self.tokenizer, prompts).to(frames.device))
        return cosine_similarity(embed_videos(self.model, frames), texts)


def embed_videos(model: ViCLIP, frames: Frames) -> Embedding:
    """Embed videos in [0, 1], not normalised; of wide ones the middle square."""
    return model.vision_encoder(prepare_videos(frames, model.config.size))


def save_viclip(model: ViCLIP, folder: Path) -> None:
    """Write config.json and half-precision safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(asdict(model.config), indent=2) + "\n")
    tensors = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")


def load_viclip(folder: Path) -> ViCLIP:
    """Read what `save_viclip` wrote; every tensor must be there, and no other."""
    model = ViCLIP(ViCLIPConfig(**json.loads((folder / "config.json").read_text())))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model
