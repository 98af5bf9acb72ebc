"""The whole evaluation: measure, test, write, draw."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.shapes.evaluation.figure import draw_figure, draw_sheet
from training.shapes.evaluation.measurement import Reward, measure_systems
from training.shapes.evaluation.report import find_deviations, write_report
from training.shapes.evaluation.systems import REAL, REBUILT, SYSTEMS, Source, held_out_prompts

COUNT = 512  # held-out prompts
SHEET_ROWS = tuple(range(0, 192, 24))  # of these prompts: evenly spaced, chosen before looking


def evaluate(
    weights: Path,
    cache: Path,
    pictures: Path,
    *,
    systems: Sequence[Source] = SYSTEMS,
    count: int = COUNT,
    rewards: Mapping[str, Reward] | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Measure every system on held-out prompts; write the report and its pictures.

    Args:
        weights: the folder of the models; evaluation.json and evaluation.md go there.
        cache: where clips are kept, so that a second call only measures.
        pictures: evaluation.svg, evaluation.png and evaluation_sheet.png go there.
        rewards: the reward models to report beside the judge, by name.

    Returns:
        the report. Where the weights' folder holds one of the same settings already, its "deviates"
        lists the numbers that were not reproduced; it is not in the file.
    """
    committed = weights / "evaluation.json"
    before = json.loads(committed.read_text()) if committed.exists() else {}
    prompts = held_out_prompts(count)
    sources = (*systems, REAL, REBUILT)
    measured = measure_systems(sources, prompts, weights, cache, rewards=rewards, workers=workers)
    report = write_report(measured, weights)
    draw_figure(report, pictures / "evaluation")
    rows = [row for row in SHEET_ROWS if row < count]
    shown = [s for s in sources if s is not REAL]
    draw_sheet(shown, prompts, rows, weights, cache, pictures / "evaluation_sheet.png")
    if before.get("settings") == report["settings"]:
        report["deviates"] = find_deviations(before, report)
    return report
