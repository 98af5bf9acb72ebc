"""95 % intervals and tests for clips of a few scenes: prompts of one scene are not independent.

Every function takes one value per clip and the scene of that clip, and allows any dependence within
a scene. p-values are two-sided and not corrected for the number of comparisons.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from statsmodels.api import OLS
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

Values = Float[np.ndarray, " N"]


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float
    clips: int
    p: float | None = None  # of the null hypothesis, where there is one


def clustered_mean(values: Values, scenes: np.ndarray, null: float | None = None) -> Estimate:
    """Estimate a mean, with Student's t over the scenes.

    Args:
        null: the mean that `p` is the probability of.

    Source: Cameron and Miller (2015), Journal of Human Resources 50(2), section II.
    """
    values = np.asarray(values, dtype=np.float64)
    clusters = pd.factorize(scenes)[0]
    if len(values) != len(clusters) or clusters.max(initial=-1) < 1:
        raise ValueError(
            f"Expected one scene for each of {len(values)} values and at least two scenes, "
            f"got {len(clusters)} values of {clusters.max(initial=-1) + 1} scenes."
        )
    mean = float(values.mean())
    if np.ptp(values) < 1e-12:  # no spread to build an interval on
        return Estimate(
            mean, mean, mean, len(values), None if null is None else float(mean == null)
        )
    origin = 0.0 if null is None else null
    fitted = OLS(values - origin, np.ones(len(values))).fit(
        cov_type="cluster", cov_kwds={"groups": clusters}, use_t=True
    )
    low, high = origin + fitted.conf_int()[0]
    p = None if null is None else float(fitted.pvalues[0])
    return Estimate(mean, float(low), float(high), len(values), p)


def clustered_rate(hits: Bool[np.ndarray, " N"], scenes: np.ndarray) -> Estimate:
    """Estimate a rate, in [0, 1], with Wilson's interval at the effective number of clips.

    That number is what independent clips would need for the same standard error, never more than
    the clips there are. Where all or none hit, nothing is known of the spread within scenes: then
    it is the number of scenes.

    Source: Dean and Pagano (2015), Journal of Survey Statistics and Methodology 3(4), 484-503.
    """
    count, rate = len(hits), float(np.mean(hits))
    if rate in (0, 1):
        effective = float(pd.Series(scenes).nunique())
    else:
        fitted = OLS(np.asarray(hits, dtype=np.float64), np.ones(count)).fit(
            cov_type="cluster", cov_kwds={"groups": pd.factorize(scenes)[0]}
        )
        effective = min(count, rate * (1 - rate) / float(fitted.bse[0]) ** 2)
    low, high = proportion_confint(rate * effective, effective, method="wilson")
    return Estimate(rate, float(low), float(high), count)


def clustered_ratio(values: Values, reference: Values, scenes: np.ndarray) -> Estimate:
    """Estimate mean(values) / mean(reference) of paired clips, by linearisation.

    Source: Cochran (1977), Sampling Techniques, 3rd ed., Eq. 6.13.
    """
    base = float(np.mean(reference))
    if base == 0:
        raise ValueError("Expected a reference with a mean other than 0, got 0. Choose another.")
    ratio = float(np.mean(values)) / base
    spread = clustered_mean((values - ratio * reference) / base, scenes)
    return Estimate(ratio, ratio + spread.low, ratio + spread.high, spread.clips)


def mcnemar_p(ours: Bool[np.ndarray, " N"], theirs: Bool[np.ndarray, " N"]) -> float:
    """Return the exact p-value of equal rates on the same prompts, taking clips as independent."""
    only_ours, only_theirs = int((ours & ~theirs).sum()), int((~ours & theirs).sum())
    table = [[int((ours & theirs).sum()), only_ours], [only_theirs, int((~ours & ~theirs).sum())]]
    return float(mcnemar(table, exact=True).pvalue)
