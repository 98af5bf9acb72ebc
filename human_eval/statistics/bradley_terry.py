"""Strengths of many systems on one scale: Bradley-Terry, or Davidson where there are ties."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import evalica
import numpy as np
import pandas as pd
from scipy.sparse.csgraph import connected_components

TOLERANCE, LIMIT = 1e-10, 10_000  # of the iterations
PRIOR_VOTES = 0.5  # wins for either system of a comparison, added where strengths are infinite
RESAMPLES = 200
MIN_PROMPTS = 5  # below it, resampling prompts gives intervals that are far too narrow
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
        votes = np.zeros((len(met), len(ANSWERS)))
        for first, second, answer, number in rows:
            votes[met.index((first, second)), ANSWERS.index(answer)] += number
        return cls(names, np.array([[names.index(name) for name in pair] for pair in met]), votes)

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


def rank_systems(votes: pd.DataFrame, *, seed: int = 0, resamples: int = RESAMPLES) -> pd.DataFrame:
    """Tabulate the strength of every system, by question and connected group of systems.

    Strengths s are log-odds: of decisive votes, system i wins 1 / (1 + exp(s_j - s_i)) against j.
    With w = exp(s), Davidson's model gives a win of i, a win of j and a tie probabilities in
    proportion to w_i, w_j and nu sqrt(w_i w_j). Strengths of a group sum to zero; those of
    different groups cannot be compared, since no votes link them. Votes are taken as independent in
    the fit; intervals resample prompts.

    If some systems never lose to others, the most likely strengths are infinite; then half a win
    for either system is added to every comparison, and `prior` says so.

    Returns:
        Columns question, group, system, strength; `low`, `high` (95 %; missing below 5 prompts);
        votes; `model` ("Bradley-Terry", or "Davidson" where there are ties); `tie`, Davidson's nu;
        `prior`.

    Source: Bradley and Terry (1952), Biometrika 39, 324-345; Davidson (1970), JASA 65, 317-328.
    """
    rng = np.random.default_rng(seed)
    tables = []
    for question, cell in votes.groupby("question", observed=True):
        for number, group in enumerate(connected_groups(cell)):
            table = _rank(cell[cell["system_a"].isin(group)], rng, resamples)
            table.insert(0, "question", question)
            table.insert(1, "group", number + 1)
            tables.append(table)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


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


def _rank(votes: pd.DataFrame, rng: np.random.Generator, resamples: int) -> pd.DataFrame:
    tallies, by_prompt = _count(votes)
    prior = not has_finite_strengths(tallies)
    strengths, nu = fit_strengths(tallies, prior=prior)
    prompts = len(by_prompt)
    draws = []
    enough = resamples if prompts >= MIN_PROMPTS else 0
    for weights in rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=enough):
        drawn = replace(tallies, votes=np.tensordot(weights, by_prompt, axes=1).astype(float))
        # Strengths of a resample may be infinite where those of all votes are finite.
        infinite = prior or not has_finite_strengths(drawn)
        draws.append(fit_strengths(drawn, prior=infinite)[0].to_numpy())
    low, high = np.quantile(draws, [0.025, 0.975], axis=0) if draws else (np.nan, np.nan)
    first, second = (
        votes[side].value_counts().rename(index=str) for side in ("system_a", "system_b")
    )
    met = first.add(second, fill_value=0)
    return pd.DataFrame(
        {
            "system": strengths.index,
            "strength": strengths.to_numpy(),
            "low": low,
            "high": high,
            "votes": met.reindex(strengths.index).to_numpy(int),
            "model": "Davidson" if nu else "Bradley-Terry",
            "tie": nu,
            "prior": f"{PRIOR_VOTES:g} wins each way" if prior else "",
        }
    ).sort_values("strength", ascending=False, kind="stable")


def _count(votes: pd.DataFrame) -> tuple[Tallies, np.ndarray]:
    """Count the votes in all, and by prompt, comparison and answer, to make resampling cheap."""
    met = votes.groupby(["system_a", "system_b"], sort=True, observed=True)
    empty = Tallies.count((str(a), str(b), "tie", 0.0) for a, b in met.groups)
    pair = met.ngroup().to_numpy()
    answer = np.select([votes["choice"].eq("a"), votes["choice"].eq("b")], [0, 1], default=2)
    prompt, texts = pd.factorize(votes["prompt"])
    shape = (len(texts), *empty.votes.shape)
    counted = np.bincount(
        np.ravel_multi_index((prompt, pair, answer), shape), minlength=np.prod(shape)
    )
    by_prompt = counted.reshape(shape)
    return replace(empty, votes=by_prompt.sum(axis=0).astype(float)), by_prompt
