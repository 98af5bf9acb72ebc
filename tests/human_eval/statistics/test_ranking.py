from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.optimize import minimize

from human_eval.definition.definition import load_definition, parse_definition
from human_eval.statistics.ranking import rank_systems, tabulate_differences
from tests.support.crowd import define_pair, make_votes

THREE = """
name = "three"
systems = [{key = "x", title = "X"}, {key = "y", title = "Y"}, {key = "z", title = "Z"}]
comparisons = [
    {key = "C1", a = "x", b = "y"}, {key = "C2", a = "z", b = "y"}, {key = "C3", a = "x", b = "z"},
]
questions = [{key = "Q1", wording = "Which one?", primary = true, ties = "tie"}]
"""


def fit_by_hand(votes: pd.DataFrame, weights: np.ndarray) -> np.ndarray:
    """Return Davidson's strengths by direct maximum likelihood of weighted votes."""
    place = {"x": 0, "y": 1, "z": 2}
    first, second = (votes[side].map(place).to_numpy(int) for side in ("system_a", "system_b"))
    answer = votes["choice"].map({"a": 0, "b": 1, "tie": 2}).to_numpy(int)

    def surprise(parameters):
        strengths = np.append(parameters[:2], -parameters[:2].sum())
        gap = (strengths[first] - strengths[second]) / 2
        logits = np.column_stack([gap, -gap, np.full(len(gap), parameters[2])])
        chosen = logits[np.arange(len(gap)), answer]
        return weights @ (np.log(np.exp(logits).sum(axis=1)) - chosen)

    best = minimize(surprise, np.zeros(3), method="BFGS", options={"gtol": 1e-6}).x
    return np.append(best[:2], -best[:2].sum())


def test_strengths_and_errors_agree_with_leaving_out_one_rater_after_another():
    definition = parse_definition(THREE)
    rates = {("C1", "Q1"): 0.65, ("C3", "Q1"): 0.6}
    votes = make_votes(definition, prompts=60, raters=20, rates=rates, ties=0.2, rater_spread=0.8)
    votes = votes.assign(prompt="one")  # only raters vary

    table = rank_systems(votes).set_index("system")

    assert table.loc[["x", "y", "z"], "strength"].to_numpy() == pytest.approx(
        fit_by_hand(votes, np.ones(len(votes))), abs=1e-4
    )
    without = np.array(
        [fit_by_hand(votes, (votes["rater"] != rater) * 1.0) for rater in votes["rater"].unique()]
    )
    error = np.sqrt(19 / 20 * ((without - without.mean(axis=0)) ** 2).sum(axis=0))
    half = (table["high"] - table["low"]).loc[["x", "y", "z"]].to_numpy() / 2
    assert half / error == pytest.approx([2.1] * 3, rel=0.08)  # Student's t, about 19
    assert set(table["note"]) == {"one prompt only: says nothing about others"}


def test_differences_are_those_of_the_strengths_and_separate_neighbours():
    definition = parse_definition(THREE)
    rates = {("C1", "Q1"): 0.85, ("C3", "Q1"): 0.8}
    votes = make_votes(definition, prompts=80, raters=40, rates=rates)

    strengths = rank_systems(votes).set_index("system")["strength"]
    table = tabulate_differences(votes).set_index(["first", "second"])

    assert strengths.index[0] == "x" and table["difference"].min() >= 0
    for (first, second), row in table.iterrows():
        assert row["difference"] == pytest.approx(strengths[first] - strengths[second])
    assert table["neighbours"].sum() == 2
    top = table[table["neighbours"]].iloc[0]
    bottom = table[table["neighbours"]].iloc[1]
    assert top["separated"] and top["low"] > 0
    assert not bottom["separated"] and bottom["low"] < 0 < bottom["high"]
    assert (table["p_family"] >= table["p"]).all()


def test_families_that_never_met_are_ranked_apart():
    definition = load_definition("t2v-turbo")
    votes = make_votes(definition, prompts=20, rates={("C3", "Q3"): 0.8, ("C6", "Q3"): 0.8})

    table = rank_systems(votes[votes["question"] == "Q3"])

    groups = table.groupby("group")["system"].agg(set)
    families = [{definition.system(name).family for name in group} for group in groups]
    assert families == [{"ms"}, {"vc2"}]
    assert table.groupby("group")["strength"].sum().to_numpy() == pytest.approx([0, 0])
    assert (table["low"] <= table["strength"]).all() and (table["strength"] <= table["high"]).all()
    assert set(table["model"]) == {"Bradley-Terry"}


def test_ranking_says_when_it_needed_a_prior():
    definition = load_definition("t2v-turbo")
    votes = make_votes(definition, prompts=10)
    votes = votes[(votes["comparison"] == "C3") & (votes["question"] == "Q3")]

    table = rank_systems(votes.assign(choice="a"))

    assert set(table["prior"]) == {"0.5 wins each way"}
    assert list(table["system"]) == ["t2v-turbo-vc2-4", "vcm-vc2-4"]


def test_too_few_prompts_give_strengths_without_intervals():
    votes = make_votes(define_pair("raters_per_pair = 9"), prompts=4, prompt_spread=0)

    table = rank_systems(votes)

    assert table["strength"].notna().all()
    assert table[["low", "high"]].isna().all(axis=None)


def vote_frame(*cells: tuple[str, str, Sequence[str]]) -> pd.DataFrame:
    """Return votes of (system_a, system_b, choices), of 10 prompts and 7 raters in turn."""
    rows = [
        (f"{a}-{b}", a, b, choice, f"p{i % 10}", f"r{i % 7}")
        for a, b, choices in cells
        for i, choice in enumerate(choices)
    ]
    names = ["comparison", "system_a", "system_b", "choice", "prompt", "rater"]
    return pd.DataFrame(rows, columns=names).assign(question="Q1")


@pytest.mark.parametrize("number", range(5, 9))
def test_a_few_votes_that_agree_separate_nobody(number):
    [row] = tabulate_differences(vote_frame(("x", "y", "a" * number))).to_dict("records")

    # Each side has half a win more: strengths of independent votes have this standard error.
    error = np.sqrt(1 / (number + 0.5) + 1 / 0.5)
    df = min(number, 7) - 1
    assert row["difference"] == pytest.approx(np.log((number + 0.5) / 0.5))
    assert row["p"] == pytest.approx(2 * stats.t.sf(row["difference"] / error, df))
    assert row["low"] < 0 and not row["separated"]


def test_agreeing_votes_on_the_way_to_another_system_separate_nobody():
    votes = vote_frame(("x", "y", "aaaaa"), ("y", "z", "aabbb"))

    assert not tabulate_differences(votes)["separated"].any()


def test_many_votes_that_agree_separate_two_systems():
    [row] = tabulate_differences(vote_frame(("x", "y", "a" * 60))).to_dict("records")

    assert row["separated"] and row["low"] > 0


def test_ties_alone_leave_a_difference_open():
    [row] = tabulate_differences(vote_frame(("x", "y", ["tie"] * 12))).to_dict("records")

    assert row["low"] < -1 and row["high"] > 1
