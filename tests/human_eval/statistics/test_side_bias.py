import numpy as np
import pandas as pd
import pytest

from human_eval.statistics.side_bias import (
    side_adjusted,
    tabulate_side_adjusted,
    tabulate_side_bias,
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

    [row] = side_adjusted(votes).to_dict("records")

    assert row["log_odds"] == pytest.approx(0.5108256237659908, abs=1e-6)
    assert row["error"] == pytest.approx(0.46613726585340076, abs=1e-6)
    assert row["correlation"] == pytest.approx(0.11111111111111117, abs=1e-6)


def test_sides_do_not_sway_the_adjusted_log_odds():
    votes = make_votes(define_pair(), prompts=200, left=1.0, prompt_spread=0, rater_spread=0)

    [row] = side_adjusted(votes, votes["side_a"].map({"left": 1, "right": -1})).to_dict("records")

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
