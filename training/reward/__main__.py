"""Train a reward on the votes of a study.

    python -m human_eval export study --clips --out export
    python -m training.reward export --out rewards/mine

`rewards = [{name = "mine", weight = 1.0}]` in a configuration of `training.distil` then uses it.
"""

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
import transformers
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from human_eval.errors import StudyError
from training.build import reward_folder
from training.reward.comparisons import PARTS, Comparisons, read_comparisons
from training.reward.fit import Fitted, fit_votes
from training.reward.measurements import Measured, measure_fit
from turbo.rewards import check_reward
from turbo.rewards.published import load_backbone
from turbo.rewards.vote_reward import (
    Backbone,
    VoteReward,
    VoteRewardCard,
    check_backbone,
    count_frames,
    describe_videos,
)
from turbo.video import load_video

BACKBONES = ("clip-h", "viclip")


def train_reward(
    votes: Comparisons, names: Sequence[str], out: Path, *, device: str = "cpu"
) -> dict[str, Measured]:
    """Train a reward and write its folder, all or nothing.

    Args:
        names: of the backbones; their folders are beside `out`.

    Returns:
        What was measured on the test votes, by question.

    Raises:
        ValueError: the folder exists, or the votes, a backbone or a clip cannot be used.
        FileNotFoundError: a file of a backbone is missing.
    """
    if out.exists():
        raise ValueError(f"{out} exists already. Name another folder, or remove it.")
    if votes.primary in votes.undecided("train"):
        raise ValueError(
            f"No vote on {votes.primary}, the primary question, is on a training prompt and not a "
            "tie, so there is nothing to learn. Collect more votes, or divide the prompts by "
            "another --seed."
        )
    loaded = {name: load_backbone(name, out.parent / name) for name in names}
    backbones = [check_backbone(name, one.to(device)) for name, (one, _) in loaded.items()]
    features = describe_clips(votes, backbones)
    fitted = fit_votes(features, votes)
    measured = measure_fit(fitted.model, features, votes)
    card = VoteRewardCard(
        backbones={name: sha256 for name, (_, sha256) in loaded.items()},
        num_frames=count_frames(backbones),
        questions=votes.questions,
        primary=votes.primary,
        title=votes.title,
        simulated=votes.simulated,
        measured={key: asdict(found) for key, found in measured.items()},
    )
    reward = VoteReward(backbones, fitted.model.head.to(device), card)
    check_reward(reward, reward.num_frames, device=device)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as temporary:
        made = Path(temporary) / out.name
        reward.save(made)
        (made / "README.md").write_text(
            describe_reward(card, measured, fitted, votes), encoding="utf-8"
        )
        made.rename(out)
    return measured


@torch.no_grad()
def describe_clips(votes: Comparisons, backbones: Sequence[Backbone]) -> Float[Tensor, "C D"]:
    """Return the features of every clip, of evenly spaced frames, on the CPU.

    Raises:
        ValueError: a clip has too few frames.
    """
    count, device = count_frames(backbones), next(backbones[0].parameters()).device
    described = []
    for path, prompt in zip(tqdm(votes.clips, desc="clips", delay=1), votes.prompts, strict=True):
        pixels = torch.from_numpy(load_video(path).frames)
        if len(pixels) < count:
            raise ValueError(f"{path} has {len(pixels)} frames, but the backbones take {count}.")
        chosen = pixels[torch.arange(count) * (len(pixels) // count)].to(device).float() / 255
        frames = rearrange(chosen, "F H W rgb -> 1 F rgb H W")
        described.append(describe_videos(backbones, frames, [prompt]).float().cpu())
    return torch.cat(described)


def describe_reward(
    card: VoteRewardCard, measured: Mapping[str, Measured], fitted: Fitted, votes: Comparisons
) -> str:
    """Return the model card, in Markdown."""
    parts = Counter(votes.part.tolist())
    divided = ", ".join(f"{parts[number]:,} {part}" for number, part in enumerate(PARTS))
    lines = [
        f"# Reward trained on the votes of: {card.title}",
        "",
        *(
            ["**The votes are SIMULATED. The reward says nothing about people.**", ""]
            * card.simulated
        ),
        f"{len(votes.answer):,} votes of {len(votes.rater.unique()):,} raters on "
        f"{len(votes.clips):,} clips ({divided}; divided by prompt). Votes left out because a clip "
        f"has no file: {votes.left_out:,}. "
        f"Backbones, frozen: {', '.join(card.backbones)}, on {card.num_frames} frames.",
        "",
        "Ties follow Davidson (1970); every rater has a temperature and a side bias. The penalty "
        f"on squared weights, {fitted.penalty:.2g}, is the best on the validation votes.",
        "",
        "On the test votes, in per cent; accuracy and agreement count votes that are no ties. The "
        "loss is the mean of -log P(answer). Where the clips are ignored, it is that of ties and "
        "side biases alone, fitted to the training votes:",
        "",
        "| question | votes (ties) | accuracy [95 %] | two raters agree | calibration error | "
        "loss | loss, clips ignored | difference [95 %] |",
        "|---|---|---|---|---|---|---|---|",
    ]
    wordings = dict(zip(votes.questions, votes.wordings, strict=True))
    for key, found in measured.items():
        agree = "" if found.raters is None else f"{100 * found.raters:.0f}"
        lines.append(
            f"| {key}: {wordings[key]} | {found.votes:,} ({found.ties:,}) | {_accuracy(found)} | "
            f"{agree} | {100 * found.calibration_error:.1f} | {found.loss:.3f} | "
            f"{found.loss_without:.3f} | {_gain(found)} |"
        )
    for gap in find_gaps(votes, measured):
        lines += ["", gap]
    lines += [
        "",
        "Use it on clips like those that were voted on. A student can exploit its errors: run the "
        "distillation with a watch and a judge, and vote on the student.",
        "",
    ]
    return "\n".join(lines)


def find_gaps(votes: Comparisons, measured: Mapping[str, Measured]) -> list[str]:
    """Return which questions the reward has not learned, or is not shown to have, as sentences."""
    no_vote = "since no {} vote says which clip is better"
    gaps = {
        f"learned, {no_vote.format('training')}": votes.undecided("train"),
        f"measured, {no_vote.format('held-out')}": votes.undecided("test"),
        "shown to predict held-out votes better than if the clips are ignored": [
            key for key, found in measured.items() if not found.beats_baseline
        ],
    }
    return [f"Not {what}: {', '.join(keys)}." for what, keys in gaps.items() if keys]


def configure_reward(out: Path) -> str:
    """Return the reward's table for a configuration, in TOML."""
    quoted = partial(json.dumps, ensure_ascii=False)
    found_by_name = out == reward_folder(out.name, None)
    folder = "" if found_by_name else f"folder = {quoted(str(out))}, "
    return f"{{ name = {quoted(out.name)}, {folder}weight = 1.0 }}"


def _accuracy(found: Measured, unit: str = "") -> str:
    text = f"{100 * found.accuracy:.0f}{unit}"
    if found.low is not None and found.high is not None:
        text += f" [{100 * found.low:.0f}, {100 * found.high:.0f}]"
    return f"{text} ({found.note})" if found.note else text


def _gain(found: Measured) -> str:
    text = f"{found.loss_without - found.loss:z.3f}"
    if found.gain_low is None or found.gain_high is None:
        return f"{text} (no interval)"
    return f"{text} [{found.gain_low:z.3f}, {found.gain_high:z.3f}]"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m training.reward", description="Train a reward on the votes of a study."
    )
    parser.add_argument("export", type=Path, help="of `human_eval export --clips`, or import-votes")
    parser.add_argument("--out", type=Path, required=True, help="such as rewards/mine")
    parser.add_argument(
        "--backbone",
        nargs="+",
        default=BACKBONES,
        metavar="NAME",
        help=f"frozen rewards, in folders beside --out; default: {' '.join(BACKBONES)}; for clips "
        "of the shapes world: shapes-image shapes-video",
    )
    parser.add_argument(
        "--clips",
        type=Path,
        metavar="TABLE",
        help="where the clips are, if not in the export: columns system, prompt, path",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the division of the prompts")
    options = parser.parse_args(arguments)
    transformers.utils.logging.disable_progress_bar()  # of loading weights
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        votes = read_comparisons(options.export, options.clips, seed=options.seed)
        measured = train_reward(votes, options.backbone, options.out, device=device)
    except (ValueError, OSError, StudyError) as refusal:
        sys.exit(f"{parser.prog}: {refusal}")
    if votes.simulated:
        print("The votes are SIMULATED.")
    if votes.left_out:
        print(f"{votes.left_out:,} votes were left out: a clip has no file.")
    for key, found in measured.items():
        agree = "" if found.raters is None else f"; two raters agree in {100 * found.raters:.0f} %"
        print(
            f"{key}: {_accuracy(found, ' %')} of "
            f"{found.votes - found.ties:,} held-out votes predicted{agree}."
        )
    for gap in find_gaps(votes, measured):
        print(f"{gap} Collect more votes before you train a student with it.")
    print(f"The reward is in {options.out}. In a configuration of training.distil:")
    print(f"rewards = [{configure_reward(options.out)}]")


if __name__ == "__main__":
    main()
