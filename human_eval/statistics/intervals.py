"""Intervals and tests for a mean of votes, independent or clustered.

Answers on one prompt resemble each other, and so do the answers of one rater. Intervals that treat
votes as independent (`wilson`) are reported for comparison with other work; claims rest on
`clustered_mean`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import betaincinv, stdtr, stdtrit
from scipy.stats import binomtest
from statsmodels.stats.proportion import proportion_confint

from human_eval.statistics.clusters import cluster_variance, combine_variances, sum_by_cluster

# Between Jeffreys' 0.5 and the uniform prior's 1. Of 50, 100, 200 and 500 independent votes at 90,
# 91, ... 99 %, the smallest coverage is 92.9 % with 0.5 to 0.68, 93.5 with 0.7 and 0.72, and 91.1
# from 0.74 on. A larger prior gives wider intervals.
PRIOR_VOTES = 0.7
FEW_CLUSTERS = 30  # below it, Student's t is visibly wider than the normal distribution
CONFIDENCE = 0.95


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
    df: float = np.nan  # degrees of freedom of the error; NaN where there is no error


def wilson(wins: int, votes: int) -> Interval:
    """Return the score interval of a share, 95 %, taking votes as independent.

    Raises:
        ValueError: there are no votes, or more wins than votes.

    Source: Wilson (1927), JASA 22(158), 209-212.
    """
    return _interval(wins, votes, CONFIDENCE, "wilson")


def clopper_pearson(wins: int, votes: int, *, confidence: float = CONFIDENCE) -> Interval:
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
    confidence: float = CONFIDENCE,
    limit_df: bool = True,
) -> Mean:
    """Return the mean of values that may depend on each other within clusters, with its interval.

    Its variance V and degrees of freedom are those of `human_eval.statistics.clusters`, for one
    kind of cluster (such as scenes) or for two that cross (prompts and raters).

    Between `bounds`, the interval is that of n effective votes and Student's t. For bounds of 0 and
    1, values with mean m and variance s^2, and N values,

        n = m (1 - m) / max(V, s^2 / N),    r = (t_N / t)^2,
        Beta(r (n m + c), r (n (1 - m) + c)) between its quantiles (1 -+ confidence) / 2,

    with c = `PRIOR_VOTES` and t_N Student's quantile of N - 1 degrees of freedom, which independent
    values have: r is 1 for them. `p` is of the score test, with t; an end that would contradict it
    is moved to the null. Without bounds, interval and test are Student's, m +- t sqrt(V).

    Values that are all equal show no variance; then the interval is exact for one independent
    value per cluster, see `_unanimous`. A kind with a single cluster cannot vary: the interval
    then says nothing about other prompts or raters, `p` is 1 and `note` says so.

    Args:
        values: one for each vote.
        clusters: by kind ("prompt", "rater"), the cluster of each vote; one kind or two.
        null: the mean of the null hypothesis.
        bounds: the smallest and largest value possible; infinite where there is none.
        limit_df: of two kinds, take no more degrees of freedom than the smaller number of clusters
            has, see `combine_variances`, and that number where all values are equal.

    Raises:
        ValueError: there are no values, or each kind has a single cluster.

    Source: effective votes: Korn and Graubard (1998), Survey Methodology 24(2), 193-201; intervals
    with them: Franco, Little, Louis and Slud (2019), J. Surv. Stat. Methodol. 7(3), 334-364; the
    Beta distribution: Brown, Cai and DasGupta (2001), Stat. Sci. 16(2), 101-133.
    """
    values = np.asarray(values, dtype=float)
    if not len(values):
        raise ValueError("There are no votes. Check how they were filtered.")
    counts = {kind: pd.Series(key).nunique() for kind, key in clusters.items()}
    fewest = min(counts, key=lambda kind: counts[kind])
    if np.ptp(values) == 0:
        independent = counts[fewest] if limit_df else max(counts.values())
        return _unanimous(float(values[0]), independent, null, bounds, confidence)
    several = [kind for kind in clusters if counts[kind] > 1]
    if not several:
        raise ValueError(f"All votes have a single {' and '.join(counts)}. Collect more votes.")
    variance, df = crossed_variance(values, [clusters[kind] for kind in several], limit_df)
    mean, error = float(values.mean()), float(np.sqrt(variance))
    start, width = bounds[0], bounds[1] - bounds[0]
    if np.isfinite(width):
        share = (mean - start) / width
        unit = share * (1 - share)  # the largest variance of values with this mean
        votes = unit / (max(float(variance), float(values.var()) / len(values)) / width**2)
        ends = _effective_interval(share, votes, float(df), len(values) - 1, confidence)
        low, high = start + width * ends.low, start + width * ends.high
        expected = (null - start) / width
        error_of_null = width * np.sqrt(max(expected * (1 - expected), 0.0) / votes)
    else:
        half = float(stdtrit(df, (1 + confidence) / 2)) * error
        low, high = mean - half, mean + half
        error_of_null = error
    distance = abs(mean - null)
    p = 2 * float(stdtr(df, -distance / error_of_null)) if error_of_null else float(not distance)
    rejected = p < 1 - confidence
    if mean > null:
        low = max(low, null) if rejected else min(low, null)
    elif mean < null:
        high = min(high, null) if rejected else max(high, null)
    note = ""
    if len(several) < len(clusters):
        p, note = 1.0, f"one {fewest} only: says nothing about others"
    elif df < FEW_CLUSTERS - 1:
        cause = f"few {fewest}s" if counts[fewest] < FEW_CLUSTERS else "uneven shares of votes"
        note = f"{cause}: t with {df:.3g} degrees of freedom"
    return Mean(mean, error, low, high, p, note, float(df))


def crossed_variance(
    values: np.ndarray,
    kinds: Sequence[Sequence[object] | pd.Series | np.ndarray],
    limit_df: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the variance of the mean and its degrees of freedom, for one or two kinds of cluster.

    Args:
        values: shape (..., votes).
        kinds: the cluster of each vote, by kind.
        limit_df: as for `clustered_mean`.
    """
    squares = (values**2).sum(axis=-1)

    def of(clusters: pd.Series | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sizes, sums = sum_by_cluster(values, clusters)
        return cluster_variance(np.broadcast_to(sizes, sums.shape), sums, squares)

    codes = [pd.factorize(pd.Series(kind))[0] for kind in kinds]
    if len(codes) == 1:
        return of(codes[0])
    both, _ = of(codes[0] * (codes[1].max() + 1) + codes[1])
    fewest = min(code.max() for code in codes) + 1 if limit_df else np.inf
    return combine_variances(of(codes[0]), of(codes[1]), both, fewest)


def _effective_interval(
    share: float, votes: float, df: float, independent_df: int, confidence: float
) -> Interval:
    """Return the interval of a share for an effective number of votes; see `clustered_mean`."""
    level = (1 + confidence) / 2
    ratio = (stdtrit(independent_df, level) / stdtrit(df, level)) ** 2
    wins, losses = (ratio * (votes * part + PRIOR_VOTES) for part in (share, 1 - share))
    return Interval(*(float(betaincinv(wins, losses, end)) for end in (1 - level, level)))


def _unanimous(
    value: float, clusters: int, null: float, bounds: tuple[float, float], confidence: float
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
