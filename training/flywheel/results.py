"""What a turn measures, and its figure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from human_eval.reporting.export import CLIPS, FILES, read_export
from human_eval.statistics.intervals import clustered_mean
from training.flywheel.settings import TASTES
from training.reward.measurements import Measured
from training.shapes.evaluation.figures import GREY, HUES, INK, STYLE
from training.shapes.evaluation.intervals import SHARE
from training.shapes.evaluation.intervals import clustered_mean as mean_over_scenes
from training.shapes.evaluation.probes import read_clip, read_shapes
from training.shapes.world.scenes import Scene
from turbo.rewards.vote_reward import read_vote_card
from turbo.whole_file import open_whole


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
