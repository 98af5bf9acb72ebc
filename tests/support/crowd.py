"""Made-up votes with a planted truth: raters and prompts that differ, but not in the mean."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.stats import norm

from human_eval.definition.definition import StudyDefinition, parse_definition
from human_eval.statistics.votes import COLUMNS, check_votes

Cell = tuple[str, str]  # comparison, question

PAIR = """
name = "test"
title = "Ours and theirs"
systems = [{key = "ours", title = "Ours"}, {key = "theirs", title = "Theirs"}]
comparisons = [{key = "C1", a = "ours", b = "theirs"}]
questions = [{key = "Q1", wording = "Which one?", primary = true}]
"""


def define_pair(extra: str = "") -> StudyDefinition:
    """Return two systems and one question."""
    return parse_definition(PAIR + extra)


def make_votes(
    definition: StudyDefinition,
    *,
    prompts: int = 30,
    raters: int = 20,
    rates: Mapping[Cell, float] | None = None,
    prompt_spread: float = 0.6,
    rater_spread: float = 0.3,
    ties: float = 0.0,
    left: float = 0.0,
    seed: int = 0,
) -> pd.DataFrame:
    """Return votes in which system_a wins at the planted rates, one half where none is given.

    Taste is a sum of normal effects of prompt, rater and moment, so that the planted rate is
    exactly the mean over all prompts and raters.

    Args:
        ties: share of ties where the question allows them.
        left: by how much the left side raises its clip.
    """
    rng = np.random.default_rng(seed)
    parts = []
    for comparison in definition.comparisons:
        for question in definition.questions:
            rate = (rates or {}).get((comparison.key, question.key), 0.5)
            allowed = 0.0 if question.forced else ties
            cell = _vote(rng, prompts, raters, definition.raters_per_pair, rate,
                         prompt_spread, rater_spread, allowed, left)  # fmt: skip
            names = {"comparison": comparison.key, "question": question.key}
            cell = cell.assign(**names, system_a=comparison.a, system_b=comparison.b)
            parts.append(cell.sample(frac=1, random_state=rng))
    votes = pd.concat([part.assign(turn=np.arange(len(part))) for part in parts])
    votes = votes.sort_values("turn", kind="stable", ignore_index=True)
    votes["vote_id"] = np.arange(1, len(votes) + 1)
    moments = pd.to_timedelta(7 * votes["vote_id"], unit="s")
    votes["answered_at"] = pd.Timestamp("2026-11-20", tz="UTC") + moments
    votes["task_id"] = votes["comparison"] + "-" + votes["prompt_index"].astype(str)
    votes = votes.assign(
        provider="panel",
        kind="real",
        gold_answer=None,
        seconds=rng.gamma(4, 5, len(votes)).round(3),
        loops=2,
        strength=0,
        simulated=False,
        excluded=False,
        exclusion_rule=None,
        definition_hash=definition.hash,
    )
    return check_votes(votes[list(COLUMNS)])


def _vote(
    rng: np.random.Generator,
    prompts: int,
    raters: int,
    per_pair: int,
    rate: float,
    prompt_spread: float,
    rater_spread: float,
    ties: float,
    left: float,
) -> pd.DataFrame:
    prompt = np.repeat(np.arange(prompts), per_pair)
    rater = np.argsort(rng.random((prompts, raters)), axis=1)[:, :per_pair].ravel()
    taste = norm.ppf(rate) * np.sqrt(1 + prompt_spread**2 + rater_spread**2)
    taste = taste + rng.normal(0, prompt_spread, prompts)[prompt]
    taste = taste + rng.normal(0, rater_spread, raters)[rater]
    side = rng.permutation(np.resize([-1, 1], len(prompt)))  # 1: system_a on the left
    won = taste + left * side + rng.normal(size=len(prompt)) > 0
    choice = np.where(rng.random(len(prompt)) < ties, "tie", np.where(won, "a", "b"))
    return pd.DataFrame(
        {
            "prompt_index": prompt,
            "prompt": np.char.add("prompt ", prompt.astype(str)),
            "category": np.array(["face", "action|count", "none"])[prompt % 3],
            "choice": choice,
            "side_a": np.where(side > 0, "left", "right"),
            "rater": np.char.add("r", rater.astype(str)),
        }
    )
