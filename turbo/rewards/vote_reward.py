"""A reward that was trained on human votes: frozen backbones, and a head for each question.

`python -m training.reward` writes its folder. The backbones are other rewards, whose features are
computed here; the folder holds the head alone, and the hashes of the backbones that it belongs to.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from math import isqrt
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from turbo.manifest import sha256_of
from turbo.rewards.image_text import ImageTextReward
from turbo.rewards.internvideo2 import InternVideo2Reward
from turbo.rewards.preprocess import CLIP_MEAN, CLIP_STD, check_videos, normalise, prepare_videos
from turbo.rewards.viclip import ViCLIP, VideoTextReward
from turbo.types import Embedding, Frames, PerVideo

Backbone = ImageTextReward | VideoTextReward | InternVideo2Reward
CARD, HEAD = "reward.json", "head.safetensors"
IMAGE_FRAMES = 8  # of a video, where no backbone fixes the number
TINY = 1e-6


@dataclass(frozen=True, kw_only=True)
class VoteRewardCard:
    """What the folder of a vote-trained reward holds."""

    backbones: dict[str, str]  # the SHA-256 of its weights, by name
    num_frames: int
    questions: list[str]  # keys, in the order of the head's outputs
    primary: str  # the question that the reward scores by default
    title: str
    simulated: bool  # whether it was trained on simulated votes
    measured: dict[str, object] = field(default_factory=dict)


class VoteHead(nn.Module):
    """A score for each question: linear in the standardised features.

    Differences of scores are log-odds: of the better clip being chosen, by an average rater who
    does not answer "tie". Computed in float32: features are sums of many small terms.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, features: int, questions: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.weight = nn.Parameter(torch.zeros(questions, features))

    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B Q"]:
        """Score features.

        Raises:
            ValueError: the head was trained on features of another number.
        """
        if features.shape[1] != len(self.mean):
            raise ValueError(
                f"The reward was trained on {len(self.mean)} features of its backbones, and they "
                f"have {features.shape[1]}: another version made it. Train the reward again."
            )
        standard = (features.float() - self.mean.float()) / self.scale.float()
        return standard @ self.weight.float().T


class VoteReward(nn.Module):
    """The log-odds, up to a constant of the prompt, that people prefer a video; unbounded."""

    def __init__(
        self,
        backbones: Sequence[Backbone],
        head: VoteHead,
        card: VoteRewardCard,
        question: str | None = None,
    ) -> None:
        """Score by one question of the study; by default its primary one.

        Raises:
            ValueError: there is no such question.
        """
        super().__init__()
        self.backbones = nn.ModuleList(backbones)
        self.head = head.eval().requires_grad_(False)
        self.card, name = card, question or card.primary
        if name not in card.questions:
            raise ValueError(
                f"The reward has no question {name!r}. Choose one of {', '.join(card.questions)}."
            )
        self.column = card.questions.index(name)

    @property
    def num_frames(self) -> int:
        """The number of frames that a video must have."""
        return self.card.num_frames

    def forward(self, frames: Frames, prompts: list[str]) -> PerVideo:
        """Score videos of exactly `num_frames` frames.

        Raises:
            ValueError: the number of frames is wrong, or those of prompts and videos differ.
        """
        check_videos(frames, prompts, self.num_frames)
        features = describe_videos(self.backbones, frames, prompts)  # type: ignore[arg-type]
        return self.head(features)[:, self.column].to(frames.dtype)

    def save(self, folder: Path) -> None:
        """Write the head and the card. The backbones stay where they are."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.head.state_dict(), folder / HEAD)
        (folder / CARD).write_text(json.dumps(asdict(self.card), indent=2) + "\n")

    @classmethod
    def load(
        cls,
        folder: Path,
        load_backbone: Callable[[str, Path], tuple[nn.Module, str]],
        question: str | None = None,
    ) -> "VoteReward":
        """Load what `save` wrote, with its backbones from the folders beside it.

        Args:
            load_backbone: from name and folder to the backbone and the SHA-256 of its weights.

        Raises:
            ValueError: there is no such question, or a backbone has other weights.
        """
        card = read_vote_card(folder)
        backbones = []
        for name, sha256 in card.backbones.items():
            backbone, found = load_backbone(name, folder.parent / name)
            if found != sha256:
                raise ValueError(
                    f"{folder} was trained with other weights of {name} (SHA-256 {sha256[:16]}, "
                    f"got {found[:16]}). Restore them, or train the reward again."
                )
            backbones.append(check_backbone(name, backbone))
        tensors = load_file(folder / HEAD)
        questions, features = tensors["weight"].shape
        head = VoteHead(features, questions)
        head.load_state_dict(tensors)
        return cls(backbones, head, card, question)


def read_vote_card(folder: Path) -> VoteRewardCard:
    """Read the card of a vote-trained reward.

    Raises:
        ValueError: it is damaged.
    """
    path = folder / CARD
    try:
        return VoteRewardCard(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as failure:
        raise ValueError(f"{path} is damaged: {failure}. Train the reward again.") from failure


def check_backbone(name: str, reward: nn.Module) -> Backbone:
    """Return the reward if its features can be used.

    Raises:
        ValueError: they cannot.
    """
    if not isinstance(reward, Backbone):
        raise ValueError(f"{name} has no separate embeddings of videos. Choose another backbone.")
    return reward


def hash_weights(files: Sequence[Path]) -> str:
    """Return one SHA-256 of several files: of their hashes, in the order of their names."""
    hashes = [sha256_of(file) for file in sorted(files)]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def count_frames(backbones: Sequence[Backbone]) -> int:
    """Return how many frames of a video the backbones take.

    Raises:
        ValueError: two of them take different numbers.
    """
    counts = {one.num_frames for one in backbones if not isinstance(one, ImageTextReward)}
    if len(counts) > 1:
        raise ValueError(
            f"The backbones take {' and '.join(map(str, sorted(counts)))} frames. Choose backbones "
            "of one number of frames."
        )
    return counts.pop() if counts else IMAGE_FRAMES


def describe_videos(
    backbones: Iterable[Backbone], frames: Frames, prompts: list[str]
) -> Float[Tensor, "B D"]:
    """Return the features of all backbones: video, video times text, cosine, statistics of tokens.

    The embeddings are of length 1, so the cosine is the backbone's own score. The text alone is
    left out: clips of one prompt share it, so votes do not tell what it is worth.
    """
    described = []
    for backbone in backbones:
        video, tokens = _look(backbone, frames)
        text = normalize(backbone.embed(prompts).to(video), dim=-1)
        product = video * text
        described += [video, product, product.sum(dim=-1, keepdim=True), describe_tokens(tokens)]
    return torch.cat(described, dim=-1)


def _look(backbone: Backbone, frames: Frames) -> tuple[Embedding, Float[Tensor, "B F P E"]]:
    """Return the embedding of each video, and the last layer's token of each patch of its frames.

    The embedding of an image backbone is the mean of those of the frames.
    """
    if isinstance(backbone, ImageTextReward):
        config = backbone.model.config.vision_config
        images = rearrange(frames, "B F C H W -> (B F) C H W")
        pixels = normalise(backbone.make_square(images, config.image_size), CLIP_MEAN, CLIP_STD)
        seen = backbone.model.get_image_features(pixel_values=pixels.to(backbone.model.dtype))
        embedded = rearrange(
            normalize(seen.pooler_output, dim=-1), "(B F) D -> B F D", B=len(frames)
        ).mean(dim=1)
        tokens = rearrange(seen.last_hidden_state[:, 1:], "(B F) P D -> B F P D", B=len(frames))
        return embedded.to(frames.dtype), tokens.to(frames.dtype)
    model = backbone.model
    pixels = prepare_videos(frames, model.config.size).to(next(model.parameters()).dtype)
    tokens = model.vision_encoder.embed_patches(pixels)
    if isinstance(model, ViCLIP):
        embedded = model.vision_encoder.embed(tokens)
    else:
        embedded = model.vision_proj(model.vision_encoder.clip_projector(tokens))
    patches = rearrange(tokens[:, 1:], "B (F P) D -> B F P D", F=frames.shape[1])
    return normalize(embedded, dim=-1).to(frames.dtype), patches.to(frames.dtype)


def describe_tokens(tokens: Float[Tensor, "B F P D"]) -> Float[Tensor, "B E"]:
    """Return the mean of the tokens, their spread in frames, their change in time and their places.

    They show what embeddings, trained to match captions, leave out: amounts, sizes, speeds, and
    where in the frame something is. Places are means weighted by the row and by the column.
    """
    spread = (tokens.var(dim=2, correction=0) + TINY).sqrt().mean(dim=1)
    change = tokens.diff(dim=1).abs().mean(dim=(1, 2))
    grid = rearrange(tokens.mean(dim=1), "B (h w) D -> B h w D", h=isqrt(tokens.shape[2]))
    across = torch.linspace(-1, 1, grid.shape[1]).to(tokens)
    rows = torch.einsum("BhwD,h->BD", grid, across) / tokens.shape[2]
    columns = torch.einsum("BhwD,w->BD", grid, across) / tokens.shape[2]
    return torch.cat([tokens.mean(dim=(1, 2)), spread, change, rows, columns], dim=-1)
