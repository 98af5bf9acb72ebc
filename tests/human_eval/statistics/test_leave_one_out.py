import numpy as np
import pytest

from human_eval.statistics.leave_one_out import tabulate_leave_one_out
from tests.support.crowd import define_pair, make_votes


def test_the_rates_without_one_rater_are_those_of_the_other_votes():
    votes = make_votes(define_pair(), prompts=40, raters=6, rates={("C1", "Q1"): 0.6})

    [row] = tabulate_leave_one_out(votes, define_pair()).to_dict("records")

    others = {
        rater: votes.loc[votes["rater"] != rater, "choice"].eq("a").mean()
        for rater in votes["rater"].unique()
    }
    assert row["lowest"] == pytest.approx(min(others.values()))
    assert row["highest"] == pytest.approx(max(others.values()))
    assert abs(others[row["rater"]] - row["rate"]) == max(
        abs(rate - row["rate"]) for rate in others.values()
    )
    assert row["busiest"] == votes["rater"].value_counts(normalize=True).max()


def test_a_result_that_hangs_on_one_rater_is_seen():
    votes = make_votes(define_pair("raters_per_pair = 1"), prompts=60, raters=60)
    partisan = votes["vote_id"] <= 20
    votes["rater"] = votes["rater"].mask(partisan, "partisan")
    votes["choice"] = np.where(partisan | (votes["vote_id"] % 5 < 2), "a", "b")

    [row] = tabulate_leave_one_out(votes, define_pair()).to_dict("records")

    assert (row["rater"], row["turns"]) == ("partisan", 1)
    assert row["lowest"] < 0.5 < row["rate"]


def test_one_rater_alone_cannot_be_left_out():
    votes = make_votes(define_pair(), prompts=10).assign(rater="me")

    [row] = tabulate_leave_one_out(votes, define_pair()).to_dict("records")

    assert row["raters"] == 1 and np.isnan(row["rate"])


def test_a_winner_who_without_one_rater_only_draws_turns_too():
    votes = make_votes(define_pair("raters_per_pair = 1"), prompts=30, raters=30)
    others = votes["vote_id"] > 10
    votes["rater"] = votes["rater"].where(others, "busy")
    votes["choice"] = np.where(others & (votes["vote_id"] % 2 == 0), "b", "a")

    [row] = tabulate_leave_one_out(votes, define_pair()).to_dict("records")

    assert row["lowest"] == 0.5 and row["turns"] >= 1
