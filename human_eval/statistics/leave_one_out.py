"""How much hangs on a single rater: every comparison again, without each rater in turn."""

from typing import Any

import numpy as np
import pandas as pd

from human_eval.definition.definition import StudyDefinition
from human_eval.statistics.votes import split_cells


def tabulate_influence(votes: pd.DataFrame, definition: StudyDefinition) -> pd.DataFrame:
    """Tabulate, on the primary question, how far leaving out one rater moves each win rate.

    Returns:
        Columns comparison, raters, `busiest` (the largest share of the decisive votes that one
        rater gave), rate, `lowest` and `highest` (the win rate of system_a without one rater),
        `rater` (whose absence moves it most), `turns` (how many raters there are without any one
        of whom the other system would have won more votes).
    """
    [primary] = [question.key for question in definition.questions if question.primary]
    rows = []
    for comparison, _, cell in split_cells(votes[votes["question"] == primary], definition):
        decisive = cell[cell["choice"].isin(["a", "b"])]
        rows.append({"comparison": comparison.key, **_leave_out(decisive)})
    columns = ["comparison", "raters", "busiest", "rate", "lowest", "highest", "rater", "turns"]
    return pd.DataFrame(rows, columns=columns)


def _leave_out(decisive: pd.DataFrame) -> dict[str, Any]:
    number, names = pd.factorize(decisive["rater"], sort=True)
    if len(names) < 2:
        return {"raters": len(names)}
    won = decisive["choice"].eq("a").to_numpy(float)
    given, wins = np.bincount(number), np.bincount(number, won)
    rate = won.mean()
    without = (wins.sum() - wins) / (given.sum() - given)
    return {
        "raters": len(names),
        "busiest": given.max() / given.sum(),
        "rate": rate,
        "lowest": without.min(),
        "highest": without.max(),
        "rater": str(names[np.abs(without - rate).argmax()]),
        "turns": int((np.sign(without - 0.5) * np.sign(rate - 0.5) < 0).sum()),
    }
