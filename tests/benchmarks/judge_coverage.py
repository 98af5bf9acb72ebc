"""Whether win rates with a judge keep their promise, and how many votes the judge saves.

Rows of `tests.benchmarks.study_coverage`. Of 600 prompts, people see 150, three raters each of 40,
in random order. A good judge knows how raters on average see a pair, a random one nothing, and a
lying one says the opposite.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import expit

from human_eval.statistics.e_values import LEVEL, e_value
from human_eval.statistics.prediction_powered import effective_votes, prediction_powered_rates
from tests.support.crowd import define_pair

JUDGES = ("good", "random", "lying")
PROMPTS, SEEN, RATERS = 600, 150, 40
SPREAD, RATER_SPREAD = 2.5, 0.5  # of prompts and raters, in log-odds


@dataclass(frozen=True)
class JudgeCoverage:
    """How intervals with a judge hold, and what the judge saves, in shares."""

    judge: str
    truth: float
    covered: float  # by the interval for one look
    ever_covered: float  # by all intervals for a look after every vote
    fewer: float  # votes for the same variance than without a judge; negative if fewer
    sooner: float  # votes until an e-value of 1 / LEVEL, likewise
    sooner_error: float  # Monte Carlo standard error


def measure_judge(judge: str, truth: float, centre: float, studies: int) -> JudgeCoverage:
    """Simulate studies in which the taste of prompts is normal around `centre`, in log-odds."""
    definition = define_pair()
    covered, ever, variance, stops = 0, 0, [], []
    for seed in range(studies):
        rng = np.random.default_rng(seed)
        taste = rng.normal(centre, SPREAD, PROMPTS)
        score = {"good": expit(taste), "random": rng.random(PROMPTS), "lying": expit(-taste)}
        prompt = np.repeat(np.arange(SEEN), 3)
        rater = np.argsort(rng.random((SEEN, RATERS)), axis=1)[:, :3].ravel()
        own = rng.normal(0, RATER_SPREAD, RATERS)
        won = rng.random(len(prompt)) < expit(taste[prompt] + own[rater])
        votes = pd.DataFrame(
            {
                "comparison": "C1",
                "question": "Q1",
                "prompt": prompt,
                "prompt_index": prompt,
                "rater": rater,
                "choice": np.where(won, "a", "b"),
                "vote_id": 0,
                "answered_at": rng.permutation(len(prompt)),
            }
        )
        scores = pd.DataFrame(
            {"comparison": "C1", "prompt_index": np.arange(PROMPTS), "score": score[judge]}
        )
        row = prediction_powered_rates(votes, scores, definition).iloc[0]
        covered += row["low"] <= truth <= row["high"]
        variance.append(row["saved"])
        paths = [effective_votes(votes, pd.Series(given)) for given in (score[judge], 0 * taste)]
        ever += (e_value(*paths[0], null=truth) < 1 / LEVEL).all()
        reached = [e_value(*path) >= 1 / LEVEL for path in paths]
        stops.append([path.argmax() + 1 if path.any() else len(path) for path in reached])
    with_judge, without = np.array(stops, float).T
    ratio = with_judge.mean() / without.mean()
    error = np.std(with_judge - ratio * without) / without.mean() / np.sqrt(studies)
    return JudgeCoverage(
        judge, truth, covered / studies, ever / studies, -float(np.mean(variance)), ratio - 1, error
    )
