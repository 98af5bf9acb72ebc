"""What raters say of each pair together: the majority, and Dawid and Skene's weighted vote.

Only a second look: the claims of a study rest on all votes (`human_eval.winrates`).
"""

import warnings

import numpy as np
import pandas as pd

ITERATIONS = 100


def consensus(votes: pd.DataFrame) -> pd.DataFrame:
    """Return, for each pair and question, what raters say together.

    Returns:
        Columns comparison, prompt_index, question, votes; `majority`, the most frequent answer,
        or "" where several are; `weighted`, that of Dawid and Skene's model, which learns from
        disagreement whom to trust.

    Source: Dawid and Skene (1979), Applied Statistics 28(1), 20-28.
    """
    keys = ["comparison", "prompt_index", "question"]
    counts = votes.groupby([*keys, "choice"], observed=True).size().unstack(fill_value=0)
    top = counts.max(axis=1)
    unique = counts.eq(top, axis=0).sum(axis=1) == 1
    table = pd.DataFrame(
        {
            "votes": counts.sum(axis=1),
            "majority": np.where(unique, counts.idxmax(axis=1), ""),
        },
        index=counts.index,
    ).reset_index()
    parts = [
        weighted_answers(
            pd.DataFrame(
                {
                    "task": cell["comparison"] + " " + cell["prompt_index"].astype(str),
                    "worker": cell["rater"],
                    "label": cell["choice"],
                }
            )
        ).rename(question)
        for question, cell in votes.groupby("question", observed=True)
    ]
    weighted = pd.concat(parts, axis=1).stack() if parts else pd.Series(dtype=str)
    places = zip(
        table["comparison"] + " " + table["prompt_index"].astype(str),
        table["question"],
        strict=True,
    )
    return table.assign(weighted=[weighted[place] for place in places])


def weighted_answers(labels: pd.DataFrame) -> pd.Series:
    """Fit Dawid and Skene's model to the columns task, worker and label; return task to label."""
    # It takes seconds to import, and few commands need it.
    from crowdkit.aggregation import DawidSkene

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library's own use of pandas
        return DawidSkene(n_iter=ITERATIONS).fit_predict(labels)
