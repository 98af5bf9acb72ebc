"""A judge of clips that is no training reward: a small convolutional network over space and time.

The reward models are vision transformers that compare a clip with its caption and learn from the
scenes of even index. This judge is another architecture, starts from another seed and learns from
the scenes of odd index, by choosing between two clips (Bradley-Terry). So what a student gains in
the judge's eyes is not what it learned to please.
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

from training.loop import FitConfig, StepReport, fit
from training.shapes.world.flaws import KINDS, WORDS, Bank, Pair, PairSource, draw_bank
from training.shapes.world.world import HELD_OUT_SCENES, SCENES, TEMPLATES, TRAIN_SCENES, Scene
from turbo.types import Frames, PerVideo

JUDGE = Path(__file__).parent / "judge"  # its weights and its card
JUDGE_SCENES = TRAIN_SCENES[1::2]  # the reward models learn from the other half

CONFIG = FitConfig(
    steps=1500, learning_rate=2e-3, warmup=40, decay=0.6, ema=0.98, checkpoint_every=50, seed=31
)
BATCH = 16  # pairs per process
NAMING = 0.3  # weight of naming the attributes of clean clips, which teaches them sooner
WIDTHS = (24, 48, 96, 96)
FEATURES = 64

_SCENE_OF = {scene.caption(template): scene for scene in SCENES for template in TEMPLATES}


def find_scene(caption: str) -> Scene:
    """Return the scene that a caption of the shapes world tells.

    Raises:
        ValueError: it is no caption of this world.
    """
    if caption not in _SCENE_OF:
        raise ValueError(
            f"Expected a caption of the shapes world, got {caption!r}. "
            "Their wordings are in training/shapes/world/world.py."
        )
    return _SCENE_OF[caption]


class _Stage(nn.Module):
    """A convolution within frames, then one across them, each normalised; a stage may shrink.

    Both norms are of the whole clip: one of each frame would hide how bright a frame is.
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
    """Scores clips: sigmoid(score of a - score of b) is the share of votes a would win over b.

    A score is the quality of the picture, whatever it shows, plus the log-probabilities that the
    clip shows the asked colour, shape, motion and background. Each attribute is embedded by itself,
    so a combination never seen is judged by parts that were.
    """

    def __init__(self) -> None:
        super().__init__()
        narrow = (24, *WIDTHS)  # four pixels of a frame and their change since the last one
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
        """Return the penultimate features; they know the clip but not what was asked."""
        pixels = pixel_unshuffle(2 * frames - 1, 2)
        change = torch.diff(pixels, dim=1, prepend=pixels[:, :1])
        cells = self.stages(torch.cat([pixels, change], dim=2))
        pooled = [reduce(cells, "B F C H W -> B C", how) for how in ("mean", "max")]
        return silu(self.merge(torch.cat(pooled, dim=1)))

    def rate_quality(self, features: Float[Tensor, "B D"]) -> PerVideo:
        """Return the score of the picture alone, unbounded; higher is better."""
        return self.quality(features)[:, 0]

    def rate_fit(self, features: Float[Tensor, "B D"], scenes: Sequence[Scene]) -> PerVideo:
        """Return the log-probability that the clips show their scenes, at most 0."""
        return sum(
            (
                -nll_loss(logits.log_softmax(dim=1), labels, reduction="none")
                for logits, labels in self._name(features, scenes)
            ),
            start=features.new_zeros(len(features)),
        )

    def _name(
        self, features: Float[Tensor, "B D"], scenes: Sequence[Scene]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield, per attribute, the logits of its words and the asked word."""
        for name, words in WORDS.items():
            asked = [words.index(getattr(scene, name)) for scene in scenes]
            yield self.words[name](features), torch.tensor(asked, device=features.device)

    def forward(self, frames: Frames, prompts: Sequence[Scene | str]) -> PerVideo:
        """Return the score of every clip for its scene or caption."""
        scenes = [find_scene(p) if isinstance(p, str) else p for p in prompts]
        features = self.features(frames)
        return self.rate_quality(features) + self.rate_fit(features, scenes)


def to_frames(clips: Sequence[np.ndarray]) -> Frames:
    """Stack uint8 clips (F, H, W, 3) into frames in [0, 1]."""
    return rearrange(torch.from_numpy(np.stack(clips)), "B F H W rgb -> B F rgb H W") / 255


def preference_loss(judge: Judge, pairs: Sequence[Pair]) -> Tensor:
    """Return the mean surprise at the better clip winning, plus that at what clean clips show.

    Source of the first term: Bradley and Terry (1952), Biometrika 39, 324-345.
    """
    scenes = [pair.scene for pair in pairs]
    frames = to_frames([pair.better for pair in pairs] + [pair.worse for pair in pairs])
    features = judge.features(frames)
    scores = judge.rate_quality(features) + judge.rate_fit(features, 2 * scenes)
    better, worse = scores.chunk(2)
    clean = torch.tensor([pair.shared is None for pair in pairs])
    named = judge.rate_fit(features[: len(pairs)], scenes)
    naming = -(named * clean).sum() / clean.sum().clamp(min=1)
    return -logsigmoid(better - worse).mean() + NAMING * naming


def train_judge(judge: Judge, bank: Bank, checkpoint: Path) -> Iterator[StepReport]:
    """Train on pairs of the judge's own scenes, in place; resumes from `checkpoint`.

    Args:
        bank: of `JUDGE_SCENES`.
    """
    source = PairSource(JUDGE_SCENES, bank)

    def draw_loss(generator: torch.Generator) -> Tensor:
        seed = int(torch.randint(2**62, (), generator=generator))
        rng = np.random.default_rng(seed)
        return preference_loss(judge, [source.draw(rng) for _ in range(BATCH)])

    yield from fit(judge, draw_loss, CONFIG, checkpoint)


def held_out_source(vae: AutoencoderKL) -> PairSource:
    """Draw pairs of combinations that nothing was trained on, those of "wrong" clips included."""
    return PairSource(HELD_OUT_SCENES, draw_bank(vae, HELD_OUT_SCENES, seed=77))


@torch.inference_mode()
def measure_judge(
    judge: Callable[[Frames, list[Scene]], PerVideo], source: PairSource, count: int = 2000
) -> pd.DataFrame:
    """Return the number of pairs and the judge's accuracy, in [0, 1], by kind of flaw and of all.

    A kind that was not drawn has no accuracy.
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
    """Write the weights in float16 and the card with its held-out accuracy."""
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
            f"Expected the judge's weights at {path}, got no such file. "
            "Train it: python -m training.shapes judge."
        )
    judge = Judge()
    judge.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    return judge.eval().requires_grad_(False)


CARD = """---
license: apache-2.0
---
# Judge of shapes clips

Chooses between two clips for one scene; used for evaluation only, never as a training reward.

- **Input**: frames in [0, 1], (B, 16, 3, 32, 32), and a scene or caption of the shapes world.
- **Output**: one score a clip; sigmoid(score of a - score of b) is the share of votes a would win.
  The score is a quality, whatever the clip shows, plus log-probabilities of the asked attributes.
- **Network**: (2+1)D convolutions, {parameters:,} parameters, float16. The reward models are vision
  transformers, trained on the other half of the trained-on scenes.
- **Data**: {pairs:,} pairs a process of {scenes} scenes (odd index); the worse clip of a pair has
  one flaw more than the better one. Its flaws are drawn, or decoded from spoilt latents.
- **Limits**: it knows the flaws below and this world only. A student trained to please this judge
  would find its blind spots as with any reward.

## Held-out accuracy
Share of pairs in which the better clip scores higher; {held_out} combinations of attributes that no
model of this repository was trained on. Some pairs also share a second flaw.

{table}
"""
