import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.proportion import confint_proportions_2indep, proportions_ztest

from human_eval.definition.definition import load_definition, parse_definition
from human_eval.statistics.contrasts import CAVEAT, paired_p, prompts_won, tabulate_contrasts
from tests.human_eval.statistics.test_intervals import PROMPTS, WINS
from tests.support.crowd import make_votes


def test_paired_test_is_the_published_one():
    assert paired_p(np.array([[210, 55], [80, 155]])) == pytest.approx(0.038471500325522025)


def test_library_keeps_the_published_tests_of_two_shares():
    low, high = confint_proportions_2indep(420, 700, 385, 700, method="newcomb", compare="diff")
    z, p = proportions_ztest([420, 385], [700, 700])

    assert (low, high) == pytest.approx((-0.0017773683, 0.1014003318), abs=1e-6)
    assert (z, p) == pytest.approx((1.8922374745, 0.0584593476), abs=1e-6)


def choose(*choices: str) -> pd.DataFrame:
    """Return votes of one comparison, three on each of three prompts."""
    votes = make_votes(load_definition("t2v-turbo"), prompts=3)
    votes = votes[(votes["comparison"] == "C1") & (votes["question"] == "Q3")]
    return votes.sort_values("prompt_index").assign(choice=" ".join(choices).split())


def test_a_prompt_is_won_by_the_majority_and_a_split_by_nobody():
    won = prompts_won(choose("a a b", "b b tie", "a b tie"))["C1"]

    assert won[["prompt 0", "prompt 1"]].to_list() == [1, 0]
    assert np.isnan(won["prompt 2"])


def test_two_prompts_of_one_text_are_won_or_lost_together():
    votes = choose("a a b", "b b tie", "a b a")

    won = prompts_won(votes.assign(prompt=votes["prompt"].replace("prompt 1", "prompt 0")))["C1"]

    assert won.to_dict() == {"prompt 0": 0, "prompt 2": 1}


def test_majorities_of_24_votes_are_the_published_ones():
    choices = np.where(WINS, "a", "b")
    votes = pd.DataFrame({"prompt": PROMPTS, "comparison": "C1", "choice": choices})

    assert prompts_won(votes)["C1"].sum() == 6


def test_only_comparisons_with_a_common_opponent_are_contrasted():
    definition = load_definition("t2v-turbo")
    votes = make_votes(definition, prompts=80, rates={("C2", "Q3"): 0.9, ("C1", "Q3"): 0.4})

    table = tabulate_contrasts(votes, definition)

    assert list(zip(table["first"], table["second"], strict=True)) == [("C1", "C2"), ("C4", "C5")]
    row = table.iloc[0]
    assert row["only_second"] > row["only_first"]
    assert row["p_family"] == pytest.approx(2 * row["p"]) and row["p_family"] < 0.05
    assert row[["both", "only_first", "only_second", "neither"]].sum() == row["prompts"]


ROUND = """
name = "round"
systems = [{key = "x", title = "X"}, {key = "y", title = "Y"}, {key = "z", title = "Z"}]
comparisons = [
    {key = "C1", a = "x", b = "z"}, {key = "C2", a = "y", b = "z"}, {key = "C3", a = "y", b = "x"},
]
questions = [{key = "Q1", wording = "Which one?", primary = true}]
"""


def test_a_contrast_is_indirect_only_where_no_votes_compare_the_two():
    definition = parse_definition(ROUND)
    votes = make_votes(definition, prompts=10)

    [met] = tabulate_contrasts(votes, definition)["note"]
    [apart] = tabulate_contrasts(votes[votes["comparison"] != "C3"], definition)["note"]

    assert "C3" in met and "indirect" not in met
    assert apart == CAVEAT
