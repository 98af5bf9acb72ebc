import gc
from itertools import chain, combinations

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.multitest import multipletests

from human_eval.definition.definition import load_definition
from human_eval.statistics.win_rates import (
    adjust_family,
    category_rates,
    half_wins,
    holm,
    win_rates,
)
from tests.support.crowd import define_pair, make_votes

P = [0.001, 0.008, 0.012, 0.021, 0.039, 0.041, 0.060, 0.074, 0.205, 0.5]
HOLM = [0.01, 0.072, 0.096, 0.147, 0.234, 0.234, 0.24, 0.24, 0.41, 0.5]
DISCOVERY = [
    *[0.01, 0.04, 0.04, 0.0525, 0.068333, 0.068333, 0.085714, 0.0925, 0.227778, 0.5],
]


def choose(wins: int, losses: int, ties: int) -> pd.DataFrame:
    """Return so many votes, each by a rater and on a prompt of its own."""
    total = wins + losses + ties
    votes = make_votes(define_pair("raters_per_pair = 1"), prompts=total, raters=total)
    return votes.assign(
        choice=["a"] * wins + ["b"] * losses + ["tie"] * ties,
        rater=[f"r{number}" for number in range(total)],
    )


def test_ties_stay_out_of_the_rate_and_are_reported():
    [row] = win_rates(choose(300, 250, 150), define_pair()).to_dict("records")

    assert row["rate"] == pytest.approx(0.5454545454545454)
    assert row["half_tie_rate"] == pytest.approx(0.5357142857142857)
    assert row["net"] == pytest.approx(0.07142857142857142)
    assert row["sign_p"] == pytest.approx(0.036578745549102676)
    assert row["tie_share"] == pytest.approx(150 / 700)


def test_a_cell_of_ties_claims_nothing():
    [row] = win_rates(choose(0, 0, 20), define_pair()).to_dict("records")

    assert np.isnan(row["rate"])
    assert (row["low"], row["high"], row["p"], row["claim"]) == (0, 1, 1, "")


def test_one_question_is_adjusted_by_holm():
    table = pd.DataFrame({"comparison": list("abcdefghij"), "primary": True, "p": P})

    assert adjust_family(table) == pytest.approx(HOLM, abs=1e-6)


@pytest.mark.parametrize("count", [0, 1, 2, 9])
def test_holm_is_that_of_statsmodels(count):
    p = np.random.default_rng(count).beta(0.3, 1, size=count).round(2)  # with ties

    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])


def test_a_table_of_win_rates_leaves_the_collector_of_garbage_alone(monkeypatch):
    """Beside loaded models it takes a third of a second, in which nobody is answered."""
    runs = []
    monkeypatch.setattr(gc, "collect", lambda *_: runs.append(1))

    win_rates(make_votes(load_definition("t2v-turbo"), prompts=10), load_definition("t2v-turbo"))

    assert not runs


def test_comparisons_without_votes_yet_count_in_the_family():
    definition = load_definition("t2v-turbo")
    votes = make_votes(definition, prompts=40, rates={("C1", "Q3"): 0.7})
    alone = votes[votes["comparison"] == "C1"]

    row = win_rates(alone, definition).set_index("question").loc["Q3"]

    assert row["p_family"] == pytest.approx(6 * row["p"])


def test_one_rater_alone_claims_nothing():
    votes = make_votes(define_pair(), prompts=80, rates={("C1", "Q1"): 0.9}).assign(rater="me")

    [row] = win_rates(votes, define_pair()).to_dict("records")

    assert row["sign_p"] < 1e-6
    assert row["claim"] == "" and "one rater only" in row["note"]


def test_categories_are_adjusted_for_discoveries():
    assert multipletests(P, method="fdr_bh")[1] == pytest.approx(DISCOVERY, abs=1e-6)


def closed_test(p: np.ndarray) -> np.ndarray:
    """Adjust p (comparison x question, the first primary) by testing every intersection."""
    places = [(row, column) for row in range(p.shape[0]) for column in range(p.shape[1])]
    subsets = chain.from_iterable(combinations(places, size) for size in range(1, len(places) + 1))
    adjusted = np.zeros(p.shape)
    for subset in subsets:
        rows = {}
        for row, column in subset:
            rows.setdefault(row, []).append(column)
        local = [
            p[row, 0] if 0 in columns else len(columns) * min(p[row, column] for column in columns)
            for row, columns in rows.items()
        ]
        joint = min(1.0, len(local) * min(local))
        for place in subset:
            adjusted[place] = max(adjusted[place], joint)
    return adjusted


@pytest.mark.parametrize("seed", range(12))
def test_family_is_that_of_the_closed_test(seed):
    p = np.random.default_rng(seed).beta(0.3, 3, size=(3, 3))
    table = pd.DataFrame(
        {
            "comparison": np.repeat(["C1", "C2", "C3"], 3),
            "primary": [True, False, False] * 3,
            "p": p.ravel(),
        }
    )

    assert adjust_family(table).reshape(3, 3) == pytest.approx(closed_test(p))


def test_order_of_rows_does_not_matter_to_the_family():
    p = np.random.default_rng(5).beta(0.3, 3, 9)
    columns = {"comparison": np.repeat(["C1", "C2", "C3"], 3), "primary": [True, False, False] * 3}
    table = pd.DataFrame({**columns, "p": p})
    order = np.random.default_rng(1).permutation(9)

    assert adjust_family(table.iloc[order]) == pytest.approx(adjust_family(table)[order])


def test_a_claim_needs_both_tests_and_names_the_winner():
    definition = load_definition("t2v-turbo")
    votes = make_votes(definition, prompts=40, rates={("C3", "Q3"): 0.85, ("C6", "Q3"): 0.15})

    table = win_rates(votes, definition).set_index(["comparison", "question"])

    assert table.loc[("C3", "Q3"), "claim"] == "t2v-turbo-vc2-4"
    assert table.loc[("C6", "Q3"), "claim"] == "vcm-ms-4"
    assert (table["p"] >= table[["sign_p", "robust_p"]].max(axis=1)).all()
    assert list(table.index) == [(f"C{c}", f"Q{q}") for c in range(1, 7) for q in range(1, 4)]


def test_a_secondary_question_waits_for_the_primary_one():
    definition = load_definition("t2v-turbo")
    votes = make_votes(definition, prompts=40, rates={("C1", "Q1"): 0.95})

    table = win_rates(votes, definition).set_index(["comparison", "question"])

    assert table.loc[("C1", "Q1"), "p"] < 1e-6
    assert table.loc[("C1", "Q1"), "claim"] == ""


def test_swapping_the_systems_swaps_the_result():
    votes = make_votes(define_pair(), rates={("C1", "Q1"): 0.7})
    swapped = votes.assign(choice=votes["choice"].map({"a": "b", "b": "a"}))

    [ours], [theirs] = (
        win_rates(frame, define_pair()).to_dict("records") for frame in (votes, swapped)
    )

    assert theirs["rate"] == pytest.approx(1 - ours["rate"])
    assert theirs["low"] == pytest.approx(1 - ours["high"])
    assert theirs["p"] == pytest.approx(ours["p"])


def test_a_prompt_in_two_categories_counts_in_both():
    table = category_rates(make_votes(define_pair(), prompts=30), define_pair())

    votes = dict(zip(table["category"], table["votes"], strict=True))
    assert votes == {"action": 30, "count": 30, "face": 30, "none": 30}


def test_half_wins_count_neither_as_a_half():
    votes = pd.DataFrame({"choice": ["a", "b", "tie", "both_bad"]})

    assert list(half_wins(votes)) == [1, 0, 0.5, 0.5]
