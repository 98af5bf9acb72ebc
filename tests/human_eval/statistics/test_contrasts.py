import numpy as np
import pytest
import statsmodels.api as sm
from statsmodels.stats.proportion import confint_proportions_2indep, proportions_ztest

from human_eval.definition.definition import load_definition, parse_definition
from human_eval.statistics import contrasts
from human_eval.statistics.contrasts import tabulate_contrasts
from human_eval.statistics.win_rates import win_rates
from tests.support.crowd import make_votes

MET = """
name = "three"
systems = [{key = "x", title = "X"}, {key = "y", title = "Y"}, {key = "z", title = "Z"}]
comparisons = [
    {key = "C1", a = "x", b = "z"}, {key = "C2", a = "z", b = "y"}, {key = "C3", a = "x", b = "y"},
]
questions = [{key = "Q1", wording = "Which one?", primary = true}]
"""


def test_library_keeps_the_published_tests_of_two_shares():
    low, high = confint_proportions_2indep(420, 700, 385, 700, method="newcomb", compare="diff")
    z, p = proportions_ztest([420, 385], [700, 700])

    assert (low, high) == pytest.approx((-0.0017773683, 0.1014003318), abs=1e-6)
    assert (z, p) == pytest.approx((1.8922374745, 0.0584593476), abs=1e-6)


def test_an_opponent_is_found_on_either_side_and_its_meetings_are_named():
    definition = parse_definition(MET)
    votes = make_votes(definition, prompts=60, rates={("C1", "Q1"): 0.8})

    table = tabulate_contrasts(votes, definition).set_index("opponent")

    assert set(table.index) == {"x", "y", "z"}
    assert table.loc["z", "note"] == "compared directly in C3"
    assert (table.loc["z", "system_first"], table.loc["z", "system_second"]) == ("x", "y")
    lost = votes.loc[votes["comparison"] == "C2", "choice"].eq("b").mean()
    assert table.loc["z", "rate_second"] == pytest.approx(lost)


def test_only_systems_that_never_met_are_called_indirect():
    definition = load_definition("t2v-turbo")
    pairs = {frozenset((entry.a, entry.b)) for entry in definition.comparisons}

    table = tabulate_contrasts(make_votes(definition, prompts=20), definition)

    for row in table.to_dict("records"):
        together = frozenset((row["system_first"], row["system_second"])) in pairs
        assert ("never met" in row["note"]) != together


def test_the_difference_agrees_with_a_regression_clustered_by_prompt():
    definition = parse_definition(MET)
    votes = make_votes(definition, prompts=60, raters=600, rates={("C1", "Q1"): 0.7})
    votes["rater"] = np.arange(len(votes)).astype(str)  # every vote by a rater of its own

    row = tabulate_contrasts(votes, definition).set_index("opponent").loc["z"]

    both = votes[votes["comparison"].isin(["C1", "C2"])]
    first = both["comparison"].eq("C1").to_numpy(float)
    won = both["choice"].eq("a").to_numpy(float)
    won = np.where(first == 1, won, 1 - won)
    fit = sm.OLS(won, np.column_stack([np.ones(len(won)), first])).fit(
        cov_type="cluster", cov_kwds={"groups": both["prompt"].factorize()[0]}
    )
    assert row["difference"] == pytest.approx(fit.params[1])
    assert row["high"] - row["low"] == pytest.approx(2 * 2.0 * fit.bse[1], rel=0.1)
    assert fit.pvalues[1] < row["p"] < 1e-4  # Student's t instead of the normal distribution


def test_many_comparisons_are_contrasted_with_their_neighbours_only(monkeypatch):
    definition = load_definition("t2v-turbo")
    votes = make_votes(definition, prompts=20)
    monkeypatch.setattr(contrasts, "MAX_PAIRS", 1)

    table = tabulate_contrasts(votes, definition)

    assert 0 < len(table) <= 2 * len(definition.comparisons)


def test_a_comparison_without_votes_is_no_meeting():
    definition = parse_definition(MET)
    votes = make_votes(definition, prompts=20)

    [row] = tabulate_contrasts(votes[votes["comparison"] != "C3"], definition).to_dict("records")

    assert "never met" in row["note"]


def test_a_comparison_of_ties_alone_is_a_meeting():
    definition = parse_definition(MET.replace("primary", 'ties = "tie", primary'))
    votes = make_votes(definition, prompts=12)
    votes.loc[votes["comparison"] == "C3", "choice"] = "tie"

    [row] = tabulate_contrasts(votes, definition).to_dict("records")

    assert "C3" in row["note"]


@pytest.mark.parametrize("number, claimed", [(4, False), (5, False), (30, True)])
def test_few_votes_that_agree_are_no_different_from_an_even_split(number, claimed):
    definition = parse_definition(MET)
    votes = make_votes(definition, prompts=100, raters=40)
    places = votes.groupby(["comparison", "question"]).cumcount()
    votes["choice"] = np.where(places % 2, "a", "b")
    first = votes["comparison"] == "C1"
    votes.loc[first, "choice"] = "a"
    votes = votes[~first | (places < number)]

    row = tabulate_contrasts(votes, definition).set_index("opponent").loc["z"]

    assert row["difference"] == pytest.approx(0.5, abs=0.02)
    assert (row["p"] <= 0.05) == claimed == (row["low"] > 0)
    rates = win_rates(votes, definition).set_index("comparison")
    low, high = rates.loc["C1", "low"], 1 - rates.loc["C2", "low"]
    half = np.hypot(1 - low, high - row["rate_second"])
    assert row["low"] == pytest.approx(row["difference"] - half)
