"""Power: what a study costs, what it can detect, and how many more votes a decision needs."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.stats import binom
from statsmodels.stats.power import normal_sample_size_one_tail

from human_eval.definition.definition import StudyDefinition
from human_eval.statistics.e_values import LEVEL, Paths, e_value, e_value_path, trace_e_values

POWER = 0.8
RATES = (0.51, 0.52, 0.53, 0.55, 0.6, 0.65, 0.7)  # true win rates in the table of power
CORRELATION = 0.2  # assumed between two raters' answers to one pair, before there are votes
DRAWS = 500  # simulated futures
HORIZON = 20_000  # effective votes that a future may take


@dataclass(frozen=True)
class Plan:
    """What a complete study takes."""

    pairs: int  # without attention checks
    assignments: int  # pairs shown to raters, attention checks included
    votes: int
    pay: float
    fee: float
    hours: float  # of raters
    currency: str

    @property
    def total(self) -> float:
        """Pay and platform fees together."""
        return self.pay + self.fee


def plan_study(definition: StudyDefinition, prompts: int) -> Plan:
    """Add up the assignments, votes, money and hours of a complete study.

    Attention checks make up the shares g (gold) and m (mirror) of all assignments, so a study of
    n real ones has n / (1 - g - m).
    """
    pairs = prompts * len(definition.comparisons)
    real = pairs * definition.raters_per_pair
    checks = definition.checks
    assignments = round(real / (1 - checks.gold_share - checks.mirror_share))
    pay = assignments * definition.pay.per_pair
    return Plan(
        pairs=pairs,
        assignments=assignments,
        votes=assignments * len(definition.questions),
        pay=pay,
        fee=pay * definition.pay.platform_fee,
        hours=assignments * definition.pay.seconds_per_pair / 3600,
        currency=definition.pay.currency,
    )


def votes_needed(rate: float, *, level: float = LEVEL, power: float = POWER) -> float:
    """Return how many independent decisive votes detect that a win rate is not one half.

    n = ((z_{1 - level/2} / 2 + z_power sqrt(p (1 - p))) / (p - 1/2))^2.

    Args:
        rate: p, the true win rate.
        level: of the two-sided test.
        power: probability of detecting it.

    Raises:
        ValueError: `rate` is one half, or out of range.

    Source: the normal approximation of the binomial test; Fleiss, Levin and Paik (2003),
    "Statistical Methods for Rates and Proportions", section 2.5.
    """
    if not 0 < rate < 1 or rate == 0.5:
        raise ValueError(
            f"Expected a win rate in (0, 1) other than 0.5, got {rate}. No number of votes detects "
            "a rate of 0.5."
        )
    spread = np.sqrt(rate * (1 - rate))
    needed = normal_sample_size_one_tail(
        abs(rate - 0.5), power, level / 2, std_null=0.5, std_alternative=spread
    )
    return float(needed)


def smallest_win(votes: int, *, level: float = LEVEL) -> int:
    """Return the fewest wins of `votes` that the exact two-sided sign test calls significant."""
    return int(binom.isf(level / 2, votes, 0.5)) + 1


def exact_power(rate: float, votes: int, *, level: float = LEVEL) -> float:
    """Return the probability that the exact sign test of independent votes finds the winner."""
    wins = smallest_win(votes, level=level)
    return float(binom.sf(wins - 1, votes, max(rate, 1 - rate)))


def detectable_rate(votes: int, *, level: float = LEVEL) -> float:
    """Return the smallest win rate above one half that the exact test finds with `POWER`.

    1 if even unanimous votes would be too few.
    """
    if exact_power(1.0, votes, level=level) < POWER:
        return 1.0
    return float(brentq(lambda rate: exact_power(rate, votes, level=level) - POWER, 0.5, 1 - 1e-12))


def design_effect(raters_per_pair: int, correlation: float) -> float:
    """Return how many votes weigh as much as one independent vote: 1 + (k - 1) r.

    Args:
        raters_per_pair: k.
        correlation: r, between two raters' answers to one pair.

    Source: Kish (1965), "Survey Sampling", section 5.4.
    """
    return 1 + (raters_per_pair - 1) * correlation


def votes_to_decide(
    rates: np.ndarray,
    threshold: float,
    rng: np.random.Generator,
    *,
    wins: float | np.ndarray = 0,
    losses: float | np.ndarray = 0,
) -> np.ndarray:
    """Simulate how many more independent votes the e-value needs to reach its threshold.

    The lead, wins minus losses, has to reach a bound that does not fall with more votes. Each vote
    moves it by 1: where it is g short of the bound, the next g votes, rounded up, are drawn at
    once, since none but the last of them can decide.

    Args:
        rates: the true win rate of each simulated future, shape (futures,).
        wins, losses: effective votes so far, in all futures or in each of them.

    Returns:
        Shape (futures,); `inf` where more than HORIZON votes are not enough.
    """
    needed = np.full(len(rates), np.inf)
    votes = np.zeros((2, len(rates)))  # wins and losses
    votes += np.broadcast_arrays(wins, losses, rates)[:2]
    most = votes.sum(axis=0).max(initial=0.0) + HORIZON
    least = _least_leads(threshold, 1 << int(most + 1).bit_length())
    future, drawn = np.arange(len(rates)), np.zeros(len(rates), dtype=int)
    short = least[votes.sum(axis=0).astype(int)] - abs(votes[0] - votes[1])
    while len(future):
        count = np.clip(np.ceil(short).astype(int), 1, HORIZON - drawn)
        won = rng.binomial(count, rates[future])
        votes += won, count - won
        drawn += count
        short = least[votes.sum(axis=0).astype(int)] - abs(votes[0] - votes[1])
        decided = short <= 0
        decided[decided] = e_value(*votes[:, decided]) >= threshold
        needed[future[decided]] = drawn[decided]
        left = ~decided & (drawn < HORIZON)
        future, votes, drawn, short = future[left], votes[:, left], drawn[left], short[left]
    return needed


@lru_cache(maxsize=8)
def _least_leads(threshold: float, end: int) -> np.ndarray:
    """Return a lead, wins minus losses, below which n = 0, 1, ... votes miss the threshold.

    It is at most half a vote less than the smallest lead that reaches it. With equal leads, more
    votes are less evidence, so that it holds for n + 1/2 votes, say, as well.
    """
    votes = np.arange(end, dtype=float)
    low, high = np.zeros(end), votes.copy()
    while (high - low).max() > 0.5:
        middle = (low + high) / 2
        reached = e_value((votes + middle) / 2, (votes - middle) / 2) >= threshold
        low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    return low - 1e-6  # errors of rounding


def forecast_power(definition: StudyDefinition, prompts: int) -> pd.DataFrame:
    """Tabulate, for several true win rates, the power of the planned votes of one comparison.

    Two raters' answers to one pair are assumed to correlate by 0.2.

    Returns:
        Columns rate; `votes_needed`, for a single test, and `votes_needed_family`, for the primary
        question of every comparison (Bonferroni); `power` and `power_family` of the planned votes.
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
    votes: pd.DataFrame, definition: StudyDefinition, *, paths: Paths | None = None
) -> pd.DataFrame:
    """Forecast how many more votes the primary question of each comparison needs to be decided.

    The true win rate of each simulated future is drawn from Beta(1 + wins / d, 1 + losses / d), its
    posterior with a uniform prior when votes weigh 1 / d, d the design effect.

    Args:
        votes: those that count (`human_eval.statistics.votes.counted_votes`).
        paths: of `human_eval.statistics.e_values.trace_e_values`, if computed already.

    Returns:
        Columns comparison, votes, rate, design_effect, e, decided; `more`, the median number of
        further votes, with its 80 % interval `more_low`, `more_high`; `soon`, the share of futures
        that are decided within HORIZON votes; `cost`, of `more`.
    """
    threshold = len(definition.comparisons) / LEVEL
    primary = definition.primary.key
    if paths is None:
        paths = trace_e_values(votes[votes["question"] == primary], definition)
    keys = [comparison.key for comparison in definition.comparisons]
    nothing = e_value_path(votes[:0])
    own = [paths.get((key, primary), nothing) for key in keys]
    wins, losses, effect, e = np.array([_last_stage(path) for path in own]).T
    decided = np.array([bool((path["e"] >= threshold).any()) for path in own])
    rng = np.random.default_rng(0)
    won, lost = (np.repeat((count / effect)[~decided], DRAWS) for count in (wins, losses))
    futures = votes_to_decide(rng.beta(1 + won, 1 + lost), threshold, rng, wins=won, losses=lost)
    given = votes.loc[votes["question"] == primary, "comparison"].value_counts()
    given = given.reindex(keys, fill_value=0).to_numpy()
    both = wins + losses
    decisive = np.divide(both, given, out=np.ones(len(keys)), where=both > 0)
    more = np.zeros((len(keys), DRAWS))
    more[~decided] = futures.reshape(-1, DRAWS)
    low, median, high = np.quantile(more, [0.1, 0.5, 0.9], axis=1, method="nearest")
    price = definition.pay.per_pair * (1 + definition.pay.platform_fee)
    weight = effect / decisive  # votes given for each effective vote
    return pd.DataFrame(
        {
            "comparison": keys,
            "votes": given,
            "rate": np.divide(wins, both, out=np.full(len(keys), np.nan), where=both > 0),
            "design_effect": effect,
            "e": e,
            "decided": decided,
            "more_low": low * weight,
            "more": median * weight,
            "more_high": high * weight,
            "soon": np.isfinite(more).mean(axis=1),
            "cost": median * weight * price if price else 0.0,  # the median can be infinite
        }
    )


def _last_stage(path: pd.DataFrame) -> tuple[float, float, float, float]:
    """Return wins, losses, design effect and e-value after the last vote, or before the first."""
    if path.empty:
        return 0.0, 0.0, 1.0, 1.0
    last = path.iloc[-1]
    return last["wins"], last["losses"], last["design_effect"], last["e"]
