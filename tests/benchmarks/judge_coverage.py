"""Whether win rates with a judge keep their promise, and how many votes the judge saves.

    python -m tests.benchmarks.judge_coverage [--studies 1000]

Of 600 prompts, people see 150, three raters each of 40. A good judge knows how raters on average
see a pair, a random one nothing, and a lying one says the opposite. Votes are saved in proportion
to the variance of the estimate.
"""

import argparse
import json

import numpy as np
import pandas as pd
from scipy.special import expit

from human_eval.statistics.prediction_powered import prediction_powered_rates
from tests.support.crowd import define_pair

JUDGES = ("good", "random", "lying")
PROMPTS, SEEN, RATERS = 600, 150, 40


def measure_judge(judge: str, studies: int, *, spread: float = 2.5) -> tuple[float, float]:
    """Return the share of intervals that cover one half, and the change in votes needed."""
    definition = define_pair()
    covered, variance = 0, []
    for seed in range(studies):
        rng = np.random.default_rng(seed)
        taste = rng.normal(0, spread, PROMPTS)
        score = {"good": expit(taste), "random": rng.random(PROMPTS), "lying": expit(-taste)}
        prompt = np.repeat(np.arange(SEEN), 3)
        rater = np.argsort(rng.random((SEEN, RATERS)), axis=1)[:, :3].ravel()
        own = rng.normal(0, 0.5, RATERS)
        won = rng.random(len(prompt)) < expit(taste[prompt] + own[rater])
        votes = pd.DataFrame(
            {
                "comparison": "C1",
                "question": "Q1",
                "prompt": prompt,
                "prompt_index": prompt,
                "rater": rater,
                "choice": np.where(won, "a", "b"),
            }
        )
        scores = pd.DataFrame(
            {"comparison": "C1", "prompt_index": np.arange(PROMPTS), "score": score[judge]}
        )
        row = prediction_powered_rates(votes, scores, definition).iloc[0]
        covered += row["low"] <= 0.5 <= row["high"]
        variance.append(row["saved"])
    return covered / studies, -float(np.mean(variance))


def main() -> None:
    """Print a line for each judge, and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=1000)
    studies = parser.parse_args().studies
    found = {judge: measure_judge(judge, studies) for judge in JUDGES}
    for judge, (covered, votes) in found.items():
        error = 100 * np.sqrt(covered * (1 - covered) / studies)
        print(f"{judge:7} covered {100 * covered:.1f} ± {error:.1f} %, votes {100 * votes:+.1f} %")
    print(json.dumps({"studies": studies, "judges": found}))


if __name__ == "__main__":
    main()
