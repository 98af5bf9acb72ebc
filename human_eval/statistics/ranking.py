"""The ranking of all systems, with intervals clustered by prompt and rater."""

from itertools import combinations

import numpy as np
import pandas as pd
from scipy.special import expit, stdtr, stdtrit

from human_eval.statistics.bradley_terry import (
    PRIOR_VOTES,
    connected_groups,
    count_votes,
    fit_strengths,
    has_finite_strengths,
)
from human_eval.statistics.intervals import CONFIDENCE, crossed_variance
from human_eval.statistics.votes import cluster_kinds, describe_clusters, find_unknown
from human_eval.statistics.win_rates import LEVEL, holm

MIN_CLUSTERS = 5  # prompts or raters, below which intervals say too little
DIFFERENCES = ["question", "group", "first", "second", "difference", "low", "high", "wins"]
DIFFERENCES += ["p", "p_family", "neighbours", "separated"]


def rank_systems(votes: pd.DataFrame) -> pd.DataFrame:
    """Tabulate the strength of every system, by question and connected group of systems.

    Strengths s are log-odds: of decisive votes, system i wins 1 / (1 + exp(s_j - s_i)) against j.
    With w = exp(s), Davidson's model gives a win of i, a win of j and a tie probabilities in
    proportion to w_i, w_j and nu sqrt(w_i w_j). Strengths of a group sum to zero; those of
    different groups cannot be compared, since no votes link them.

    If some systems never lose to others, the most likely strengths are infinite; then half a win
    for either system is added to every comparison, and `prior` says so.

    Returns:
        Columns question, group, system, strength; `low`, `high` (95 %, clustered by prompt and
        rater; missing below 5 of either, except where there is a single one); votes; `model`
        ("Bradley-Terry", or "Davidson" where there are ties); `tie`, Davidson's nu; `prior`;
        `note`, what limits the intervals.

    Source: Bradley and Terry (1952), Biometrika 39, 324-345; Davidson (1970), JASA 65, 317-328.
    """
    tables = []
    for question, number, cell in _groups(votes):
        names, strengths, nu, prior, influence, covariance = _fit(cell)
        error, df, note = _errors(influence, np.diag(covariance), cell)
        half = stdtrit(df, (1 + CONFIDENCE) / 2) * error
        met = cell["system_a"].astype(str).value_counts()
        met = met.add(cell["system_b"].astype(str).value_counts(), fill_value=0)
        table = pd.DataFrame(
            {
                "question": question,
                "group": number,
                "system": names,
                "strength": strengths,
                "low": strengths - half,
                "high": strengths + half,
                "votes": met.reindex(names).to_numpy(int),
                "model": "Davidson" if nu else "Bradley-Terry",
                "tie": nu,
                "prior": f"{PRIOR_VOTES:g} wins each way" if prior else "",
                "note": note,
            }
        )
        tables.append(table.sort_values("strength", ascending=False, kind="stable"))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def tabulate_differences(votes: pd.DataFrame) -> pd.DataFrame:
    """Tabulate the difference in strength of every two systems of a group.

    Returns:
        Columns question, group, first (the stronger), second, difference, `low`, `high` (95 %);
        `wins`, the share of decisive votes that the first would win; p; `p_family`, Holm over all
        pairs of the group, since the votes themselves chose who stand beside each other;
        `neighbours` in the ranking; `separated`, where p_family is at most 0.05.
    """
    tables = []
    for question, number, cell in _groups(votes):
        names, strengths, _, _, influence, covariance = _fit(cell)
        order = np.argsort(-strengths, kind="stable")
        places = np.array(list(combinations(range(len(order)), 2)))
        first, second = order[places].T
        difference = strengths[first] - strengths[second]
        alone = np.diag(covariance)
        independent = alone[first] + alone[second] - 2 * covariance[first, second]
        error, df, _ = _errors(influence[first] - influence[second], independent, cell)
        half = stdtrit(df, (1 + CONFIDENCE) / 2) * error
        p = np.nan_to_num(2 * stdtr(df, -difference / error), nan=1.0)  # missing: too few clusters
        if find_unknown(cell, ["rater|prompt"]):
            p = np.ones(len(p))  # independence of votes is an assumption that supports no claim
        adjusted = holm(p)
        tables.append(
            pd.DataFrame(
                {
                    "question": question,
                    "group": number,
                    "first": np.array(names)[first],
                    "second": np.array(names)[second],
                    "difference": difference,
                    "low": difference - half,
                    "high": difference + half,
                    "wins": expit(difference),
                    "p": p,
                    "p_family": adjusted,
                    "neighbours": places[:, 1] == places[:, 0] + 1,
                    "separated": adjusted <= LEVEL,
                }
            )
        )
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=DIFFERENCES)


def _groups(votes: pd.DataFrame) -> list[tuple[str, int, pd.DataFrame]]:
    return [
        (str(question), number + 1, cell[cell["system_a"].isin(group)])
        for question, cell in votes.groupby("question", observed=True)
        for number, group in enumerate(connected_groups(cell))
    ]


def _fit(votes: pd.DataFrame) -> tuple[list[str], np.ndarray, float, bool, np.ndarray, np.ndarray]:
    """Return systems, strengths, nu, whether a prior was added, influence and covariance.

    The covariance is that of the strengths if votes are independent, H^-1. The influence of a vote
    on a strength is N times the strength's change if the vote weighed a little more; their mean is
    0. With logits d/2, -d/2 and log nu of the answers, d = s_a - s_b, it is N H^-1 x (y - P): y the
    answer, P its probability, H the information of all votes.

    Shapes: influence (systems, votes), covariance (systems, systems).
    """
    tallies = count_votes(votes)
    prior = not has_finite_strengths(tallies)
    fitted, nu = fit_strengths(tallies, prior=prior)
    names, strengths = list(fitted.index), fitted.to_numpy()
    used = tallies.with_prior() if prior else tallies
    pairs = np.searchsorted(names, np.array(tallies.names))[tallies.pairs]
    design = np.zeros((len(pairs), 3, len(names) + 1))  # comparisons, answers, parameters
    rows = np.arange(len(pairs))
    for answer, half in ((0, 0.5), (1, -0.5)):
        design[rows, answer, pairs[:, 0]] += half
        design[rows, answer, pairs[:, 1]] -= half
    design[:, 2, -1] = 1.0
    gap = (strengths[pairs[:, 0]] - strengths[pairs[:, 1]]) / 2
    weight = np.column_stack([np.exp(gap), np.exp(-gap), np.full(len(gap), nu)])
    chance = weight / weight.sum(axis=1, keepdims=True)
    expected = np.einsum("ck,ckp->cp", chance, design)
    residual = design - expected[:, None]  # the score of each answer in each comparison
    total = used.votes.sum(axis=1)
    information = np.einsum("c,ck,ckp,ckq->pq", total, chance, residual, residual)
    covariance = np.linalg.pinv(information, hermitian=True)  # strengths sum to zero
    change = residual @ covariance
    pair = votes.groupby(["system_a", "system_b"], sort=True, observed=True).ngroup().to_numpy()
    chosen = np.select([votes["choice"].eq("a"), votes["choice"].eq("b")], [0, 1], default=2)
    size = len(names)
    influence = len(votes) * change[pair, chosen, :size].T
    return names, strengths, nu, prior, influence, covariance[:size, :size]


def _errors(
    influence: np.ndarray, independent: np.ndarray, votes: pd.DataFrame
) -> tuple[np.ndarray, np.ndarray, str]:
    """Return standard error and degrees of freedom of each row, and what limits them.

    Args:
        independent: the variance of each row if votes are independent: the least that is taken,
            since votes that are all equal have a clustered variance of 0.
    """
    kinds = cluster_kinds(votes)
    counts = {kind: clusters.nunique() for kind, clusters in kinds.items()}
    several = [kind for kind in kinds if counts[kind] > 1]
    missing = np.full(len(influence), np.nan)
    if not several or min(counts[kind] for kind in several) < MIN_CLUSTERS:
        return missing, np.ones(len(influence)), "too few prompts or raters for intervals"
    unknown = describe_clusters(kinds)
    single = next((kind for kind in kinds if counts[kind] == 1), "")
    note = f"one {single} only: says nothing about others" if single else ""
    variance, df = crossed_variance(influence, [kinds[kind] for kind in several])
    # Of votes that are all equal, the clustered variance and its degrees of freedom are rounding.
    equal = variance < 1e-9 * independent
    df = np.where(equal, min(counts[kind] for kind in several) - 1, df)
    return np.sqrt(np.maximum(variance, independent)), df, "; ".join(filter(None, [note, unknown]))
