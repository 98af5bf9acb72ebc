"""What answers tell about raters: gold, mirrors, haste, one-sidedness. Proposals, never deeds.

Rules are fixed before the data: their thresholds stand in the definition or here. Applying one is
an event with rule, evidence and author, which can be revoked (`human_eval.storage.events`).
"""

from typing import Any

import pandas as pd
from scipy.stats import beta, binomtest

from human_eval.definition.definition import StudyDefinition

CERTAINTY = 0.95  # of being below the accuracy wanted, before a rater is proposed
ONE_SIDED_P = 0.001  # e.g. 18 of 20 answers on one side
MIN_TURNS = 8  # before haste is a habit
FAST_SHARE = 0.5


def screen(votes: pd.DataFrame, definition: StudyDefinition) -> pd.DataFrame:
    """Return the raters that a rule speaks against.

    Returns:
        Columns rater, rule, evidence (a dict of counts), sorted by rater.
    """
    primary = next(question.key for question in definition.questions if question.primary)
    turns = votes[votes["question"] == primary]
    found: list[dict[str, Any]] = []
    for rater, mine in turns.groupby("rater", observed=True):
        everything = votes[votes["rater"] == rater]
        for rule, evidence in (
            ("gold", fails_gold(mine, definition)),
            ("too_fast", answers_too_fast(everything, definition)),
            ("one_sided", is_one_sided(mine)),
        ):
            if evidence:
                found.append({"rater": rater, "rule": rule, "evidence": evidence})
    return pd.DataFrame(found, columns=["rater", "rule", "evidence"])


def fails_gold(turns: pd.DataFrame, definition: StudyDefinition) -> dict[str, Any] | None:
    """Say whether a rater's accuracy on gold is surely below the one wanted.

    A posterior, not a cliff: with a uniform prior, 9 of 10 is no proof of 0.9.
    """
    gold = turns[turns["kind"] == "gold"]
    right = int((gold["choice"].astype(str) == gold["gold_answer"].astype(str)).sum())
    wrong = len(gold) - right
    wanted = definition.checks.min_gold_accuracy
    below = float(beta.cdf(wanted, 1 + right, 1 + wrong))
    if len(gold) == 0 or below < CERTAINTY:
        return None
    return {"right": right, "wrong": wrong, "wanted": wanted, "certainty": round(below, 4)}


def answers_too_fast(votes: pd.DataFrame, definition: StudyDefinition) -> dict[str, Any] | None:
    """Say whether most of a rater's pairs were answered sooner than anybody can look."""
    slowest = votes.groupby("task_id")["seconds"].max()
    fast = int((slowest < definition.checks.too_fast_seconds).sum())
    if len(slowest) < MIN_TURNS or fast < FAST_SHARE * len(slowest):
        return None
    return {"fast": fast, "pairs": len(slowest), "seconds": definition.checks.too_fast_seconds}


def is_one_sided(turns: pd.DataFrame) -> dict[str, Any] | None:
    """Say whether a rater keeps to one side more than chance and block-random sides allow."""
    decided = turns[turns["choice"].isin(["a", "b"])]
    left = int(((decided["choice"] == "a") == (decided["side_a"] == "left")).sum())
    if len(decided) == 0:
        return None
    p = float(binomtest(left, len(decided)).pvalue)
    if p >= ONE_SIDED_P:
        return None
    return {"left": left, "right": len(decided) - left, "p": float(f"{p:.2g}")}


def consistency(votes: pd.DataFrame) -> pd.DataFrame:
    """Return how often raters agree with themselves, by how they were asked again.

    A mirror shows an earlier pair with its sides swapped; a duplicate is another pair of the same
    comparison whose prompt has the same text.

    Returns:
        Columns check (mirror or duplicate), question, pairs, same, same_side: equal answers, and
        answers that kept to the side instead.
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
