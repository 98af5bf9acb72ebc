"""One scale for many systems: Bradley-Terry and Davidson, for those that are linked by votes."""

from collections.abc import Iterator

import evalica
import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from human_eval.errors import StudyError

TOLERANCE, LIMIT = 1e-10, 10_000  # of the iterations
PRIOR_VOTES = 0.5  # wins added each way to every pair that met, where the votes alone diverge
RESAMPLES = 200


def rank_systems(votes: pd.DataFrame, *, seed: int = 0, resamples: int = RESAMPLES) -> pd.DataFrame:
    """Tabulate the strength of every system, by question and connected group of systems.

    A strength is a natural logarithm: between two systems with the difference d, the first wins
    1 / (1 + exp(-d)) of the decisive votes. Strengths of a group sum to zero; those of different
    groups cannot be compared, since no votes link them.

    Where some systems never lose to others, the most likely strengths are infinite; then half a
    win each way is added to every pair that met, and `prior` says so.

    Returns:
        Columns question, group, system, strength, low, high (95 %, resampling prompts), votes,
        model ("Bradley-Terry", or "Davidson" where there are ties), tie (Davidson's nu), prior.

    Source: Bradley and Terry (1952), Biometrika 39, 324-345; Davidson (1970), JASA 65, 317-328.
    """
    rng = np.random.default_rng(seed)
    rows: list[pd.DataFrame] = []
    for question, cell in votes.groupby("question", observed=True):
        for number, group in enumerate(connected_groups(cell)):
            table = _rank(cell[cell["system_a"].isin(group)], rng, resamples)
            table.insert(0, "question", question)
            table.insert(1, "group", number + 1)
            rows.append(table)
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()


def connected_groups(votes: pd.DataFrame) -> Iterator[list[str]]:
    """Yield the groups of systems that met, directly or through others, in order of name."""
    meetings = votes[["system_a", "system_b"]].drop_duplicates().astype(str)
    names = sorted(set(meetings["system_a"]) | set(meetings["system_b"]))
    label = _components(names, meetings["system_a"], meetings["system_b"], strong=False)
    for number in dict.fromkeys(label):
        yield [name for name, its in zip(names, label, strict=True) if its == number]


def _components(names: list[str], starts: pd.Series, ends: pd.Series, *, strong: bool) -> list[int]:
    place = {name: number for number, name in enumerate(names)}
    links = (np.ones(len(starts)), (starts.map(place), ends.map(place)))
    graph = coo_array(links, shape=(len(names), len(names)))
    kind = "strong" if strong else "weak"
    return list(connected_components(graph, directed=True, connection=kind)[1])


def _rank(votes: pd.DataFrame, rng: np.random.Generator, resamples: int) -> pd.DataFrame:
    cells, counts = _count(votes)
    tallies = cells.assign(votes=counts.sum(axis=0))
    prior = not has_finite_strengths(tallies)
    fitted, nu = fit_strengths(tallies, prior=prior)
    prompts = len(counts)
    draws = []
    for weights in rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples):
        resampled = cells.assign(votes=weights @ counts)
        infinite = prior or not has_finite_strengths(resampled)
        draws.append(fit_strengths(resampled, prior=infinite)[0].reindex(fitted.index))
    low, high = np.quantile(draws, [0.025, 0.975], axis=0) if draws else (np.nan, np.nan)
    met = pd.concat([votes["system_a"], votes["system_b"]]).value_counts()
    return pd.DataFrame(
        {
            "system": fitted.index,
            "strength": fitted.to_numpy(),
            "low": low,
            "high": high,
            "votes": met.reindex(fitted.index).to_numpy(),
            "model": "Davidson" if nu else "Bradley-Terry",
            "tie": nu,
            "prior": f"{PRIOR_VOTES:g} wins each way" if prior else "",
        }
    ).sort_values("strength", ascending=False, kind="stable")


def _count(votes: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """Count the votes by prompt (rows) and by pair of systems and answer (columns)."""
    answer = votes["choice"].map({"a": "a", "b": "b", "tie": "tie", "both_bad": "tie"})
    keys = votes[["system_a", "system_b"]].astype(str).assign(answer=answer)
    cells = keys.groupby(list(keys.columns), sort=True)
    prompt, _ = pd.factorize(votes["prompt"])
    shape = (int(prompt.max()) + 1, cells.ngroups)
    place = np.ravel_multi_index((prompt, cells.ngroup().to_numpy()), shape)
    counts = np.bincount(place, minlength=shape[0] * shape[1]).reshape(shape)
    return cells.size().index.to_frame(index=False), counts


def has_finite_strengths(tallies: pd.DataFrame) -> bool:
    """Return whether finite strengths are most likely: every system beats every other in a chain.

    A tie counts as a win each way. Without such chains the library returns nonsense in silence.

    Args:
        tallies: columns system_a, system_b, answer ("a", "b" or "tie") and votes.
    """
    tallies = tallies[tallies["votes"] > 0]
    names = sorted(set(tallies["system_a"]) | set(tallies["system_b"]))
    a_beats = tallies[tallies["answer"] != "b"]
    b_beats = tallies[tallies["answer"] != "a"]
    winners = pd.concat([a_beats["system_a"], b_beats["system_b"]])
    losers = pd.concat([a_beats["system_b"], b_beats["system_a"]])
    return len(set(_components(names, winners, losers, strong=True))) == 1


def fit_strengths(tallies: pd.DataFrame, *, prior: bool = False) -> tuple[pd.Series, float]:
    """Return the most likely log strengths, centred, and Davidson's nu (0 without ties).

    Args:
        tallies: columns system_a, system_b, answer ("a", "b" or "tie") and votes.
        prior: add half a win each way to every pair that met.

    Raises:
        StudyError: the strengths are infinite and `prior` is not set.
    """
    tallies = tallies[tallies["votes"] > 0]
    if prior:
        tallies = pd.concat([tallies, _prior(tallies)])
    elif not has_finite_strengths(tallies):
        raise StudyError(
            "Expected every system to win and lose, directly or through others, got some that "
            "never lose. Collect more votes, or rank them with a prior."
        )
    words = {"a": evalica.Winner.X, "b": evalica.Winner.Y, "tie": evalica.Winner.Draw}
    has_ties = bool(tallies["answer"].eq("tie").any())
    fit = (evalica.newman if has_ties else evalica.bradley_terry)(
        tallies["system_a"].tolist(),
        tallies["system_b"].tolist(),
        [words[answer] for answer in tallies["answer"]],
        weights=tallies["votes"].astype(float).tolist(),
        tolerance=TOLERANCE,
        limit=LIMIT,
    )
    strengths = np.log(fit.scores)
    # The library's tie parameter is half of Davidson's.
    return strengths - strengths.mean(), 2 * float(fit.v) if has_ties else 0.0


def _prior(tallies: pd.DataFrame) -> pd.DataFrame:
    pairs = tallies[["system_a", "system_b"]].drop_duplicates()
    added = [pairs.assign(answer=answer, votes=PRIOR_VOTES) for answer in ("a", "b")]
    return pd.concat(added)
