"""What the side does: how often the left clip wins, and who would win if both sides were alike."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import statsmodels.api as sm
from scipy.special import expit
from scipy.stats import norm

from human_eval.definition.definition import StudyDefinition
from human_eval.statistics.votes import split_cells
from human_eval.statistics.win_rates import mean_of

MIN_PROMPTS = 10  # before a model of prompts is fitted


def side_effects(votes: pd.DataFrame) -> pd.DataFrame:
    """Tabulate how often the left clip wins, by question; a half where the side plays no part."""
    decisive = votes[votes["choice"].isin(["a", "b"])]
    rows = []
    for question, cell in decisive.groupby("question", observed=True):
        left = (cell["choice"].eq("a") == cell["side_a"].eq("left")).to_numpy(float)
        mean = mean_of(cell, left)
        row = {"question": question, "votes": len(cell), "left_share": mean.mean}
        rows.append({**row, "low": mean.low, "high": mean.high, "p": mean.p, "note": mean.note})
    return pd.DataFrame(rows)


def tabulate_adjusted(votes: pd.DataFrame, definition: StudyDefinition) -> pd.DataFrame:
    """Tabulate, on the primary question, who would win if both sides were alike.

    Returns:
        Columns comparison, votes; `rate` with its 95 % interval, the win rate of system_a for the
        average prompt, neither side being favoured; `side`, by how much standing on the left raises
        the log-odds, with its `side_error`; `correlation` of two votes on one prompt; `note`, which
        says why numbers are missing.
    """
    [primary] = [question.key for question in definition.questions if question.primary]
    rows = []
    for comparison, _, cell in split_cells(votes[votes["question"] == primary], definition):
        decisive = cell[cell["choice"].isin(["a", "b"])]
        sides = np.where(decisive["side_a"].eq("left"), 1.0, -1.0)
        outcomes = pd.crosstab(sides, decisive["choice"].eq("a").to_numpy()).to_numpy()
        row: dict[str, Any] = {"comparison": comparison.key, "votes": len(decisive)}
        if outcomes.shape != (2, 2) or not outcomes.all():
            row["note"] = "undefined: from one side, one system always or never wins"
        elif decisive["prompt"].nunique() < MIN_PROMPTS:
            row["note"] = f"undefined: fewer than {MIN_PROMPTS} prompts"
        else:
            row |= side_adjusted(decisive, sides).iloc[0].to_dict()
        rows.append(row)
    columns = ["log_odds", "error", "side", "side_error", "correlation", "note"]
    table = pd.DataFrame(rows, columns=["comparison", "votes", *columns])
    table["note"] = table["note"].astype(object).fillna("")
    table[columns[:-1]] = table[columns[:-1]].astype(float)
    margin = norm.ppf(0.975) * table["error"]
    for name, shift in (("rate", 0.0), ("low", -margin), ("high", margin)):
        table[name] = expit(table["log_odds"] + shift)
    return table[["comparison", "votes", "rate", "low", "high", *columns]]


def side_adjusted(
    votes: pd.DataFrame, sides: Sequence[float] | np.ndarray | None = None
) -> pd.DataFrame:
    """Fit the log-odds that system_a wins, exchangeable within prompts, adjusted for its side.

    Returns:
        One row: `log_odds` with its `error`; `side`, the log-odds that standing on the left adds
        on either side of them (absent without sides); `correlation` of two votes on one prompt.

    Source: Liang and Zeger (1986), Biometrika 73(1), 13-22.
    """
    decisive = votes[votes["choice"].isin(["a", "b"])]
    wins = decisive["choice"].eq("a").to_numpy(float)
    design = np.ones((len(decisive), 1))
    if sides is not None:
        design = np.column_stack([design, np.asarray(sides, float)])
    model = sm.GEE(
        wins,
        design,
        groups=pd.factorize(decisive["prompt"])[0],
        family=sm.families.Binomial(),
        cov_struct=sm.cov_struct.Exchangeable(),
    )
    fit = model.fit()
    row = {"log_odds": fit.params[0], "error": fit.bse[0]}
    if sides is not None:
        row |= {"side": fit.params[1], "side_error": fit.bse[1]}
    return pd.DataFrame([{**row, "correlation": model.cov_struct.dep_params}])
