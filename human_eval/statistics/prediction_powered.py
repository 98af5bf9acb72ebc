"""Prediction-powered win rates: a judge scores every pair, people vote on a random part of them."""

import numpy as np
import pandas as pd
from scipy.special import stdtr, stdtrit

from human_eval.definition.definition import StudyDefinition
from human_eval.statistics.clusters import sum_by_cluster
from human_eval.statistics.e_values import LEVEL, NEEDS, anytime_interval, design_effects, e_value
from human_eval.statistics.intervals import crossed_variance
from human_eval.statistics.votes import find_unknown, split_primary
from human_eval.statistics.win_rates import half_wins

FOLDS = 5  # of prompts: the weight of the judge's score in one is fitted in the others
MIN_CLUSTERS = 10  # prompts and raters; with fewer, human votes alone are reported
COLUMNS = ["comparison", "votes", "judged", "weight", "rate", "low", "high", "p"]
COLUMNS += ["people", "saved", "e", "anytime_low", "anytime_high", "decided", "note"]


def prediction_powered_rates(
    votes: pd.DataFrame, scores: pd.DataFrame, definition: StudyDefinition
) -> pd.DataFrame:
    """Tabulate, on the primary question, win rates that combine human votes and a judge.

    With votes y (1 where system_a won, a half for a tie), scores f of their pairs, and the mean F
    of the N pairs without a vote, the estimate is the mean over the n votes of y - w (f - F). It is
    right for every weight w, however wrong the judge is, if chance chose which pairs people see.
    The w with the least variance is Cov(y, f) / (Var(f) of the votes + Var(f) of the others), all
    of means, by prompt; it is cut to [0, 1], and fitted on the other prompts (cross-fitting).
    The variance is that of y - w f, clustered by prompt and rater, and of w F.

    Args:
        votes: those that count.
        scores: columns comparison, prompt_index, score; the judge's probability that system_a wins.

    Returns:
        Columns comparison, votes; judged, the number of pairs without a vote; weight, the mean w;
        rate with its 95 % interval (low, high); p, of a rate of one half; people, the mean of the
        votes alone; saved, the share of votes that the judge saves at equal variance; note.
        These are for one look. Of `effective_votes`, for a look after every vote: e, the e-value
        of a rate of one half; its 95 % interval (anytime_low, anytime_high); decided, whether e
        has ever reached the number of comparisons / 0.05. They need the times of votes.

    Source: Angelopoulos, Bates, Fannjiang, Jordan and Zrnic (2023), Science 382, 669-674; the
    weight: Angelopoulos, Duchi and Zrnic (2023), arXiv:2311.01453; cross-fitting: Zrnic and
    Candes (2024), PNAS 121(15).
    """
    rows = []
    for comparison, cell in split_primary(votes, definition):
        score = scores[scores["comparison"] == comparison.key].set_index("prompt_index")["score"]
        given = score.reindex(cell["prompt_index"])
        if given.isna().any():
            raise ValueError(
                f"{comparison.key}, prompt {given.index[given.isna()][0]} has votes and no score. "
                "Score every pair of the study."
            )
        others = score[~score.index.isin(cell["prompt_index"])].to_numpy(float)
        row = {"comparison": comparison.key, "votes": len(cell), "judged": len(others)}
        row |= _combine(cell, given.to_numpy(float), others)
        if not row["note"] and not find_unknown(cell, NEEDS):
            wins, losses = effective_votes(cell, score)
            e = e_value(wins, losses)
            ends = anytime_interval(wins[-1], losses[-1])
            row |= {"e": e[-1], "anytime_low": ends.low, "anytime_high": ends.high}
            row["decided"] = bool((e >= len(definition.comparisons) / LEVEL).any())
        rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)


def _combine(cell: pd.DataFrame, given: np.ndarray, others: np.ndarray) -> dict[str, object]:
    answers = half_wins(cell)
    kinds = [cell["prompt"], cell["rater"]]
    fewest = min(kind.nunique() for kind in kinds)
    if fewest < MIN_CLUSTERS or len(others) < MIN_CLUSTERS:
        what = "pairs without a vote" if fewest >= MIN_CLUSTERS else "prompts or raters"
        return {"people": answers.mean(), "note": f"fewer than {MIN_CLUSTERS} {what}"}
    spread = others.var(ddof=1) / len(others)
    weights = _fit_weights(answers, given, cell["prompt"], spread)
    adjusted = answers - weights * (given - others.mean())
    rate, weight = float(adjusted.mean()), float(weights.mean())
    variance, df = crossed_variance(adjusted, kinds)
    of_judge = weight**2 * spread
    total = float(variance + of_judge)
    people, _ = crossed_variance(answers, kinds)
    row: dict[str, object] = {"weight": weight, "rate": rate, "people": answers.mean()}
    if not total:
        return {**row, "note": "no variation"}
    df = total**2 / (variance**2 / df + of_judge**2 / (len(others) - 1))
    half = float(stdtrit(df, 0.975)) * np.sqrt(total)
    p = 2 * float(stdtr(df, -abs(rate - 0.5) / np.sqrt(total)))
    bounds = {"low": max(rate - half, 0.0), "high": min(rate + half, 1.0), "p": p}
    return {**row, **bounds, "saved": 1 - total / people if people else 0.0, "note": ""}


def _fit_weights(
    answers: np.ndarray, given: np.ndarray, prompts: pd.Series, spread: float
) -> np.ndarray:
    """Return the weight of the score in each vote, fitted on the prompts of the other folds."""
    prompt = pd.factorize(prompts)[0]
    fold = prompt % FOLDS
    weights = np.zeros(len(answers))
    for number in range(FOLDS):
        used = fold != number
        centred = np.stack([answers[used], given[used]])
        centred = centred - centred.mean(axis=1, keepdims=True)
        _, sums = sum_by_cluster(centred, prompt[used])
        # Means of this part of the votes vary more than those of all votes.
        both, own = sums @ sums[1] / (used.sum() * len(answers))
        if own + spread > 0:
            weights[fold == number] = np.clip(both / (own + spread), 0.0, 1.0)
    return weights


def effective_votes(votes: pd.DataFrame, scores: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Return, after every vote, the wins and losses of independent votes that weigh as much.

    With F the mean score of all N pairs, vote t has the value

        z_t = y_t - w_t (f_t - F),

    where the weight w_t comes from earlier votes on other prompts. If each vote's pair were drawn
    anew, the mean of w_t (f_t - F) given all votes before would be 0, with any judge whose scores
    were not fitted on these votes. A study draws pairs without replacement and asks several raters
    about each; that dependence is left to the clustered variance.

    The wins and losses are those of the mean of z, with the design effect of
    `human_eval.statistics.e_values.design_effects`; F has the variance Var(f) / N, which all
    values share. There are none before MIN_CLUSTERS raters and prompts. E-values and intervals of
    them are valid at any time as the numbers of prompts and raters grow.

    Args:
        votes: of one comparison and question, with their times.
        scores: of every pair, by prompt_index.

    Source: Kilian, Cortinovis and Caron (2025), arXiv:2505.18000; validity with estimated
    variances: Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas (2024), Ann. Statist. 52(6),
    2613-2640.
    """
    votes = votes.sort_values(["answered_at", "vote_id"])
    answers = half_wins(votes)
    given = scores.reindex(votes["prompt_index"]).to_numpy(float)
    weights = _earlier_weights(answers, given, votes["prompt"])
    values = answers - weights * (given - scores.mean())
    count = np.arange(1, len(votes) + 1)
    shared = (np.cumsum(weights) / count) ** 2 * scores.var() / len(scores)
    effect, clusters = design_effects(values, votes["prompt"], votes["rater"], shared=shared)
    mean = np.clip(np.cumsum(values) / count, 0.0, 1.0)
    effective = np.where(clusters >= MIN_CLUSTERS, count / effect, 0.0)
    return mean * effective, (1 - mean) * effective


def _earlier_weights(answers: np.ndarray, given: np.ndarray, prompts: pd.Series) -> np.ndarray:
    """Return the weight of the score in each vote, fitted on earlier votes on other prompts.

    It is the slope b of the regression of answers on scores, times 1 - s^2 / b^2, where s is its
    standard error for a useless judge, who so costs little. It is cut to [0, 1].
    """
    prompt = pd.factorize(prompts)[0]
    others = np.maximum.accumulate(prompt)  # number of other prompts with an earlier vote

    def earlier(values: np.ndarray) -> np.ndarray:
        return np.cumsum(values) - pd.Series(values).groupby(prompt).cumsum().to_numpy()

    with np.errstate(divide="ignore", invalid="ignore"):  # before there are enough
        count = earlier(np.ones(len(answers)))
        answer, score = earlier(answers) / count, earlier(given) / count
        of_answers = earlier(answers**2) / count - answer**2
        of_scores = earlier(given**2) / count - score**2
        slope = (earlier(answers * given) / count - answer * score) / of_scores
        weights = slope - of_answers / of_scores / others / slope
    useful = (others >= MIN_CLUSTERS) & (slope > 0)
    return np.where(useful, np.clip(weights, 0.0, 1.0), 0.0)
