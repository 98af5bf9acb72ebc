import krippendorff
import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.inter_rater import fleiss_kappa

from human_eval.statistics.agreement import (
    answer_counts,
    fleiss,
    gwet_ac1,
    krippendorff_alpha,
    raw_agreement,
    tabulate_agreement,
    tabulate_majorities,
    weighted_alphas,
)
from tests.human_eval.statistics.test_intervals import PROMPTS, RATERS, WINS
from tests.support.crowd import define_pair, make_votes

CANONICAL = [  # four observers, twelve units
    "1,2,3,3,2,1,4,1,2,-,-,-",
    "1,2,3,3,2,2,4,1,2,5,-,3",
    "-,3,3,3,2,3,4,2,2,5,1,-",
    "1,2,3,3,2,4,4,1,2,5,1,-",
]
EIGHT_BY_THREE = "111,110,001,111,000,101,000,110".split(",")


def count(units: list[list[str]], values: str) -> np.ndarray:
    return np.array([[unit.count(value) for value in values] for unit in units])


def test_alpha_is_the_published_one():
    units = [list(unit) for unit in zip(*(row.split(",") for row in CANONICAL), strict=True)]

    alpha, note = krippendorff_alpha(count(units, "12345"))

    assert alpha == pytest.approx(0.743421052631579, abs=1e-9)
    assert note == ""


@pytest.mark.parametrize(
    "level, alpha", [("ordinal", 0.8153875037548814), ("interval", 0.8491071428571428)]
)
def test_the_library_keeps_its_published_alphas_of_ranks_and_numbers(level, alpha):
    ratings = [[np.nan if cell == "-" else float(cell) for cell in row.split(",")]
               for row in CANONICAL]  # fmt: skip

    found = krippendorff.alpha(reliability_data=ratings, level_of_measurement=level)

    assert found == pytest.approx(alpha, abs=1e-9)


def test_kappa_and_alpha_of_three_raters_are_the_published_ones():
    counts = count([list(unit) for unit in EIGHT_BY_THREE], "01")

    assert fleiss(counts)[0] == pytest.approx(0.32867132867132876, abs=1e-9)
    assert krippendorff_alpha(counts)[0] == pytest.approx(0.35664335664335667, abs=1e-9)


def test_kappa_of_fourteen_raters_is_the_published_one():
    # https://en.wikipedia.org/wiki/Fleiss%27_kappa, ten subjects, five categories
    counts = np.array(
        [
            *[[0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0]],
            *[[2, 2, 8, 1, 1], [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2]],
            *[[6, 5, 2, 1, 0], [0, 2, 2, 3, 7]],
        ]
    )

    assert fleiss(counts)[0] == pytest.approx(0.20993070442195522, abs=1e-9)
    assert fleiss(counts)[0] == fleiss_kappa(counts)


def test_agreement_of_24_votes_is_the_published_one():
    votes = pd.DataFrame({"prompt_index": PROMPTS, "rater": RATERS, "choice": WINS})
    counts = answer_counts(votes)

    assert krippendorff_alpha(counts)[0] == pytest.approx(0.14814814814814814, abs=1e-9)
    assert fleiss(counts)[0] == pytest.approx(0.11111111111111095, abs=1e-9)


def test_raw_agreement_is_the_share_of_equal_pairs_of_answers():
    # 3 of 3 pairs agree on the first unit, 1 of 3 on the second; the third has one answer.
    assert raw_agreement(np.array([[3, 0], [2, 1], [0, 1]])) == pytest.approx(4 / 6)
    assert np.isnan(raw_agreement(np.array([[1, 0]])))


@pytest.mark.parametrize(
    "counts, reason",
    [([[3, 0], [2, 0]], "every answer is the same"), ([[1, 0], [0, 1]], "no pair")],
)
def test_undefined_agreement_is_explained(counts, reason):
    alpha, note = krippendorff_alpha(np.array(counts))

    assert np.isnan(alpha)
    assert "undefined" in note and reason in note


def test_kappa_of_uneven_numbers_of_answers_is_explained():
    kappa, note = fleiss(np.array([[3, 0], [1, 1]]))

    assert np.isnan(kappa)
    assert "differs between pairs" in note


def test_table_brackets_alpha_and_names_every_cell():
    votes = make_votes(define_pair(), prompts=60, prompt_spread=1.0)

    [row] = tabulate_agreement(votes, define_pair()).to_dict("records")

    assert (row["comparison"], row["question"], row["pairs"], row["answers"]) == (
        *("C1", "Q1", 60, 180),
    )
    assert row["alpha_low"] < row["alpha"] < row["alpha_high"]
    assert 0.5 < row["raw"] < 1


def test_ac1_of_two_raters_is_the_published_one_where_kappa_is_negative():
    # Gwet (2002), "Kappa statistic is not satisfactory for assessing the extent of agreement":
    # 118 patients +/+, 5 +/-, 2 -/+, none -/-. p_a = 118/125; p_+ = (123 + 120)/250 = 0.972,
    # p_e = 2 * 0.972 * 0.028 = 0.054432, AC1 = (0.944 - 0.054432) / 0.945568.
    counts = np.array([[2, 0]] * 118 + [[1, 1]] * 7)

    assert gwet_ac1(counts, 2) == pytest.approx(0.9408, abs=5e-5)
    assert gwet_ac1(counts, 2) == pytest.approx(0.889568 / 0.945568, abs=1e-12)
    assert krippendorff_alpha(counts)[0] < 0


def test_ac1_of_four_raters_with_gaps_is_the_published_one():
    # Gwet's R package irrCAC, gwet.ac1.raw(cac.raw4raters): 0.77544, with the same 12 units.
    units = [list(unit) for unit in zip(*(row.split(",") for row in CANONICAL), strict=True)]

    assert gwet_ac1(count(units, "12345"), 5) == pytest.approx(0.77544, abs=5e-6)


def test_ac1_is_perfect_where_alpha_is_undefined_and_missing_without_overlap():
    assert gwet_ac1(np.array([[3], [2]]), 2) == 1
    assert np.isnan(gwet_ac1(np.array([[1, 0], [0, 1]]), 2))


def test_alpha_of_lopsided_answers_is_explained():
    votes = make_votes(define_pair(), prompts=60, rates={("C1", "Q1"): 0.95})

    [row] = tabulate_agreement(votes, define_pair()).to_dict("records")

    assert row["alpha"] < 0.3 < 0.8 < row["ac1"] and row["raw"] > 0.8
    assert "of the answers are the same" in row["note"]
    assert np.isfinite(row["alpha_low"])


def test_majorities_are_counted_by_pair_and_a_split_or_a_tie_counts_for_neither():
    votes = make_votes(define_pair(), prompts=5).sort_values("prompt_index", ignore_index=True)
    choices = ["a", "a", "b", "b", "b", "b", "a", "b", "tie", "tie", "tie", "a", "a", "a", "tie"]

    [row] = tabulate_majorities(votes.assign(choice=choices), define_pair()).to_dict("records")

    assert row == {
        "comparison": "C1", "pairs": 5, "majority_a": 2, "majority_b": 1, "majority_none": 2
    }  # fmt: skip


def test_alphas_of_resamples_are_those_of_the_krippendorff_package():
    rng = np.random.default_rng(3)
    counts = rng.integers(0, 4, size=(40, 3)) + np.eye(3, dtype=int)[rng.integers(3, size=40)]
    counts = counts[counts.sum(axis=1) > 1]
    weights = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=5)

    alphas = weighted_alphas(counts, weights)

    for row, alpha in zip(weights, alphas, strict=True):
        drawn = counts.repeat(row, axis=0)
        assert alpha == pytest.approx(
            krippendorff.alpha(value_counts=drawn, level_of_measurement="nominal"), abs=1e-12
        )


def test_a_resample_without_variation_has_no_alpha():
    counts = np.array([[3, 0], [1, 2]])

    alphas = weighted_alphas(counts, np.array([[2, 0], [1, 1]]))

    assert np.isnan(alphas[0]) and np.isfinite(alphas[1])
