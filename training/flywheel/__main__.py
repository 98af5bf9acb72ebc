"""Votes train a reward, the reward trains a student, and the student is voted on again.

    python -m training.flywheel --out runs/flywheel

The shapes world, and SIMULATED raters of a planted taste: they prefer sprites high in the frame,
which no prompt asks for. Nothing about people follows. Each stage is another command of this
repository; what it made is kept, and the same command again continues.

The first turn starts from Turbo-DMD. Its student is compared with Turbo-4 on scenes that nothing
was trained on, by raters of that taste and by raters of the opposite one. Turbo-DMD itself is the
control: it is compared with Turbo-4 in the same way.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from human_eval.errors import StudyError
from training.checkpoints import only_process_in
from training.flywheel import settings
from training.flywheel.results import measure_reward, measure_right, measure_wins, plot_turns
from training.flywheel.settings import Sizes, keep_settings
from training.flywheel.stages import distil, generate
from training.flywheel.studies import hold_study, write_lines
from training.reward.__main__ import main as train_reward
from training.shapes.world.scenes import HELD_OUT_SCENES, TEMPLATES, TRAIN_SCENES, Scene
from turbo.whole_file import write_whole

AGAIN = "When the cause is removed, the same command again continues."


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
    taken = len([*out.glob("turn-*/opposite")])
    spread = np.arange(sizes.unseen) * len(HELD_OUT_SCENES) // sizes.unseen
    scenes = [HELD_OUT_SCENES[i] for i in spread]
    order = np.random.default_rng(0).permutation(len(TRAIN_SCENES))[: sizes.pairs]
    voted = write_lines(out / "voted.txt", [TRAIN_SCENES[i].caption() for i in order])
    unseen = write_lines(out / "unseen.txt", [scene.caption() for scene in scenes])
    trained = [scene.caption(words) for scene in TRAIN_SCENES for words in TEMPLATES]
    distilled = write_lines(out / "distilled.txt", trained)
    known = out / "turbo"
    generate(settings.BASELINE, voted, known / "voted", processes)
    generate(settings.BASELINE, unseen, known / "unseen", processes)
    generate(settings.START, unseen, out / "control" / "unseen", processes)
    results: dict[str, Any] = {
        "simulated": True,
        "control": compare("control", out / "control", unseen, scenes, 0),
        "turns": [],
    }
    start, models = settings.START, out
    for turn in range(1, max(turns, taken) + 1):
        folder, name = out / f"turn-{turn}", f"flywheel-{turn}"
        generate(Path(start).name, voted, folder / "voted", processes, settings.OTHER_SEEDS, models)
        clips = {"student": folder / "voted", "turbo": known / "voted"}
        votes = hold_study(folder / "votes", voted, clips, settings.LIKING, turn)
        if not (folder / "mine").exists():
            train_reward(
                [str(votes), "--out", str(folder / "mine"), "--backbone", *settings.BACKBONES]
            )
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
        for taste, liking in settings.TASTES.items()
    }
    preferred = {taste: measure_wins(export) for taste, export in exports.items()}
    return preferred | measure_right(exports["planted taste"], system, scenes)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m training.flywheel", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=Path, default=Path("runs/flywheel"))
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=Sizes.pairs, help="to vote on, twice each")
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
                raise ValueError(f"--{name} must be at least 1, not {value}.")
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
