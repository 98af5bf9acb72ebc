"""Win rates of every comparison and question, and which differences may be claimed.

Also the mean strength of preferences, where a question has a scale.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from statsmodels.stats.multitest import multipletests

from human_eval.definition.definition import StudyDefinition
from human_eval.statistics.intervals import Mean, clustered_mean, sign_test, wilson
from human_eval.statistics.votes import (
    BUSY,
    cluster_kinds,
    count_distinct,
    describe_clusters,
    find_unknown,
    split_cells,
)

LEVEL = 0.05  # of false claims in the whole family
USED = ["comparison", "question", "choice", "prompt", "rater"]  # columns of votes, by `win_rates`
STRENGTHS = ["comparison", "question", "votes", "a_much", "a_slightly", "tie", "b_slightly"]
STRENGTHS += ["b_much"]


def win_rates(votes: pd.DataFrame, definition: StudyDefinition) -> pd.DataFrame:
    """Tabulate every comparison and question that has votes, in the order of the definition.

    Args:
        votes: those that count, as `human_eval.statistics.votes.counted_votes` returns them.

    Returns:
        Columns comparison, question, primary, system_a, system_b and those of `count_votes`;
        `rate`, the share of decisive votes that system_a won, with its interval clustered by
        prompt and rater (`low`, `high`) and the one that takes votes as independent
        (`wilson_low`, `wilson_high`); `note`, what limits the interval; `busiest`, the largest
        share of decisive votes by one rater, NaN if raters are unknown; `tie_share`;
        `half_tie_rate`, which counts ties and "both bad" as half a win, with its clustered
        interval, and `net`, twice that minus 1; `sign_p`, of the exact sign test, `robust_p`, of
        the clustered test, and `p`, the larger of both; `p_family`, adjusted by `adjust_family`;
        `claim`, the winner where `p_family` is at most 0.05, otherwise "".
    """
    rows = []
    for comparison, question, cell in split_cells(votes[USED], definition):
        names = {
            "comparison": comparison.key,
            "question": question.key,
            "primary": question.primary,
            "system_a": comparison.a,
            "system_b": comparison.b,
        }
        counts = count_votes(cell)
        rows.append({**names, **counts, **_rates(cell, counts)})
    table = pd.DataFrame(rows)
    if rows:
        table["p_family"] = adjust_family(table, comparisons=len(definition.comparisons))
        winners = np.where(table["rate"] > 0.5, table["system_a"], table["system_b"])
        table["claim"] = np.where(table["p_family"] <= LEVEL, winners, "")
    return table


def count_votes(votes: pd.DataFrame) -> dict[str, int]:
    """Count votes by answer, and the prompts and raters that they come from."""
    choices = votes["choice"].value_counts()
    return {
        "votes": len(votes),
        "wins": int(choices.get("a", 0)),
        "losses": int(choices.get("b", 0)),
        "ties": int(choices.get("tie", 0)),
        "both_bad": int(choices.get("both_bad", 0)),
        "prompts": count_distinct(votes["prompt"]),
        "raters": count_distinct(votes["rater"]),
    }


def _rates(votes: pd.DataFrame, counts: dict[str, int]) -> dict[str, Any]:
    wins, losses = counts["wins"], counts["losses"]
    undecided = (counts["ties"] + counts["both_bad"]) / counts["votes"]
    half = mean_of(votes, half_wins(votes))
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
        return {**unknown, "note": "ties only", "busiest": 0.0, **shares, **tests}
    robust, decisive = half, votes
    if undecided:
        decisive = votes[votes["choice"].isin(["a", "b"])]
        robust = mean_of(decisive, decisive["choice"].eq("a").to_numpy(float))
    independent = wilson(wins, wins + losses)
    sign_p = sign_test(wins, losses)
    busiest = np.nan
    if not find_unknown(decisive, ["rater"]):
        busiest = float(decisive["rater"].value_counts().max() / len(decisive))
    return {
        "rate": wins / (wins + losses),
        "low": robust.low,
        "high": robust.high,
        "wilson_low": independent.low,
        "wilson_high": independent.high,
        "note": "; ".join(filter(None, [robust.note, describe_busiest(busiest)])),
        "busiest": busiest,
        **shares,
        "sign_p": sign_p,
        "robust_p": robust.p,
        "p": max(sign_p, robust.p),
    }


def describe_busiest(share: float) -> str:
    """Return the sentence on a rater who gave this share of a cell, or "" if it is small."""
    return f"one rater gave {100 * share:.0f} % of the decisive votes" if share > BUSY else ""


def mean_of(
    votes: pd.DataFrame, values: np.ndarray, *, bounds: tuple[float, float] = (0.0, 1.0)
) -> Mean:
    """Return the mean of one value per vote, clustered by prompt and rater.

    One rater's votes on one prompt allow no conclusion: their interval is all that `bounds` allow.
    Where raters or prompts are unknown, the other clusters remain, and `note` says so; where both
    are, votes are taken as independent and p is 1.

    Args:
        bounds: the smallest and largest value possible; the null hypothesis is halfway.
    """
    kinds = cluster_kinds(votes)
    unknown = describe_clusters(kinds)
    if all(kind.nunique() == 1 for kind in kinds.values()):
        note = f"one {next(iter(kinds))} only" if unknown else "one rater's votes on one prompt"
        note = "; ".join(filter(None, [note, unknown]))
        return Mean(float(np.mean(values)), 0.0, *bounds, 1.0, note)
    mean = clustered_mean(values, kinds, null=sum(bounds) / 2, bounds=bounds)
    if not unknown:
        return mean
    note = "; ".join(filter(None, [mean.note, unknown]))
    return replace(mean, p=1.0 if "vote" in kinds else mean.p, note=note)


def half_wins(votes: pd.DataFrame) -> np.ndarray:
    """Return 1 where system_a won, 0 where it lost, and a half where neither did."""
    won, lost = (votes["choice"].eq(side).to_numpy(float) for side in ("a", "b"))
    return np.asarray((1 + won - lost) / 2)


def holm(p: np.ndarray) -> np.ndarray:
    """Adjust p-values for several claims, in any order.

    Sorted upward, p_(i) of n becomes max over j <= i of min(1, (n - j + 1) p_(j)).

    The version of statsmodels runs Python's garbage collector at every call. In a process with
    loaded video models this takes a third of a second, in which no rater gets an answer.

    Source: Holm (1979), Scand. J. Statist. 6, 65-70.
    """
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(adjusted, 1.0)


def adjust_family(table: pd.DataFrame, *, comparisons: int | None = None) -> np.ndarray:
    """Adjust p-values so that the probability of any false claim in the family is at most 0.05.

    Holm over the comparisons; within a comparison the primary question comes first, and the other
    questions, Holm among themselves, may be claimed only where the primary one is. In formulas,
    within comparison c with the primary p-value p_c0 and the others p_c1, p_c2, ...:

        gated_c0 = p_c0,    gated_ck = max(p_c0, holm(p_c1, p_c2, ...)_k).

    Number the comparisons i = 1 ... C by their largest gated value, and let u_i = C - i + 1. A
    comparison leaves the family once all of it is claimed, so that with
    reached_i = max over j < i of u_j max(gated_j),

        adjusted_ck = min(1, min over i up to the place of c of max(reached_i, u_i gated_ck)).

    This is the closed test (Marcus et al.) whose local test is Bonferroni over the comparisons in
    the intersection, each by p_c0 if that hypothesis is in it, and otherwise by Bonferroni over
    its other questions. With a single question it is Holm's procedure. It holds for p-values that
    depend on each other in any way.

    Args:
        table: columns comparison, primary and p.
        comparisons: C; those of the definition without votes yet count too.

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


def category_rates(
    votes: pd.DataFrame, definition: StudyDefinition, *, rates: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Tabulate the primary question by prompt category; a prompt may be in several.

    Args:
        rates: of `win_rates`, if computed already; reused where there is a single category.

    `p_discovery` controls the false discovery rate: among all rows with `p_discovery` up to 0.05,
    at most 5 % are expected to be false.

    Source: Benjamini and Hochberg (1995), J. R. Statist. Soc. B 57(1), 289-300.
    """
    asked = votes[votes["question"] == definition.primary.key]
    by_category = asked.assign(category=asked["category"].str.split("|")).explode("category")
    groups = by_category.groupby("category")
    if rates is not None and len(groups) == 1:
        tables = [rates[rates["primary"]].assign(category=by_category["category"].iloc[0])]
    else:
        tables = [
            win_rates(cell, definition).assign(category=str(category)) for category, cell in groups
        ]
    if not tables:
        return pd.DataFrame()
    table = pd.concat(tables).sort_values(["comparison", "category"], ignore_index=True)
    table["p_discovery"] = multipletests(table["p"], method="fdr_bh")[1]
    columns = ["comparison", "category", "question", "system_a", "system_b"]
    rest = ["votes", "wins", "losses", "ties", "both_bad", "prompts", "raters", "rate", "low"]
    return table[[*columns, *rest, "high", "tie_share", "p", "p_discovery", "note"]]


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
        mean = mean_of(cell, score, bounds=(-2.0, 2.0))
        row: dict[str, Any] = {"comparison": comparison.key, "question": question.key}
        row |= dict(zip(STRENGTHS[2:], [len(cell), *counts], strict=True))
        rows.append(
            {**row, "mean": mean.mean, "low": mean.low, "high": mean.high, "note": mean.note}
        )
    return pd.DataFrame(rows, columns=[*STRENGTHS, "mean", "low", "high", "note"])
