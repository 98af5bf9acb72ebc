"""Detect reward hacking: does the judge's score still rise while the rewards rise?

Snapshots of students are measured on training scenes that the judge was not trained on. The
held-out prompts are used by the final evaluation only.
"""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from training.shapes.evaluation.intervals import clustered_mean
from training.shapes.evaluation.measurements import measure_systems
from training.shapes.evaluation.systems import System, tuning_prompts
from turbo.networks.lora import LORA_FILE
from turbo.types import Reward

COLUMNS = {  # of the measurements: their titles in the table
    "judge": "judge score",
    "judge_quality": "judge, quality",
    "hit_all": "all correct, %",
    "displacement": "motion, pixels a frame",
    "sharpness": "sharpness",
}


def find_snapshots(folder: Path) -> dict[int, Path]:
    """Return the folders of a student's snapshots, by training step.

    Raises:
        FileNotFoundError: there are none.
    """
    found = {
        int(path.parent.name): path.parent
        for path in folder.glob(f"*/{LORA_FILE}")
        if path.parent.name.isdigit()
    }
    if not found:
        raise FileNotFoundError(
            f"There are no adapters at {folder}/STEP/{LORA_FILE}. Train the student first."
        )
    return dict(sorted(found.items()))


def measure_runs(
    runs: Mapping[str, Path],
    weights: Path,
    cache: Path,
    *,
    rewards: Mapping[str, Reward] | None = None,
    model: str = "shapes-turbo",
    steps: int = 4,
    count: int = 96,
    workers: int | None = None,
) -> pd.DataFrame:
    """Measure the snapshots of every run: one row per run and step, means over the prompts.

    Args:
        runs: the folder of snapshots of each run, by the run's label.
        rewards: the rewards of the training, which rise with reward hacking.
        count: number of prompts. A few are enough to choose a run; they prove nothing.

    Returns:
        columns "run", "step", the titles of `COLUMNS` and of the rewards, and "low" and "high", the
        95 % interval of the judge's score, clustered by scene.
    """
    snapshots = {
        f"{name}@{step}": (name, step, folder)
        for name, where in runs.items()
        for step, folder in find_snapshots(where).items()
    }
    systems = [
        System(label, model, steps, lora=str(folder.resolve()))
        for label, (_, _, folder) in snapshots.items()
    ]
    rewards = rewards or {}
    prompts = tuning_prompts(count)
    measured = measure_systems(systems, prompts, weights, cache, rewards=rewards, workers=workers)
    shown = COLUMNS | {f"reward_{name}": f"reward, {name}" for name in rewards}
    lines = []
    for label, table in measured.rows.groupby("system", sort=False):
        name, step, _ = snapshots[str(label)]
        means = {title: float(table[column].mean()) for column, title in shown.items()}
        means["all correct, %"] *= 100
        judged = clustered_mean(table["judge"].to_numpy(), {"scene": table["scene"].to_numpy()})
        lines.append({"run": name, "step": step, **means, "low": judged.low, "high": judged.high})
    return pd.DataFrame(lines).round(4)
