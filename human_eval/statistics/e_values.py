"""E-values: evidence that may be looked at after every vote, and which comparisons are decided.

An e-value is the gain of a bet against the null hypothesis "either side wins equally often". Under
it, however often one looks and whenever one stops, the e-value ever reaches 1 / level with
probability at most `level` (Ville's inequality).
"""

import numpy as np
import pandas as pd
from scipy.special import betaln, ndtri, stdtrit

from human_eval.definition.definition import StudyDefinition
from human_eval.statistics.clusters import cluster_variance, combine_variances
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
    wins: float | np.ndarray, losses: float | np.ndarray, *, prior: float = PRIOR
) -> np.ndarray:
    """Return the e-value of independent decisive votes against a win rate of one half.

    It is the likelihood of a win rate p drawn from Beta(a, a), over that of p = 1/2:

        e = 2^(wins + losses) * B(a + wins, a + losses) / B(a, a).

    Args:
        wins, losses: numbers of votes; fractions where votes weigh less than one.
        prior: a.

    Returns:
        In (0, 1e304]; larger values are cut to this, since no float can hold them.

    Source: Robbins (1970), Ann. Math. Statist. 41(5), 1397-1409; Ville (1939).
    """
    bet = betaln(prior + wins, prior + losses) - betaln(prior, prior)
    return np.asarray(np.exp(np.minimum(bet + (wins + losses) * np.log(2.0), MAX_LOG)))


def e_value_path(votes: pd.DataFrame, *, prior: float = PRIOR) -> pd.DataFrame:
    """Return the e-value after each decisive vote of one comparison and question, in time.

    Votes on one prompt, or of one rater, resemble each other and so weigh less than independent
    ones: `e` counts each as 1 / `design_effect` votes, estimated anew after every vote, see
    `_design_effects`. `e_independent` counts every vote in full.

    Returns:
        One row for each decisive vote: answered_at, wins, losses, design_effect, e,
        e_independent. `e` is 1 while there are fewer than 5 raters or prompts.
    """
    decisive = votes[votes["choice"].isin(["a", "b"])]
    decisive = decisive.sort_values(["answered_at", "vote_id"])
    won = decisive["choice"].eq("a").to_numpy(float)
    wins = np.cumsum(won)
    losses = np.cumsum(1 - won)
    effect, clusters = _design_effects(won, decisive["prompt"], decisive["rater"])
    adjusted = np.where(
        clusters >= MIN_CLUSTERS, e_value(wins / effect, losses / effect, prior=prior), 1.0
    )
    return pd.DataFrame(
        {
            "answered_at": decisive["answered_at"].to_numpy(),
            "wins": wins,
            "losses": losses,
            "design_effect": effect,
            "e": adjusted,
            "e_independent": e_value(wins, losses, prior=prior),
        }
    )


def _design_effects(
    won: np.ndarray, prompts: pd.Series, raters: pd.Series
) -> tuple[np.ndarray, np.ndarray]:
    """Return, after every vote, the design effect and the smaller number of clusters.

    The design effect is how many votes weigh as much as one independent vote. After n votes with
    mean m it is the variance V of m over the variance m (1 - m) / n of independent votes, widened
    as Student's t is, and at least 1:

        deff = V / (m (1 - m) / n) * (t_{0.975, df} / z_{0.975})^2.

    V and df are those of `human_eval.statistics.clusters`. While all votes agree, m (1 - m) is 0;
    then V / (m (1 - m) / n) is n / G and df is G - 1: each rater, or each prompt if there are
    fewer, counts as one vote. Between the stages of `_stages` it is that of the stage before.

    Source: design effect: Kish (1965), "Survey Sampling".
    """
    if not len(won):
        return np.ones(0), np.zeros(0)
    stages = _stages(len(won))
    prompt, rater = (pd.factorize(kind)[0] for kind in (prompts, raters))
    by_prompt, prompts_seen = _variances(won, prompt, stages)
    by_rater, raters_seen = _variances(won, rater, stages)
    both = _variance_of_cells(won, prompt * (rater.max() + 1) + rater)[stages]
    clusters = np.minimum(prompts_seen, raters_seen)
    variance, df = combine_variances(by_prompt, by_rater, both, clusters)
    count = stages + 1
    mean = np.cumsum(won)[stages] / count
    varied = (mean > 0) & (mean < 1) & (clusters > 1)
    ratio = np.divide(variance * count, mean * (1 - mean), out=count / clusters, where=varied)
    df = np.where(varied, df, np.maximum(clusters - 1, 1))
    quantile = 1 - LEVEL / 2
    effect = np.maximum(ratio * (stdtrit(df, quantile) / ndtri(quantile)) ** 2, 1.0)
    last = np.searchsorted(stages, np.arange(len(won)), side="right") - 1
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
    won: np.ndarray, cluster: np.ndarray, stages: np.ndarray
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Return `cluster_variance` at each stage, and the number of clusters seen."""
    seen_by = np.maximum.accumulate(cluster) + 1  # clusters are numbered in order of appearance
    size, total = np.zeros(0), np.zeros(0)
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
            for start, weight in ((size, None), (total, won[first:end]))
        )
        size, total = sizes[-1], sums[-1]
        variance, df = cluster_variance(sizes, sums, sums.sum(axis=1))
        variances.append(variance)
        freedoms.append(df)
        seen.append(np.count_nonzero(sizes, axis=1))
    return (np.concatenate(variances), np.concatenate(freedoms)), np.concatenate(seen)


def _variance_of_cells(won: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """Return the variance of the mean over many small clusters, after every vote.

    With w_g wins among the v_g votes of cluster g so far,

        sum_g (w_g - v_g m)^2 = sum_g w_g^2 - 2 m sum_g w_g v_g + m^2 sum_g v_g^2.

    A vote changes each of the three sums by a term of its own cluster, so that cumulative sums of
    these terms give all stages in linear time. Small clusters need no jackknife.
    """
    count = np.arange(1, len(won) + 1)
    mean = np.cumsum(won) / count
    grouped = pd.Series(won).groupby(cluster)
    votes_before = grouped.cumcount().to_numpy()
    wins_before = grouped.cumsum().to_numpy() - won
    wins_squared = np.cumsum(2 * wins_before * won + won)
    wins_votes = np.cumsum(wins_before + won * votes_before + won)
    votes_squared = np.cumsum(2 * votes_before + 1)
    squares = wins_squared - 2 * mean * wins_votes + mean**2 * votes_squared
    seen = np.cumsum(votes_before == 0)
    correction = np.divide(seen, seen - 1, out=np.ones(len(won)), where=seen > 1)
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
