"""Who wins: one row for each comparison and question, with what may be claimed of it."""

from typing import Any

import numpy as np
import pandas as pd
from statsmodels.stats.multitest import multipletests

from human_eval.definition.definition import StudyDefinition
from human_eval.statistics.intervals import Mean, clustered_mean, sign_test, wilson
from human_eval.statistics.votes import split_cells

LEVEL = 0.05  # of false claims in the whole family


def win_rates(
    votes: pd.DataFrame, definition: StudyDefinition, *, confidence: float = 0.95
) -> pd.DataFrame:
    """Tabulate every comparison and question that has votes, in the order of the definition.

    `rate` is the share of decisive votes that `system_a` won; `low` and `high` are its two-way
    cluster-robust interval, `wilson_low` and `wilson_high` the one that takes votes as
    independent. `half_tie_rate` counts ties, and pairs of which both are bad, as half a win.

    `sign_p` is the exact sign test of the decisive votes, `robust_p` the cluster-robust one; a
    claim needs both, so `p` is the larger. `p_family` is `p` adjusted over all comparisons and
    questions; where it is at most 0.05, `claim` names the winner.

    Args:
        votes: that count as evidence (`human_eval.statistics.votes.evidence`).
    """
    rows = []
    for comparison, question, cell in split_cells(votes, definition):
        names = {
            "comparison": comparison.key,
            "question": question.key,
            "primary": question.primary,
            "system_a": comparison.a,
            "system_b": comparison.b,
        }
        rows.append({**names, **count(cell), **_rates(cell, confidence)})
    table = pd.DataFrame(rows)
    if rows:
        table["p_family"] = adjust_family(table, comparisons=len(definition.comparisons))
        winners = np.where(table["rate"] > 0.5, table["system_a"], table["system_b"])
        table["claim"] = np.where(table["p_family"] <= LEVEL, winners, "")
    return table


def count(votes: pd.DataFrame) -> dict[str, int]:
    """Count the votes by answer, and the clusters they fall into."""
    choices = votes["choice"].value_counts()
    return {
        "votes": len(votes),
        "wins": int(choices.get("a", 0)),
        "losses": int(choices.get("b", 0)),
        "ties": int(choices.get("tie", 0)),
        "both_bad": int(choices.get("both_bad", 0)),
        "prompts": votes["prompt"].nunique(),
        "raters": votes["rater"].nunique(),
    }


def _rates(votes: pd.DataFrame, confidence: float) -> dict[str, Any]:
    counts = count(votes)
    wins, losses = counts["wins"], counts["losses"]
    undecided = (counts["ties"] + counts["both_bad"]) / counts["votes"]
    half = mean_of(votes, half_wins(votes), confidence)
    shares = {
        "tie_share": undecided,
        "half_tie_rate": half.mean,
        "half_tie_low": half.low,
        "half_tie_high": half.high,
        "net": 2 * half.mean - 1,
    }
    if not wins + losses:
        unknown = {"rate": np.nan, "low": 0.0, "high": 1.0, "wilson_low": 0.0, "wilson_high": 1.0}
        tests = {"sign_p": 1.0, "robust_p": 1.0, "p": 1.0}
        return {**unknown, "note": "ties only", **shares, **tests}
    robust = half
    if undecided:
        decisive = votes[votes["choice"].isin(["a", "b"])]
        robust = mean_of(decisive, decisive["choice"].eq("a").to_numpy(float), confidence)
    independent = wilson(wins, wins + losses, confidence=confidence)
    sign_p = sign_test(wins, losses)
    return {
        "rate": wins / (wins + losses),
        "low": robust.low,
        "high": robust.high,
        "wilson_low": independent.low,
        "wilson_high": independent.high,
        "note": robust.note,
        **shares,
        "sign_p": sign_p,
        "robust_p": robust.p,
        "p": max(sign_p, robust.p),
    }


def mean_of(votes: pd.DataFrame, values: np.ndarray, confidence: float = 0.95) -> Mean:
    """Average one value for each vote; where nothing can be said of others, the interval is all."""
    if votes["prompt"].nunique() == votes["rater"].nunique() == 1:
        return Mean(float(np.mean(values)), 0.0, 0.0, 1.0, 1.0, "one rater's votes on one prompt")
    clusters = {"prompt": votes["prompt"], "rater": votes["rater"]}
    return clustered_mean(values, clusters, confidence=confidence)


def half_wins(votes: pd.DataFrame) -> np.ndarray:
    """Return 1 where system_a won, 0 where it lost, and a half where neither did."""
    won, lost = (votes["choice"].eq(side).to_numpy(float) for side in ("a", "b"))
    return np.asarray((1 + won - lost) / 2)


def holm(p: np.ndarray) -> np.ndarray:
    """Adjust p-values for several claims, in any order.

    statsmodels' has the collector of garbage walk through the whole process at every call: a third
    of a second where the models are loaded, in which no rater is answered.

    Source: Holm (1979), Scand. J. Statist. 6, 65-70.
    """
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(adjusted, 1.0)


def adjust_family(table: pd.DataFrame, *, comparisons: int | None = None) -> np.ndarray:
    """Adjust the p-values so that false claims anywhere in the family stay below their level.

    Holm over the comparisons; within a comparison the primary question comes first, and the
    others, Holm among themselves, may be claimed only where it is. With a single question this
    is Holm's procedure. It is the closed test whose local test is Bonferroni over comparisons of
    the primary p-value or, where that hypothesis is not in question, of Bonferroni over the rest.

    Args:
        table: columns comparison, primary and p.
        comparisons: how many were declared; those without votes yet count as well.

    Source: Holm (1979), Scand. J. Statist. 6, 65-70; Marcus, Peritz and Gabriel (1976),
    Biometrika 63, 655-660.
    """
    gated = np.ones(len(table))
    places = table.reset_index(drop=True).groupby("comparison", sort=False).indices
    for rows in places.values():
        p = table["p"].to_numpy()[rows]
        primary = table["primary"].to_numpy()[rows]
        gate = p[primary].max(initial=0.0)
        gated[rows[primary]] = p[primary]
        if (~primary).any():
            gated[rows[~primary]] = np.maximum(holm(p[~primary]), gate)
    # A comparison leaves the family, and its share of the level passes on, once all of it is
    # claimed.
    order = sorted(places.values(), key=lambda rows: gated[rows].max())
    adjusted = np.ones(len(table))
    reached = 0.0
    for place, rows in enumerate(order):
        left = (comparisons or len(order)) - place
        waiting = np.concatenate(order[place:])
        adjusted[waiting] = np.minimum(
            adjusted[waiting], np.maximum(reached, gated[waiting] * left)
        )
        reached = max(reached, gated[rows].max() * left)
    return np.minimum(adjusted, 1.0)


def category_rates(votes: pd.DataFrame, definition: StudyDefinition) -> pd.DataFrame:
    """Tabulate the primary question by prompt category; a prompt may be in several.

    `p_discovery` bounds the share of false ones among the differences that are called so
    (Benjamini and Hochberg), which is what a look over many categories asks for.
    """
    [primary] = [question.key for question in definition.questions if question.primary]
    asked = votes[votes["question"] == primary]
    by_category = asked.assign(category=asked["category"].str.split("|")).explode("category")
    tables = [
        win_rates(cell, definition).assign(category=str(category))
        for category, cell in by_category.groupby("category")
    ]
    if not tables:
        return pd.DataFrame()
    table = pd.concat(tables).sort_values(["comparison", "category"], ignore_index=True)
    table["p_discovery"] = multipletests(table["p"], method="fdr_bh")[1]
    columns = ["comparison", "category", "question", "system_a", "system_b"]
    rest = ["votes", "wins", "losses", "ties", "both_bad", "prompts", "raters", "rate", "low"]
    return table[[*columns, *rest, "high", "tie_share", "p", "p_discovery", "note"]]
