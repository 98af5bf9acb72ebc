"""Whether the statistics of a study keep their promises, on simulated studies.

    python -m tests.benchmarks.study_coverage            # 1,000 studies of each kind, half an hour
    python -m tests.benchmarks.study_coverage --studies 20

The share of covering intervals is itself an estimate: of 200 studies it comes out below 93 % or
above 97 % one time in seven although 95 % is the truth, of 1,000 one time in three hundred.

Votes resemble each other within prompts and within raters. Three promises are put to the test:
95 % intervals cover the truth in 93 to 97 of 100 studies; no difference is claimed anywhere in a
study without any in more than 5 of 100; and someone who looks at the e-value after every vote is
led astray in no more than 5 of 100. What one would get by taking votes as independent stands
beside it.
"""

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import repeat

import numpy as np

from human_eval.definition.definition import load_definition
from human_eval.statistics.e_values import LEVEL, e_value_path
from human_eval.statistics.win_rates import win_rates
from tests.support.crowd import define_pair, make_votes

SETTINGS = {  # prompts, raters, spreads of prompts and raters, true win rate
    "few raters": (150, 12, 0.6, 0.3, 0.5),
    "usual": (150, 40, 0.6, 0.3, 0.5),
    "clear winner": (150, 40, 0.6, 0.3, 0.65),
    "opinionated": (150, 40, 1.0, 0.6, 0.55),
    "independent": (150, 150, 0.0, 0.0, 0.5),
}


@dataclass(frozen=True)
class Coverage:
    """Shares of simulated studies, in [0, 1]."""

    setting: str
    studies: int
    covered: float  # by the interval that claims rest on
    covered_independent: float  # by Wilson's
    misled: float | None  # by peeking at the e-value; only where there is no difference
    misled_independent: float | None  # by peeking at that of independent votes


def measure_coverage(setting: str, studies: int) -> Coverage:
    """Simulate studies of one comparison and count where intervals and e-values hold."""
    prompts, raters, prompt_spread, rater_spread, truth = SETTINGS[setting]
    definition = define_pair()
    simulate = partial(
        make_votes,
        definition,
        prompts=prompts,
        raters=raters,
        prompt_spread=prompt_spread,
        rater_spread=rater_spread,
        rates={("C1", "Q1"): truth},
    )
    counts = np.zeros(4)
    for seed in range(studies):
        votes = simulate(seed=seed)
        row = win_rates(votes, definition).iloc[0]
        path = e_value_path(votes)
        counts += [
            row["low"] <= truth <= row["high"],
            row["wilson_low"] <= truth <= row["wilson_high"],
            (path["e"] >= 1 / LEVEL).any(),
            (path["e_independent"] >= 1 / LEVEL).any(),
        ]
    covered, naive, misled, misled_naive = counts / studies
    even = truth == 0.5
    return Coverage(
        setting, studies, covered, naive, misled if even else None, misled_naive if even else None
    )


def measure_false_claims(
    studies: int, *, prompts: int = 50, raters: int = 40
) -> tuple[float, float]:
    """Return the shares of studies with a false claim: no difference anywhere, or some real.

    In the second kind two comparisons differ in truth, on all questions, and only claims about the
    four others, or of the wrong winner, are false.
    """
    definition = load_definition("t2v-turbo")
    real = {(key, q): 0.75 for key in ("C1", "C4") for q in ("Q1", "Q2", "Q3")}
    shares = []
    for rates in ({}, real):
        wrong = 0
        for seed in range(studies):
            votes = make_votes(
                definition, prompts=prompts, raters=raters, rates=rates, seed=10_000 + seed
            )
            table = win_rates(votes, definition)
            true = table["comparison"].isin(["C1", "C4"]) if rates else False
            wrong += bool(((table["claim"] != "") & ~(true & (table["rate"] > 0.5))).any())
        shares.append(wrong / studies)
    return shares[0], shares[1]


def main() -> None:
    """Print the tables, and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=1000, help="of each kind")
    studies = parser.parse_args().studies
    print(f"{'setting':14} {'covered':>8} {'Wilson':>8} {'misled':>8} {'naively':>8}", flush=True)
    rows = []
    with ProcessPoolExecutor() as pool:
        claims = pool.submit(measure_false_claims, studies)
        for row in pool.map(measure_coverage, SETTINGS, repeat(studies)):
            shares = (row.covered, row.covered_independent, row.misled, row.misled_independent)
            cells = [f"{100 * share:8.1f}" if share is not None else " " * 8 for share in shares]
            print(f"{row.setting:14} {' '.join(cells)}", flush=True)
            rows.append(asdict(row))
        nowhere, elsewhere = claims.result()
    print(f"studies with a false claim: {100 * nowhere:.1f} % without any difference,")
    print(f"{100 * elsewhere:.1f} % where two of six comparisons differ (18 tests each)")
    false = {"false_claims_no_difference": nowhere, "false_claims_some": elsewhere}
    print(json.dumps({"studies": studies, "coverage": rows, **false}))


if __name__ == "__main__":
    main()
