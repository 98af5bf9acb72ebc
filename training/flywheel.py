"""Votes train a reward, the reward trains a student, and the student is voted on again.

    python -m training.flywheel --out runs/flywheel

The shapes world, and SIMULATED raters of a planted taste: they prefer sprites high in the frame,
which no prompt asks for. Nothing about people follows. Each stage is another command of this
repository; what it made is kept, and the same command again continues.

The student is compared with Turbo-4 on scenes that nothing was trained on, by raters of that taste
and by raters of the opposite one. So is a control, distribution matching without the votes' reward.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from string import Template
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from human_eval.cli.main import main as human_eval
from human_eval.errors import StudyError
from human_eval.reporting.export import CLIPS, FILES, read_export
from human_eval.statistics.intervals import clustered_mean
from human_eval.study.simulation import Crowd, simulate
from human_eval.study.store import open_study
from training.checkpoints import only_process_in
from training.reward.__main__ import main as train_reward
from training.reward.comparisons import MIN_PROMPTS
from training.reward.measurements import Measured
from training.shapes.evaluation.figures import GREY, HUES, INK, STYLE
from training.shapes.evaluation.intervals import SHARE
from training.shapes.evaluation.intervals import clustered_mean as mean_over_scenes
from training.shapes.evaluation.metrics import sprite_row
from training.shapes.evaluation.probes import read_clip, read_shapes
from training.shapes.world.scenes import HELD_OUT_SCENES, SIZE, TEMPLATES, TRAIN_SCENES, Scene
from turbo.card import describe_remedy
from turbo.models.registry import find_card
from turbo.rewards.published import EMBEDDED
from turbo.rewards.vote_reward import hash_weights, read_vote_card
from turbo.whole_file import open_whole, write_whole

STUDENT_CONFIG = Path(__file__).parent / "configs" / "shapes_votes.toml"
BASELINE = "shapes-turbo"
CONTROL = "shapes-turbo-dmd"  # distribution matching as well, but no reward of votes
BACKBONES = ("shapes-image", "shapes-video")  # of the votes' reward
STUDY = """
name = "flywheel"
version = 1
title = "Simulated raters of a planted taste"
prompts = "prompts.txt"
raters_per_pair = 4
anonymous = true
match_seeds = false
systems = [{ key = "$system", title = "$system" }, { key = "turbo", title = "Turbo-4" }]
comparisons = [{ key = "C1", a = "$system", b = "turbo" }]
questions = [{ key = "Q1", wording = "Which video do you prefer?", primary = true }]
consent = { text = "Simulated raters only." }
"""
# No rater leans towards a system, so equal clips win half of the votes in expectation.
CROWD = Crowd(raters=40, win_rate=0.5, side_bias=0.05, rater_spread=0.0, abandon=0.0)
STUDIES = ("votes", "planted", "opposite")  # of a turn; the control, turn 0, has the last two
LIKING = 0.3  # log-odds for each of the 32 rows that the sprite's centre is higher
TASTES = {"planted taste": LIKING, "opposite taste": -LIKING}
OTHER_SEEDS = 1_000_000  # of the second clip of a prompt
VOTE_WEIGHT = 1.0  # of the reward; the shipped rewards keep their weights
SHIPPED_REWARDS = """\
{ name = "shapes-image", weight = 0.4, frames = 4 }, \
{ name = "shapes-video", weight = 0.5, frames = 8 }"""
AGAIN = "When the cause is removed, the same command again continues."
SLOTS = 4  # micro-batches of a step, shared by the processes
FAKE_WARMUP = 60  # steps in which the fake of distribution matching learns alone
CHANGES = (  # to the configuration: distribution matching at one w, from Turbo-4
    "student.method=matching", "student.target_ema=0.0", "teacher.guidance=[1.0, 1.0]",
    "matching.lora_rank=0", "matching.rate=2.0", "run.batch=16", f"run.micro_batch={16 // SLOTS}",
    "run.learning_rate=2e-4", "run.warmup=10", "run.decay=0.5", "run.weight_ema=0.98",
    "run.checkpoint_every=20",
)  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """How much a turn takes."""

    pairs: int = 500  # to vote on, by four raters each
    steps: int = 240  # of training, of 16 clips, after those of the fake alone
    unseen: int = len(HELD_OUT_SCENES)  # prompts of the comparison with Turbo-4

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"Expected one or more steps, got {self.steps}.")
        bounds = {"pairs": (MIN_PROMPTS, len(TRAIN_SCENES)), "unseen": (2, len(HELD_OUT_SCENES))}
        for name, (low, high) in bounds.items():
            if not low <= (value := getattr(self, name)) <= high:
                raise ValueError(f"Expected {low} to {high} {name}, got {value}.")


def turn_flywheel(out: Path, turns: int, sizes: Sizes, processes: int) -> None:
    """Take every turn and write results.json and flywheel.svg after each.

    Both hold every turn that the folder has, also those that an earlier command took.

    Raises:
        ValueError: as for `keep_settings`.
        StudyError: a study or its export is damaged.
        OSError: a file cannot be read or written.
        CalledProcessError, SystemExit: a stage has failed, and has said why.
    """
    keep_settings(out, sizes)
    taken = len([*out.glob(f"turn-*/{STUDIES[-1]}")])
    spread = np.arange(sizes.unseen) * len(HELD_OUT_SCENES) // sizes.unseen
    scenes = [HELD_OUT_SCENES[i] for i in spread]
    order = np.random.default_rng(0).permutation(len(TRAIN_SCENES))[: sizes.pairs]
    voted = write_lines(out / "voted.txt", [TRAIN_SCENES[i].caption() for i in order])
    unseen = write_lines(out / "unseen.txt", [scene.caption() for scene in scenes])
    trained = [scene.caption(words) for scene in TRAIN_SCENES for words in TEMPLATES]
    distilled = write_lines(out / "distilled.txt", trained)
    known = out / "turbo"
    generate(BASELINE, voted, known / "voted", processes)
    generate(BASELINE, unseen, known / "unseen", processes)
    generate(CONTROL, unseen, out / "control" / "unseen", processes)
    results: dict[str, Any] = {
        "simulated": True,
        "control": compare("control", out / "control", unseen, scenes, 0),
        "turns": [],
    }
    start, models = BASELINE, out
    for turn in range(1, max(turns, taken) + 1):
        folder, name = out / f"turn-{turn}", f"flywheel-{turn}"
        generate(Path(start).name, voted, folder / "voted", processes, OTHER_SEEDS, models)
        clips = {"student": folder / "voted", "turbo": known / "voted"}
        votes = hold_study(folder / "votes", voted, clips, LIKING, turn)
        if not (folder / "mine").exists():
            train_reward([str(votes), "--out", str(folder / "mine"), "--backbone", *BACKBONES])
        models = folder / "run" / "models"
        start = distil(name, start, folder, distilled, sizes.steps, processes)
        generate(name, unseen, folder / "unseen", processes, models=models)
        compared = compare("student", folder, unseen, scenes, turn)
        results["turns"].append(measure_reward(folder / "mine") | compared)
        if turn >= taken:
            write_whole(out / "results.json", (json.dumps(results, indent=2) + "\n").encode())
            plot_turns(results, out / "flywheel.svg")


def compare(
    system: str, folder: Path, prompts: Path, scenes: Sequence[Scene], turn: int
) -> dict[str, Any]:
    """Let raters of both tastes compare a system with Turbo-4; return their votes and right clips.

    Args:
        folder: holds the system's clips of the prompts in unseen/, and the studies.
    """
    clips = {system: folder / "unseen", "turbo": prompts.parent / "turbo" / "unseen"}
    exports = {
        taste: hold_study(folder / taste.split()[0], prompts, clips, liking, turn)
        for taste, liking in TASTES.items()
    }
    preferred = {taste: measure_wins(export) for taste, export in exports.items()}
    return preferred | measure_right(exports["planted taste"], system, scenes)


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
    cards = [find_card(name) for name in (BASELINE, CONTROL)]
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
        "other_seeds": OTHER_SEEDS,
        "vote_weight": VOTE_WEIGHT,
        "shipped_rewards": SHIPPED_REWARDS,
        "fake_warmup": FAKE_WARMUP,
        "changes": CHANGES,
        "config": STUDENT_CONFIG.read_text(),
        "weights": models | rewards,
    }
    return json.loads(json.dumps(settings))


def write_lines(file: Path, lines: Sequence[str]) -> Path:
    """Write a file of prompts and return it."""
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


def run(module: str, *arguments: str, processes: int, models: Path | None) -> None:
    """Run a command of this repository in several processes of one thread each.

    Args:
        models: folder of models that it also finds by name.
    """
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m")
    print(f"python -m {module} {' '.join(arguments)}", flush=True)
    command = [sys.executable, "-m", *(torchrun if processes > 1 else ()), module, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if models is not None:
        environment["T2V_MODELS_DIR"] = str(models)
    subprocess.run(command, env=environment, check=True)


def generate(
    model: str,
    prompts: Path,
    clips: Path,
    processes: int,
    seed: int = 0,
    models: Path | None = None,
) -> None:
    """Generate a clip of each prompt; those that exist are not made again."""
    arguments = ("--prompts", prompts, "--model", model, "--seed", seed, "--out", clips)
    run("turbo.generate", *map(str, arguments), processes=processes, models=models)


def crowd_seed(study: str, turn: int) -> int:
    """Return the seed of a study's raters: three times the turn, plus the place in `STUDIES`."""
    return len(STUDIES) * turn + STUDIES.index(study)


def hold_study(
    study: Path, prompts: Path, clips: Mapping[str, Path], liking: float, turn: int
) -> Path:
    """Let simulated raters vote on the clips of two systems; return the export of their votes.

    The second system is Turbo-4. An interrupted study is held again from its beginning, with the
    same raters.
    """
    export, unfinished = study / "export", study.with_name(f"{study.name}.unfinished")
    if study.exists():
        return export
    shutil.rmtree(unfinished, ignore_errors=True)
    definition = write_lines(
        prompts.with_name("study.toml"), [Template(STUDY).substitute(system=next(iter(clips)))]
    )
    human_eval(
        ["create", str(unfinished), "--definition", str(definition), "--prompts", str(prompts)]
    )
    human_eval(["ingest", str(unfinished), *(f"{key}={folder}" for key, folder in clips.items())])
    seed = crowd_seed(study.name, turn)
    store = replace(open_study(unfinished), rng=random.Random(seed))  # of the order of the pairs
    crowd = replace(CROWD, seed=seed)
    simulate(store, crowd, utility=cache(lambda clip: rate_height(clip, liking)))
    store.close()
    target = ("--out", str(unfinished / "export"))
    human_eval(["export", str(unfinished), "--simulated", "--clips", *target])
    unfinished.rename(study)
    return export


def rate_height(file: Path, liking: float) -> float:
    """Return the utility of a clip. Without a sprite it is that of one below the frame, or worse.

    Raters of the opposite taste like a missing sprite no better.
    """
    row = sprite_row(read_shapes(file))
    return -abs(liking) * SIZE if row is None else -liking * row


def distil(name: str, start: str, folder: Path, prompts: Path, steps: int, processes: int) -> str:
    """Train a student with the reward of the votes and the shipped ones; return its folder."""
    out = folder / "run"
    made = out / "models" / name
    mine = f'{{ name = "mine", folder = "{folder}/mine", weight = {VOTE_WEIGHT} }}'
    rewards = f"[{mine}, {SHIPPED_REWARDS}]"
    changes = {
        "name": name, "student.start": start, "data.prompts": prompts, "rewards": rewards,
        "run.out": out, "run.steps": FAKE_WARMUP + steps, "matching.warmup": FAKE_WARMUP,
    }  # fmt: skip
    if not (made / "card.json").exists():
        arguments = [f"{key}={value}" for key, value in changes.items()]
        command = (str(STUDENT_CONFIG), *CHANGES, *arguments)
        equal = max(count for count in range(1, processes + 1) if SLOTS % count == 0)
        run("training.distil", *command, processes=equal, models=folder)
    return str(made)


def measure_reward(folder: Path) -> dict[str, Any]:
    """Return the share of held-out votes that a reward predicts, and whether that shows anything.

    `training.reward` warns if it does not.
    """
    card = read_vote_card(folder)
    found = Measured(**card.measured[card.primary])  # type: ignore[arg-type]
    share = {"mean": found.accuracy, "low": found.low, "high": found.high, "votes": found.votes}
    return {
        "reward, held-out accuracy": share,
        "reward, shown to be better than ignoring the clips": found.beats_baseline,
    }


def measure_wins(export: Path) -> dict[str, float]:
    """Return the share of votes for the student, with its interval over prompts and raters."""
    votes, _ = read_export(export)
    won = (votes["choice"] == "a").to_numpy(dtype=np.float64)
    share = clustered_mean(won, {"prompt": votes["prompt"], "rater": votes["rater"]})
    return {"mean": share.mean, "low": share.low, "high": share.high, "votes": len(votes)}


def measure_right(
    export: Path, system: str, scenes: Sequence[Scene]
) -> dict[str, dict[str, float]]:
    """Return the share of a study's clips with all four attributes of their scenes right.

    Args:
        system: that was compared with Turbo-4.

    Raises:
        ValueError: a system has not one clip of each scene.
    """
    table = pd.read_csv(export / CLIPS)
    right, clusters = {}, {"scene": np.array([repr(scene) for scene in scenes])}
    for key in (system, "turbo"):
        rows = table[table["system"] == key]
        names = {prompt: [*names] for prompt, names in rows.groupby("prompt")["stored_name"]}
        hits = []
        for scene in scenes:
            found = names.get(scene.caption(), [])
            if len(found) != 1:
                raise ValueError(
                    f"Expected one clip of {key} for {scene.caption()!r} in {export / CLIPS}, "
                    f"got {len(found)}. Remove {export.parent} and run the same command again."
                )
            hits.append(read_clip(read_shapes(export / FILES / found[0])).matches(scene)["all"])
        right[key] = np.array(hits)
    difference = right[system].astype(float) - right["turbo"]
    rates = {
        f"right, {key}": asdict(mean_over_scenes(hit, clusters, bounds=SHARE))
        for key, hit in right.items()
    }
    apart = mean_over_scenes(difference, clusters, bounds=(-1.0, 1.0))
    return rates | {"right, difference": asdict(apart)}


def plot_turns(results: Mapping[str, Any], file: Path) -> None:
    """Plot the win rate over Turbo-4 by taste, and the share of right clips.

    The control comes first, then the student of every turn.
    """
    control, turns = results["control"], results["turns"]
    shown = [control | {"right, student": control["right, control"]}, *turns]
    panels = {
        "preferred to Turbo-4, % of votes": {key: key for key in TASTES},
        "all four attributes right, %": {
            "right, student": "control, student",
            "right, turbo": "Turbo-4",
        },
    }
    colours = (HUES["Turbo"], HUES["VCM"])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 2.8), layout="constrained")
        for axis, (title, labels) in zip(figure.subplots(1, 2), panels.items(), strict=True):
            for offset, key, colour in zip((-0.05, 0.05), labels, colours, strict=True):
                rows = 100 * np.array([[r[key][k] for k in ("mean", "low", "high")] for r in shown])
                mean, low, high = rows.T
                places, bars = np.arange(len(shown)) + offset, (mean - low, high - mean)
                axis.errorbar(places, mean, bars, fmt="o", color=colour, label=labels[key])
            names = (f"student {turn}" for turn in range(1, len(shown)))
            axis.set_xticks(range(len(shown)), ["control", *names])
            axis.set_xlim(-0.5, len(shown) - 0.5)
            axis.set_ylim(0, 100)
            axis.axhline(50, color=GREY, linewidth=0.8, linestyle=":")
            axis.set_title(title, fontsize=9, color=INK)
            axis.legend(frameon=False)
        title = "SIMULATED raters; 95 % intervals; the control has no reward of votes"
        figure.suptitle(title, fontsize=9, color=INK)
        with open_whole(file) as whole:
            figure.savefig(whole, format="svg", metadata={"Date": None})


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m training.flywheel", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=Path, default=Path("runs/flywheel"))
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument(
        "--pairs", type=int, default=Sizes.pairs, help="to vote on, four times each"
    )
    parser.add_argument(
        "--steps", type=int, default=Sizes.steps, help="of the student, of 16 clips"
    )
    parser.add_argument(
        "--unseen", type=int, default=Sizes.unseen, help="prompts of the comparison"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    try:
        sizes = Sizes(options.pairs, options.steps, options.unseen)
        for name in ("turns", "processes"):
            if (value := getattr(options, name)) < 1:
                raise ValueError(f"Expected one or more {name}, got {value}.")
        with only_process_in(options.out):
            turn_flywheel(options.out, options.turns, sizes, options.processes)
    except (ValueError, OSError, StudyError) as failure:
        sys.exit(f"{parser.prog}: {failure}")
    except subprocess.CalledProcessError as failure:
        sys.exit(f"{parser.prog}: {failure} {AGAIN}")
    except SystemExit as stop:  # of a command in this process; with a number, it has printed why
        why = stop.code if isinstance(stop.code, str) else f"{parser.prog}: a stage has failed."
        sys.exit(f"{why} {AGAIN}")


if __name__ == "__main__":
    main()
