"""How strong preferences are, for questions with a scale of five points."""

from typing import Any

import numpy as np
import pandas as pd

from human_eval.definition.definition import StudyDefinition
from human_eval.statistics.intervals import clustered_mean
from human_eval.statistics.votes import split_cells

COLUMNS = ["comparison", "question", "votes", "a_much", "a_slightly", "tie", "b_slightly", "b_much"]


def tabulate_strengths(votes: pd.DataFrame, definition: StudyDefinition) -> pd.DataFrame:
    """Tabulate the answers to questions with a scale.

    Returns:
        Columns comparison, question, votes; a_much, a_slightly, tie, b_slightly, b_much, the number
        of answers; `mean` on the scale from -2 (system_b is much better) to 2 (system_a is), with
        its 95 % interval clustered by prompt and rater (`low`, `high`); note.
    """
    rows = []
    for comparison, question, cell in split_cells(votes, definition):
        if question.kind != "scale":
            continue
        sign = cell["choice"].eq("a").astype(int) - cell["choice"].eq("b").astype(int)
        score = (sign * cell["strength"]).to_numpy(float)
        counts = [int(np.sum(score == value)) for value in (2, 1, 0, -1, -2)]
        mean = clustered_mean(
            score,
            {"prompt": cell["prompt"], "rater": cell["rater"]},
            null=0.0,
            bounds=(-2.0, 2.0),
        )
        row: dict[str, Any] = {"comparison": comparison.key, "question": question.key}
        row |= dict(zip(COLUMNS[2:], [len(cell), *counts], strict=True))
        rows.append(
            {**row, "mean": mean.mean, "low": mean.low, "high": mean.high, "note": mean.note}
        )
    return pd.DataFrame(rows, columns=[*COLUMNS, "mean", "low", "high", "note"])
