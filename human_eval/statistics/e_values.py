"""E-values: evidence that may be looked at after every vote, and which comparisons are decided.

An e-value is the gain of a bet against the null hypothesis "either side wins equally often". Under
it, however often one looks and whenever one stops, the e-value ever reaches 1 / level with
probability at most `level` (Ville's inequality).
"""

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import betaln, ndtri, stdtrit

from human_eval.definition.definition import StudyDefinition
from human_eval.statistics.clusters import cluster_variance, combine_variances
from human_eval.statistics.intervals import Interval
from human_eval.statistics.votes import find_unknown, split_cells

LEVEL = 0.05  # of wrong decisions in the whole family of comparisons
PRIOR = 10.0  # a of the bet Beta(a, a); 10 stakes most on win rates of about 40 % and 60 %
MAX_LOG = 700.0  # of the natural logarithm of an e-value
MIN_CLUSTERS = 5  # raters and prompts before the first bet
EVERY_VOTE = 200  # so many votes have a design effect of their own; later ones each 2 %
NEEDS = ("prompt", "rater", "answered_at")
USED = ["choice", "prompt", "rater", "answered_at", "vote_id"]  # columns of votes, by a path
CHUNK = 64  # stages computed at once

Paths = dict[tuple[str, str], pd.DataFrame]  # by comparison and question, of `e_value_path`


def e_value(
    wins: float | np.ndarray, losses: float | np.ndarray, *, prior: float = PRIOR, null: float = 0.5
) -> np.ndarray:
    """Return the e-value of independent decisive votes against a win rate q.

    It is the likelihood of a win rate p drawn from Beta(a, a), over that of p = q:

        e = B(a + wins, a + losses) / (B(a, a) q^wins (1 - q)^losses).

    Args:
        wins, losses: numbers of votes; fractions where votes weigh less than one.
        prior: a.
        null: q, between 0 and 1.

    Returns:
        In (0, 1e304]; larger values are cut to this, since no float can hold them.

    Source: Robbins (1970), Ann. Math. Statist. 41(5), 1397-1409; Ville (1939).
    """
    bet = betaln(prior + wins, prior + losses) - betaln(prior, prior)
    bet = bet - wins * np.log(null) - losses * np.log1p(-null)
    return np.asarray(np.exp(np.minimum(bet, MAX_LOG)))


def anytime_interval(wins: float, losses: float) -> Interval:
    """Return the win rates against which the e-value is below 1 / LEVEL.

    However often one looks, all these intervals contain the truth with probability 1 - LEVEL.
    """

    def excess(rate: float) -> float:
        return float(np.log(LEVEL * e_value(wins, losses, null=rate)))

    least = 1e-9
    mean = np.clip(wins / (wins + losses), least, 1 - least)
    low, high = (
        brentq(excess, end, mean) if excess(end) > 0 else round(end) for end in (least, 1 - least)
    )
    return Interval(low, high)


def e_value_path(votes: pd.DataFrame) -> pd.DataFrame:
    """Return the e-value after each decisive vote of one comparison and question, in time.

    Votes on one prompt, or of one rater, resemble each other and so weigh less than independent
    ones: `e` counts each as 1 / `design_effect` votes, estimated anew after every vote, see
    `design_effects`. `e_independent` counts every vote in full.

    Returns:
        One row for each decisive vote: answered_at, wins, losses, design_effect, e,
        e_independent. `e` is 1 while there are fewer than 5 raters or prompts.
    """
    decisive = votes[votes["choice"].isin(["a", "b"])]
    decisive = decisive.sort_values(["answered_at", "vote_id"])
    won = decisive["choice"].eq("a").to_numpy(float)
    wins = np.cumsum(won)
    losses = np.cumsum(1 - won)
    effect, clusters = design_effects(won, decisive["prompt"], decisive["rater"])
    adjusted = np.where(clusters >= MIN_CLUSTERS, e_value(wins / effect, losses / effect), 1.0)
    return pd.DataFrame(
        {
            "answered_at": decisive["answered_at"].array,  # as NumPy objects: 100 times slower
            "wins": wins,
            "losses": losses,
            "design_effect": effect,
            "e": adjusted,
            "e_independent": e_value(wins, losses),
        }
    )


def design_effects(
    values: np.ndarray, prompts: pd.Series, raters: pd.Series, *, shared: float | np.ndarray = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return, after every vote, the design effect and the smaller number of clusters.

    The design effect is how many votes weigh as much as one independent vote. After n values with
    mean m it is the variance V of m over the variance m (1 - m) / n of independent votes, widened
    as Student's t is, and at least that of independent values, which is 1 for wins and losses:

        deff = V / (m (1 - m) / n) * (t_{0.975, df} / z_{0.975})^2.

    V and df are those of `human_eval.statistics.clusters`. While all values are equal, the ratio is
    n / G and df is G - 1: each rater, or each prompt if there are fewer, counts as one vote.
    Between the stages of `_stages` it is that of the stage before.

    Args:
        values: 1 for a win, 0 for a loss, or other values whose mean is a win rate.
        shared: variance of an error that all values share, after every vote; added to V.

    Source: design effect: Kish (1965), "Survey Sampling".
    """
    if not len(values):
        return np.ones(0), np.zeros(0)
    stages = _stages(len(values))
    prompt, rater = (pd.factorize(kind)[0] for kind in (prompts, raters))
    by_prompt, prompts_seen = _variances(values, prompt, stages)
    by_rater, raters_seen = _variances(values, rater, stages)
    both = _variance_of_cells(values, prompt * (rater.max() + 1) + rater)[stages]
    clusters = np.minimum(prompts_seen, raters_seen)
    variance, df = combine_variances(by_prompt, by_rater, both, clusters)
    variance = variance + np.broadcast_to(shared, len(values))[stages]
    count = stages + 1
    mean = np.cumsum(values)[stages] / count
    independent = np.cumsum(values**2)[stages] / count - mean**2
    varied = (mean > 0) & (mean < 1) & (independent > 0) & (clusters > 1)
    ratio = np.divide(variance * count, mean * (1 - mean), out=count / clusters, where=varied)
    least = np.divide(independent, mean * (1 - mean), out=np.ones(len(stages)), where=varied)
    df = np.where(varied, df, np.maximum(clusters - 1, 1))
    quantile = 1 - LEVEL / 2
    effect = np.maximum(ratio * (stdtrit(df, quantile) / ndtri(quantile)) ** 2, least)
    last = np.searchsorted(stages, np.arange(len(values)), side="right") - 1
    return effect[last], clusters[last]


def _stages(votes: int) -> np.ndarray:
    """Return after which votes, from 0, the design effect is estimated: in the end after each 2 %.

    Every vote would take time in the square of their number.
    """
    growth = max(np.log(votes / EVERY_VOTE), 0.0)
    later = np.geomspace(EVERY_VOTE, max(votes, EVERY_VOTE), 1 + int(50 * growth))
    later = np.append(later.astype(int), votes)
    return np.union1d(np.arange(min(votes, EVERY_VOTE)), later[later <= votes] - 1)


def _variances(
    values: np.ndarray, cluster: np.ndarray, stages: np.ndarray
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Return `cluster_variance` at each stage, and the number of clusters seen."""
    seen_by = np.maximum.accumulate(cluster) + 1  # clusters are numbered in order of appearance
    size, total = np.zeros(0), np.zeros(0)
    squares = np.cumsum(values**2)
    variances, freedoms, seen = [], [], []
    begins = np.concatenate([[0], stages[:-1] + 1])
    for chunk in range(0, len(stages), CHUNK):
        part = slice(chunk, chunk + CHUNK)
        first, end = begins[part][0], stages[part][-1] + 1
        number = int(seen_by[end - 1])
        shape = (len(stages[part]), number)
        new = number - len(size)
        row = np.searchsorted(stages[part], np.arange(first, end))
        cell = row * number + cluster[first:end]
        sizes, sums = (
            np.pad(start, (0, new))
            + np.cumsum(np.bincount(cell, weight, np.prod(shape)).reshape(shape), axis=0)
            for start, weight in ((size, None), (total, values[first:end]))
        )
        size, total = sizes[-1], sums[-1]
        variance, df = cluster_variance(sizes, sums, squares[stages[part]])
        variances.append(variance)
        freedoms.append(df)
        seen.append(np.count_nonzero(sizes, axis=1))
    return (np.concatenate(variances), np.concatenate(freedoms)), np.concatenate(seen)


def _variance_of_cells(values: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """Return the variance of the mean over many small clusters, after every vote.

    With w_g the sum of the v_g values of cluster g so far,

        sum_g (w_g - v_g m)^2 = sum_g w_g^2 - 2 m sum_g w_g v_g + m^2 sum_g v_g^2.

    A vote changes each of the three sums by a term of its own cluster, so that cumulative sums of
    these terms give all stages in linear time. Small clusters need no jackknife.
    """
    count = np.arange(1, len(values) + 1)
    mean = np.cumsum(values) / count
    grouped = pd.Series(values).groupby(cluster)
    votes_before = grouped.cumcount().to_numpy()
    sums_before = grouped.cumsum().to_numpy() - values
    sums_squared = np.cumsum(2 * sums_before * values + values**2)
    sums_votes = np.cumsum(sums_before + values * votes_before + values)
    votes_squared = np.cumsum(2 * votes_before + 1)
    squares = sums_squared - 2 * mean * sums_votes + mean**2 * votes_squared
    seen = np.cumsum(votes_before == 0)
    correction = np.divide(seen, seen - 1, out=np.ones(len(values)), where=seen > 1)
    return np.maximum(squares, 0.0) * correction / count**2


def trace_e_values(votes: pd.DataFrame, definition: StudyDefinition) -> Paths:
    """Return the path of e-values of every comparison and question that has votes.

    There is none where the votes lack what it needs, such as their order in time.
    """
    if find_unknown(votes, NEEDS):
        return {}
    return {
        (comparison.key, question.key): e_value_path(cell)
        for comparison, question, cell in split_cells(
            votes[["comparison", "question", *USED]], definition
        )
    }


def tabulate_decisions(
    votes: pd.DataFrame, definition: StudyDefinition, *, paths: Paths | None = None
) -> pd.DataFrame:
    """Tabulate the e-value of every comparison and question, and which comparisons are decided.

    A comparison is `decided` once the e-value of its primary question has reached `threshold`, the
    number of comparisons / 0.05 (Bonferroni), and stays so. Other questions are never decided.

    Args:
        paths: of `trace_e_values`, if computed already.

    Returns:
        Columns comparison, question, e, e_independent, design_effect, threshold, decided,
        decided_after (number of decisive votes; 0 if undecided).
    """
    paths = trace_e_values(votes, definition) if paths is None else paths
    threshold = len(definition.comparisons) / LEVEL
    rows = []
    for (comparison, key), path in paths.items():
        question = definition.question(key)
        crossed = np.flatnonzero(path["e"] >= threshold) if question.primary else np.array([])
        last = path.iloc[-1] if len(path) else {"e": 1.0, "e_independent": 1.0}
        rows.append(
            {
                "comparison": comparison,
                "question": question.key,
                "e": last["e"],
                "e_independent": last["e_independent"],
                "design_effect": last.get("design_effect", 1.0),
                "threshold": threshold if question.primary else np.nan,
                "decided": len(crossed) > 0,
                "decided_after": int(crossed[0]) + 1 if len(crossed) else 0,
            }
        )
    return pd.DataFrame(rows)
