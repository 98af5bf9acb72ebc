"""Screening of raters: attention checks, haste and one-sidedness. It only proposes exclusions.

The thresholds of its rules are fixed before the data, in the definition or here. Applying a rule
is an event with rule, evidence and author, and can be revoked (`human_eval.storage.events`).
"""

from typing import Any

import pandas as pd
from scipy.stats import beta, binomtest

from human_eval.definition.definition import StudyDefinition

CERTAINTY = 0.95  # posterior probability of too low an accuracy that a proposal needs
ONE_SIDED_P = 0.001  # p-value below which answers are one-sided, such as 18 of 20
MIN_PAIRS = 8  # answered, before a rater can be called too fast
FAST_SHARE = 0.5  # of pairs answered too fast


def screen(votes: pd.DataFrame, definition: StudyDefinition) -> pd.DataFrame:
    """Return the raters whom a rule proposes to exclude.

    Returns:
        Columns rater, rule, evidence (a dict of counts), sorted by rater.
    """
    primary = votes[votes["question"] == definition.primary.key]
    found: list[dict[str, Any]] = []
    for rater, own in primary.groupby("rater", observed=True):
        everything = votes[votes["rater"] == rater]
        for rule, evidence in (
            ("gold", fails_gold(own, definition)),
            ("too_fast", answers_too_fast(everything, definition)),
            ("one_sided", is_one_sided(own)),
        ):
            if evidence:
                found.append({"rater": rater, "rule": rule, "evidence": evidence})
    return pd.DataFrame(found, columns=["rater", "rule", "evidence"])


def fails_gold(votes: pd.DataFrame, definition: StudyDefinition) -> dict[str, Any] | None:
    """Return the counts if a rater's accuracy on gold pairs is below the required one, else None.

    With a uniform prior the posterior of the accuracy is Beta(1 + right, 1 + wrong); the rule
    applies if it puts at least 95 % below the wanted accuracy. With few gold pairs, no rater is
    proposed.

    Args:
        votes: of one rater, on the primary question.
    """
    gold = votes[votes["kind"] == "gold"]
    right = int((gold["choice"].astype(str) == gold["gold_answer"].astype(str)).sum())
    wrong = len(gold) - right
    wanted = definition.checks.min_gold_accuracy
    below = float(beta.cdf(wanted, 1 + right, 1 + wrong))
    if len(gold) == 0 or below < CERTAINTY:
        return None
    return {"right": right, "wrong": wrong, "wanted": wanted, "certainty": round(below, 4)}


def answers_too_fast(votes: pd.DataFrame, definition: StudyDefinition) -> dict[str, Any] | None:
    """Return the counts if a rater answered half of the pairs or more too fast, else None.

    Args:
        votes: of one rater, on all questions.
    """
    slowest = votes.groupby("task_id")["seconds"].max()
    fast = int((slowest < definition.checks.too_fast_seconds).sum())
    if len(slowest) < MIN_PAIRS or fast < FAST_SHARE * len(slowest):
        return None
    return {"fast": fast, "pairs": len(slowest), "seconds": definition.checks.too_fast_seconds}


def is_one_sided(votes: pd.DataFrame) -> dict[str, Any] | None:
    """Return the counts if a rater prefers one side more than randomised sides explain, else None.

    The exact two-sided sign test, p < 0.001.

    Args:
        votes: of one rater, on the primary question.
    """
    decided = votes[votes["choice"].isin(["a", "b"])]
    left = int(((decided["choice"] == "a") == (decided["side_a"] == "left")).sum())
    if len(decided) == 0:
        return None
    p = float(binomtest(left, len(decided)).pvalue)
    if p >= ONE_SIDED_P:
        return None
    return {"left": left, "right": len(decided) - left, "p": float(f"{p:.2g}")}


def consistency(votes: pd.DataFrame) -> pd.DataFrame:
    """Tabulate how often raters agree with themselves when asked twice.

    Returns:
        Columns `check`: "mirror" (the pair again with its sides swapped) or "duplicate" (another
        pair of the same comparison whose prompt has the same text); question; pairs; `same`,
        equal answers; `same_side`, answers that kept the side instead of the system.
    """
    keys = ["rater", "comparison", "question"]
    real = votes[votes["kind"] == "real"]
    mirror = votes[votes["kind"] == "mirror"]
    columns = [*keys, "prompt", "prompt_index", "choice", "side_a"]
    mirrored = real[columns].merge(mirror[columns], on=[*keys, "prompt", "prompt_index"])
    texts = real.drop_duplicates(["prompt", "prompt_index"])["prompt"].value_counts()
    repeated = real.loc[real["prompt"].isin(texts.index[texts > 1]), columns]
    twice = repeated.merge(repeated, on=[*keys, "prompt"])
    twice = twice[twice["prompt_index_x"] < twice["prompt_index_y"]]
    rows = []
    for check, pairs in (("mirror", mirrored), ("duplicate", twice)):
        for question, asked in pairs.groupby("question", observed=True):
            same = asked["choice_x"].astype(str) == asked["choice_y"].astype(str)
            moved = asked["side_a_x"].astype(str) != asked["side_a_y"].astype(str)
            decided = asked["choice_x"].isin(["a", "b"]) & asked["choice_y"].isin(["a", "b"])
            rows.append(
                {
                    "check": check,
                    "question": question,
                    "pairs": len(asked),
                    "same": int(same.sum()),
                    "same_side": int((~same & moved & decided).sum()),
                }
            )
    return pd.DataFrame(rows, columns=["check", "question", "pairs", "same", "same_side"])
