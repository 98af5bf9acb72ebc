"""The shapes reward models: a CLIP of frames that dislikes flaws, a ViCLIP of clips and motions.

Counterparts of HPSv2.1 and of ViCLIP. Both are trained on every other trained-on combination; the
judge of `judge.py` is trained on the rest, so no reward ever marks its own work. Half of what the
image model sees are jumps of the student, such as it will be asked about (`jumps.py`). The video
model is trained on drawn clips alone: with jumps it told fewer motions apart (88 % against 92 %).
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid, normalize
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from training.loop import FitConfig, StepReport, fit
from training.shapes.models.jumps import Jumps
from training.shapes.models.text import ATTRIBUTES, LENGTH
from training.shapes.world.world import (
    FRAMES,
    TEMPLATES,
    TRAIN_SCENES,
    Defects,
    Scene,
    draw_clip,
    spoil_clip,
)
from turbo.networks.text import tokenize
from turbo.rewards.image_text import embed_images, embed_texts
from turbo.rewards.viclip import ViCLIP, ViCLIPConfig, embed_videos

SCENES = TRAIN_SCENES[::2]
IMAGE_CONFIG = FitConfig(
    steps=1000, learning_rate=1.5e-3, warmup=100, decay=0.6, ema=0.99, checkpoint_every=250, seed=11
)
VIDEO_CONFIG = FitConfig(
    steps=1000, learning_rate=1.5e-3, warmup=100, decay=0.6, ema=0.99, checkpoint_every=250, seed=12
)
IMAGE_BATCH, VIDEO_BATCH = 64, 16  # per process
WIDTH = 64
LOGIT_SCALE = 10.0  # fixed: a reward is a cosine, and this keeps it from saturating
SEEN_IN_A_FRAME = ("colour", "shape", "background")
FLAWS = ("watermark", "washed out", "noise", "blur", "melted")
MILD_NOISE, MILD_SHIFT = 5.0, 8.0  # 0..255: what a VAE may do to a good picture


def build_image_model(tokenizer: CLIPTokenizer) -> CLIPModel:
    tower = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 4}
    text = tower | {
        "num_hidden_layers": 2,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": 0,
    }
    vision = tower | {"num_hidden_layers": 4, "image_size": 32, "patch_size": 4}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))


def build_video_model(tokenizer: CLIPTokenizer) -> ViCLIP:
    return ViCLIP(
        ViCLIPConfig(
            size=32,
            patch=8,
            num_frames=FRAMES // 2,
            width=96,
            layers=4,
            heads=4,
            vocabulary=len(tokenizer),
            length=LENGTH,
            text_width=WIDTH,
            text_layers=2,
            text_heads=4,
            embed=WIDTH,
        )
    )


class AttributeHeads(nn.Module):
    """One linear classifier an attribute, beside a model in training: it learns to see sooner."""

    def __init__(self, model: nn.Module, attributes: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.heads = nn.ModuleDict(
            {name: nn.Linear(WIDTH, len(ATTRIBUTES[name])) for name in attributes}
        )

    def loss(self, embedding: Tensor, scenes: list[Scene], counted: Tensor) -> Tensor:
        """Return the mean cross-entropy over attributes, of the rows that count (B,)."""
        losses = [
            cross_entropy(head(embedding[counted]), _classes(scenes, name)[counted])
            for name, head in self.heads.items()
        ]
        return torch.stack(losses).mean()


def train_image_reward(
    model: CLIPModel, tokenizer: CLIPTokenizer, jumps: Jumps, checkpoint: Path
) -> Iterator[StepReport]:
    """Train in place: the right caption among wrong ones, and the better of two frames.

    Half of the pairs are drawn, one of them with a flaw; half are jumps from little and from much
    noise, where the one from much noise is worse but still tells its caption.
    """
    network = AttributeHeads(model, SEEN_IN_A_FRAME)

    def draw_loss(generator: torch.Generator) -> Tensor:
        rng = np.random.default_rng(generator.initial_seed())
        drawn = draw_scenes(rng, IMAGE_BATCH // 2)
        rows = rng.integers(len(jumps), size=IMAGE_BATCH // 2)
        jumped = [SCENES[i] for i in jumps.scene[rows].tolist()]
        pairs = [draw_frame_pair(scene, rng) for scene in drawn]
        pairs += [pick_frame_pair(jumps, row, rng) for row in rows]
        good, bad = (to_images(np.stack(side)) for side in list(zip(*pairs, strict=True))[:2])
        scenes = [*drawn, *jumped, *jumped]
        shown = torch.tensor([pair[2] for pair in [*pairs, *pairs[len(drawn) :]]])
        embedded = embed_images(model, torch.cat([good, bad[len(drawn) :], bad[: len(drawn)]]))
        seen = normalize(embedded, dim=-1)
        own, others = _embed_captions(
            scenes, SEEN_IN_A_FRAME, rng, lambda words: embed_texts(model, tokenizer, words)
        )
        # Nothing but the background can be told from a frame in which the sprite blinks.
        comparable = shown[:, None] | torch.tensor([n == "background" for n in SEEN_IN_A_FRAME])
        differ = _differ(scenes, SEEN_IN_A_FRAME, shown)
        aligned = contrast(seen[: len(scenes)], own, others, differ, comparable)
        better = seen[: len(pairs)]
        worse = torch.cat([seen[len(scenes) :], seen[len(pairs) : len(scenes)]])
        preferred = prefer(better, worse, own[: len(pairs)])
        return aligned + preferred + network.loss(embedded[: len(scenes)], scenes, shown)

    yield from fit(network, draw_loss, IMAGE_CONFIG, checkpoint)


def train_video_reward(
    model: ViCLIP, tokenizer: CLIPTokenizer, checkpoint: Path
) -> Iterator[StepReport]:
    """Train in place: the right caption among wrong ones, and the moving clip over its frames."""
    network = AttributeHeads(model, tuple(ATTRIBUTES))

    def draw_loss(generator: torch.Generator) -> Tensor:
        rng = np.random.default_rng(generator.initial_seed())
        scenes = draw_scenes(rng, VIDEO_BATCH)
        clips = np.stack([draw_half_clip(scene, rng) for scene in scenes])
        embedded = embed_videos(model, to_videos(clips))
        good = normalize(embedded, dim=-1)
        own, others = _embed_captions(
            scenes,
            (*ATTRIBUTES, "motion", "motion"),
            rng,
            lambda words: model.text_encoder(tokenize(tokenizer, words)),
        )
        aligned = contrast(good, own, others, _differ(scenes, tuple(ATTRIBUTES)))
        moving = [i for i, scene in enumerate(scenes) if scene.motion != "standing still"]
        broken = np.stack([break_motion(clips[i], rng) for i in moving])
        bad = normalize(embed_videos(model, to_videos(broken)), dim=-1)
        preferred = prefer(good[moving], bad, own[moving])
        counted = torch.ones(len(scenes), dtype=torch.bool)
        return aligned + preferred + network.loss(embedded, scenes, counted)

    yield from fit(network, draw_loss, VIDEO_CONFIG, checkpoint)


def prefer(better: Tensor, worse: Tensor, own: Tensor) -> Tensor:
    """Return the logistic loss of pairs of unit embeddings (B, D), each with its caption's."""
    return -logsigmoid(LOGIT_SCALE * ((better - worse) * own).sum(dim=-1)).mean()


def contrast(
    seen: Tensor, own: Tensor, others: Tensor, differ: Tensor, comparable: Tensor | None = None
) -> Tensor:
    """Return the cross-entropy of the own caption among wrong ones.

    Args:
        seen, own: unit embeddings of pictures and of their captions (B, D).
        others: captions wrong in one word each (B, K, D).
        differ: whose captions are wrong for whom (B, B).
        comparable: whether that word can be told from the picture (B, K); None for all.
    """
    batch = LOGIT_SCALE * (seen @ own.T)
    right = batch.diagonal()[:, None]
    wrong = batch.masked_fill(~differ, -torch.inf)
    hard = LOGIT_SCALE * torch.einsum("BD,BKD->BK", seen, others)
    if comparable is not None:
        hard = hard.masked_fill(~comparable, -torch.inf)
    logits = torch.cat([right, hard, wrong], dim=1)
    return cross_entropy(logits, torch.zeros(len(seen), dtype=torch.long))


def draw_scenes(rng: np.random.Generator, count: int) -> list[Scene]:
    return [SCENES[i] for i in rng.integers(len(SCENES), size=count)]


def reword(scene: Scene, attribute: str, rng: np.random.Generator) -> Scene:
    """Return the scene with another word for one attribute."""
    words = [word for word in ATTRIBUTES[attribute] if word != getattr(scene, attribute)]
    return replace(scene, **{attribute: words[rng.integers(len(words))]})


def draw_frame_pair(
    scene: Scene, rng: np.random.Generator, flaw: str | None = None
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Return a good frame, the same with a flaw (a random one), and whether the sprite shows."""
    seed, frame = rng.integers(2**32), rng.integers(FRAMES)
    good = draw_clip(scene, np.random.default_rng(seed))[frame]
    shown = scene.motion != "blinking" or bool(frame % 8 < 4)
    flaw = flaw or FLAWS[rng.integers(len(FLAWS) - (not shown))]  # nothing melts unseen
    if flaw == "melted":
        attribute = ("colour", "shape")[rng.integers(2)]
        other = draw_clip(reword(scene, attribute, rng), np.random.default_rng(seed))[frame]
        share = rng.uniform(0.3, 0.6)
        bad = (1 - share) * good + share * other
    elif flaw == "blur":
        bad = blur(good, rng.uniform(0.6, 1.0))
    else:
        only = Defects(**{n: n == flaw.replace(" ", "_") for n in vars(Defects())})
        bad = spoil_clip(good[None], only, rng)[0]
    return _mildly(good, rng), _mildly(bad, rng), shown


def pick_frame_pair(
    jumps: Jumps, row: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Return a frame jumped to from little noise, the same from much, and if the sprite shows."""
    frame = rng.integers(FRAMES)
    shown = SCENES[int(jumps.scene[row])].motion != "blinking" or bool(frame % 8 < 4)
    good, bad = jumps.near[row, frame].numpy(), jumps.far[row, frame].numpy()
    return _mildly(good, rng), _mildly(bad, rng), shown


def draw_half_clip(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Return every other frame of a clip, half of the time with the flaws of training clips."""
    clip = draw_clip(scene, rng)[rng.integers(2) :: 2]
    if rng.random() < 0.5:
        clip = spoil_clip(clip, Defects(), rng)
    return _mildly(clip, rng)


def break_motion(clip: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the clip frozen at a frame, or with its frames shuffled."""
    if rng.random() < 0.5:
        return np.repeat(clip[[rng.integers(len(clip))]], len(clip), axis=0)
    return clip[rng.permutation(len(clip))]


def blur(pixels: np.ndarray, share: float) -> np.ndarray:
    """Mix an image (H, W, 3) with the mean of its 3 x 3 neighbourhoods."""
    padded = np.pad(pixels.astype(np.float32), ((1, 1), (1, 1), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(0, 1))
    return (1 - share) * pixels + share * windows.mean(axis=(-2, -1))


def to_images(pixels: np.ndarray) -> Tensor:
    """Turn pixels (N, H, W, 3) in 0..255 into images (N, 3, H, W) in [0, 1]."""
    return rearrange(torch.from_numpy(pixels.astype(np.float32)) / 255, "N H W C -> N C H W")


def to_videos(clips: np.ndarray) -> Tensor:
    """Turn clips (B, F, H, W, 3) in 0..255 into frames (B, F, 3, H, W) in [0, 1]."""
    return rearrange(torch.from_numpy(clips.astype(np.float32)) / 255, "B F H W C -> B F C H W")


def _mildly(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change pixels as little as a VAE does, so that a reward cannot live on such differences."""
    shift = rng.normal(0, MILD_SHIFT / 2, 3)
    noise = rng.normal(0, rng.uniform(0, MILD_NOISE), pixels.shape)
    return (pixels + shift + noise).clip(0, 255)


def _embed_captions(
    scenes: list[Scene],
    attributes: tuple[str, ...],
    rng: np.random.Generator,
    embed: Callable[[list[str]], Tensor],
) -> tuple[Tensor, Tensor]:
    """Embed own captions (B, D) and, per attribute, one with another word for it (B, K, D)."""
    groups = [scenes, *([reword(s, name, rng) for s in scenes] for name in attributes)]
    template = [TEMPLATES[i] for i in rng.integers(len(TEMPLATES), size=len(scenes))]
    words = [s.caption(t) for group in groups for s, t in zip(group, template, strict=True)]
    texts = rearrange(normalize(embed(words), dim=-1), "(K B) D -> B K D", B=len(scenes))
    return texts[:, 0], texts[:, 1:]


def _differ(
    scenes: list[Scene], attributes: tuple[str, ...], shown: Tensor | None = None
) -> Tensor:
    """Return whose captions are wrong for whose pictures (B, B)."""
    classes = torch.stack([_classes(scenes, name) for name in attributes])
    unlike = classes[:, :, None] != classes[:, None, :]
    if shown is not None:  # an empty scene fits every sprite
        told = torch.tensor([name == "background" for name in attributes])
        unlike &= shown[None, :, None] | told[:, None, None]
    return unlike.any(dim=0)


def _classes(scenes: list[Scene], attribute: str) -> Tensor:
    return torch.tensor([ATTRIBUTES[attribute].index(getattr(s, attribute)) for s in scenes])
