"""Side bias and errors of raters: how often they occur, and win rates without them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import statsmodels.api as sm
from scipy.special import expit
from scipy.stats import norm

from human_eval.definition.definition import StudyDefinition
from human_eval.statistics.votes import split_primary
from human_eval.statistics.win_rates import mean_of

MIN_PROMPTS = 10  # below it, the model of prompts is not fitted
SIDE_LEVEL = 0.01  # of the test of side bias, before it counts as errors
MIN_GOLD = 20  # answers to gold pairs, below which their share of errors is not used
UNDILUTED = ["comparison", "votes", "rate", "gold", "gold_wrong", "left_share", "error"]
UNDILUTED += ["undiluted", "low", "high", "note"]


def tabulate_side_bias(votes: pd.DataFrame) -> pd.DataFrame:
    """Tabulate the share of decisive votes that the left clip won, by question.

    Without side bias it is one half if sides are randomised. Votes of unknown sides are left out.

    Returns:
        Columns question, votes, left_share; low, high, p (clustered by prompt and rater); note.
    """
    decisive = votes[votes["choice"].isin(["a", "b"]) & votes["side_a"].ne("")]
    rows = []
    for question, cell in decisive.groupby("question", observed=True):
        left = (cell["choice"].eq("a") == cell["side_a"].eq("left")).to_numpy(float)
        mean = mean_of(cell, left)
        row = {"question": question, "votes": len(cell), "left_share": mean.mean}
        rows.append({**row, "low": mean.low, "high": mean.high, "p": mean.p, "note": mean.note})
    return pd.DataFrame(rows)


def tabulate_side_adjusted(votes: pd.DataFrame, definition: StudyDefinition) -> pd.DataFrame:
    """Tabulate the win rates of the primary question, adjusted for side bias.

    Returns:
        Columns comparison, votes; `rate`, the win rate of system_a without side bias, with its
        95 % interval (`low`, `high`); `log_odds` and `error`, the same as log-odds; `side`, what a
        clip's log-odds gain on the left, with its `side_error`; `correlation` of two votes on one
        prompt; `note`, the reason why numbers are missing.
    """
    rows = []
    for comparison, cell in split_primary(votes, definition):
        decisive = cell[cell["choice"].isin(["a", "b"])]
        if len(decisive) and decisive["side_a"].eq("").all():
            continue
        sides = np.where(decisive["side_a"].eq("left"), 1.0, -1.0)
        outcomes = pd.crosstab(sides, decisive["choice"].eq("a").to_numpy()).to_numpy()
        row: dict[str, Any] = {"comparison": comparison.key, "votes": len(decisive)}
        if outcomes.shape != (2, 2) or not outcomes.all():
            row["note"] = "undefined: from one side, one system always or never wins"
        elif decisive["prompt"].nunique() < MIN_PROMPTS:
            row["note"] = f"undefined: fewer than {MIN_PROMPTS} prompts"
        else:
            row |= side_adjusted(decisive, sides)
        rows.append(row)
    columns = ["log_odds", "error", "side", "side_error", "correlation", "note"]
    table = pd.DataFrame(rows, columns=["comparison", "votes", *columns])
    table["note"] = table["note"].astype(object).fillna("")
    table[columns[:-1]] = table[columns[:-1]].astype(float)
    margin = norm.ppf(0.975) * table["error"]
    for name, shift in (("rate", 0.0), ("low", -margin), ("high", margin)):
        table[name] = expit(table["log_odds"] + shift)
    return table[["comparison", "votes", "rate", "low", "high", *columns]]


def tabulate_undiluted(votes: pd.DataFrame, definition: StudyDefinition) -> pd.DataFrame:
    """Estimate the win rates of the primary question without raters' errors.

    Raters who press one side whatever they see, or who answer against their opinion, move a win
    rate r towards one half. If a share w of the answers names the wrong system,
    r = (1 - w) p + w (1 - p), so that without errors

        p = (r - w) / (1 - 2 w).

    w is the share of wrong answers to gold pairs, if 20 or more were given. Where it is larger and
    significant, w is the distance of the left clip's share from one half: if a share f of the
    answers names the left clip unseen, this distance is f / 2, and half of f is wrong.

    It is an estimate only: gold pairs may be easier than others, and left and right pressers may
    cancel each other, which makes w too small; `low` and `high` take w as known. It claims nothing.

    Args:
        votes: of raters who are not excluded, attention checks included.

    Returns:
        Columns comparison, votes (decisive), rate, gold (number of answers to gold pairs),
        gold_wrong and left_share (shares), error (w), undiluted (p) with low and high, note.

    Source: Rogan and Gladen (1978), Am. J. Epidemiol. 107, 71-76, with a sensitivity and a
    specificity of 1 - w.
    """
    asked = votes[(votes["question"] == definition.primary.key) & votes["choice"].isin(["a", "b"])]
    gold = asked[(asked["kind"] == "gold") & asked["gold_answer"].isin(["a", "b"])]
    wrong = (gold["choice"].astype(str) != gold["gold_answer"].astype(str)).mean()
    real = asked[asked["kind"] == "real"]
    error = float(wrong) if len(gold) >= MIN_GOLD else 0.0
    left_share = np.nan
    for bias in tabulate_side_bias(real).to_dict("records"):
        left_share = bias["left_share"]
        if bias["p"] <= SIDE_LEVEL:
            error = max(error, abs(left_share - 0.5))
    rows = []
    for comparison, cell in split_primary(real, definition):
        mean = mean_of(cell, cell["choice"].eq("a").to_numpy(float))
        rows.append(
            {
                "comparison": comparison.key,
                "votes": len(cell),
                "rate": mean.mean,
                "gold": len(gold),
                "gold_wrong": wrong,
                "left_share": left_share,
                "error": error,
                "undiluted": _without_errors(mean.mean, error),
                "low": _without_errors(mean.low, error),
                "high": _without_errors(mean.high, error),
                "note": "" if error < 0.5 else "undefined: half of the answers are errors",
            }
        )
    return pd.DataFrame(rows, columns=UNDILUTED)


def _without_errors(rate: float, error: float) -> float:
    return float(np.clip((rate - error) / (1 - 2 * error), 0, 1)) if error < 0.5 else np.nan


def side_adjusted(
    decisive: pd.DataFrame, sides: Sequence[float] | np.ndarray | None = None
) -> dict[str, float]:
    """Fit the log-odds that system_a wins, adjusted for its side.

    A generalised estimating equation: logit P(a wins) = log_odds + side * s, with s = 1 where
    system_a is on the left and -1 where it is on the right. Votes on one prompt have one common
    correlation (exchangeable); raters are taken as independent.

    Args:
        sides: s of each decisive vote; None leaves the term out.

    Returns:
        `log_odds` with its standard error `error`; with sides, also `side` and
        `side_error`; `correlation` of two votes on one prompt.

    Source: Liang and Zeger (1986), Biometrika 73(1), 13-22.
    """
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
    return {**row, "correlation": model.cov_struct.dep_params}
