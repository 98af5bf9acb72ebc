"""How far raters agree with each other.

Preferences are opinions: an alpha of about 0.3, well below that of factual labels, is usual and no
reason to reject a study.
"""

import krippendorff
import numpy as np
import pandas as pd
from statsmodels.stats.inter_rater import fleiss_kappa

from human_eval.definition.definition import StudyDefinition
from human_eval.statistics.votes import split_primary

RESAMPLES = 200
LOPSIDED = 0.8  # share of one answer from which alpha needs an explanation
NO_VARIATION = "undefined: every answer is the same, so that chance would agree as well"
NO_OVERLAP = "undefined: no pair was answered by two raters"


def tabulate_agreement(votes: pd.DataFrame, definition: StudyDefinition) -> pd.DataFrame:
    """Tabulate the agreement of raters, by comparison and question.

    Returns:
        Columns comparison, question, `pairs` (with two answers or more), `answers`; `raw`, the
        share of pairs of answers to the same pair that are equal; `alpha`, Krippendorff's for
        nominal answers, with its 95 % bootstrap interval over pairs; `kappa`, Fleiss', where
        every pair has equally many answers; `ac1`, Gwet's, which does not fall to 0 where nearly
        all answers are the same; `note`, the reason why a number is missing or alpha is low.
    """
    rng = np.random.default_rng(0)
    rows = []
    for (comparison, question), cell in votes.groupby(["comparison", "question"], observed=True):
        counts = answer_counts(cell)
        shared = counts[counts.sum(axis=1) > 1]
        alpha, note = krippendorff_alpha(shared)
        low, high = alpha_interval(shared, rng) if not note else (np.nan, np.nan)
        kappa, kappa_note = fleiss(counts)
        offered = len(definition.question(str(question)).choices)
        largest = counts.sum(axis=0).max() / counts.sum()
        if not note and largest > LOPSIDED:
            note = (
                f"{100 * largest:.0f} % of the answers are the same, so that alpha is near 0 even "
                "where raters agree: read raw and ac1"
            )
        rows.append(
            {
                "comparison": comparison,
                "question": question,
                "pairs": len(shared),
                "answers": int(shared.sum()),
                "raw": raw_agreement(shared),
                "alpha": alpha,
                "alpha_low": low,
                "alpha_high": high,
                "kappa": kappa,
                "ac1": gwet_ac1(counts, offered),
                "note": note or kappa_note,
            }
        )
    return pd.DataFrame(rows)


def tabulate_majorities(votes: pd.DataFrame, definition: StudyDefinition) -> pd.DataFrame:
    """Tabulate, on the primary question, how many pairs the majority gave to each system.

    Returns:
        Columns comparison, pairs, majority_a, majority_b, and `majority_none`: pairs whose most
        frequent answer is a tie, or is not unique.
    """
    rows = []
    for comparison, cell in split_primary(votes, definition):
        counts = answer_counts(cell)
        answers = np.array(sorted(cell["choice"].unique()))
        unique = (counts == counts.max(axis=1, keepdims=True)).sum(axis=1) == 1
        majority = answers[counts.argmax(axis=1)][unique]
        a, b = int((majority == "a").sum()), int((majority == "b").sum())
        rows.append((comparison.key, len(counts), a, b, len(counts) - a - b))
    columns = ["comparison", "pairs", "majority_a", "majority_b", "majority_none"]
    return pd.DataFrame(rows, columns=columns)


def answer_counts(votes: pd.DataFrame) -> np.ndarray:
    """Return how often each pair got each answer, int, shape (pairs, answers)."""
    pair, pairs = pd.factorize(votes["prompt_index"], sort=True)
    answer, answers = pd.factorize(votes["choice"], sort=True)
    shape = (len(pairs), len(answers))
    counted = np.bincount(pair * shape[1] + answer, minlength=shape[0] * shape[1])
    return np.asarray(counted.reshape(shape))


def raw_agreement(counts: np.ndarray) -> float:
    """Return the share of pairs of answers to the same pair that are equal; NaN without any.

    With n_ik answers k to pair i, and n_i in all: sum n_ik (n_ik - 1) / sum n_i (n_i - 1).
    """
    total = counts.sum(axis=1)
    pairs = (total * (total - 1)).sum()
    return float((counts * (counts - 1)).sum() / pairs) if pairs else float("nan")


def gwet_ac1(counts: np.ndarray, answers: int) -> float:
    """Return Gwet's AC1, or NaN if no pair has two answers.

    With n_ik answers k to pair i, n_i in all, q possible answers, and p_k the mean over pairs of
    n_ik / n_i,

        AC1 = (p_a - p_e) / (1 - p_e),    p_e = sum_k p_k (1 - p_k) / (q - 1),

    where p_a is the mean, over pairs with two answers or more, of the share of pairs of answers
    that are equal.

    Args:
        answers: q, the number of answers that the question offers.

    Source: Gwet (2008), Brit. J. Math. Statist. Psychol. 61, 29-48, equations 7 and 8.
    """
    total = counts.sum(axis=1)
    shared = total > 1
    if not shared.any():
        return float("nan")
    n = total[shared]
    agreement = ((counts[shared] * (counts[shared] - 1)).sum(axis=1) / (n * (n - 1))).mean()
    shares = (counts[total > 0] / total[total > 0, None]).mean(axis=0)
    chance = (shares * (1 - shares)).sum() / (answers - 1)
    return float((agreement - chance) / (1 - chance))


def krippendorff_alpha(counts: np.ndarray) -> tuple[float, str]:
    """Return alpha for nominal answers, or NaN and the reason why it is undefined.

    Source: Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability".
    """
    if not (counts.sum(axis=1) > 1).any():
        return float("nan"), NO_OVERLAP
    if (counts.sum(axis=0) > 0).sum() < 2:
        return float("nan"), NO_VARIATION
    return float(krippendorff.alpha(value_counts=counts, level_of_measurement="nominal")), ""


def alpha_interval(counts: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Return the 95 % percentile interval of alpha, resampling pairs; NaN for a single pair."""
    if len(counts) < 2:
        return float("nan"), float("nan")
    # A million pairs have few different rows of counts: draw how often each kind occurs.
    kinds, times = np.unique(counts, axis=0, return_counts=True)
    drawn = rng.multinomial(len(counts), times / len(counts), size=RESAMPLES)
    draws = weighted_alphas(kinds, drawn)
    low, high = np.nanquantile(draws, [0.025, 0.975])  # NaN: a resample without variation
    return float(low), float(high)


def weighted_alphas(counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the nominal alpha of each resample of the rows of `counts`.

    With n_ik answers k to pair i, n_i = sum_k n_ik and N = sum_i n_i,

        alpha = 1 - (N - 1) * sum_i (n_i^2 - sum_k n_ik^2) / (n_i - 1)
                    / (N^2 - sum_k (sum_i n_ik)^2).

    Args:
        counts: shape (rows, answers), from `answer_counts`; each row with two answers or more.
        weights: how often each row occurs, shape (resamples, rows).

    Source: Krippendorff (2011), section D, with sums of coincidences instead of their table.
    """
    total = counts.sum(axis=1)
    differing = (total**2 - (counts**2).sum(axis=1)) / (total - 1)
    answers = (weights @ counts).astype(float)
    every = answers.sum(axis=1)
    by_chance = every**2 - (answers**2).sum(axis=1)
    with np.errstate(invalid="ignore"):  # 0 / 0 where all answers are the same
        return np.asarray(1 - (every - 1) * (weights @ differing) / by_chance)


def fleiss(counts: np.ndarray) -> tuple[float, str]:
    """Return Fleiss' kappa and an empty note, or NaN and the reason why it is undefined.

    Source: Fleiss (1971), Psychological Bulletin 76(5), 378-382.
    """
    total = counts.sum(axis=1)
    if len(np.unique(total)) > 1 or total.max(initial=0) < 2:
        return float("nan"), "kappa undefined: the number of answers differs between pairs"
    if (counts.sum(axis=0) > 0).sum() < 2:
        return float("nan"), NO_VARIATION
    return float(fleiss_kappa(counts, method="fleiss")), ""
