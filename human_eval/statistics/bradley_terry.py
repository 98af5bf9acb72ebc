"""Strengths of many systems on one scale: Bradley-Terry, or Davidson where there are ties."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import evalica
import numpy as np
import pandas as pd
from scipy.sparse.csgraph import connected_components

TOLERANCE, LIMIT = 1e-10, 10_000  # of the iterations
PRIOR_VOTES = 0.5  # wins for either system of a comparison, added where strengths are infinite
ANSWERS = ("a", "b", "tie")
WINNERS = (evalica.Winner.X, evalica.Winner.Y, evalica.Winner.Draw)


@dataclass(frozen=True, eq=False)
class Tallies:
    """How often each answer was given in each comparison of two systems."""

    names: list[str]  # of systems
    pairs: np.ndarray  # int, shape (comparisons, 2): indices in names of system_a and system_b
    votes: np.ndarray  # float, shape (comparisons, answers), in the order of ANSWERS

    @classmethod
    def count(cls, rows: Iterable[tuple[str, str, str, float]]) -> "Tallies":
        """Add up rows of system_a, system_b, answer ("a", "b" or "tie") and votes."""
        rows = list(rows)
        names = sorted({name for row in rows for name in row[:2]})
        met = sorted({row[:2] for row in rows})
        place = {name: number for number, name in enumerate(names)}
        row_of = {pair: number for number, pair in enumerate(met)}
        votes = np.zeros((len(met), len(ANSWERS)))
        for first, second, answer, number in rows:
            votes[row_of[first, second], ANSWERS.index(answer)] += number
        return cls(names, np.array([[place[name] for name in pair] for pair in met]), votes)

    def links(self) -> np.ndarray:
        """Return how often the row's system beat the column's, a tie counting for both.

        Shape (systems, systems).
        """
        square = np.zeros((len(self.names), len(self.names)))
        first, second = self.pairs.T
        np.add.at(square, (first, second), self.votes[:, 0] + self.votes[:, 2])
        np.add.at(square, (second, first), self.votes[:, 1] + self.votes[:, 2])
        return square

    def with_prior(self) -> "Tallies":
        """Add half a win for either system to every comparison."""
        return replace(self, votes=self.votes + np.array([PRIOR_VOTES, PRIOR_VOTES, 0.0]))


def connected_groups(votes: pd.DataFrame) -> Iterator[list[str]]:
    """Yield the groups of systems linked by comparisons, directly or through others."""
    met = votes[["system_a", "system_b"]].drop_duplicates().astype(str)
    tallies = Tallies.count((a, b, "tie", 1.0) for a, b in met.itertuples(index=False))
    count, label = connected_components(tallies.links(), directed=False)
    for number in range(count):
        yield [name for name, own in zip(tallies.names, label, strict=True) if own == number]


def has_finite_strengths(tallies: Tallies) -> bool:
    """Return whether the most likely strengths are finite.

    They are if every system beats every other, directly or through a chain of wins. Otherwise
    evalica returns arbitrary numbers without a warning.

    Source: Ford (1957), Amer. Math. Monthly 64(8), 28-33.
    """
    count, _ = connected_components(tallies.links(), directed=True, connection="strong")
    return bool(count == 1)


def fit_strengths(tallies: Tallies, *, prior: bool = False) -> tuple[pd.Series, float]:
    """Return the most likely strengths, centred, and Davidson's nu (0 without ties).

    Args:
        prior: add half a win for either system to every comparison.

    Raises:
        ValueError: the strengths are infinite and `prior` is not set.
    """
    if prior:
        tallies = tallies.with_prior()
    elif not has_finite_strengths(tallies):
        raise ValueError(
            "Expected every system to win and lose, directly or through others, got some that "
            "never lose. Collect more votes, or set prior=True."
        )
    pair, answer = np.nonzero(tallies.votes)
    first, second = tallies.pairs[pair].T
    games = (
        [tallies.names[place] for place in first],
        [tallies.names[place] for place in second],
        [WINNERS[place] for place in answer],
    )
    weights = tallies.votes[pair, answer].tolist()
    if tallies.votes[:, 2].any():
        ties = evalica.newman(*games, weights=weights, tolerance=TOLERANCE, limit=LIMIT)
        # evalica's tie parameter is half of Davidson's.
        return _centre(ties.scores, tallies.names), 2 * float(ties.v)
    fit = evalica.bradley_terry(*games, weights=weights, tolerance=TOLERANCE, limit=LIMIT)
    return _centre(fit.scores, tallies.names), 0.0


def _centre(scores: pd.Series, names: list[str]) -> pd.Series:
    strengths = np.log(scores).reindex(names)
    return strengths - strengths.mean()


def count_votes(votes: pd.DataFrame) -> Tallies:
    """Count the answers of votes in each comparison; "both bad" is a tie."""
    met = votes.groupby(["system_a", "system_b"], sort=True, observed=True)
    empty = Tallies.count((str(a), str(b), "tie", 0.0) for a, b in met.groups)
    answer = np.select([votes["choice"].eq("a"), votes["choice"].eq("b")], [0, 1], default=2)
    cell = met.ngroup().to_numpy() * len(ANSWERS) + answer
    counted = np.bincount(cell, minlength=empty.votes.size).reshape(empty.votes.shape)
    return replace(empty, votes=counted.astype(float))
