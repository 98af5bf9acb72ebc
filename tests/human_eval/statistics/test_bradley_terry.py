import evalica
import numpy as np
import pytest
from scipy.special import expit
from statsmodels.miscmodels.ordinal_model import OrderedModel

from human_eval.statistics.bradley_terry import (
    Tallies,
    fit_strengths,
    has_finite_strengths,
)

WINS = [
    *[("A", "B", "a", 30), ("A", "B", "b", 20), ("A", "C", "a", 35)],
    *[("A", "C", "b", 15), ("B", "C", "a", 28), ("B", "C", "b", 22)],
]
TIES = [("A", "B", "tie", 10), ("A", "C", "tie", 12), ("B", "C", "tie", 9)]
UNBEATEN = [
    *[("A", "B", "a", 10), ("A", "C", "a", 10), ("B", "C", "a", 5), ("B", "C", "b", 5)],
]


def test_bradley_terry_strengths_are_the_published_ones():
    strengths, nu = fit_strengths(Tallies.count(WINS))

    assert strengths.to_dict() == pytest.approx(
        {"A": 0.41501, "B": -0.055387, "C": -0.359623}, abs=1e-6
    )
    assert expit(strengths["A"] - strengths["B"]) == pytest.approx(0.615478, abs=1e-6)
    assert nu == 0


def test_twenty_two_games_give_the_published_strengths():
    # https://en.wikipedia.org/wiki/Bradley-Terry_model; strengths with geometric mean 1
    games = {"AB": 2, "BA": 3, "AD": 1, "DA": 4, "BC": 5, "CB": 3, "CD": 1, "DC": 3}

    strengths, _ = fit_strengths(Tallies.count((*pair, "a", n) for pair, n in games.items()))

    assert np.exp(strengths).to_dict() == pytest.approx(
        {"A": 0.639835, "B": 1.043314, "C": 0.65981, "D": 2.270377}, abs=1e-6
    )


def test_davidson_strengths_and_ties_are_the_published_ones():
    strengths, nu = fit_strengths(Tallies.count(WINS + TIES))

    assert strengths.to_dict() == pytest.approx(
        {"A": 0.407184, "B": -0.053736, "C": -0.353449}, abs=1e-6
    )
    assert nu == pytest.approx(0.428638, abs=1e-6)


def test_davidson_strengths_are_the_most_likely_ones():
    strengths, nu = fit_strengths(Tallies.count(WINS + TIES))

    def surprise(strengths, nu):
        total = 0.0
        for first, second, answer, votes in WINS + TIES:
            a, b = np.exp(strengths[first]), np.exp(strengths[second])
            weight = {"a": a, "b": b, "tie": nu * np.sqrt(a * b)}
            total -= votes * np.log(weight[answer] / sum(weight.values()))
        return total

    best = surprise(strengths, nu)
    assert best == pytest.approx(181.534849, abs=1e-6)
    assert surprise(strengths + [0.01, -0.01, 0.0], nu) > best
    assert surprise(strengths, nu * 1.05) > best


def test_half_a_win_for_a_tie_gives_the_published_strengths():
    halves = [(a, b, side, n / 2) for a, b, _, n in TIES for side in ("a", "b")]

    strengths, _ = fit_strengths(Tallies.count(WINS + halves))

    assert strengths.to_dict() == pytest.approx(
        {"A": 0.334623, "B": -0.044159, "C": -0.290465}, abs=1e-6
    )


def test_another_model_of_ties_ranks_alike():
    """Rao and Kupper's model is an ordered logit, each vote being seen from both sides."""
    design, outcome = [], []
    for first, second, answer, votes in WINS + TIES:
        row = np.array([float(name == first) - float(name == second) for name in "AB"])
        place = {"b": 0, "tie": 1, "a": 2}[answer]
        design += [row, -row] * votes
        outcome += [place, 2 - place] * votes

    model = OrderedModel(np.array(outcome), np.array(design), distr="logit")
    fit = model.fit(method="bfgs", disp=0, gtol=1e-8)

    strengths = np.array([*fit.params[:2], 0.0])
    _, low, high, _ = model.transform_threshold_params(fit.params)
    assert strengths - strengths.mean() == pytest.approx([0.340462, -0.044637, -0.295825], abs=1e-6)
    assert np.exp((high - low) / 2) == pytest.approx(1.439123, abs=1e-6)
    assert -fit.llf / 2 == pytest.approx(181.605796, abs=1e-6)
    ours, _ = fit_strengths(Tallies.count(WINS + TIES))
    assert list(ours.sort_values().index) == list("CBA")


def test_the_library_keeps_its_published_elo():
    x, draw = evalica.Winner.X, evalica.Winner.Draw

    scores = evalica.elo(
        ["pizza", "sushi", "pizza"], ["burger", "burger", "sushi"], [x, x, draw], k=4
    ).scores

    assert scores.to_dict() == pytest.approx(
        {"pizza": 1001.999934, "sushi": 1001.988553, "burger": 996.011513}, abs=1e-6
    )


def test_an_unbeaten_system_is_refused_without_a_prior():
    assert not has_finite_strengths(Tallies.count(UNBEATEN))
    with pytest.raises(ValueError, match="never lose"):
        fit_strengths(Tallies.count(UNBEATEN))


def test_a_prior_keeps_an_unbeaten_system_finite_and_first():
    strengths, _ = fit_strengths(Tallies.count(UNBEATEN), prior=True)

    assert strengths.idxmax() == "A"
    assert 1 < strengths["A"] < 5
    assert strengths["B"] == pytest.approx(strengths["C"])
