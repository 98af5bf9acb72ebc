"""Evidence that may be looked at after every vote: e-values, and the marks "decided".

An e-value is a bet against "either side wins equally often". However often one looks, and whenever
one stops, under that hypothesis it reaches 1/level with at most the probability level.
"""

import numpy as np
import pandas as pd
from scipy.special import betaln
from scipy.stats import norm, t

from human_eval.definition.definition import StudyDefinition
from human_eval.statistics.votes import split_cells

LEVEL = 0.05  # of wrong decisions in the whole family
PRIOR = 10.0  # of the bet, Beta(10, 10): most at stake on win rates of about 40 % and 60 %
MAX_LOG = 700.0  # natural, of an e-value
MIN_CLUSTERS = 5  # raters and prompts before the first bet

Paths = dict[tuple[str, str], pd.DataFrame]  # by comparison and question


def e_value(
    wins: float | np.ndarray, losses: float | np.ndarray, *, prior: float = PRIOR
) -> np.ndarray:
    """Return the evidence that one side wins more often, from independent decisive votes.

    Args:
        prior: a of the mixture Beta(a, a) of win rates that is bet on.

    Returns:
        In (0, 1e304]; more evidence than that is cut off, since no float can hold it.

    Source: Robbins (1970), Ann. Math. Statist. 41(5), 1397-1409; Ville (1939).
    """
    bet = betaln(prior + wins, prior + losses) - betaln(prior, prior)
    return np.asarray(np.exp(np.minimum(bet + (wins + losses) * np.log(2.0), MAX_LOG)))


def evidence_path(votes: pd.DataFrame, *, prior: float = PRIOR) -> pd.DataFrame:
    """Follow the evidence of one comparison and question from vote to vote, in time.

    Votes on one prompt, or of one rater, resemble each other, so that they weigh less than
    independent ones. `e` counts each as 1 / `design_effect`, estimated anew at every vote by the
    cluster-robust variance, widened as Student's t is for few clusters. While all votes agree there
    is no variance to estimate it by; then each rater, or each prompt if they are fewer, counts as
    one vote. `e_independent` counts every vote in full.

    Returns:
        One row for each decisive vote: wins, losses, design_effect, e, e_independent.
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
    """Return, after every vote, the design effect and the smaller number of clusters."""
    count = np.arange(1, len(won) + 1)
    mean = np.cumsum(won) / count
    prompt = pd.factorize(prompts)[0]
    rater = pd.factorize(raters)[0]
    both = pd.factorize(prompt * (rater.max(initial=0) + 1) + rater)[0]
    by_prompt, prompts_seen = _squares(won, prompt, mean)
    by_rater, raters_seen = _squares(won, rater, mean)
    by_both, _ = _squares(won, both, mean)
    one_way = np.maximum(by_prompt, by_rater)
    squares = np.maximum(by_prompt + by_rater - by_both, one_way)
    independent = count * mean * (1 - mean)
    clusters = np.minimum(prompts_seen, raters_seen)
    quantile = 1 - LEVEL / 2
    widening = (t.ppf(quantile, np.maximum(clusters - 1, 1)) / norm.ppf(quantile)) ** 2
    # Up to rounding: a mean of one has no variance.
    varied = (mean > 0) & (mean < 1)
    ratio = np.divide(squares, independent, out=count / clusters, where=varied)
    return np.maximum(ratio * widening, 1.0), clusters


def _squares(
    won: np.ndarray, cluster: np.ndarray, mean: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return, after every vote, the squared residual sums of all clusters, and their number.

    The sum over clusters of (wins - votes * mean)^2 is kept up to date term by term, so that all
    votes together take linear time.
    """
    grouped = pd.Series(won).groupby(cluster)
    votes_before = grouped.cumcount().to_numpy()
    wins_before = grouped.cumsum().to_numpy() - won
    wins_squared = np.cumsum(2 * wins_before * won + won)
    wins_votes = np.cumsum(wins_before + won * votes_before + won)
    votes_squared = np.cumsum(2 * votes_before + 1)
    squares = wins_squared - 2 * mean * wins_votes + mean**2 * votes_squared
    seen = np.cumsum(votes_before == 0)
    correction = np.divide(seen, seen - 1, out=np.ones(len(won)), where=seen > 1)
    return np.maximum(squares, 0.0) * correction, seen


def trace_evidence(votes: pd.DataFrame, definition: StudyDefinition) -> Paths:
    """Follow the evidence of every comparison and question that has votes."""
    return {
        (comparison.key, question.key): evidence_path(cell)
        for comparison, question, cell in split_cells(votes, definition)
    }


def decisions(
    votes: pd.DataFrame, definition: StudyDefinition, *, paths: Paths | None = None
) -> pd.DataFrame:
    """Tabulate the evidence of every comparison and question, and mark what is decided.

    The primary question of a comparison is `decided` once its e-value has reached the number of
    comparisons divided by the level, and stays so: more votes are not needed. The others are
    never marked.

    Args:
        paths: those of `trace_evidence`, where they are at hand.
    """
    paths = trace_evidence(votes, definition) if paths is None else paths
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
