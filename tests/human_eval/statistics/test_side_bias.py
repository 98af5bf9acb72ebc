import numpy as np
import pandas as pd
import pytest

from human_eval.statistics.side_bias import (
    side_adjusted,
    tabulate_side_adjusted,
    tabulate_side_bias,
    tabulate_undiluted,
)
from tests.human_eval.statistics.test_intervals import PROMPTS, RATERS, WINS
from tests.support.crowd import define_pair, make_votes


def test_a_preference_for_the_left_is_found():
    biased = tabulate_side_bias(make_votes(define_pair(), prompts=150, left=0.8))
    fair = tabulate_side_bias(make_votes(define_pair(), prompts=150))

    assert biased["low"].item() > 0.6
    assert fair["low"].item() < 0.5 < fair["high"].item()


def test_log_odds_within_prompts_are_the_published_ones():
    votes = pd.DataFrame(
        {"prompt": PROMPTS, "rater": RATERS, "choice": np.where(np.array(WINS) == 1, "a", "b")}
    )

    row = side_adjusted(votes)

    assert row["log_odds"] == pytest.approx(0.5108256237659908, abs=1e-6)
    assert row["error"] == pytest.approx(0.46613726585340076, abs=1e-6)
    assert row["correlation"] == pytest.approx(0.11111111111111117, abs=1e-6)


def test_sides_do_not_sway_the_adjusted_log_odds():
    votes = make_votes(define_pair(), prompts=200, left=1.0, prompt_spread=0, rater_spread=0)

    row = side_adjusted(votes, votes["side_a"].map({"left": 1, "right": -1}))

    assert abs(row["log_odds"]) < 2.5 * row["error"]
    assert row["side"] > 10 * row["side_error"]


def test_the_adjusted_rate_is_the_planted_one_whatever_the_side_does():
    votes = make_votes(
        define_pair(), prompts=400, rates={("C1", "Q1"): 0.7}, left=1.0, prompt_spread=0,
        rater_spread=0,
    )  # fmt: skip
    # Four of five times A stands on the left, where it wins more often than it deserves.
    kept = votes[(votes["side_a"] == "left") | (votes["vote_id"] % 4 == 0)]

    [row] = tabulate_side_adjusted(kept, define_pair()).to_dict("records")

    assert row["low"] < 0.7 < row["high"] < kept["choice"].eq("a").mean()
    assert row["note"] == ""


@pytest.mark.parametrize(
    "change, note",
    [
        ({"choice": "a"}, "always or never wins"),
        ({"side_a": "left"}, "always or never wins"),
        ({"choice": "tie"}, "always or never wins"),
        ({"prompt": "one"}, "fewer than 10 prompts"),
    ],
)
def test_what_no_model_can_tell_is_left_out_with_the_reason(change, note):
    votes = make_votes(define_pair(), prompts=30).assign(**change)

    [row] = tabulate_side_adjusted(votes, define_pair()).to_dict("records")

    assert note in row["note"]
    assert np.isnan(row["rate"])


def plant(truth: float, *, prompts: int = 300) -> pd.DataFrame:
    return make_votes(define_pair(), prompts=prompts, raters=40, rates={("C1", "Q1"): truth})


def test_the_rate_without_left_pressers_is_the_planted_one():
    votes = plant(0.8)
    pressing = votes["rater"].isin([f"r{number}" for number in range(12)])  # 30 % of the votes
    on_the_left = votes["side_a"].map({"left": "a", "right": "b"})
    diluted = votes.assign(choice=votes["choice"].mask(pressing, on_the_left))

    [row] = tabulate_undiluted(diluted, define_pair()).to_dict("records")

    assert row["error"] == pytest.approx(0.15, abs=0.03)  # half of the pressed answers are wrong
    assert row["rate"] == pytest.approx(0.71, abs=0.03)
    assert row["low"] < 0.8 < row["high"]
    assert row["undiluted"] == pytest.approx(0.8, abs=0.04)


def test_the_rate_without_adversaries_is_found_from_gold_pairs():
    votes = plant(0.8)
    adversary = votes["rater"].isin([f"r{number}" for number in range(8)])  # 20 % of the votes
    opposite = votes["choice"].map({"a": "b", "b": "a"})
    votes["choice"] = votes["choice"].mask(adversary, opposite)
    gold = votes[:300].assign(kind="gold", gold_answer="a")
    gold["choice"] = np.where(adversary[:300], "b", "a")

    [row] = tabulate_undiluted(pd.concat([votes, gold]), define_pair()).to_dict("records")

    assert row["gold"] == 300 and row["error"] == adversary[:300].mean()
    assert row["rate"] == pytest.approx(0.68, abs=0.03)
    assert row["undiluted"] == pytest.approx(
        (row["rate"] - row["error"]) / (1 - 2 * row["error"]), abs=1e-12
    )
    assert row["undiluted"] == pytest.approx(0.8, abs=0.05)


def test_careful_raters_have_nothing_undiluted_and_too_many_errors_are_refused():
    votes = plant(0.7, prompts=60)
    wrong = votes[:40].assign(kind="gold", gold_answer="a", choice="b")

    [careful] = tabulate_undiluted(votes, define_pair()).to_dict("records")
    [lost] = tabulate_undiluted(pd.concat([votes, wrong]), define_pair()).to_dict("records")

    assert careful["error"] == 0 and careful["undiluted"] == careful["rate"]
    assert np.isnan(lost["undiluted"]) and "half of the answers" in lost["note"]
