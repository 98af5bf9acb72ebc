"""Audit: ten probes of any table of votes for what a reviewer of its results would ask.

To add a probe, write a function that returns what it found, "" if nothing, and add it to `PROBES`.
"""

from collections.abc import Callable, Iterator
from itertools import permutations

import numpy as np
import pandas as pd

from human_eval.definition.definition import StudyDefinition
from human_eval.statistics.bradley_terry import (
    Tallies,
    connected_groups,
    count_votes,
    fit_strengths,
    has_finite_strengths,
)
from human_eval.statistics.ranking import tabulate_differences
from human_eval.statistics.side_bias import tabulate_side_bias
from human_eval.statistics.votes import BUSY, find_unknown
from human_eval.statistics.win_rates import LEVEL, holm, win_rates

MIN_VOTES = 20  # of a cell, below which its shares say nothing
FEW_PROMPTS = 5
IMBALANCE = 2.0  # how many times as many votes one comparison may have as another
BUSIEST = 10  # raters who are left out, one after another


def audit_votes(
    votes: pd.DataFrame, definition: StudyDefinition, *, rates: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Probe the votes that count.

    Args:
        votes: those that count (`human_eval.statistics.votes.counted_votes`).
        rates: their `win_rates`, if they are known.

    Returns:
        Columns probe; `fired`; `found`, where and how much, "" if it did not fire; `unknown`, what
        the votes lack, so that the probe was not made.
    """
    rates = win_rates(votes, definition) if rates is None else rates
    rows = []
    for name, probe in PROBES.items():
        unknown = find_unknown(votes, NEEDS.get(name, ()))
        found = "" if unknown else probe(votes, definition, rates)
        rows.append({"probe": name, "fired": bool(found), "found": found, "unknown": unknown})
    return pd.DataFrame(rows)


def _side_effect(votes: pd.DataFrame, definition: StudyDefinition, rates: pd.DataFrame) -> str:
    table = tabulate_side_bias(votes)
    if table.empty:
        return ""
    table = table[holm(table["p"].to_numpy()) <= LEVEL]
    return "; ".join(
        f"{row.question}: the left clip won {100 * row.left_share:.0f} % of the decisive votes"
        for row in table.itertuples()
    )


def _busiest_rater(votes: pd.DataFrame, definition: StudyDefinition, rates: pd.DataFrame) -> str:
    busy = rates[(rates["busiest"] > BUSY) & (rates["votes"] >= MIN_VOTES)]
    return "; ".join(
        f"{row.comparison} {row.question}: one rater gave {100 * row.busiest:.0f} %"
        for row in busy.itertuples()
    )


def _few_prompts(votes: pd.DataFrame, definition: StudyDefinition, rates: pd.DataFrame) -> str:
    prompts = votes.groupby("comparison", observed=True)["prompt"].nunique()
    few = prompts[prompts < FEW_PROMPTS]
    return "; ".join(f"{key}: prompts of {count} different texts" for key, count in few.items())


def _intransitivity(votes: pd.DataFrame, definition: StudyDefinition, rates: pd.DataFrame) -> str:
    clear = rates[(rates["question"] == definition.primary.key) & (rates["p"] <= LEVEL)]
    won = np.where(clear["rate"] > 0.5, clear["system_a"], clear["system_b"])
    lost = np.where(clear["rate"] > 0.5, clear["system_b"], clear["system_a"])
    beats = set(zip(won, lost, strict=True))
    systems = sorted({name for pair in beats for name in pair})
    return "; ".join(
        f"{a} beats {b}, {b} beats {c}, {c} beats {a}"
        for a, b, c in permutations(systems, 3)
        if a == min(a, b, c) and {(a, b), (b, c), (c, a)} <= beats
    )


def _tie_rule(votes: pd.DataFrame, definition: StudyDefinition, rates: pd.DataFrame) -> str:
    """Compare the order of systems without ties to that with a tie as half a win for either."""
    changed = []
    for tallies in _connected(_primary(votes, definition)):
        wins, ties = tallies.votes[:, :2], tallies.votes[:, 2:]
        nothing = np.zeros_like(ties)
        without = Tallies(tallies.names, tallies.pairs, np.hstack([wins, nothing]))
        halves = Tallies(tallies.names, tallies.pairs, np.hstack([wins + ties / 2, nothing]))
        orders = [_order(kind) for kind in (without, halves)]
        if orders[0] != orders[1]:
            changed.append(f"without ties {' > '.join(orders[0])}, as half wins "
                           f"{' > '.join(orders[1])}")  # fmt: skip
    return "; ".join(changed)


def _rank_volatility(votes: pd.DataFrame, definition: StudyDefinition, rates: pd.DataFrame) -> str:
    """Leave out the busiest raters one after another: does the leader of the ranking change?"""
    columns = ["system_a", "system_b", "choice", "rater"]
    asked = _primary(votes, definition)[columns].astype("category")  # filtered faster than text
    rankings = [(set(group.names), _order(group)[0]) for group in _connected(asked)]
    changed = []
    for rater in asked["rater"].value_counts().index[:BUSIEST]:
        rest = asked[asked["rater"] != rater]
        for names, first in rankings:
            left = rest[rest["system_a"].isin(names)]
            if set(left["system_a"].unique()) | set(left["system_b"].unique()) != names:
                continue
            without = _order(count_votes(left))[0]
            if first != without:
                changed.append(f"without rater {rater}, {without} is first instead of {first}")
    return "; ".join(changed)


def _unseparated(votes: pd.DataFrame, definition: StudyDefinition, rates: pd.DataFrame) -> str:
    table = tabulate_differences(_primary(votes, definition))
    if table.empty:
        return ""
    close = table[table["neighbours"].astype(bool) & ~table["separated"].astype(bool)]
    return "; ".join(
        f"{row.first} and {row.second} (adjusted p = {row.p_family:.2g})"
        for row in close.itertuples()
    )


def _imbalance(votes: pd.DataFrame, definition: StudyDefinition, rates: pd.DataFrame) -> str:
    counts = _primary(votes, definition)["comparison"].astype(str).value_counts()
    counts = counts.reindex([entry.key for entry in definition.comparisons], fill_value=0)
    if counts.max() <= IMBALANCE * counts.min():
        return ""
    return f"{counts.idxmin()} has {counts.min():,} votes and {counts.idxmax()} {counts.max():,}"


def _disconnected(votes: pd.DataFrame, definition: StudyDefinition, rates: pd.DataFrame) -> str:
    groups = list(connected_groups(votes))
    return "; ".join(" and ".join(group) for group in groups) if len(groups) > 1 else ""


def _duplicates(votes: pd.DataFrame, definition: StudyDefinition, rates: pd.DataFrame) -> str:
    keys = ["rater", "comparison", "prompt_index", "question"]
    again = votes.duplicated(keys)
    if not again.any():
        return ""
    raters = votes.loc[again, "rater"].nunique()
    return f"{again.sum():,} answers repeat one of the same rater ({raters:,} raters)"


PROBES: dict[str, Callable[[pd.DataFrame, StudyDefinition, pd.DataFrame], str]] = {
    "side effect": _side_effect,
    "busiest rater": _busiest_rater,
    "one prompt": _few_prompts,
    "intransitivity": _intransitivity,
    "tie rule": _tie_rule,
    "rank volatility": _rank_volatility,
    "unseparated neighbours": _unseparated,
    "coverage imbalance": _imbalance,
    "disconnected graph": _disconnected,
    "duplicate votes": _duplicates,
}
NEEDS = {  # what votes from elsewhere may not tell
    "side effect": ("side_a",),
    "busiest rater": ("rater",),
    "one prompt": ("prompt",),
    "intransitivity": ("rater|prompt",),
    "rank volatility": ("rater",),
    "unseparated neighbours": ("rater|prompt",),
    "duplicate votes": ("rater", "prompt"),
}


def _primary(votes: pd.DataFrame, definition: StudyDefinition) -> pd.DataFrame:
    return votes[votes["question"] == definition.primary.key]


def _connected(asked: pd.DataFrame) -> Iterator[Tallies]:
    """Yield the answers in each connected group of systems."""
    for group in connected_groups(asked):
        yield count_votes(asked[asked["system_a"].isin(group)])


def _order(tallies: Tallies) -> list[str]:
    """Return the systems from the strongest to the weakest; ties are ordered by name."""
    strengths, _ = fit_strengths(tallies, prior=not has_finite_strengths(tallies))
    strengths = strengths.round(9)
    return sorted(strengths.index, key=lambda name: (-strengths[name], name))
