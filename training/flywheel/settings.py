"""What decides the results of a turn, and the file that keeps it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from human_eval.study.simulation import Crowd
from training.reward.comparisons import MIN_PROMPTS
from training.shapes.world.scenes import HELD_OUT_SCENES, TRAIN_SCENES
from turbo.card import describe_remedy
from turbo.models.registry import find_card
from turbo.rewards.published import EMBEDDED
from turbo.rewards.vote_reward import hash_weights
from turbo.whole_file import write_whole

STUDENT_CONFIG = Path(__file__).parents[1] / "configs" / "shapes_votes.toml"
BASELINE = "shapes-turbo"
START = "shapes-turbo-dmd"  # of the first turn, and the control: it has no reward of votes
BACKBONES = ("shapes-image", "shapes-video")  # of the votes' reward
STUDY = """
name = "flywheel"
version = 1
title = "Simulated raters of a planted taste"
prompts = "prompts.txt"
raters_per_pair = $raters
anonymous = true
match_seeds = false
systems = [{ key = "$system", title = "$system" }, { key = "turbo", title = "Turbo-4" }]
comparisons = [{ key = "C1", a = "$system", b = "turbo" }]
questions = [{ key = "Q1", wording = "Which video do you prefer?", primary = true }]
consent = { text = "Simulated raters only." }
"""
# No rater leans towards a system, so equal clips win half of the votes in expectation.
CROWD = Crowd(raters=40, win_rate=0.5, side_bias=0.05, rater_spread=0.0, abandon=0.0)
# The studies of a turn, and how many raters vote on a pair. The control, turn 0, has the last two.
STUDIES = {"votes": 2, "planted": 4, "opposite": 4}
LIKING = 0.3  # log-odds for each of the 32 rows that the sprite's centre is higher
TASTES = {"planted taste": LIKING, "opposite taste": -LIKING}
OTHER_SEEDS = 1_000_000  # of the second clip of a prompt
VOTE_WEIGHT = 0.3  # of the reward; the shipped rewards keep their weights
SHIPPED_REWARDS = """\
{ name = "shapes-image", weight = 0.4, frames = 4 }, \
{ name = "shapes-video", weight = 0.5, frames = 8 }"""
SLOTS = 4  # micro-batches of a step, shared by the processes
FAKE_WARMUP = 60  # steps in which the fake of distribution matching learns alone
CHANGES = (  # to the configuration: distribution matching at one w
    "student.method=matching", "student.target_ema=0.0", "teacher.guidance=[1.0, 1.0]",
    "matching.lora_rank=0", "matching.rate=2.0", "run.batch=16", f"run.micro_batch={16 // SLOTS}",
    "run.learning_rate=2e-4", "run.warmup=10", "run.decay=0.5", "run.weight_ema=0.98",
    "run.checkpoint_every=20",
)  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """How much a turn takes."""

    pairs: int = 1000  # to vote on, by two raters each
    steps: int = 400  # of training, of 16 clips, after those of the fake alone
    unseen: int = len(HELD_OUT_SCENES)  # prompts of the comparison with Turbo-4

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"--steps must be at least 1, not {self.steps}.")
        bounds = {"pairs": (MIN_PROMPTS, len(TRAIN_SCENES)), "unseen": (2, len(HELD_OUT_SCENES))}
        for name, (low, high) in bounds.items():
            if not low <= (value := getattr(self, name)) <= high:
                raise ValueError(f"--{name} must be from {low} to {high}, not {value}.")


def keep_settings(out: Path, sizes: Sizes) -> None:
    """Store the settings in settings.json of a new folder; check those of one to continue.

    Raises:
        ValueError: the folder was made with other settings, or does not say with which; or a model
            has no weights.
    """
    file, wanted = out / "settings.json", describe_settings(sizes)
    if file.exists():
        kept = json.loads(file.read_text())
        if others := [name for name, value in wanted.items() if kept.get(name) != value]:
            raise ValueError(
                f"{out} was made with other settings: {', '.join(others)}. The former ones are in "
                f"{file}. Name another folder."
            )
        return
    if out.exists() and any(path.name != ".lock" for path in out.iterdir()):
        raise ValueError(f"{out} has files but no {file.name}. Name another folder.")
    out.mkdir(parents=True, exist_ok=True)
    write_whole(file, (json.dumps(wanted, indent=2) + "\n").encode())


def describe_settings(sizes: Sizes) -> dict[str, Any]:
    """Return all that decides the results, as JSON stores it.

    Raises:
        ValueError: a model has no weights.
    """
    cards = [find_card(name) for name in (BASELINE, START)]
    for card in cards:
        if not card.is_ready():
            raise ValueError(f"{card.name} has no weights. {describe_remedy(card)}")
    models = {card.name: card.weights_sha256() for card in cards}
    rewards = {
        name: hash_weights(sorted(EMBEDDED[name][0].glob("*.safetensors"))) for name in BACKBONES
    }
    settings = asdict(sizes) | {
        "liking": LIKING,
        "crowd": asdict(CROWD),
        "study": STUDY,
        "studies": STUDIES,
        "other_seeds": OTHER_SEEDS,
        "vote_weight": VOTE_WEIGHT,
        "shipped_rewards": SHIPPED_REWARDS,
        "fake_warmup": FAKE_WARMUP,
        "changes": CHANGES,
        "config": STUDENT_CONFIG.read_text(),
        "weights": models | rewards,
    }
    return json.loads(json.dumps(settings))
