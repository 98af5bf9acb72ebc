"""The total of T2V-CompBench: the mean of its seven categories, each a score in [0, 1].

Its scripts write a CSV for each category, named MODEL_CATEGORY, whose last line has the score. The
scripts of its second version write other names for two categories, and `_3dvideo.csv` becomes a
step on the way to one of them.

Source: T2V-CompBench, arXiv:2407.14505, and the scripts of its repository.
"""

import csv
from pathlib import Path

import numpy as np

ENDINGS = {  # of the names of files; the longest that fits a file counts
    "consistent attributes": "_consistent_attr_score.csv",
    "dynamic attributes": "_dynamic_attr_score.csv",
    "spatial relationships": "_3dvideo.csv",  # of the first version
    "motion": "_score.csv",  # of the first version
    "action": "_action_binding_score.csv",
    "interaction": "_object_interactions_score.csv",
    "numeracy": "_numeracy_video.csv",
}
SECOND = {  # of the second version, where they differ
    "spatial relationships": "_spatial_score.csv",
    "motion": "_motion_score.csv",
}
SCORE = "score: "  # how the last line begins


def find_scores(folder: Path) -> dict[str, Path]:
    """Return the files of T2V-CompBench in a folder and those below it, by category.

    Raises:
        ValueError: there are two of one category.
    """
    found: dict[str, Path] = {}
    paths = sorted(folder.rglob("*.csv"))
    second = {
        name for name, ending in SECOND.items() if any(p.name.endswith(ending) for p in paths)
    }
    endings = ENDINGS | {name: SECOND[name] for name in second}
    for path in paths:
        fitting = [name for name, ending in endings.items() if path.name.endswith(ending)]
        if not fitting:
            continue  # scores of single frames, and steps between
        category = max(fitting, key=lambda name: len(endings[name]))
        if category in found:
            raise ValueError(
                f"{found[category]} and {path} are both of the category {category}. Keep one "
                "model's results in a folder."
            )
        found[category] = path
    return found


def compute_total(files: dict[str, Path]) -> dict[str, float]:
    """Return the score of every category, and their mean as "total".

    Raises:
        ValueError: a category is missing, or a file does not end with its score.
    """
    if missing := [category for category in ENDINGS if category not in files]:
        raise ValueError(
            f"A total needs all {len(ENDINGS)} categories of T2V-CompBench. Missing: "
            f"{', '.join(missing)}. Add the CSV files with their results."
        )
    scores = {category: _read_score(files[category]) for category in ENDINGS}
    return {**scores, "total": float(np.mean(list(scores.values())))}


def _read_score(path: Path) -> float:
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        score: list[str] = []
        for row in csv.reader(file):
            score = row or score  # the last row that is not empty
    try:
        name, text = score
        value = float(text)
        if name != SCORE or not 0 <= value <= 1:
            raise ValueError(f"it is {score}")
    except ValueError as error:
        raise ValueError(
            f"The last line of {path} is not a score from 0 to 1 ({error}). Run the script of "
            "T2V-CompBench to its end."
        ) from error
    return value
