"""How many votes a reward needs, against the best possible: simulated raters of a planted taste.

    nice -n 19 python -m tests.benchmarks.vote_reward [--pairs 2800] [--seeds 3] [--taste size]

Clips of the shapes world in pairs of one prompt, with flaws and with a wrong word in the caption.
Of 40 raters, as few as possible answer a pair, by a known utility for each of four questions, with
Davidson's ties, temperatures and side biases of their own. `taste` is something that the frozen
backbones were not trained to see: how high the sprite is (`position`), or how large and fast, in
clips that they do not know either (`size`).

Accuracy is computed from the utility: the probability that an average rater who decides, decides
for the clip that the reward prefers, on 400 pairs of prompts that nobody voted on. The best
possible is that of the utility itself. Nothing about people follows.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from training.reward.comparisons import Comparisons
from training.reward.fit import VoteModel, fit_votes
from training.shapes.models.rewards import to_tensor
from training.shapes.world.scenes import (
    COLOURS,
    EYE,
    FRAMES,
    HELD_OUT_SCENES,
    SIZE,
    SPRITE,
    SPRITES,
    TRAIN_SCENES,
    WORDS,
    Defects,
    Scene,
    corrupt_clip,
    draw_background,
    draw_track,
    reword,
)
from turbo.rewards.published import load_backbone
from turbo.rewards.vote_reward import check_backbone, describe_videos

VOTES = (250, 500, 1000, 2000, 4000, 8000)  # on each question
QUESTIONS = ("quality", "text", "overall", "taste")
BACKBONES = ("shapes-image", "shapes-video")
TEST_PAIRS, RATERS = 400, 40
SIZES, SPEEDS = (9, 15), (0.5, 1.0)  # of sprites: pixels from, below; factors
TIE = 0.5  # Davidson's nu
TEMPERATURE, BIAS = 0.4, 0.3  # standard deviations between raters


def draw_pairs(
    scenes: Sequence[Scene], pairs: int, taste: str, seed: int
) -> tuple[np.ndarray, list[str], Float[np.ndarray, "C 4"]]:
    """Draw two clips of each prompt, with their planted utilities by question.

    Clips 2 i and 2 i + 1 are a pair.
    """
    rng = np.random.default_rng(seed)
    clips, prompts, utilities = [], [], []
    for _ in range(pairs):
        scene = scenes[int(rng.integers(len(scenes)))]
        for _ in range(2):
            clip, utility = draw_clip(scene, taste, rng)
            clips.append(clip)
            prompts.append(scene.caption())
            utilities.append(utility)
    return np.stack(clips), prompts, np.array(utilities)


def draw_clip(scene: Scene, taste: str, rng: np.random.Generator) -> tuple[np.ndarray, list[float]]:
    """Draw one clip of a scene's prompt, and what raters think of it."""
    wrong = rng.random() < 0.3
    shown = reword(scene, str(rng.choice([*WORDS])), rng) if wrong else scene
    size, speed = SPRITE, 1.0
    if taste == "size":
        size, speed = int(rng.integers(*SIZES)), float(rng.choice(SPEEDS))
    track, visible = draw_track(shown.motion, rng)
    slowed = (np.arange(FRAMES) * speed).astype(int)
    track, visible = track[slowed].clip(max=SIZE - size), visible[slowed]
    clip = np.tile(draw_background(shown.background), (FRAMES, 1, 1, 1))
    cells = np.arange(size) * SPRITE // size
    bitmap = SPRITES[shown.shape][cells][:, cells]
    for image, (row, column), seen in zip(clip, track, visible, strict=True):
        if seen:
            window = image[row : row + size, column : column + size]
            window[bitmap == "#"], window[bitmap == "o"] = COLOURS[shown.colour], EYE
    flaws = [float(rng.random() < 0.25) for _ in range(3)]
    clip = corrupt_clip(clip, Defects(*flaws), rng)
    quality = -2.0 * flaws[0] - 2.5 * flaws[1] - 1.5 * flaws[2]
    if taste == "size":
        moved = float(np.abs(np.diff(track, axis=0)).sum() / FRAMES)  # pixels a frame
        liked = -0.5 * (size - SPRITE) - 0.5 * moved
    else:
        liked = -0.3 * float(track[:, 0].mean())  # row of the sprite's top
    return clip, [quality, -3.0 * wrong, 0.7 * quality - 2.0 * wrong, liked]


@torch.no_grad()
def describe(clips: np.ndarray, prompts: list[str]) -> Float[Tensor, "C D"]:
    """Return the features of the shapes backbones."""
    backbones = [check_backbone(n, load_backbone(n, Path(n))[0]) for n in BACKBONES]
    rows = [slice(start, start + 50) for start in range(0, len(clips), 50)]
    return torch.cat(
        [
            describe_videos(backbones, to_tensor(clips[row][:, ::2]), prompts[row])
            for row in tqdm(rows, desc="features", unit="50 clips")
        ]
    )


def vote(utilities: Float[Tensor, "C Q"], prompts: list[str], count: int, seed: int) -> Comparisons:
    """Let the raters answer all questions about the first pairs, `count` votes on each question."""
    rng = np.random.default_rng(seed)
    each = -(-2 * count // len(prompts))  # votes on a pair
    pair = np.arange(count) // each
    raters = np.argsort(rng.random((pair[-1] + 1, RATERS)), axis=1)[:, :each]
    rater = raters.ravel()[:count]
    left = rng.choice([-1.0, 1.0], count)
    temperature = np.exp(rng.normal(0, TEMPERATURE, RATERS))
    bias = rng.normal(0, BIAS, RATERS)
    answers = []
    for question in range(len(QUESTIONS)):
        known = utilities[:, question].numpy()
        eta = temperature[rater] * (known[2 * pair] - known[2 * pair + 1]) + bias[rater] * left
        odds = np.stack([np.exp(eta / 2), np.exp(-eta / 2), np.full(count, TIE)], axis=1)
        sums = (odds / odds.sum(axis=1, keepdims=True)).cumsum(axis=1)
        answers.append((rng.random(count)[:, None] > sums).sum(axis=1).clip(max=2))
    texts = {prompt: number for number, prompt in enumerate(sorted(set(prompts)))}
    held_out = rng.random(len(texts)) < 0.18
    part = np.array([int(held_out[texts[prompts[2 * row]]]) for row in pair])
    repeat = len(QUESTIONS)
    return Comparisons(
        clips=[Path(str(row)) for row in range(len(prompts))],
        prompts=prompts,
        first=torch.tensor(2 * pair).repeat(repeat),
        second=torch.tensor(2 * pair + 1).repeat(repeat),
        question=torch.arange(repeat).repeat_interleave(count),
        answer=torch.tensor(np.concatenate(answers)),
        left=torch.tensor(left).float().repeat(repeat),
        rater=torch.tensor(rater).repeat(repeat),
        part=torch.tensor(part).repeat(repeat),
        questions=[*QUESTIONS],
        primary="overall",
        wordings=[*QUESTIONS],
        title="planted taste",
        simulated=True,
    )


def measure(
    model: VoteModel, features: Float[Tensor, "C D"], utilities: Float[Tensor, "C Q"]
) -> tuple[Float[np.ndarray, " Q"], Float[np.ndarray, " Q"]]:
    """Return the accuracy of the reward and the best possible one, by question."""
    with torch.no_grad():
        scores = model.head(features)
    chance = (utilities[::2] - utilities[1::2]).sigmoid()
    chosen = scores[::2] > scores[1::2]
    accuracy = torch.where(chosen, chance, 1 - chance).mean(dim=0)
    return accuracy.numpy(), torch.maximum(chance, 1 - chance).mean(dim=0).numpy()


def main() -> None:
    """Print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--taste", choices=["position", "size"], default="position")
    parser.add_argument("--pairs", type=int, default=2800, help="to vote on")
    parser.add_argument("--seeds", type=int, default=3, help="of raters and votes")
    parser.add_argument("--cache", type=Path, help="file of the features, which take minutes")
    options = parser.parse_args()
    drawn = [
        draw_pairs(scenes, pairs, options.taste, seed)
        for seed, (scenes, pairs) in enumerate(
            [(TRAIN_SCENES, options.pairs), (HELD_OUT_SCENES, TEST_PAIRS)]
        )
    ]
    if options.cache and options.cache.exists():
        features = torch.load(options.cache, weights_only=True)
    else:
        features = [describe(clips, prompts) for clips, prompts, _ in drawn]
        if options.cache:
            torch.save(features, options.cache)
    known = [torch.tensor(utilities).float() for *_, utilities in drawn]
    rows = []
    for count in VOTES:
        found: list[np.ndarray] = []
        for seed in range(options.seeds):
            votes = vote(known[0], drawn[0][1], count, seed)
            fitted = fit_votes(features[0], votes)
            accuracy, best = measure(fitted.model, features[1], known[1])
            found.append(accuracy)
        mean = np.stack(found).astype(float).mean(axis=0)
        rows.append(
            {"votes": count} | dict(zip(QUESTIONS, (100 * mean).round(1).tolist(), strict=True))
        )
    top = dict(zip(QUESTIONS, (100 * best.astype(float)).round(1).tolist(), strict=True))
    for row in [*rows, {"votes": "best", **top}]:
        print("| " + " | ".join(map(str, row.values())) + " |")
    print(json.dumps({"taste": options.taste, "rows": rows, "best": top, "seeds": options.seeds}))


if __name__ == "__main__":
    main()
