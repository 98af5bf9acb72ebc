"""The whole evaluation: measure the systems, write the report, draw the figures."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.shapes.evaluation.figures import draw_contact_sheet, plot_systems
from training.shapes.evaluation.measurements import measure_systems
from training.shapes.evaluation.report import find_deviations, write_report
from training.shapes.evaluation.systems import REAL, RECONSTRUCTED, Source, held_out_prompts
from turbo.types import Reward

COUNT = 1024  # held-out prompts
SHEET_ROWS = tuple(range(0, 192, 24))  # of these prompts: evenly spaced, chosen before looking


def evaluate(
    weights: Path,
    cache: Path,
    media: Path,
    systems: Sequence[Source],
    *,
    prefix: str = "",
    count: int = COUNT,
    rewards: Mapping[str, Reward] | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Measure every system on held-out prompts; write the report and its figures.

    Args:
        weights: the folder of the models. evaluation.json and evaluation.md are written there.
        cache: folder of the generated clips, so that a second call only measures them.
        media: folder for evaluation.svg, evaluation.png and evaluation_sheet.png.
        systems: the first is the one that all are compared with.
        prefix: of the names of all these files.
        rewards: the reward models to report beside the judge, by name.

    Returns:
        the report. If `weights` already holds a report of the same settings, the key "deviates"
        lists the numbers that were not reproduced. It is not written to the file.
    """
    name = f"{prefix}evaluation"
    committed = weights / f"{name}.json"
    before = json.loads(committed.read_text()) if committed.exists() else {}
    prompts = held_out_prompts(count)
    sources = (*systems, REAL, RECONSTRUCTED)
    measured = measure_systems(sources, prompts, weights, cache, rewards=rewards, workers=workers)
    report = write_report(measured, weights, name)
    plot_systems(report, media / name)
    rows = [row for row in SHEET_ROWS if row < count]
    shown = [source for source in sources if source is not REAL and source.run == 1]
    draw_contact_sheet(shown, prompts, rows, weights, cache, media / f"{name}_sheet.png")
    if before.get("settings") == report["settings"]:
        report["deviates"] = find_deviations(before, report)
    return report
