"""Contrasts: two comparisons with the same opponent, paired by prompt.

If four steps and eight steps both beat the teacher, which of them beats it more often? Clips of
both were compared with the same clips of the teacher, so prompts can be paired.
"""

from itertools import combinations

import numpy as np
import pandas as pd
from statsmodels.stats.contingency_tables import mcnemar

from human_eval.definition.definition import StudyDefinition
from human_eval.statistics.win_rates import holm

CAVEAT = "indirect: the two were not compared with each other"


def tabulate_contrasts(votes: pd.DataFrame, definition: StudyDefinition) -> pd.DataFrame:
    """Tabulate, on the primary question, every two comparisons with the same opponent.

    A prompt is won if more raters preferred the system than its opponent. Prompts with as many
    votes for either are left out. Prompts of the same text are one prompt, as in the intervals.

    Returns:
        Columns first, second (comparisons), opponent, prompts, both, only_first, only_second,
        neither (numbers of prompts won), p (McNemar, exact), note, p_family (Holm).
    """
    won = prompts_won(votes[votes["question"] == definition.primary.key])
    direct = {
        frozenset((entry.a, entry.b)): entry.key
        for entry in definition.comparisons
        if entry.key in won.columns
    }
    rows = []
    for first, second in combinations(definition.comparisons, 2):
        if first.b != second.b or not {first.key, second.key} <= set(won.columns):
            continue
        met = direct.get(frozenset((first.a, second.a)))
        paired = won[[first.key, second.key]].dropna()
        table = pd.crosstab(paired[first.key], paired[second.key])
        table = table.reindex(index=[1.0, 0.0], columns=[1.0, 0.0], fill_value=0).to_numpy()
        rows.append(
            {
                "first": first.key,
                "second": second.key,
                "opponent": first.b,
                "prompts": len(paired),
                "both": table[0, 0],
                "only_first": table[0, 1],
                "only_second": table[1, 0],
                "neither": table[1, 1],
                "p": paired_p(table),
                "note": f"{met} compares the two directly" if met else CAVEAT,
            }
        )
    contrasts = pd.DataFrame(rows)
    if rows:
        contrasts["p_family"] = holm(contrasts["p"].to_numpy())
    return contrasts


def prompts_won(votes: pd.DataFrame) -> pd.DataFrame:
    """Return 1 (won), 0 (lost) or NaN (split), by prompt text (rows) and comparison (columns)."""
    lead = votes["choice"].eq("a").astype(int) - votes["choice"].eq("b").astype(int)
    sums = lead.groupby([votes["prompt"], votes["comparison"]], observed=True).sum()
    return np.sign(sums).map({1: 1.0, -1: 0.0}).unstack()


def paired_p(table: np.ndarray) -> float:
    """Return the exact p-value of McNemar's test on a 2 x 2 table of paired outcomes.

    Prompts are taken as independent. Of the n prompts that only one system won, either wins
    Binomial(n, 1/2) under the null hypothesis.

    Source: McNemar (1947), Psychometrika 12(2), 153-157.
    """
    return float(mcnemar(table, exact=True).pvalue)
