"""The totals of VBench: 16 dimensions, each brought to [0, 1], to Quality, Semantic and Total.

Quality is the weighted mean of its seven dimensions, Semantic the mean of its nine, and
Total = (4 Quality + Semantic) / 5.

Source: `scripts/constant.py` and `scripts/cal_final_score.py` of VBench; T2V-Turbo,
arXiv:2405.18750, appendix C.
"""

import csv
import json
import re
import zipfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

RESULTS = "*_eval_results.json"
DRAWS = 2000  # of the bootstrap
QUALITY_WEIGHT = 4  # of Quality against Semantic in Total


@dataclass(frozen=True)
class Scale:
    """How a dimension enters a total: (score - low) / (high - low), times its weight."""

    low: float = 0.0
    high: float = 1.0
    weight: float = 1.0


Table = Mapping[str, Scale]  # by dimension

QUALITY = {
    "subject_consistency": Scale(low=0.1462),
    "background_consistency": Scale(low=0.2615),
    "temporal_flickering": Scale(low=0.6293),
    "motion_smoothness": Scale(low=0.706, high=0.9975),
    "aesthetic_quality": Scale(),
    "dynamic_degree": Scale(weight=0.5),
    "imaging_quality": Scale(),
}
SEMANTIC = {
    "object_class": Scale(),
    "multiple_objects": Scale(),
    "human_action": Scale(),
    "color": Scale(),
    "spatial_relationship": Scale(),
    "scene": Scale(high=0.8222),
    "appearance_style": Scale(low=0.0009, high=0.2855),
    "temporal_style": Scale(high=0.364),
    "overall_consistency": Scale(high=0.364),
}
DIMENSIONS: Table = {**QUALITY, **SEMANTIC}
PER_VIDEO = {"imaging_quality": 100}  # a video's number is so many times that of the dimension


@dataclass(frozen=True)
class Totals:
    """In [0, 1]; published tables print percentages."""

    total: float
    quality: float
    semantic: float


@dataclass(frozen=True)
class Results:
    """What the public package wrote: a score per dimension, and the numbers of single videos."""

    scores: dict[str, float]
    videos: dict[str, dict[str, float]]  # by dimension, by file name


def compute_totals(scores: Mapping[str, float], table: Table = DIMENSIONS) -> Totals:
    """Compute the totals of a score per dimension, in [0, 1].

    Raises:
        ValueError: a dimension is missing. The public script counts it as 0 instead.
    """
    if missing := [name for name in DIMENSIONS if name not in scores]:
        raise ValueError(
            f"A total needs all {len(DIMENSIONS)} dimensions; {', '.join(missing)} missing. Score "
            "them, or add the files with their results."
        )
    found = _totals({name: np.array([scores[name]]) for name in table}, table)
    return Totals(*(float(values[0]) for values in found))


def _totals(scores: Mapping[str, np.ndarray], table: Table) -> tuple[np.ndarray, ...]:
    def mean(names: Mapping[str, Scale]) -> np.ndarray:
        scales = [(scores[name], table[name]) for name in names]
        scaled = [s.weight * (score - s.low) / (s.high - s.low) for score, s in scales]
        return sum(scaled, np.zeros(1)) / sum(scale.weight for _, scale in scales)

    quality, semantic = mean(QUALITY), mean(SEMANTIC)
    total = (QUALITY_WEIGHT * quality + semantic) / (QUALITY_WEIGHT + 1)
    return total, quality, semantic


def bootstrap(results: Results, table: Table = DIMENSIONS) -> tuple[Totals, Totals]:
    """Return the lower and upper ends of the 95 % percentile intervals of the totals.

    Prompts are drawn with all their videos and dimensions, among those with the same dimensions:
    videos of one prompt depend on each other, and so do the dimensions of one video. The interval
    is about other prompts and seeds, not about another training of the model.

    Raises:
        ValueError: a dimension is missing, or lacks the numbers of its videos.
    """
    compute_totals(results.scores, table)
    strata: dict[tuple[str, ...], list[str]] = defaultdict(list)
    of_prompt: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for dimension in DIMENSIONS:
        if not results.videos.get(dimension):
            raise ValueError(
                f"The results of {dimension} lack the numbers of single videos, which an interval "
                "needs. Score again, or leave the interval out."
            )
        for file, value in results.videos[dimension].items():
            of_prompt[prompt_of(file)[0]][dimension].append(value)
    for prompt, dimensions in of_prompt.items():
        strata[tuple(dimensions)].append(prompt)

    generator = np.random.default_rng(0)
    sums = {dimension: np.zeros(DRAWS) for dimension in DIMENSIONS}
    counts = {dimension: np.zeros(DRAWS) for dimension in DIMENSIONS}
    for shared, prompts in strata.items():
        times = generator.multinomial(len(prompts), np.full(len(prompts), 1 / len(prompts)), DRAWS)
        for dimension in shared:
            values = [of_prompt[prompt][dimension] for prompt in prompts]
            sums[dimension] += times @ np.array([sum(found) for found in values])
            counts[dimension] += times @ np.array([len(found) for found in values])
    drawn = {}
    for dimension, score in results.scores.items():
        if dimension in DIMENSIONS:  # a score may be another mean than that over videos
            centre = np.mean(list(results.videos[dimension].values()))
            drawn[dimension] = score + sums[dimension] / counts[dimension] - centre
    ends = [np.percentile(values, [2.5, 97.5]) for values in _totals(drawn, table)]
    low, high = zip(*ends, strict=True)
    return Totals(*map(float, low)), Totals(*map(float, high))


def prompt_of(file: str) -> tuple[str, int | None]:
    """Return the prompt and the number of the sample in a name such as "a cat-0.mp4"."""
    found = re.fullmatch(r"(.*?)(?:-(\d+))?", PurePath(file.replace("\\", "/")).stem, re.DOTALL)
    assert found
    return found[1], int(found[2]) if found[2] else None


def read_results(source: Path) -> Results:
    """Read `*_eval_results.json`: a file, a folder of them, or a leaderboard's zip of them.

    Raises:
        ValueError: a file is no such result, or two files disagree about a dimension.
    """
    results = Results({}, {})
    for name, content in _contents(source):
        try:
            parsed = json.loads(content)
            if not isinstance(parsed, dict):
                raise ValueError("it is not an object")
            for dimension, entry in parsed.items():
                _add(results, dimension.replace(" ", "_"), entry)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise ValueError(
                f"{name} is not a result of VBench ({error}). It must hold a score and a list of "
                "videos for each dimension. Remove the file, or score again."
            ) from error
    return results


def _contents(source: Path) -> list[tuple[str, bytes]]:
    if source.is_dir():
        found = [(str(path), path.read_bytes()) for path in sorted(source.glob(RESULTS))]
    elif zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            names = [name for name in archive.namelist() if PurePath(name).match(RESULTS)]
            found = [(f"{source}/{name}", archive.read(name)) for name in sorted(names)]
    else:
        found = [(str(source), source.read_bytes())]
    if not found:
        raise ValueError(f"{source} contains no {RESULTS}. Score the clips first.")
    return found


def _add(results: Results, dimension: str, entry: Any) -> None:
    score, videos = (entry[0], entry[1]) if isinstance(entry, list) else (entry, [])
    score = float(score)
    if not np.isfinite(score):
        raise ValueError(f"the score of {dimension} is {score}")
    if results.scores.setdefault(dimension, score) != score:
        raise ValueError(f"another file has another score of {dimension}")
    divisor = PER_VIDEO.get(dimension, 1)
    numbers = {
        PurePath(video["video_path"].replace("\\", "/")).name: float(video["video_results"])
        / divisor
        for video in videos
    }
    results.videos[dimension] = numbers


def paper_rows() -> list[dict[str, str]]:
    """Return tables 2, 4 and 5 of T2V-Turbo, arXiv:2405.18750v3: scores in percent."""
    with Path(__file__).with_name("paper.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# VBench-2.0, arXiv:2503.21755: a group is the mean of its dimensions, the total that of the groups.
GROUPS_2 = {
    "creativity": ("Composition", "Diversity"),
    "commonsense": ("Instance_Preservation", "Motion_Rationality"),
    "controllability": (
        "Camera_Motion",
        "Complex_Landscape",
        "Complex_Plot",
        "Dynamic_Attribute",
        "Dynamic_Spatial_Relationship",
        "Human_Interaction",
        "Motion_Order_Understanding",
    ),
    "human_fidelity": ("Human_Anatomy", "Human_Clothes", "Human_Identity"),
    "physics": ("Material", "Mechanics", "Multi-View_Consistency", "Thermotics"),
}


def is_second(results: Results) -> bool:
    """Return whether these are results of VBench-2.0."""
    return any(name in results.scores for names in GROUPS_2.values() for name in names)


def compute_totals_2(scores: Mapping[str, float]) -> dict[str, float]:
    """Compute the five group scores of VBench-2.0, and their mean as "total".

    Raises:
        ValueError: a dimension is missing.
    """
    wanted = [name for names in GROUPS_2.values() for name in names]
    if missing := [name for name in wanted if name not in scores]:
        raise ValueError(
            f"A total needs all {len(wanted)} dimensions of VBench-2.0; {', '.join(missing)} "
            "missing. Add the files with their results."
        )
    groups = {
        group: float(np.mean([scores[name] for name in names])) for group, names in GROUPS_2.items()
    }
    return {**groups, "total": float(np.mean(list(groups.values())))}
