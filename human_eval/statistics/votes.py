"""The votes frame: what every statistic, chart and export starts from, one row per answer.

`StudyStore.votes()` makes it, a CSV export holds it, and `check_votes` refuses anything else.
"""

from collections.abc import Iterator
from typing import Literal, get_args

import pandas as pd
from pandas.api import types

from human_eval.definition.definition import Comparison, Question, StudyDefinition
from human_eval.errors import StudyError

Choice = Literal["a", "b", "tie", "both_bad"]
Side = Literal["left", "right"]
Kind = Literal["real", "gold", "mirror", "identical"]

COLUMNS = {  # name -> kind of value; a "?" may be missing
    "vote_id": "any",
    "task_id": "any",
    "comparison": "text",  # key of the comparison, such as C1
    "system_a": "text",  # the system the comparison is about
    "system_b": "text",  # its opponent
    "prompt_index": "integer",
    "prompt": "text",  # verbatim; votes on equal prompts are one cluster
    "category": "text",
    "question": "text",  # key of the question
    "choice": "text",  # a Choice, in terms of systems, wherever they were shown
    "side_a": "text",  # a Side: where system_a was shown
    "rater": "text",  # pseudonym
    "provider": "text",
    "kind": "text",  # a Kind; only "real" votes are evidence about systems
    "gold_answer": "text?",
    "answered_at": "time",  # UTC
    "seconds": "number",  # from both clips ready to the answer
    "loops": "integer",  # completed loops of both clips
    "simulated": "flag",
    "excluded": "flag",
    "exclusion_rule": "text?",
    "definition_hash": "text",
}
MTURK = "mturk"  # the provider of answers that came in as a file, from a page not our own
WORDS = {"choice": get_args(Choice), "side_a": get_args(Side), "kind": get_args(Kind)}


def check_votes(votes: pd.DataFrame) -> pd.DataFrame:
    """Return the votes if they have the columns, kinds of values and words that analyses need.

    Raises:
        StudyError: a column or value is not as expected; the message names it.
    """
    missing = [name for name in COLUMNS if name not in votes]
    if missing:
        raise StudyError(
            f"Expected the columns {', '.join(COLUMNS)} in a table of votes, got no "
            f"{', '.join(missing)}. Export the study again with `python -m human_eval export`."
        )
    for name, kind in COLUMNS.items():
        _check_column(votes[name], kind)
    for name, words in WORDS.items():
        unknown = sorted(set(votes[name].unique()) - set(words))
        if unknown:
            raise StudyError(
                f"Expected {name} to be one of {', '.join(words)}, got {unknown[0]!r}. "
                "Correct these rows; an unknown answer is not a tie."
            )
    return votes


def _check_column(column: pd.Series, kind: str) -> None:
    kinds = {
        "any": True,
        "text": types.is_string_dtype(column) or isinstance(column.dtype, pd.CategoricalDtype),
        "text?": True,
        "integer": types.is_integer_dtype(column),
        "number": types.is_numeric_dtype(column),
        "flag": types.is_bool_dtype(column),
        "time": types.is_datetime64_any_dtype(column),
    }
    if len(column) and not kinds[kind]:
        raise StudyError(
            f"Expected {kind} values in the column {column.name}, got {column.dtype}. "
            f"Read the file with `human_eval.reporting.export.read_votes`, which converts them."
        )
    if not kind.endswith("?") and column.isna().any():
        row = column.index[column.isna()][0]
        raise StudyError(
            f"Expected every row to have a {column.name}, got none in row {row}. "
            "Correct the row or leave it out."
        )


def evidence(votes: pd.DataFrame, *, with_excluded: bool = False) -> pd.DataFrame:
    """Keep the votes that say something about the systems: on real pairs, by raters not excluded.

    Raises:
        StudyError: simulated votes stand among those of people.
    """
    check_origin(votes)
    kept = votes["kind"] == "real"
    if not with_excluded:
        kept &= ~votes["excluded"]
    return votes[kept]


def check_origin(votes: pd.DataFrame) -> bool:
    """Return whether the votes are simulated; people's and simulated ones never mix.

    Raises:
        StudyError: they are mixed.
    """
    simulated = votes["simulated"]
    if simulated.any() and not simulated.all():
        raise StudyError(
            f"Expected votes of people or simulated votes, got both ({simulated.sum():,} of "
            f"{len(votes):,} are simulated). Analyse each apart."
        )
    return bool(simulated.any())


def split_cells(
    votes: pd.DataFrame, definition: StudyDefinition
) -> Iterator[tuple[Comparison, Question, pd.DataFrame]]:
    """Yield every comparison and question that has votes, in the order of the definition."""
    groups = dict(list(votes.groupby(["comparison", "question"], observed=True)))
    for comparison in definition.comparisons:
        for question in definition.questions:
            cell = groups.get((comparison.key, question.key))
            if cell is not None:
                yield comparison, question, cell
