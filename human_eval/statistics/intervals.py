"""Intervals and tests for a mean of votes, independent or clustered.

Answers on one prompt resemble each other, and so do the answers of one rater. Intervals that treat
votes as independent (`wilson`) are reported for comparison with other work; claims rest on
`clustered_mean`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import statsmodels.api as sm
from scipy.stats import binomtest
from statsmodels.stats.proportion import proportion_confint

FEW_CLUSTERS = 30  # below it, Student's t is visibly wider than the normal distribution


@dataclass(frozen=True)
class Interval:
    """Bounds of a share, in [0, 1]."""

    low: float
    high: float


@dataclass(frozen=True)
class Mean:
    """A mean of clustered values, with its interval and test."""

    mean: float
    error: float  # standard error; 0 where all values are equal
    low: float
    high: float
    p: float  # two-sided, of the null hypothesis; 1 where the clusters do not allow a test
    note: str = ""  # what a reader must know about the interval


def wilson(wins: int, votes: int, *, confidence: float = 0.95) -> Interval:
    """Return the score interval of a share, taking votes as independent.

    Raises:
        ValueError: there are no votes, or more wins than votes.

    Source: Wilson (1927), JASA 22(158), 209-212.
    """
    return _interval(wins, votes, confidence, "wilson")


def clopper_pearson(wins: int, votes: int, *, confidence: float = 0.95) -> Interval:
    """Return the exact interval of a share of independent votes. It covers at least `confidence`.

    Raises:
        ValueError: there are no votes, or more wins than votes.

    Source: Clopper and Pearson (1934), Biometrika 26(4), 404-413.
    """
    return _interval(wins, votes, confidence, "beta")


def _interval(wins: int, votes: int, confidence: float, method: str) -> Interval:
    if not 0 <= wins <= votes or votes == 0:
        raise ValueError(
            f"Expected between 0 and {votes} wins of at least one vote, got {wins}. "
            "Check how the votes were filtered."
        )
    low, high = proportion_confint(wins, votes, alpha=1 - confidence, method=method)
    return Interval(float(low), float(high))


def sign_test(wins: int, losses: int) -> float:
    """Return the exact two-sided p-value of "either side wins a decisive vote equally often".

    Votes are taken as independent; 1 without votes.
    """
    if wins + losses == 0:
        return 1.0
    return float(binomtest(wins, wins + losses, 0.5).pvalue)


def clustered_mean(
    values: Sequence[float] | np.ndarray,
    clusters: Mapping[str, Sequence[object] | pd.Series | np.ndarray],
    *,
    null: float = 0.5,
    bounds: tuple[float, float] = (0.0, 1.0),
    confidence: float = 0.95,
) -> Mean:
    """Return the mean of values that may depend on each other within clusters, with its interval.

    With one kind of cluster (such as scenes), the variance of the mean of N values y with mean m
    is, over G clusters g,

        V = G / (G - 1) / N^2 * sum_g (sum_{i in g} (y_i - m))^2.

    With two kinds (prompts and raters) it is V_prompt + V_rater - V_both, where V_both takes votes
    of one rater on one prompt as a cluster. This difference can by chance be below V_prompt or
    V_rater, even below zero; the largest of the three is taken, which errs on the safe side.

    The interval is m +- t sqrt(V), cut to `bounds`, with G - 1 degrees of freedom of the smaller G.
    Values that are all equal show no variance; then the interval is exact for one independent
    value per cluster, see `_unanimous`. A kind with a single cluster cannot vary: the interval
    then says nothing about other prompts or raters, `p` is 1 and `note` says so.

    Args:
        values: one for each vote.
        clusters: by kind ("prompt", "rater"), the cluster of each vote; one kind or two.
        null: the mean of the null hypothesis.
        bounds: the smallest and largest value possible; infinite where there is none.

    Raises:
        ValueError: there are no values, or each kind has a single cluster.

    Source: Cameron, Gelbach and Miller (2011), JBES 29(2), 238-249; the largest of the three:
    MacKinnon, Nielsen and Webb (2024), arXiv:2406.08880.
    """
    values = np.asarray(values, dtype=float)
    if not len(values):
        raise ValueError("Expected at least one vote, got none. Check how the votes were filtered.")
    codes = {kind: pd.factorize(pd.Series(key))[0] for kind, key in clusters.items()}
    counts = {kind: int(code.max()) + 1 for kind, code in codes.items()}
    fewest = min(counts, key=lambda kind: counts[kind])
    if np.ptp(values) == 0:
        return _unanimous(float(values[0]), counts[fewest], null, bounds, confidence)
    several = {kind: code for kind, code in codes.items() if counts[kind] > 1}
    if not several:
        raise ValueError(
            f"Expected votes in at least two clusters, got a single {' and '.join(counts)}. "
            "Collect more votes."
        )
    groupings = list(several.values())
    if len(groupings) == 2:
        groupings.append(np.column_stack(groupings))
    plain = sm.OLS(values, np.ones(len(values))).fit()
    fits = [
        plain.get_robustcov_results("cluster", groups=groups, use_t=True) for groups in groupings
    ]
    fit = max(fits, key=lambda one: float(one.cov_params()[0, 0]))
    # A one-way fit counts the clusters of its own kind, which may be the larger number.
    fit.df_resid_inference = min(counts[kind] for kind in several) - 1
    p, note = 1.0, ""
    if len(several) < len(codes):
        note = f"one {fewest} only: says nothing about others"
    else:
        p = float(fit.t_test(([[1.0]], [null])).pvalue)
        if counts[fewest] < FEW_CLUSTERS:
            note = f"few {fewest}s: t with {fit.df_resid_inference} degrees of freedom"
    low, high = np.clip(fit.conf_int(alpha=1 - confidence)[0], *bounds)
    return Mean(float(fit.params[0]), float(fit.bse[0]), float(low), float(high), p, note)


def _unanimous(
    value: float,
    clusters: int,
    null: float,
    bounds: tuple[float, float],
    confidence: float,
) -> Mean:
    """Bound the mean of values that are all equal: each cluster counts as one independent value.

    If a share q of clusters had another value, G clusters would all miss it with probability
    (1 - q)^G. The largest q that this leaves possible, u = 1 - ((1 - confidence) / 2)^(1 / G), is
    Clopper and Pearson's upper bound of 0 in G. The mean is then at most u of the way from `value`
    to either bound. For a value of 0 or 1 this is their interval of a share.
    """
    missed = clopper_pearson(0, clusters, confidence=confidence).high
    low, high = (value + missed * (end - value) if end != value else value for end in bounds)
    end = bounds[0] if null < value else bounds[1]
    p = 1.0
    if null != value:
        p = min(1.0, 2 * (1 - (null - value) / (end - value)) ** clusters)
    note = f"no variation: exact interval of {clusters} votes"
    return Mean(value, 0.0, low, high, p, note)
