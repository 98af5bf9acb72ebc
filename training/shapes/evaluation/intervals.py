"""95 % intervals and tests for clips of a few scenes. Prompts of one scene are not independent.

Every function takes one value per clip and the scene of each clip, and allows any dependence within
a scene. The clustered variance and the exact interval of unanimous values are those of the study,
`human_eval.statistics.intervals`. p-values are two-sided and not corrected for multiple testing.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from human_eval.statistics import intervals

Values = Float[np.ndarray, " N"]
UNBOUNDED = (-np.inf, np.inf)


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float
    clips: int
    p: float | None = None  # of the null hypothesis, if one was given


def clustered_mean(
    values: Values,
    scenes: np.ndarray,
    null: float | None = None,
    bounds: tuple[float, float] = UNBOUNDED,
) -> Estimate:
    """Estimate a mean with Student's t over the scenes.

    Args:
        null: the mean of the null hypothesis; None for no test.
        bounds: the smallest and the largest possible value. Equal values have the exact interval
            of one value per scene between them, or no width if there are no bounds.

    Raises:
        ValueError: there are fewer than two scenes, or not one scene per value.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) != len(scenes) or len(set(scenes)) < 2:
        raise ValueError(
            f"Expected one scene for each of {len(values)} values and at least two scenes, "
            f"got {len(scenes)} values of {len(set(scenes))} scenes."
        )
    if bounds == UNBOUNDED and np.ptp(values) < 1e-12:
        mean = float(values.mean())
        return Estimate(
            mean, mean, mean, len(values), None if null is None else float(mean == null)
        )
    tested = 0.0 if null is None else null
    found = intervals.clustered_mean(values, {"scene": scenes}, null=tested, bounds=bounds)
    p = None if null is None else found.p
    return Estimate(found.mean, found.low, found.high, len(values), p)


def clustered_rate(hits: Bool[np.ndarray, " N"], scenes: np.ndarray) -> Estimate:
    """Estimate a rate, in [0, 1], with Wilson's interval at the effective number of clips.

    For a rate r with clustered standard error e, the effective number is r (1 - r) / e^2: the
    number of independent clips with the same standard error, at most the number of clips. If all or
    none hit, e is 0, and the interval is the exact one of one clip per scene.

    Source: Dean and Pagano (2015), Journal of Survey Statistics and Methodology 3(4), 484-503.
    """
    found = intervals.clustered_mean(np.asarray(hits, dtype=np.float64), {"scene": scenes})
    if found.error == 0:
        return Estimate(found.mean, found.low, found.high, len(hits))
    effective = min(len(hits), found.mean * (1 - found.mean) / found.error**2)
    low, high = proportion_confint(found.mean * effective, effective, method="wilson")
    return Estimate(found.mean, float(low), float(high), len(hits))


def clustered_ratio(values: Values, reference: Values, scenes: np.ndarray) -> Estimate:
    """Estimate r = mean(values) / mean(reference) of paired clips, by linearisation.

    The interval is that of the mean of (values - r reference) / mean(reference), around r.

    Raises:
        ValueError: the mean of the reference is 0.

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
