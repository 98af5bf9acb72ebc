"""The variance of the mean of clustered votes, for clusters of any size.

A variance computed from residuals is too small if one rater gives many of the votes, because the
mean follows that rater. So the variance is that of the jackknife, which leaves out one cluster at a
time, and Student's t has Satterthwaite's degrees of freedom for clusters of these sizes.
"""

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

Stages = np.ndarray  # float, shape (..., clusters): one row for each moment of a study


def sum_by_cluster(
    values: np.ndarray, clusters: pd.Series | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of values and their sum in each cluster, shape (..., clusters).

    Args:
        values: shape (..., votes); several rows are different values of the same votes.
        clusters: the cluster of each vote, shape (votes,).
    """
    codes, names = pd.factorize(clusters)
    sizes = np.bincount(codes, minlength=len(names)).astype(float)
    if values.ndim == 1:  # the same sums in a tenth of the time
        return sizes, np.bincount(codes, values, len(names))
    member = csr_matrix(
        (np.ones(len(codes)), (np.arange(len(codes)), codes)), shape=(len(codes), len(names))
    )
    return sizes, np.asarray(values @ member)


def cluster_variance(
    sizes: Stages, sums: Stages, squares: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the variance of a mean over clusters of one kind, and its degrees of freedom.

    With G clusters of n_g values and residual sums e_g = sum_{i in g} (y_i - m), N = sum n_g, the
    variance is the jackknife's, of the means without one cluster:

        V = (G - 1) / G * sum_g (e_g / (N - n_g))^2.

    For clusters of one size it is the usual sandwich variance. Its degrees of freedom are those of
    Satterthwaite, 2 E[V]^2 / Var[V], where values of one cluster correlate by rho and others not at
    all; rho is estimated by analysis of variance. They are G - 1 for clusters of one size.

    Args:
        sizes: n_g, shape (..., G); 0 where a cluster has no value yet.
        sums: sum of the values in each cluster, same shape.
        squares: sum of all squared values, shape (...).

    Returns:
        V and degrees of freedom of at least 1, shape (...). Where there are fewer than two
        clusters: NaN and 1.

    Source: the jackknife: MacKinnon, Nielsen and Webb (2023), J. Econometrics 232(2), 272-299;
    degrees of freedom: Bell and McCaffrey (2002), Survey Methodology 28(2), 169-181, with the
    correlated errors of Imbens and Kolesar (2016), Rev. Econ. Stat. 98(4), 701-712.
    """
    total = sizes.sum(axis=-1, keepdims=True)
    mean = sums.sum(axis=-1, keepdims=True) / total
    count = np.count_nonzero(sizes, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):  # a single cluster
        weights = (total - sizes) ** -2.0
        left_out = weights * (sums - sizes * mean) ** 2
        variance = (count - 1) / count * left_out.sum(axis=-1)
        rho = _correlation(sizes, sums, squares, count)[..., None]
        spread = sizes * (1 + rho * (sizes - 1))  # of a cluster's sum, in variances of a value
        df = _satterthwaite(sizes / total, weights, spread)
    several = count > 1
    return np.where(several, variance, np.nan), np.where(several, np.fmax(df, 1.0), 1.0)


def _correlation(sizes: Stages, sums: Stages, squares: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Return the correlation of two values of one cluster, in [0, 1].

    Source: Donner (1986), Int. Stat. Rev. 54(1), 67-82, the analysis-of-variance estimator.
    """
    total = sizes.sum(axis=-1)
    explained = np.divide(sums**2, sizes, out=np.zeros(sums.shape), where=sizes > 0).sum(axis=-1)
    within = (squares - explained) / np.maximum(total - count, 1)
    between = (explained - sums.sum(axis=-1) ** 2 / total) / (count - 1)
    typical = (total - (sizes**2).sum(axis=-1) / total) / (count - 1)  # size of a cluster
    shared = np.maximum((between - within) / typical, 0)
    # All clusters with a single value each: `within` is 0 and says nothing.
    return np.where(total > count, shared / np.maximum(shared + within, 1e-12), 0.0)


def _satterthwaite(share: Stages, weights: Stages, spread: Stages) -> np.ndarray:
    """Return tr(A C)^2 / tr(A C A C), A = diag(weights), C the covariance of the residual sums.

    With shares h_g of all values and variances v_g of the clusters' sums, T = sum v_g,

        C_gk = v_g [g = k] - h_g v_k - h_k v_g + h_g h_k T,

    of which the sum over g and k of w_g w_k C_gk^2 factors into sums over g.
    """
    all_spread = spread.sum(axis=-1, keepdims=True)
    outer = share * (share * all_spread - 2 * spread)  # C_gg without its first term
    own = outer + spread
    shares, spreads, crossed = (
        (weights * first * second).sum(axis=-1)
        for first, second in ((share, share), (spread, spread), (share, spread))
    )
    all_spread = all_spread[..., 0]
    squares = 2 * shares * spreads + (all_spread * shares) ** 2 + 2 * crossed**2
    squares = squares - 4 * all_spread * shares * crossed
    squares = squares + (weights**2 * (own**2 - outer**2)).sum(axis=-1)
    return np.asarray((weights * own).sum(axis=-1) ** 2 / squares)


def combine_variances(
    first: tuple[np.ndarray, np.ndarray],
    second: tuple[np.ndarray, np.ndarray],
    both: np.ndarray,
    fewest: np.ndarray | float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return variance and degrees of freedom for two crossed kinds, such as prompts and raters.

    V = V_1 + V_2 - V_both, where V_both takes votes of one rater on one prompt as a cluster. This
    difference can by chance be below V_1 or V_2, even below zero; the largest of the three is
    taken, which errs on the safe side. V is as uncertain as V_1 and V_2 together (Satterthwaite),
    and never less so than a mean of the smaller number G of clusters, which may agree by chance:

        df = min(V^2 / (V_1^2 / df_1 + V_2^2 / df_2), G - 1).

    Args:
        first, second: of `cluster_variance`.
        both: V_both.
        fewest: G; infinite for no such limit.

    Source: Cameron, Gelbach and Miller (2011), JBES 29(2), 238-249; the largest of the three:
    MacKinnon, Nielsen and Webb (2024), arXiv:2406.08880.
    """
    (one, one_df), (two, two_df) = first, second
    largest = np.maximum(one, two)
    variance = np.maximum(one + two - both, largest)
    noise = one**2 / one_df + two**2 / two_df
    smaller = np.array(np.minimum(one_df, two_df), dtype=float)
    df = np.divide(variance**2, noise, out=smaller, where=noise > 0)
    return variance, np.maximum(np.minimum(df, fewest - 1), 1.0)
