"""Whether the statistics of a study keep their promises, on simulated studies.

    python -m tests.benchmarks.study_coverage            # 1,000 studies a row, 40 minutes
    python -m tests.benchmarks.study_coverage --studies 20
    python -m tests.benchmarks.study_coverage --rows rows.jsonl   # goes on where it was stopped

Every share is printed with its Monte Carlo standard error: of 1,000 studies, 0.7 points at 95 %.

Votes resemble each other within prompts and within raters: the log-odds of a vote are the sum of
normal effects of prompt and rater, whose spreads are given. Three promises are put to the test:
95 % intervals cover the truth in 95 of 100 studies; no difference is claimed in a study without any
in more than 5 of 100; and someone who looks at the e-value after every vote is led astray in no
more than 5 of 100. What one would get by taking votes as independent stands beside it.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, is_dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import expit, stdtrit

from human_eval.definition.definition import load_definition
from human_eval.statistics.e_values import LEVEL, e_value_path
from human_eval.statistics.intervals import sign_test, wilson
from human_eval.statistics.ranking import rank_systems, tabulate_differences
from human_eval.statistics.win_rates import mean_of, win_rates
from tests.benchmarks.judge_coverage import JUDGES, RATER_SPREAD, SPREAD, measure_judge
from tests.support.crowd import make_votes

PROMPTS, PROMPT_SPREAD = 150, 0.5
LOADS = {  # raters of a pair, raters who answer every pair, other raters, their loads
    "12 raters": (3, 0, 12, "even"),
    "40 raters": (3, 0, 40, "even"),
    "one of 2 raters": (2, 1, 40, "even"),
    "one of 3 raters": (3, 1, 40, "even"),
    "one of 5 raters": (5, 1, 40, "even"),
    "two of 3 raters": (3, 2, 40, "even"),
    "60 % and 10 others": (5 / 3, 1, 10, "even"),
    "60 % and 40 others": (5 / 3, 1, 40, "even"),
    "Zipf, 60 raters": (3, 0, 60, "zipf"),
}
EVEN = ("12 raters", "40 raters")
SETTINGS = [
    *product(EVEN, (0.5, 1.0), (0.5, 0.8, 0.95)),
    *product([name for name in LOADS if name not in EVEN], (0.5, 1.0), (0.5, 0.8)),
]


@dataclass(frozen=True)
class Coverage:
    """Shares of simulated studies, in [0, 1]."""

    loads: str
    rater_spread: float
    truth: float
    studies: int
    covered: float  # by the interval that claims rest on
    covered_independent: float  # by Wilson's
    width: float  # mean width of the interval
    wider: float  # its mean width over that of the simple interval, minus 1
    calibrated: float  # that of the simple interval, scaled until it covers 95 %, likewise
    claimed: float | None  # falsely; only where there is no difference
    misled: float | None  # by peeking at the e-value
    misled_independent: float | None  # by peeking at that of independent votes


def vote(rng: np.random.Generator, loads: str, rater_spread: float, truth: float) -> pd.DataFrame:
    """Return the votes of one study of one comparison, in random order."""
    per_pair, busy, others, kind = LOADS[loads]
    chance = rng.exponential(size=(PROMPTS, others))
    if kind == "zipf":
        chance *= np.arange(1, others + 1)
    needed = int(np.ceil(per_pair)) - busy
    rater = np.hstack(
        [np.tile(np.arange(busy), (PROMPTS, 1)), busy + np.argsort(chance, axis=1)[:, :needed]]
    ).ravel()
    prompt = np.repeat(np.arange(PROMPTS), busy + needed)
    surplus = (rater >= busy) & (prompt >= PROMPTS * (per_pair - busy) / max(needed, 1))
    kept = rng.permutation(np.flatnonzero(~surplus))
    prompt, rater = prompt[kept], rater[kept]
    taste = intercept(truth, float(np.hypot(PROMPT_SPREAD, rater_spread)))
    taste = taste + rng.normal(0, PROMPT_SPREAD, PROMPTS)[prompt]
    taste = taste + rng.normal(0, rater_spread, busy + others)[rater]
    won = rng.random(len(kept)) < expit(taste)
    return pd.DataFrame(
        {
            "prompt": prompt,
            "rater": rater,
            "choice": np.where(won, "a", "b"),
            "vote_id": np.arange(len(kept)),
            "answered_at": np.arange(len(kept)),
        }
    )


def intercept(truth: float, spread: float) -> float:
    """Return the log-odds around which normal ones have the win rate `truth` on average."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(61)
    weights = weights / weights.sum()
    return brentq(lambda mean: weights @ expit(mean + spread * nodes) - truth, -20, 20)


def measure_coverage(loads: str, rater_spread: float, truth: float, studies: int) -> Coverage:
    """Simulate studies of one comparison and count where intervals and e-values hold."""
    even = truth == 0.5
    counts, simple = np.zeros(6), []
    for seed in range(studies):
        votes = vote(np.random.default_rng(seed), loads, rater_spread, truth)
        won = votes["choice"].eq("a").to_numpy(float)
        wins, number = int(won.sum()), len(won)
        found, independent = mean_of(votes, won), wilson(wins, number)
        p = max(found.p, sign_test(wins, number - wins))
        path = e_value_path(votes) if even else pd.DataFrame({"e": [0], "e_independent": [0]})
        counts += [
            found.low <= truth <= found.high,
            independent.low <= truth <= independent.high,
            found.high - found.low,
            p <= LEVEL,
            (path["e"] >= 1 / LEVEL).any(),
            (path["e_independent"] >= 1 / LEVEL).any(),
        ]
        simple.append((won.mean(), _simple_half_width(votes, won)))
    covered, naive, width, *false = counts / studies
    mean, half = np.transpose(simple)
    scale = np.quantile(np.abs(mean - truth) / half, 1 - LEVEL, method="higher")
    simple_width, calibrated = (
        (np.minimum(mean + k * half, 1) - np.maximum(mean - k * half, 0)).mean() for k in (1, scale)
    )
    return Coverage(
        loads, rater_spread, truth, studies, covered, naive, width, width / simple_width - 1,
        calibrated / simple_width - 1, *(false if even else [None] * 3),
    )  # fmt: skip


def _simple_half_width(votes: pd.DataFrame, won: np.ndarray) -> float:
    """Return half the width of the interval that even loads and middling rates would allow.

    Its variance is the largest of the sandwiches of prompts, raters and both ways; it is Student's
    with G - 1 degrees of freedom of the smaller number of clusters, cut at 0 and 1.
    """
    residuals = pd.Series(won - won.mean())
    kinds = [votes["prompt"], votes["rater"]]
    variances, numbers = [], []
    for keys in ([kinds[0]], [kinds[1]], kinds):
        sums = residuals.groupby([key.to_numpy() for key in keys]).sum()
        variances.append(len(sums) / (len(sums) - 1) * (sums**2).sum() / len(won) ** 2)
        numbers.append(len(sums))
    by_prompt, by_rater, both = variances
    variance = max(by_prompt, by_rater, by_prompt + by_rater - both)
    return float(stdtrit(min(numbers) - 1, 0.975) * np.sqrt(variance))


def measure_false_claims(
    differ: bool, studies: int, *, prompts: int = 50, raters: int = 40
) -> float:
    """Return the share of studies with a false claim: no difference anywhere, or some real.

    Where some are, two of six comparisons differ in truth, on all questions, and only claims about
    the four others, or of the wrong winner, are false.
    """
    definition = load_definition("t2v-turbo")
    real = {(key, q): 0.75 for key in ("C1", "C4") for q in ("Q1", "Q2", "Q3")}
    wrong = 0
    for seed in range(studies):
        votes = make_votes(
            definition,
            prompts=prompts,
            raters=raters,
            rates=real if differ else {},
            seed=10_000 + seed,
        )
        table = win_rates(votes, definition)
        true = table["comparison"].isin(["C1", "C4"]) if differ else False
        wrong += bool(((table["claim"] != "") & ~(true & (table["rate"] > 0.5))).any())
    return wrong / studies


def measure_ranking(systems: int, raters: int, spread: float, studies: int) -> tuple[float, float]:
    """Return how often intervals of equal strengths cover, and how often neighbours separate.

    Every two systems are compared on 60 prompts by 3 raters a pair. Prompts (spread 0.5) and raters
    each have a taste of their own for every system.
    """
    covered, separated = [], []
    names = np.array([f"s{number}" for number in range(systems)])
    first, second = np.triu_indices(systems, 1)
    for seed in range(studies):
        rng = np.random.default_rng(seed)
        pair, prompt = (axis.ravel() for axis in np.indices((len(first), 180)))
        prompt = prompt // 3
        chosen = np.argsort(rng.random((len(first) * 60, raters)), axis=1)[:, :3].ravel()
        a, b = first[pair], second[pair]
        of_prompt = rng.normal(0, PROMPT_SPREAD / np.sqrt(2), (60, systems))
        of_rater = rng.normal(0, spread / np.sqrt(2), (raters, systems))
        taste = of_prompt[prompt, a] - of_prompt[prompt, b]
        taste = taste + of_rater[chosen, a] - of_rater[chosen, b]
        votes = pd.DataFrame(
            {
                "question": "Q1",
                "system_a": names[a],
                "system_b": names[b],
                "prompt": prompt,
                "rater": chosen,
                "choice": np.where(rng.random(len(pair)) < expit(taste), "a", "b"),
            }
        )
        table = rank_systems(votes)
        covered.append(((table["low"] <= 0) & (0 <= table["high"])).mean())
        separated.append(tabulate_differences(votes)["separated"].any())
    return float(np.mean(covered)), float(np.mean(separated))


def format_share(share: float | None, studies: int) -> str:
    """Return a share in percent with its Monte Carlo standard error."""
    if share is None:
        return ""
    return f"{100 * share:.1f} ± {100 * np.sqrt(share * (1 - share) / studies):.1f}"


def list_rows(studies: int) -> dict[str, Callable[[], Any]]:
    """Return what to measure, by the name of its row; most wanted first."""
    rows: dict[str, Callable[[], Any]] = {
        f"{loads:20} {spread:4} {truth:5}": partial(measure_coverage, loads, spread, truth, studies)
        for loads, spread, truth in SETTINGS
    }
    for systems, raters, spread in product((3, 8), (12, 20), (0.5, 1.0)):
        name = f"{systems} systems, {raters} raters {spread:7}"
        rows[name] = partial(measure_ranking, systems, raters, spread, studies)
    for differ in (False, True):
        name = f"{'two of six' if differ else 'no comparisons'} differ"
        rows[name] = partial(measure_false_claims, differ, studies)
    for judge, truth in product(JUDGES, (0.5, 0.65)):
        centre = intercept(truth, float(np.hypot(SPREAD, RATER_SPREAD)))
        name = f"{judge} judge {truth:{25 - len(judge)}}"
        rows[name] = partial(measure_judge, judge, truth, centre, studies)
    return rows


def format_row(found: Any, studies: int) -> str:
    """Return what was measured, as one line of a table."""
    if isinstance(found, float):
        return f"false claims {format_share(found, studies)}"
    if isinstance(found, list):
        return "".join(f" {format_share(share, studies):>11}" for share in found)
    if "judge" in found:
        once, ever = (format_share(found[name], studies) for name in ("covered", "ever_covered"))
        votes = f"{100 * found['sooner']:+.1f} ± {100 * found['sooner_error']:.1f}"
        fewer = f"votes for a variance {100 * found['fewer']:+.1f}, for a decision {votes}"
        return f" covered {once}, at every look {ever}; {fewer}"
    shares = ("covered", "covered_independent", "claimed", "misled", "misled_independent")
    cells = "".join(f" {format_share(found[name], studies):>11}" for name in shares)
    widths = f"{100 * found['wider']:+6.1f} {100 * found['calibrated']:+6.1f}"
    return f"{100 * found['width']:6.1f} {widths}{cells}"


def main() -> None:
    """Print the tables, and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=1000, help="of each row")
    parser.add_argument("--rows", type=Path, help="JSON lines; rows that it has are not repeated")
    options = parser.parse_args()
    done: dict[str, Any] = {}
    if options.rows and options.rows.exists():
        for line in options.rows.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            if entry["studies"] == options.studies:
                done[entry["row"]] = entry["found"]
    heads = "".join(f" {head:>11}" for head in ("covered", "Wilson", "claimed", "misled", "naive"))
    print(f"{'loads':20} {'sd':>4} {'truth':>5} {'width':>6} {'wider':>6} {'simple':>6}{heads}")
    for name, measure in list_rows(options.studies).items():
        if name not in done:
            found = measure()
            done[name] = asdict(found) if is_dataclass(found) else found
            done[name] = list(found) if isinstance(found, tuple) else done[name]
            if options.rows:
                entry = {"row": name, "studies": options.studies, "found": done[name]}
                with options.rows.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(entry) + "\n")
        print(f"{name:31} {format_row(done[name], options.studies)}", flush=True)
    print(json.dumps({"studies": options.studies, "rows": done}))


if __name__ == "__main__":
    main()
