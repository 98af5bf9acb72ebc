"""The scores of an automatic judge, for fewer human votes and for simulated raters."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from human_eval.definition.definition import StudyDefinition
from human_eval.errors import StudyError
from turbo.text_files.decoding import FileRefused
from turbo.text_files.tables import read_table, require_columns

SCORES = ["comparison", "prompt_index", "score"]  # columns of the table


def read_scores(
    path: Path,
    definition: StudyDefinition,
    needed: Iterable[tuple[str, int]],
    *,
    others: bool = False,
) -> pd.DataFrame:
    """Read a judge's scores: a table with columns comparison, prompt_index and score in [0, 1].

    Args:
        needed: comparison and prompt of the pairs that must have a score.
        others: other pairs may have one, too.

    Raises:
        StudyError: the table or a row is wrong, a needed pair has no score, or another one has.
    """
    needed = set(needed)
    try:
        table = read_table(path)
        require_columns(table, path, {name: (name,) for name in SCORES})
    except FileRefused as error:
        raise StudyError(str(error)) from error
    known = {entry.key for entry in definition.comparisons}
    rows: dict[tuple[str, int], float] = {}
    for line, cells in table.rows.items():
        comparison, number, score = (cells[name].strip() for name in SCORES)
        try:
            key, value = (comparison, int(number)), float(score)
        except ValueError:
            key, value = (comparison, -1), float("nan")
        if comparison not in known or key[1] < 0 or not 0 <= value <= 1 or key in rows:
            raise StudyError(
                f"Line {line} of {path} must name a comparison of the study, the number of a "
                "prompt from 0, and a score from 0 to 1, once for each pair; it has "
                f"{comparison!r}, {number!r} and {score!r}. Correct it."
            )
        rows[key] = value
    for key in sorted(needed - rows.keys()):
        raise StudyError(
            f"{path} has no score for {key[0]}, prompt_index {key[1]}. Score every pair of the "
            "study."
        )
    if not others and (foreign := sorted(rows.keys() - needed)):
        first = f"{foreign[0][0]}, prompt_index {foreign[0][1]}"
        raise StudyError(
            f"{path} has {len(foreign):,} scores of other pairs than those that raters can "
            f"answer, the first of {first}. They would count as pairs of the study. Remove them."
        )
    return pd.DataFrame([(*key, value) for key, value in rows.items()], columns=SCORES)
