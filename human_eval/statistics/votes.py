"""The votes frame: one row per vote, the input of every statistic, chart and export.

Votes that were collected elsewhere may lack prompts, raters, sides, times, seconds or loops. Then
the whole column is empty, and statistics that need it are left out (`find_unknown`).

`study.queries.read_votes` builds it, an export stores it, and `check_votes` refuses anything else.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import pandas as pd
from pandas.api import types

from human_eval.definition.definition import Comparison, Question, StudyDefinition
from human_eval.errors import StudyError

Choice = Literal["a", "b", "tie", "both_bad"]
Side = Literal["left", "right"]
Kind = Literal["real", "gold", "mirror", "identical"]
OTHER = {"a": "b", "b": "a", "left": "right", "right": "left"}  # of two systems or sides

COLUMNS = {  # name -> kind of value; "?" marks columns whose values may be missing
    "vote_id": "any",
    "task_id": "any",  # of the pair
    "comparison": "text",  # key of the comparison, such as C1
    "system_a": "text",  # the system the comparison is about
    "system_b": "text",  # its opponent
    "prompt_index": "integer",
    "prompt": "text",  # verbatim; votes on equal prompts are one cluster; "" if unknown
    "category": "text",
    "question": "text",  # key of the question
    "choice": "text",  # a Choice, in terms of systems, not of sides
    "strength": "integer",  # of a preference on a scale: 1 slight, 2 strong; 0 elsewhere
    "side_a": "text",  # a Side: where system_a was shown; "" if unknown
    "rater": "text",  # pseudonym; "" if unknown
    "provider": "text",
    "kind": "text",  # a Kind; only "real" votes count in analyses
    "gold_answer": "text?",
    "answered_at": "time?",  # UTC
    "seconds": "number?",  # from both clips ready to the answer
    "loops": "number?",  # completed loops of both clips
    "simulated": "flag",
    "excluded": "flag",
    "exclusion_rule": "text?",
    "definition_hash": "text",
}
BUSY = 0.15  # share of a cell's decisive votes by one rater above which a reader must be told
MTURK = "mturk"  # provider of votes that were imported from a file of Mechanical Turk
FOREIGN = "imported"  # provider of votes of a study that was not made with this program
UNKNOWN = {  # columns that are filled in all rows or in none, and what they hold
    "prompt": "prompts",
    "rater": "raters",
    "side_a": "sides",
    "answered_at": "times",
}
WORDS: dict[str, tuple[object, ...]] = {
    "choice": get_args(Choice),
    "strength": (0, 1, 2),
    "side_a": (*get_args(Side), ""),
    "kind": get_args(Kind),
}
MEANT = {
    "integer": "whole numbers",
    "number": "numbers",
    "flag": "true or false",
    "time": "times",
    "text": "text",
}


def check_votes(votes: pd.DataFrame) -> pd.DataFrame:
    """Return the frame unchanged if it has the columns, types and words that analyses need.

    Raises:
        StudyError: a column or value is wrong; the message names it.
    """
    missing = [name for name in COLUMNS if name not in votes]
    if missing:
        raise StudyError(
            f"The table of votes has no column {', '.join(missing)}. Export the study again with "
            "`python -m human_eval export`."
        )
    for name, kind in COLUMNS.items():
        _check_column(votes[name], kind)
    for name, things in (UNKNOWN | {"seconds": "seconds", "loops": "loops"}).items():
        empty = votes[name].eq("") | votes[name].isna()
        if empty.any() and not empty.all():
            raise StudyError(
                f"Row {votes.index[empty][0]} has no {name}, but others have one. Fill it in, or "
                f"empty the column if the {things} are unknown."
            )
    for name, words in WORDS.items():
        unknown = sorted(set(votes[name].unique().tolist()) - set(words))
        if unknown:
            raise StudyError(
                f"The column {name} contains {unknown[0]!r}, but may only contain "
                f"{', '.join(map(str, words))}. Correct these rows; an unknown answer is not a tie."
            )
    return votes


def _check_column(column: pd.Series, kind: str) -> None:
    right = {
        "any": True,
        "text": types.is_string_dtype(column) or isinstance(column.dtype, pd.CategoricalDtype),
        "text?": True,
        "integer": types.is_integer_dtype(column),
        "number?": types.is_numeric_dtype(column) or bool(column.isna().all()),
        "flag": types.is_bool_dtype(column),
        "time?": types.is_datetime64_any_dtype(column) or bool(column.isna().all()),
    }
    if len(column) and not right[kind]:
        raise StudyError(
            f"The column {column.name} must contain {MEANT[kind.rstrip('?')]}, but has the type "
            f"{column.dtype}. Correct the table, or export the study again."
        )
    if not kind.endswith("?") and column.isna().any():
        row = column.index[column.isna()][0]
        raise StudyError(f"Row {row} has no {column.name}. Fill it in, or remove the row.")


def find_unknown(votes: pd.DataFrame, needs: Sequence[str]) -> str:
    """Return what the votes lack of a statistic's needs, such as "raters and times", or "".

    Args:
        needs: columns of UNKNOWN; "rater|prompt" needs one of both.
    """
    lacking = [need for need in needs if not any(_is_known(votes[n]) for n in need.split("|"))]
    return " and ".join(UNKNOWN[name] for need in lacking for name in need.split("|"))


def _is_known(column: pd.Series) -> bool:
    return not len(column) or not (pd.isna(column.iloc[0]) or column.iloc[0] == "")


def count_distinct(column: pd.Series) -> int:
    """Return the number of different prompts or raters, 0 if they are unknown."""
    return int(column[column != ""].nunique())


def cluster_kinds(votes: pd.DataFrame) -> dict[str, pd.Series]:
    """Return the clusters of the votes by kind, prompt and rater as far as they are known.

    If neither is, each vote is a cluster of the kind "vote".
    """
    known = {kind: votes[kind] for kind in ("prompt", "rater") if _is_known(votes[kind])}
    return known or {"vote": pd.Series(np.arange(len(votes)), index=votes.index)}


def describe_clusters(kinds: Mapping[str, object]) -> str:
    """Return the note on intervals whose clusters are not all known, or ""."""
    if "vote" in kinds:
        return "prompts and raters unknown: votes taken as independent, no claim"
    missing = [kind for kind in ("prompt", "rater") if kind not in kinds]
    return "".join(f"{UNKNOWN[kind]} unknown: clustered by {next(iter(kinds))} only"
                   for kind in missing)  # fmt: skip


def counted_votes(votes: pd.DataFrame, *, with_excluded: bool = False) -> pd.DataFrame:
    """Keep the votes that analyses count: on real pairs, by raters who are not excluded.

    Raises:
        StudyError: the frame mixes human votes with simulated ones.
    """
    check_origin(votes)
    kept = votes["kind"] == "real"
    if not with_excluded:
        kept &= ~votes["excluded"]
    return votes[kept]


def require_counted(votes: pd.DataFrame) -> pd.DataFrame:
    """Keep the votes that analyses count, as `counted_votes` does.

    Raises:
        StudyError: none of them counts, or the frame mixes human votes with simulated ones.
    """
    counted = counted_votes(votes)
    if counted.empty:
        raise StudyError(
            f"None of the {len(votes):,} votes counts: they are on attention checks, or by "
            "excluded raters. See `python -m human_eval status`."
        )
    return counted


def check_origin(votes: pd.DataFrame) -> bool:
    """Return whether the votes are simulated.

    Raises:
        StudyError: some are simulated and some are not.
    """
    simulated = votes["simulated"]
    if simulated.any() and not simulated.all():
        raise StudyError(
            f"{simulated.sum():,} of these {len(votes):,} votes are simulated, the others are "
            "votes of people. Analyse the two separately."
        )
    return bool(simulated.any())


def split_cells(
    votes: pd.DataFrame, definition: StudyDefinition
) -> Iterator[tuple[Comparison, Question, pd.DataFrame]]:
    """Yield each comparison and question that has votes, in the order of the definition."""
    groups = dict(list(votes.groupby(["comparison", "question"], observed=True)))
    for comparison in definition.comparisons:
        for question in definition.questions:
            cell = groups.get((comparison.key, question.key))
            if cell is not None:
                yield comparison, question, cell


def split_primary(
    votes: pd.DataFrame, definition: StudyDefinition
) -> Iterator[tuple[Comparison, pd.DataFrame]]:
    """Yield each comparison that has votes on the primary question, with those votes."""
    asked = votes[votes["question"] == definition.primary.key]
    for comparison, _, cell in split_cells(asked, definition):
        yield comparison, cell
