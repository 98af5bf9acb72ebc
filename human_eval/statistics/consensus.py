"""What raters say of each pair together: the majority, and Dawid and Skene's weighted vote.

Only a second look: the claims of a study rest on all votes (`human_eval.statistics.win_rates`).
"""

import warnings

import numpy as np
import pandas as pd

from human_eval.definition.definition import StudyDefinition

ITERATIONS = 100
MAX_ANSWERS = 100_000  # that the weighted vote is fitted to; the library takes minutes beyond
TOO_MANY = f"weighted votes are left out above {MAX_ANSWERS:,} answers"


def tabulate_consensus(votes: pd.DataFrame, definition: StudyDefinition) -> pd.DataFrame:
    """Tabulate, on the primary question, how many pairs each system of a comparison won.

    Returns:
        Columns comparison, pairs; `majority_a`, `majority_b` and `majority_none` (split, or most
        said neither); the same by the weighted vote, missing where `note` says why; `differ`, the
        pairs that both decide, and differently.
    """
    [primary] = [question.key for question in definition.questions if question.primary]
    asked = votes[votes["question"] == primary]
    weigh = len(asked) <= MAX_ANSWERS
    pairs = consensus(asked, weigh=weigh)
    rows = []
    for comparison in definition.comparisons:
        here = pairs[pairs["comparison"] == comparison.key]
        if here.empty:
            continue
        row = {"comparison": comparison.key, "pairs": len(here)}
        for name in ("majority", "weighted") if weigh else ("majority",):
            for side in ("a", "b"):
                row[f"{name}_{side}"] = int(here[name].eq(side).sum())
            row[f"{name}_none"] = int((~here[name].isin(["a", "b"])).sum())
        if weigh:
            both = here["majority"].isin(["a", "b"]) & here["weighted"].isin(["a", "b"])
            row["differ"] = int((both & here["majority"].ne(here["weighted"])).sum())
        rows.append(row)
    counts = [f"{name}_{what}" for name in ("majority", "weighted") for what in ("a", "b", "none")]
    table = pd.DataFrame(rows, columns=["comparison", "pairs", *counts, "differ"])
    return table.assign(note="" if weigh else TOO_MANY)


def consensus(votes: pd.DataFrame, *, weigh: bool = True) -> pd.DataFrame:
    """Return, for each pair and question, what raters say together.

    Returns:
        Columns comparison, prompt_index, question, votes; `majority`, the most frequent answer,
        or "" where several are; `weighted`, that of Dawid and Skene's model, which learns from
        disagreement whom to trust, unless `weigh` is not set.

    Source: Dawid and Skene (1979), Applied Statistics 28(1), 20-28.
    """
    words = ["comparison", "question", "choice", "rater"]
    votes = votes.assign(**{name: votes[name].astype(str) for name in words})
    keys = ["comparison", "prompt_index", "question"]
    counts = votes.groupby([*keys, "choice"]).size().unstack(fill_value=0)
    top = counts.max(axis=1)
    unique = counts.eq(top, axis=0).sum(axis=1) == 1
    table = pd.DataFrame(
        {
            "votes": counts.sum(axis=1),
            "majority": np.where(unique, counts.idxmax(axis=1), ""),
        },
        index=counts.index,
    ).reset_index()
    return table.assign(weighted=_weigh(votes, table)) if weigh else table


def _weigh(votes: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    """Return the weighted answer to every row of the table."""
    weighted = {}
    for question, cell in votes.groupby("question"):
        pair = cell["comparison"] + " " + cell["prompt_index"].astype(str)
        labels = pd.DataFrame({"task": pair, "worker": cell["rater"], "label": cell["choice"]})
        weighted[question] = weighted_answers(labels)
    pairs = table["comparison"] + " " + table["prompt_index"].astype(str)
    return [
        weighted[question][pair] for question, pair in zip(table["question"], pairs, strict=True)
    ]


def weighted_answers(labels: pd.DataFrame) -> pd.Series:
    """Fit Dawid and Skene's model to the columns task, worker and label; return task to label."""
    # It takes seconds to import, and few commands need it.
    from crowdkit.aggregation import DawidSkene

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library's own use of pandas
        return DawidSkene(n_iter=ITERATIONS).fit_predict(labels)
