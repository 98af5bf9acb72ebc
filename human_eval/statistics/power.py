"""What a study can decide, what it costs, and how long until it has: before and during it."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.stats import binom
from statsmodels.stats.power import normal_sample_size_one_tail

from human_eval.definition.definition import StudyDefinition
from human_eval.errors import StudyError
from human_eval.statistics.e_values import LEVEL, Paths, e_value, evidence_path, trace_evidence

POWER = 0.8
RATES = (0.51, 0.52, 0.53, 0.55, 0.6, 0.65, 0.7)  # true win rates that the plan is judged by
CORRELATION = 0.2  # of two raters' answers to one pair, until votes tell
DRAWS = 200  # simulated futures
HORIZON = 20_000  # effective votes; what is not decided by then is "not soon"


@dataclass(frozen=True)
class Plan:
    """What all votes of a study take."""

    pairs: int  # of clips that real votes are about
    ballots: int  # pairs shown, checks included
    answers: int
    pay: float
    fee: float
    hours: float  # of raters
    currency: str

    @property
    def total(self) -> float:
        return self.pay + self.fee


def plan_study(definition: StudyDefinition, prompts: int) -> Plan:
    """Add up pairs, answers, money and hours of a complete study."""
    pairs = prompts * len(definition.comparisons)
    real = pairs * definition.raters_per_pair
    checks = definition.checks
    ballots = round(real / (1 - checks.gold_share - checks.mirror_share))
    pay = ballots * definition.pay.per_pair
    return Plan(
        pairs=pairs,
        ballots=ballots,
        answers=ballots * len(definition.questions),
        pay=pay,
        fee=pay * definition.pay.platform_fee,
        hours=ballots * definition.pay.seconds_per_pair / 3600,
        currency=definition.pay.currency,
    )


def votes_needed(
    rate: float, *, level: float = LEVEL, power: float = POWER, tie_share: float = 0.0
) -> float:
    """Return how many independent votes tell a win rate from one half.

    Source: the normal approximation of the binomial test; Fleiss, Levin and Paik (2003),
    "Statistical Methods for Rates and Proportions", section 2.5.
    """
    if not 0 < rate < 1 or rate == 0.5 or not 0 <= tie_share < 1:
        raise StudyError(
            f"Expected a win rate in (0, 1) other than 0.5 and a tie share below 1, got {rate} "
            f"and {tie_share}. An even match cannot be decided."
        )
    spread = np.sqrt(rate * (1 - rate))
    decisive = normal_sample_size_one_tail(
        abs(rate - 0.5), power, level / 2, std_null=0.5, std_alternative=spread
    )
    return float(decisive) / (1 - tie_share)


def smallest_win(votes: int, *, level: float = LEVEL) -> int:
    """Return the fewest wins of so many votes that the exact two-sided test calls significant."""
    return int(binom.isf(level / 2, votes, 0.5)) + 1


def exact_power(rate: float, votes: int, *, level: float = LEVEL) -> float:
    """Return the probability that the exact test finds the winner."""
    wins = smallest_win(votes, level=level)
    return float(binom.sf(wins - 1, votes, max(rate, 1 - rate)))


def exact_votes_needed(rate: float, *, level: float = LEVEL, power: float = POWER) -> int:
    """Return the number of votes from which on the exact test always has that power.

    Its power is a saw: it falls a little wherever one more win is asked for.
    """
    guess = int(votes_needed(rate, level=level, power=power))
    votes = np.arange(1, 2 * guess + 100)
    wins = binom.isf(level / 2, votes, 0.5) + 1
    enough = binom.sf(wins - 1, votes, max(rate, 1 - rate)) >= power
    return int(votes[~enough][-1]) + 1


def detectable_rate(votes: int, *, level: float = LEVEL, power: float = POWER) -> float:
    """Return the smallest win rate above one half that the exact test finds with that power.

    1 where so few votes cannot be significant at all.
    """
    if exact_power(1.0, votes, level=level) < power:
        return 1.0
    return float(brentq(lambda rate: exact_power(rate, votes, level=level) - power, 0.5, 1 - 1e-12))


def design_effect(raters_per_pair: int, correlation: float) -> float:
    """Return how many votes weigh as much as one independent vote.

    Source: Kish (1965), "Survey Sampling", section 5.4.
    """
    return 1 + (raters_per_pair - 1) * correlation


def votes_to_decide(
    rates: np.ndarray,
    threshold: float,
    rng: np.random.Generator,
    *,
    wins: float = 0,
    losses: float = 0,
) -> np.ndarray:
    """Simulate how many more independent votes bring the e-value to its threshold.

    Args:
        rates: the true win rate of each simulated future.
        wins, losses: the votes there are already.

    Returns:
        One number for each future; `inf` beyond the horizon.
    """
    needed = np.full(len(rates), np.inf)
    ahead, behind = np.full(len(rates), float(wins)), np.full(len(rates), float(losses))
    step, start = 500, 0
    waiting = np.arange(len(rates))
    while len(waiting) and start < HORIZON:
        won = rng.random((len(waiting), step)) < rates[waiting, None]
        all_wins = ahead[waiting, None] + np.cumsum(won, axis=1)
        all_losses = behind[waiting, None] + np.cumsum(~won, axis=1)
        crossed = e_value(all_wins, all_losses) >= threshold
        hit = crossed.any(axis=1)
        needed[waiting[hit]] = start + 1 + crossed[hit].argmax(axis=1)
        ahead[waiting], behind[waiting] = all_wins[:, -1], all_losses[:, -1]
        waiting, start = waiting[~hit], start + step
    return needed


def forecast_power(definition: StudyDefinition, prompts: int) -> pd.DataFrame:
    """Tabulate, for true win rates, whether the planned votes decide one comparison.

    Returns:
        Columns rate, votes_needed (for one test), votes_needed_family (for the primary question
        of all comparisons), power and power_family of the planned votes; all with two raters'
        answers to one pair correlated by 0.2, which votes will tell better.
    """
    effect = design_effect(definition.raters_per_pair, CORRELATION)
    effective = round(prompts * definition.raters_per_pair / effect)
    shared = LEVEL / len(definition.comparisons)
    return pd.DataFrame(
        [
            {
                "rate": rate,
                "votes_needed": round(votes_needed(rate) * effect),
                "votes_needed_family": round(votes_needed(rate, level=shared) * effect),
                "power": exact_power(rate, effective),
                "power_family": exact_power(rate, effective, level=shared),
            }
            for rate in RATES
        ]
    )


def forecast_decisions(
    votes: pd.DataFrame,
    definition: StudyDefinition,
    *,
    seed: int = 0,
    paths: Paths | None = None,
) -> pd.DataFrame:
    """Tabulate how many more votes the primary question of each comparison takes.

    Futures are simulated from what the votes so far leave possible (a Beta distribution of the
    win rate, each vote weighing 1 / design effect).

    Args:
        votes: that count as evidence.
        paths: those of `human_eval.statistics.e_values.trace_evidence`, where they are at hand.

    Returns:
        Columns comparison, votes, rate, design_effect, e, decided, and of the votes still to
        come: median, low and high (80 %), `soon` (share of futures within the horizon), cost.
    """
    rng = np.random.default_rng(seed)
    threshold = len(definition.comparisons) / LEVEL
    price = definition.pay.per_pair * (1 + definition.pay.platform_fee)
    [primary] = [question.key for question in definition.questions if question.primary]
    paths = (
        trace_evidence(votes[votes["question"] == primary], definition) if paths is None else paths
    )
    rows = []
    for comparison in definition.comparisons:
        here = (votes["comparison"] == comparison.key) & (votes["question"] == primary)
        path = paths.get((comparison.key, primary), evidence_path(votes[:0]))
        wins, losses, effect, e = _standing(path)
        decided = bool((path["e"] >= threshold).any())
        decisive = (wins + losses) / here.sum() if wins + losses else 1.0
        rates = rng.beta(1 + wins / effect, 1 + losses / effect, DRAWS)
        more = np.zeros(1)
        if not decided:
            more = votes_to_decide(
                rates, threshold, rng, wins=wins / effect, losses=losses / effect
            )
        low, median, high = np.quantile(more, [0.1, 0.5, 0.9], method="nearest") * (
            effect / decisive
        )
        rows.append(
            {
                "comparison": comparison.key,
                "votes": int(here.sum()),
                "rate": wins / (wins + losses) if wins + losses else np.nan,
                "design_effect": effect,
                "e": e,
                "decided": decided,
                "more_low": low,
                "more": median,
                "more_high": high,
                "soon": float(np.isfinite(more).mean()),
                "cost": median * price,
            }
        )
    return pd.DataFrame(rows)


def _standing(path: pd.DataFrame) -> tuple[float, float, float, float]:
    """Return wins, losses, design effect and e-value after the last vote, or before the first."""
    if path.empty:
        return 0.0, 0.0, 1.0, 1.0
    last = path.iloc[-1]
    return last["wins"], last["losses"], last["design_effect"], last["e"]
