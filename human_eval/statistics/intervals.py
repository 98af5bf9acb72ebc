"""How sure a share of votes is: intervals and tests for votes that are independent, or are not.

Answers on one prompt resemble each other, and so do answers of one rater. The intervals that treat
votes as independent are printed for comparison with other work; claims rest on `robust_mean`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import statsmodels.api as sm
from scipy.stats import binomtest
from statsmodels.stats.proportion import proportion_confint

from human_eval.errors import StudyError

FEW_CLUSTERS = 30  # below it, Student's t is visibly wider than the normal distribution


@dataclass(frozen=True)
class Interval:
    """Bounds of a share, in [0, 1]."""

    low: float
    high: float


@dataclass(frozen=True)
class Mean:
    """A mean of votes, with an interval that knows of prompts and raters."""

    mean: float
    error: float  # standard error; 0 where all votes agree
    low: float
    high: float
    p: float  # two-sided, of the null hypothesis; 1 where nothing can be said about others
    note: str = ""  # what the reader must know about the interval


def wilson(wins: int, votes: int, *, confidence: float = 0.95) -> Interval:
    """Return the score interval of a share of independent votes.

    Source: Wilson (1927), JASA 22(158), 209-212.
    """
    return _interval(wins, votes, confidence, "wilson")


def clopper_pearson(wins: int, votes: int, *, confidence: float = 0.95) -> Interval:
    """Return the exact interval of a share of independent votes; never too narrow.

    Source: Clopper and Pearson (1934), Biometrika 26(4), 404-413.
    """
    return _interval(wins, votes, confidence, "beta")


def _interval(wins: int, votes: int, confidence: float, method: str) -> Interval:
    if not 0 <= wins <= votes or votes == 0:
        raise StudyError(
            f"Expected between 0 and {votes} wins of at least one vote, got {wins}. "
            "Check the filters of the report."
        )
    low, high = proportion_confint(wins, votes, alpha=1 - confidence, method=method)
    return Interval(float(low), float(high))


def sign_test(wins: int, losses: int) -> float:
    """Return the exact two-sided p-value of "either side wins a decisive vote equally often"."""
    if wins + losses == 0:
        return 1.0
    return float(binomtest(wins, wins + losses, 0.5).pvalue)


def robust_mean(
    values: Sequence[float] | np.ndarray,
    prompts: Sequence[object] | np.ndarray,
    raters: Sequence[object] | np.ndarray,
    *,
    null: float = 0.5,
    confidence: float = 0.95,
    student: bool = True,
) -> Mean:
    """Average the votes, with a standard error that is clustered by prompt and by rater.

    Args:
        values: one for each vote, in [0, 1].
        prompts, raters: to which cluster each vote belongs, in either direction.
        student: widen by Student's t with one degree of freedom less than there are clusters, of
            the smaller number where both directions have several, whichever variance is taken;
            False for the normal distribution, right for very many clusters only.

    The two-way variance is a difference of variances: by chance it can be below that of one way
    alone, even below zero. The largest of the three is taken, which errs on the safe side.

    Source: Cameron, Gelbach and Miller (2011), JBES 29(2), 238-249; the largest of the three:
    MacKinnon, Nielsen and Webb (2024), arXiv:2406.08880.
    """
    values = np.asarray(values, dtype=float)
    if not len(values):
        raise StudyError("Expected at least one vote, got none. Check the filters of the report.")
    codes = np.column_stack([pd.factorize(pd.Series(key))[0] for key in (prompts, raters)])
    clusters = codes.max(axis=0) + 1
    if np.ptp(values) == 0:
        return _unanimous(float(values[0]), int(clusters.min()), null, confidence)
    groups = _clusterings(codes, clusters)
    if not groups:
        raise StudyError(
            "Expected votes on two prompts or of two raters, got one rater's votes on one prompt. "
            "Collect more votes."
        )

    def fit_clustered(group: np.ndarray) -> Any:
        plain = sm.OLS(values, np.ones(len(values))).fit()
        return plain.get_robustcov_results("cluster", groups=group, use_t=student)

    fits = [fit_clustered(group) for group in groups]
    fit = max(fits, key=lambda one: float(one.cov_params()[0, 0]))
    # A fit one way knows its own direction alone, which may have the larger number of clusters.
    fit.df_resid_inference = clusters[clusters > 1].min() - 1
    note = ""
    if len(groups) == 1:
        only = "rater" if clusters[1] == 1 else "prompt"
        note = f"one {only} only: says nothing about others"
    elif clusters.min() < FEW_CLUSTERS:
        noun = "raters" if clusters[1] < clusters[0] else "prompts"
        note = f"few {noun}: t with {clusters.min() - 1} degrees of freedom"
    low, high = fit.conf_int(alpha=1 - confidence)[0]
    p = float(fit.t_test(([[1.0]], [null])).pvalue) if len(groups) == 3 else 1.0
    bounds = np.clip([low, high], 0, 1)
    return Mean(
        float(fit.params[0]), float(fit.bse[0]), float(bounds[0]), float(bounds[1]), p, note
    )


def _clusterings(codes: np.ndarray, clusters: np.ndarray) -> list[np.ndarray]:
    """Return two-way groups, then those one way; directions with a single cluster are no use."""
    one_way = [codes[:, side] for side in (0, 1) if clusters[side] > 1]
    return [codes, *one_way] if len(one_way) == 2 else one_way


def _unanimous(value: float, clusters: int, null: float, confidence: float) -> Mean:
    """Bound a mean without variation: each prompt, or each rater, counts as one vote."""
    note = f"no variation: exact interval of {clusters} votes"
    if value not in (0.0, 1.0):
        return Mean(value, 0.0, 0.0, 1.0, 1.0, note)
    bounds = clopper_pearson(int(value) * clusters, clusters, confidence=confidence)
    p = float(binomtest(int(value) * clusters, clusters, null).pvalue)
    return Mean(value, 0.0, bounds.low, bounds.high, p, note)
