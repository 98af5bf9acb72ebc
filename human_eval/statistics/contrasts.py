"""Contrasts: two comparisons with the same opponent.

If four steps and eight steps both beat the teacher, which of them beats it more often? The same
prompts and raters may stand on both sides, so the difference is clustered by both.
"""

from collections.abc import Iterator
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtr, stdtrit

from human_eval.definition.definition import Comparison, StudyDefinition
from human_eval.statistics.intervals import CONFIDENCE, crossed_variance
from human_eval.statistics.votes import cluster_kinds, describe_clusters, split_primary
from human_eval.statistics.win_rates import holm, mean_of

MAX_PAIRS = 500  # contrasts; beyond them, only neighbours by win rate
ROUNDING = 1e-9  # a smaller standard error is no error: p would follow from rounding
COLUMNS = ["first", "second", "opponent", "system_first", "system_second", "votes", "rate_first"]
COLUMNS += ["rate_second", "difference", "low", "high", "p", "note", "p_family"]


def tabulate_contrasts(votes: pd.DataFrame, definition: StudyDefinition) -> pd.DataFrame:
    """Tabulate, on the primary question, every two comparisons with the same opponent.

    The opponent may be either system of a comparison. With more than 500 such contrasts, a
    comparison is only contrasted with the next one by win rate against the same opponent.

    Returns:
        Columns first, second (comparisons), opponent, system_first, system_second, votes (decisive
        ones of both), rate_first, rate_second (of decisive votes against the opponent), their
        `difference` with its interval (`low`, `high`), p, p_family (Holm); `note`, which
        comparison has both systems, or that they never met.
    """
    used = votes[["comparison", "question", "choice", "prompt", "rater"]]
    met = {frozenset((entry.a, entry.b)): entry.key for entry, _ in split_primary(used, definition)}
    decisive = used[used["choice"].isin(["a", "b"])]
    decisive = decisive.assign(won=decisive["choice"].eq("a").astype(float))
    cells = {
        comparison.key: cell[["prompt", "rater", "won"]]
        for comparison, cell in split_primary(decisive, definition)
    }
    compared = [entry for entry in definition.comparisons if entry.key in cells]
    rows = [
        _contrast(cells, first, second, opponent, met)
        for opponent, first, second in _pairs(compared, cells)
    ]
    table = pd.DataFrame(rows, columns=COLUMNS[:-1])
    table["p_family"] = holm(table["p"].to_numpy(float))
    return table


def _pairs(
    compared: list[Comparison], cells: dict[str, pd.DataFrame]
) -> Iterator[tuple[str, Comparison, Comparison]]:
    """Yield each opponent with two comparisons against it."""
    against: dict[str, list[Comparison]] = {}
    for entry in compared:
        for opponent in (entry.b, entry.a):
            against.setdefault(opponent, []).append(entry)
    number = sum(len(entries) * (len(entries) - 1) // 2 for entries in against.values())
    for opponent, entries in against.items():
        if number <= MAX_PAIRS:
            for first, second in combinations(entries, 2):
                yield opponent, first, second
        else:
            ordered = sorted(entries, key=lambda entry: _won(cells, entry, opponent).mean())
            for first, second in pairwise(ordered):
                yield opponent, first, second


def _won(cells: dict[str, pd.DataFrame], entry: Comparison, opponent: str) -> np.ndarray:
    """Return 1 for each vote that the opponent lost, 0 for each that it won."""
    won = cells[entry.key]["won"].to_numpy()
    return won if entry.b == opponent else 1 - won


def _contrast(
    cells: dict[str, pd.DataFrame],
    first: Comparison,
    second: Comparison,
    opponent: str,
    met: dict[frozenset[str], str],
) -> dict[str, Any]:
    """Return one row. A vote counts by its distance from the rate of its own comparison.

    Votes of a comparison that are all equal show no variance. Then the interval is made of those of
    the two rates, low_1 to high_1 and low_2 to high_2, with d the difference of the rates r:

        d - sqrt((r_1 - low_1)^2 + (high_2 - r_2)^2),  d + sqrt((high_1 - r_1)^2 + (r_2 - low_2)^2).

    Its half towards 0 is taken as Student's t times the standard error, for p.

    Source: Zou and Donner (2008), Stat. Med. 27(10), 1693-1702.
    """
    won = [_won(cells, entry, opponent) for entry in (first, second)]
    rates = [float(values.mean()) for values in won]
    votes = sum(map(len, won))
    influence = np.concatenate(
        [
            sign * (values - rate) * votes / len(values)
            for sign, values, rate in zip((1, -1), won, rates, strict=True)
        ]
    )
    both = pd.concat([cells[first.key], cells[second.key]])
    systems = [entry.a if entry.b == opponent else entry.b for entry in (first, second)]
    direct = met.get(frozenset(systems))
    notes = [f"compared directly in {direct}" if direct else "indirect: the two never met"]
    kinds = cluster_kinds(both)
    several = [kind for kind in kinds if kinds[kind].nunique() > 1]
    difference, p = rates[0] - rates[1], 1.0
    below = above = np.inf  # the interval's halves
    quantile = (1 + CONFIDENCE) / 2
    if several:
        clusters = [cluster_kinds(cells[entry.key]) for entry in (first, second)]
        fewest = min(kind.nunique() for cell in clusters for kind in cell.values())
        variance, df = crossed_variance(influence, [kinds[kind] for kind in several])
        df = np.maximum(np.minimum(df, fewest - 1), 1)  # no better known than the smaller rate
        below = above = float(stdtrit(df, quantile) * np.sqrt(variance))
        if any(np.ptp(values) == 0 for values in won):
            one, two = (
                mean_of(cells[entry.key], values)
                for entry, values in zip((first, second), won, strict=True)
            )
            below = float(np.hypot(one.mean - one.low, two.high - two.mean))
            above = float(np.hypot(one.high - one.mean, two.mean - two.low))
            notes.append("a comparison without variation")
        error = (below if difference > 0 else above) / float(stdtrit(df, quantile))
        if len(several) == len(kinds) and "vote" not in kinds and error > ROUNDING:
            p = 2 * float(stdtr(df, -abs(difference) / error))
    notes += filter(None, [describe_clusters(kinds)])
    if len(several) < len(kinds):
        notes.append("one prompt or rater only: says nothing about others")
    return {
        "first": first.key,
        "second": second.key,
        "opponent": opponent,
        "system_first": systems[0],
        "system_second": systems[1],
        "votes": votes,
        "rate_first": rates[0],
        "rate_second": rates[1],
        "difference": difference,
        "low": max(difference - below, -1.0),
        "high": min(difference + above, 1.0),
        "p": p,
        "note": "; ".join(notes),
    }
