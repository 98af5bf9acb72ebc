"""Leave one out: how far each comparison depends on a single rater."""

from typing import Any

import numpy as np
import pandas as pd

from human_eval.definition.definition import StudyDefinition
from human_eval.statistics.votes import split_primary


def tabulate_leave_one_out(votes: pd.DataFrame, definition: StudyDefinition) -> pd.DataFrame:
    """Tabulate, on the primary question, how leaving out one rater moves each win rate.

    Returns:
        Columns comparison, raters; `busiest`, the largest share of decisive votes by one rater;
        `rate`, the win rate of system_a, and its `lowest` and `highest` value with one rater left
        out; `rater`, the one whose votes move it most; `turns`, the number of raters without any
        one of whom the winner would not have won: a draw, or a win of the other system.
    """
    rows = []
    used = votes[["comparison", "question", "choice", "rater"]]
    for comparison, cell in split_primary(used, definition):
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
        "turns": int(((without - 0.5) * np.sign(rate - 0.5) <= 0).sum()) if rate != 0.5 else 0,
    }
