"""Masking: letters instead of systems, so that results can be read while a study is open.

A masked table shows neither which system a letter is, nor which of two systems is under test: both
the letters and the order within a comparison follow from the study's secret key.
"""

from dataclasses import replace
from string import ascii_uppercase

import pandas as pd

from human_eval.definition.definition import Comparison, StudyDefinition, System
from human_eval.errors import StudyError
from human_eval.statistics.votes import OTHER
from human_eval.storage.keys import Keys


def mask_definition(definition: StudyDefinition, keys: Keys) -> StudyDefinition:
    """Return the definition with letters for systems, new comparison keys and no source."""
    letters = _letters(definition, keys)
    systems = [System(key=letter, title=f"System {letter}") for letter in sorted(letters.values())]
    comparisons = []
    for number, comparison in enumerate(definition.comparisons, 1):
        first, second = sorted((letters[comparison.a], letters[comparison.b]))
        comparisons.append(Comparison(key=f"C{number}", a=first, b=second))
    return replace(
        definition, systems=tuple(systems), comparisons=tuple(comparisons), source="", earlier=()
    )


def mask_votes(votes: pd.DataFrame, definition: StudyDefinition, keys: Keys) -> pd.DataFrame:
    """Return the votes frame with the systems and comparisons of `mask_definition`.

    Raters become numbers.
    """
    letters = _letters(definition, keys)
    numbers = {entry.key: f"C{place}" for place, entry in enumerate(definition.comparisons, 1)}
    turned = {entry.key for entry in definition.comparisons if letters[entry.a] > letters[entry.b]}
    flip = votes["comparison"].isin(turned)
    masked = votes.assign(definition_hash="")
    for column in ("choice", "side_a", "gold_answer"):
        values = masked[column].astype(object)
        masked[column] = values.where(~flip, values.map(OTHER).fillna(values))
    first, second = masked["system_a"], masked["system_b"]
    masked["system_a"] = first.where(~flip, second).map(letters).astype("str")
    masked["system_b"] = second.where(~flip, first).map(letters).astype("str")
    masked["comparison"] = masked["comparison"].map(numbers).astype("str")
    masked[["choice", "side_a"]] = masked[["choice", "side_a"]].astype("str")
    return number_raters(masked)


def number_raters(votes: pd.DataFrame) -> pd.DataFrame:
    """Return the votes with raters numbered in the order of their first vote."""
    numbers, _ = pd.factorize(votes["rater"])
    width = len(str(numbers.max(initial=0) + 1))
    return votes.assign(rater=[f"rater {number + 1:0{width}d}" for number in numbers])


def _letters(definition: StudyDefinition, keys: Keys) -> dict[str, str]:
    if len(definition.systems) > len(ascii_uppercase):
        raise StudyError(
            f"The {len(definition.systems)} systems of this study are more than there are letters "
            "to mask them. Close the study to see its results."
        )
    order = sorted(definition.systems, key=lambda system: keys.pseudonym("system", system.key))
    return {system.key: ascii_uppercase[place] for place, system in enumerate(order)}
