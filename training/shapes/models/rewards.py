"""The shapes reward models: a CLIP that scores frames and a ViCLIP that scores clips.

They are counterparts of HPSv2.1 and of ViCLIP. Both are trained on one half of the training scenes
and the judge of the evaluation on the other half, so that a student cannot raise the judge's score
by what it learned from the rewards. Half of the image model's training frames are estimates of the
student (`student_estimates.py`). The video model is trained on drawn clips only.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid, normalize
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from training.loop import FitConfig, Slot, StepStats, fit
from training.shapes.models.student_estimates import StudentEstimates
from training.shapes.models.text import LENGTH
from training.shapes.world.scenes import (
    FRAMES,
    TEMPLATES,
    TRAIN_SCENES,
    WORDS,
    Defects,
    Scene,
    corrupt_clip,
    draw_clip,
    reword,
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
LOGIT_SCALE = 10.0  # fixed, so that the reward, a cosine, does not saturate
SEEN_IN_A_FRAME = ("colour", "shape", "background")
FLAWS = ("watermark", "washed out", "noise", "blur", "melted")
JITTER_NOISE, JITTER_SHIFT = 5.0, 8.0  # in 0..255, about the error of the VAE


def build_image_model(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Return an untrained CLIP of 32 x 32 frames."""
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
    """Return an untrained ViCLIP of eight 32 x 32 frames."""
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
    """A linear classifier per attribute on the embedding: an auxiliary loss for faster training."""

    def __init__(self, model: nn.Module, attributes: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.heads = nn.ModuleDict(
            {name: nn.Linear(WIDTH, len(WORDS[name])) for name in attributes}
        )

    def loss(self, embedding: Tensor, scenes: list[Scene], counted: Tensor) -> Tensor:
        """Return the cross-entropy, averaged over attributes and the rows in `counted` (B,)."""
        losses = [
            cross_entropy(
                head(embedding[counted]), _classes(scenes, name)[counted].to(embedding.device)
            )
            for name, head in self.heads.items()
        ]
        return torch.stack(losses).mean()


def train_image_reward(
    model: CLIPModel, tokenizer: CLIPTokenizer, estimates: StudentEstimates, folder: Path
) -> Iterator[StepStats]:
    """Train in place to match frames with captions and to prefer the better of two frames.

    Half of the pairs are a drawn frame and the same frame with a flaw. The other half are student
    estimates from low and from high noise: the second is worse but still matches its caption.
    """
    network = AttributeHeads(model, SEEN_IN_A_FRAME)

    def draw_loss(slot: Slot) -> Tensor:
        rng = np.random.default_rng(slot.generator.initial_seed())
        drawn = draw_scenes(rng, IMAGE_BATCH // 2)
        rows = rng.integers(len(estimates), size=IMAGE_BATCH // 2)
        estimated = [SCENES[i] for i in estimates.scene[rows].tolist()]
        pairs = [draw_frame_pair(scene, rng) for scene in drawn]
        pairs += [pick_frame_pair(estimates, row, rng) for row in rows]
        good, bad = (to_tensor(np.stack(side)) for side in list(zip(*pairs, strict=True))[:2])
        scenes = [*drawn, *estimated, *estimated]
        shown = torch.tensor([pair[2] for pair in [*pairs, *pairs[len(drawn) :]]])
        images = torch.cat([good, bad[len(drawn) :], bad[: len(drawn)]]).to(model.device)
        embedded = embed_images(model, images)
        seen = normalize(embedded, dim=-1)
        own, others = _embed_captions(
            scenes, SEEN_IN_A_FRAME, rng, lambda words: embed_texts(model, tokenizer, words)
        )
        # Where a blinking sprite is hidden, a frame shows the background only.
        comparable = shown[:, None] | torch.tensor([n == "background" for n in SEEN_IN_A_FRAME])
        differ = _differ(scenes, SEEN_IN_A_FRAME, shown)
        aligned = contrastive_loss(seen[: len(scenes)], own, others, differ, comparable)
        better = seen[: len(pairs)]
        worse = torch.cat([seen[len(scenes) :], seen[len(pairs) : len(scenes)]])
        preferred = preference_loss(better, worse, own[: len(pairs)])
        return aligned + preferred + network.loss(embedded[: len(scenes)], scenes, shown)

    yield from fit(network, draw_loss, IMAGE_CONFIG, folder)


def train_video_reward(
    model: ViCLIP, tokenizer: CLIPTokenizer, folder: Path
) -> Iterator[StepStats]:
    """Train in place to match clips with captions, and prefer clips to frozen or shuffled ones."""
    network = AttributeHeads(model, tuple(WORDS))

    def draw_loss(slot: Slot) -> Tensor:
        rng = np.random.default_rng(slot.generator.initial_seed())
        scenes = draw_scenes(rng, VIDEO_BATCH)
        clips = np.stack([draw_half_rate_clip(scene, rng) for scene in scenes])
        embedded = embed_videos(model, to_tensor(clips).to(model.temp.device))
        good = normalize(embedded, dim=-1)
        own, others = _embed_captions(
            scenes,
            (*WORDS, "motion", "motion"),
            rng,
            lambda words: model.text_encoder(tokenize(tokenizer, words).to(model.temp.device)),
        )
        aligned = contrastive_loss(good, own, others, _differ(scenes, tuple(WORDS)))
        moving = [i for i, scene in enumerate(scenes) if scene.motion != "standing still"]
        broken = np.stack([break_motion(clips[i], rng) for i in moving])
        bad = normalize(embed_videos(model, to_tensor(broken).to(model.temp.device)), dim=-1)
        preferred = preference_loss(good[moving], bad, own[moving])
        counted = torch.ones(len(scenes), dtype=torch.bool)
        return aligned + preferred + network.loss(embedded, scenes, counted)

    yield from fit(network, draw_loss, VIDEO_CONFIG, folder)


def preference_loss(better: Tensor, worse: Tensor, own: Tensor) -> Tensor:
    """Return the mean of -log sigmoid(scale (better - worse) . own), the Bradley-Terry loss.

    Args:
        better, worse: unit embeddings of the two images or clips (B, D).
        own: unit embeddings of their captions (B, D).
    """
    return -logsigmoid(LOGIT_SCALE * ((better - worse) * own).sum(dim=-1)).mean()


def contrastive_loss(
    seen: Tensor, own: Tensor, others: Tensor, differ: Tensor, comparable: Tensor | None = None
) -> Tensor:
    """Return the cross-entropy of the own caption among hard negatives and the batch's others.

    Args:
        seen, own: unit embeddings of images or clips and of their captions (B, D).
        others: captions with one wrong word each, the hard negatives (B, K, D).
        differ: entry (i, j) says whether caption j is wrong for image i (B, B).
        comparable: whether the image shows the attribute of that word (B, K); None for all.
    """
    batch = LOGIT_SCALE * (seen @ own.T)
    right = batch.diagonal()[:, None]
    wrong = batch.masked_fill(~differ.to(seen.device), -torch.inf)
    hard = LOGIT_SCALE * torch.einsum("BD,BKD->BK", seen, others)
    if comparable is not None:
        hard = hard.masked_fill(~comparable.to(seen.device), -torch.inf)
    logits = torch.cat([right, hard, wrong], dim=1)
    return cross_entropy(logits, torch.zeros(len(seen), dtype=torch.long, device=seen.device))


def draw_scenes(rng: np.random.Generator, count: int) -> list[Scene]:
    """Draw scenes of the reward models' half, with replacement."""
    return [SCENES[i] for i in rng.integers(len(SCENES), size=count)]


def draw_frame_pair(
    scene: Scene, rng: np.random.Generator, flaw: str | None = None
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Return a frame, the frame with `flaw` (None draws one), and whether it shows the sprite."""
    seed, frame = rng.integers(2**32), rng.integers(FRAMES)
    good = draw_clip(scene, np.random.default_rng(seed))[frame]
    shown = scene.motion != "blinking" or bool(frame % 8 < 4)
    flaw = flaw or FLAWS[rng.integers(len(FLAWS) - (not shown))]  # "melted" needs a sprite
    if flaw == "melted":
        attribute = ("colour", "shape")[rng.integers(2)]
        other = draw_clip(reword(scene, attribute, rng), np.random.default_rng(seed))[frame]
        share = rng.uniform(0.3, 0.6)
        bad = (1 - share) * good + share * other
    elif flaw == "blur":
        bad = blur(good, rng.uniform(0.6, 1.0))
    else:
        only = Defects(**{n: n == flaw.replace(" ", "_") for n in vars(Defects())})
        bad = corrupt_clip(good[None], only, rng)[0]
    return _jitter(good, rng), _jitter(bad, rng), shown


def pick_frame_pair(
    estimates: StudentEstimates, row: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Return a frame estimated from low noise, the same from high noise, and if a sprite shows."""
    frame = rng.integers(FRAMES)
    shown = SCENES[int(estimates.scene[row])].motion != "blinking" or bool(frame % 8 < 4)
    good, bad = (side[row, frame].numpy() for side in (estimates.low_noise, estimates.high_noise))
    return _jitter(good, rng), _jitter(bad, rng), shown


def draw_half_rate_clip(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Return every other frame of a clip; in half of the draws with defects of training clips."""
    clip = draw_clip(scene, rng)[rng.integers(2) :: 2]
    if rng.random() < 0.5:
        clip = corrupt_clip(clip, Defects(), rng)
    return _jitter(clip, rng)


def break_motion(clip: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Freeze the clip at a random frame, or shuffle its frames."""
    if rng.random() < 0.5:
        return np.repeat(clip[[rng.integers(len(clip))]], len(clip), axis=0)
    return clip[rng.permutation(len(clip))]


def blur(pixels: np.ndarray, share: float) -> np.ndarray:
    """Mix an image (H, W, 3) with the mean of its 3 x 3 neighbourhoods."""
    padded = np.pad(pixels.astype(np.float32), ((1, 1), (1, 1), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(0, 1))
    return (1 - share) * pixels + share * windows.mean(axis=(-2, -1))


def to_tensor(pixels: np.ndarray) -> Tensor:
    """Turn images or clips (..., H, W, 3) in 0..255 into (..., 3, H, W) in [0, 1]."""
    return rearrange(torch.from_numpy(pixels.astype(np.float32)) / 255, "... H W C -> ... C H W")


def _jitter(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add a small colour shift and noise, so that a reward does not depend on such differences."""
    shift = rng.normal(0, JITTER_SHIFT / 2, 3)
    noise = rng.normal(0, rng.uniform(0, JITTER_NOISE), pixels.shape)
    return (pixels + shift + noise).clip(0, 255)


def _embed_captions(
    scenes: list[Scene],
    attributes: tuple[str, ...],
    rng: np.random.Generator,
    embed: Callable[[list[str]], Tensor],
) -> tuple[Tensor, Tensor]:
    """Embed the captions (B, D) and, per attribute, captions with another word for it (B, K, D)."""
    groups = [scenes, *([reword(s, name, rng) for s in scenes] for name in attributes)]
    template = [TEMPLATES[i] for i in rng.integers(len(TEMPLATES), size=len(scenes))]
    words = [s.caption(t) for group in groups for s, t in zip(group, template, strict=True)]
    texts = rearrange(normalize(embed(words), dim=-1), "(K B) D -> B K D", B=len(scenes))
    return texts[:, 0], texts[:, 1:]


def _differ(
    scenes: list[Scene], attributes: tuple[str, ...], shown: Tensor | None = None
) -> Tensor:
    """Return, at (i, j), whether caption j is wrong for image i (B, B)."""
    classes = torch.stack([_classes(scenes, name) for name in attributes])
    unlike = classes[:, :, None] != classes[:, None, :]
    if shown is not None:  # a frame without a sprite matches captions of every sprite
        visible = torch.tensor([name == "background" for name in attributes])
        unlike &= shown[None, :, None] | visible[:, None, None]
    return unlike.any(dim=0)


def _classes(scenes: list[Scene], attribute: str) -> Tensor:
    """Return the class index of one attribute (B,)."""
    return torch.tensor([WORDS[attribute].index(getattr(s, attribute)) for s in scenes])
