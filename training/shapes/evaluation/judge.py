"""The judge: a small convolutional network that scores clips for the evaluation, not for training.

The reward models are vision transformers that compare a clip with its caption, trained on the
training scenes of even index. The judge differs in architecture and seed, and is trained on the
scenes of odd index to prefer one of two clips (Bradley-Terry). A student cannot raise its score
just by exploiting errors of the reward models.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from diffusers import AutoencoderKL
from einops import rearrange, reduce
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, nll_loss, pixel_unshuffle, silu

from training.loop import FitConfig, Slot, StepStats, fit
from training.shapes.world.flaws import KINDS, Bank, Pair, PairSource, draw_bank
from training.shapes.world.scenes import (
    HELD_OUT_SCENES,
    SCENES,
    TEMPLATES,
    TRAIN_SCENES,
    WORDS,
    Scene,
)
from turbo.types import Frames, PerVideo

JUDGE = Path(__file__).parent / "judge"  # weights and model card
JUDGE_SCENES = TRAIN_SCENES[1::2]  # the reward models are trained on the other half

CONFIG = FitConfig(
    steps=1500, learning_rate=2e-3, warmup=40, decay=0.6, ema=0.98, checkpoint_every=50, seed=31
)
BATCH = 16  # pairs per process
CLASSIFICATION_WEIGHT = 0.3  # of the attributes of clean clips, an auxiliary loss
WIDTHS = (24, 48, 96, 96)
FEATURES = 64

_SCENE_OF = {scene.caption(template): scene for scene in SCENES for template in TEMPLATES}


def find_scene(caption: str) -> Scene:
    """Return the scene that a caption of the shapes world describes.

    Raises:
        ValueError: it is not a caption of this world.
    """
    if caption not in _SCENE_OF:
        raise ValueError(
            f"{caption!r} is not a caption of the shapes world. "
            "The wordings are in training/shapes/world/scenes.py."
        )
    return _SCENE_OF[caption]


class _Stage(nn.Module):
    """A convolution within frames, then one across frames, each normalised; optionally strided.

    Both norms are over the whole clip: a norm per frame would remove the brightness of a frame.
    """

    def __init__(self, narrow: int, wide: int, shrink: int, shrink_time: int) -> None:
        super().__init__()
        self.within = nn.Conv2d(narrow, wide, 3, shrink, 1)
        self.across = nn.Conv2d(wide, wide, (3, 1), (shrink_time, 1), (1, 0))
        self.within_norm, self.across_norm = nn.GroupNorm(8, wide), nn.GroupNorm(8, wide)

    def forward(self, frames: Float[Tensor, "B F C H W"]) -> Float[Tensor, "B f c h w"]:
        images = self.within(rearrange(frames, "B F C H W -> (B F) C H W"))
        height = images.shape[2]
        tracks = rearrange(images, "(B F) C H W -> B C F (H W)", B=len(frames))
        tracks = self.across(silu(self.within_norm(tracks)))
        return rearrange(silu(self.across_norm(tracks)), "B C F (H W) -> B F C H W", H=height)


class Judge(nn.Module):
    """Scores clips: sigmoid(score of a - score of b) is the expected share of votes of a over b.

        score = quality(clip) + sum over attributes of log p(attribute | clip)

    Quality does not depend on the prompt. Each attribute is classified separately, so unseen
    combinations of attributes are scored by parts that were trained on.
    """

    def __init__(self) -> None:
        super().__init__()
        narrow = (24, *WIDTHS)  # 2 x 2 pixels and their change since the previous frame
        shrinks = ((1, 1), (2, 2), (2, 2), (1, 1))  # of space, of time
        self.stages = nn.Sequential(
            *(_Stage(a, b, *shrink) for a, b, shrink in zip(narrow, WIDTHS, shrinks, strict=False))
        )
        self.merge = nn.Linear(2 * WIDTHS[-1], FEATURES)
        self.quality = nn.Linear(FEATURES, 1)
        self.words = nn.ModuleDict(
            {name: nn.Linear(FEATURES, len(words)) for name, words in WORDS.items()}
        )

    def features(self, frames: Frames) -> Float[Tensor, "B D"]:
        """Return the penultimate features, which do not depend on the prompt."""
        pixels = pixel_unshuffle(2 * frames - 1, 2)
        change = torch.diff(pixels, dim=1, prepend=pixels[:, :1])
        cells = self.stages(torch.cat([pixels, change], dim=2))
        pooled = [reduce(cells, "B F C H W -> B C", how) for how in ("mean", "max")]
        return silu(self.merge(torch.cat(pooled, dim=1)))

    def rate_quality(self, features: Float[Tensor, "B D"]) -> PerVideo:
        """Return the quality, which does not depend on the prompt; unbounded, higher is better."""
        return self.quality(features)[:, 0]

    def rate_fit(self, features: Float[Tensor, "B D"], scenes: Sequence[Scene]) -> PerVideo:
        """Return the log-probability that the clips show their scenes, at most 0."""
        fit = features.new_zeros(len(features))
        for name, words in WORDS.items():
            labels = [words.index(getattr(scene, name)) for scene in scenes]
            prompted = torch.tensor(labels, device=features.device)
            logits = self.words[name](features)
            fit = fit - nll_loss(logits.log_softmax(dim=1), prompted, reduction="none")
        return fit

    def forward(self, frames: Frames, prompts: Sequence[Scene | str]) -> PerVideo:
        """Return the score of every clip for its scene or caption."""
        scenes = [find_scene(p) if isinstance(p, str) else p for p in prompts]
        features = self.features(frames)
        return self.rate_quality(features) + self.rate_fit(features, scenes)


def to_frames(clips: Sequence[np.ndarray]) -> Frames:
    """Stack uint8 clips (F, H, W, 3) into frames in [0, 1]."""
    return rearrange(torch.from_numpy(np.stack(clips)), "B F H W rgb -> B F rgb H W") / 255


def preference_loss(judge: Judge, pairs: Sequence[Pair]) -> Tensor:
    """Return the mean of -log sigmoid(better - worse), plus an auxiliary classification loss.

    The second term is the cross-entropy of the attributes of clean clips.

    Source of the first term: Bradley and Terry (1952), Biometrika 39, 324-345.
    """
    scenes = [pair.scene for pair in pairs]
    frames = to_frames([pair.better for pair in pairs] + [pair.worse for pair in pairs])
    features = judge.features(frames.to(judge.merge.weight.device))
    scores = judge.rate_quality(features) + judge.rate_fit(features, 2 * scenes)
    better, worse = scores.chunk(2)
    clean = torch.tensor([pair.shared is None for pair in pairs], device=features.device)
    fit = judge.rate_fit(features[: len(pairs)], scenes)
    classification = -(fit * clean).sum() / clean.sum().clamp(min=1)
    return -logsigmoid(better - worse).mean() + CLASSIFICATION_WEIGHT * classification


def train_judge(judge: Judge, bank: Bank, folder: Path) -> Iterator[StepStats]:
    """Train in place on pairs of the judge's half of the training scenes.

    Args:
        bank: clips of `JUDGE_SCENES`.
    """
    source = PairSource(JUDGE_SCENES, bank)

    def draw_loss(slot: Slot) -> Tensor:
        seed = int(torch.randint(2**62, (), generator=slot.generator))
        rng = np.random.default_rng(seed)
        return preference_loss(judge, [source.draw(rng) for _ in range(BATCH)])

    yield from fit(judge, draw_loss, CONFIG, folder)


def held_out_source(vae: AutoencoderKL) -> PairSource:
    """Return a source of pairs of held-out scenes; wrong attributes are of held-out scenes, too."""
    return PairSource(HELD_OUT_SCENES, draw_bank(vae, HELD_OUT_SCENES, seed=77))


@torch.inference_mode()
def measure_judge(
    judge: Callable[[Frames, list[Scene]], PerVideo], source: PairSource, count: int = 2000
) -> pd.DataFrame:
    """Return the number of pairs and the accuracy, in [0, 1], by kind of flaw and in total.

    The accuracy of a kind that was not drawn is NaN.
    """
    rng = np.random.default_rng(78)
    rows = []
    for start in range(0, count, 50):
        pairs = [source.draw(rng) for _ in range(min(50, count - start))]
        scenes = [pair.scene for pair in pairs]
        better = judge(to_frames([pair.better for pair in pairs]), scenes)
        worse = judge(to_frames([pair.worse for pair in pairs]), scenes)
        hits = (better > worse).tolist()
        rows += [(pair.kind, hit) for pair, hit in zip(pairs, hits, strict=True)]
    frame = pd.DataFrame(rows, columns=["flaw", "accuracy"])
    by_kind = frame.groupby("flaw")["accuracy"].agg(["size", "mean"]).reindex(KINDS)
    by_kind["size"] = by_kind["size"].fillna(0)
    by_kind.loc["all"] = [len(frame), frame["accuracy"].mean()]
    return by_kind.rename(columns={"size": "pairs", "mean": "accuracy"})


def save_judge(judge: Judge, accuracy: pd.DataFrame, folder: Path = JUDGE) -> None:
    """Write the weights in float16 and the card with the held-out accuracy."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.half().contiguous() for name, tensor in judge.state_dict().items()}
    save_file(tensors, folder / "judge.safetensors")
    table = accuracy.assign(
        pairs=accuracy["pairs"].astype(int), accuracy=100 * accuracy["accuracy"]
    )
    table = table.rename(columns={"accuracy": "accuracy, %"}).round(1)
    parameters = sum(tensor.numel() for tensor in tensors.values())
    (folder / "README.md").write_text(
        CARD.format(
            table=table.to_markdown(), parameters=parameters, scenes=len(JUDGE_SCENES),
            pairs=CONFIG.steps * BATCH, held_out=len(HELD_OUT_SCENES),
        )
    )  # fmt: skip


def load_judge(folder: Path = JUDGE) -> Judge:
    """Load the judge in float32, frozen."""
    path = folder / "judge.safetensors"
    if not path.exists():
        raise FileNotFoundError(
            f"The judge's weights are missing: {path}. Train it: python -m training.shapes judge."
        )
    judge = Judge()
    judge.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    return judge.eval().requires_grad_(False)


CARD = """---
license: apache-2.0
---
# Judge of shapes clips

Scores clips, to decide which of two clips is better. It is used for evaluation only, never as a
training reward.

- **Input**: frames in [0, 1], (B, 16, 3, 32, 32), and a scene or caption of the shapes world.
- **Output**: one score per clip. sigmoid(score of a - score of b) is the expected share of votes of
  a over b. The score is the quality of the clip plus the log-probabilities of the prompted
  attributes.
- **Network**: (2+1)D convolutions, {parameters:,} parameters, float16. The reward models are vision
  transformers, trained on the other half of the training scenes.
- **Data**: {pairs:,} pairs per process, of {scenes} scenes (odd index). The worse clip of a pair
  has one more flaw than the better one. Flaws are drawn, or decoded from corrupted latents.
- **Limits**: it knows the flaws below and this world only. A student that is trained on this judge
  would exploit its errors, as with any reward.

## Held-out accuracy
Share of pairs in which the better clip scores higher, on {held_out} held-out scenes, which no
model of this repository was trained on. In some pairs both clips also have a second flaw.

{table}
"""
