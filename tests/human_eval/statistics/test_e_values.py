import numpy as np
import pytest
from scipy.stats import binom

from human_eval.definition.definition import load_definition
from human_eval.statistics.e_values import (
    anytime_interval,
    e_value,
    e_value_path,
    tabulate_decisions,
)
from human_eval.statistics.intervals import clustered_mean
from tests.support.crowd import define_pair, make_votes


@pytest.mark.parametrize(
    "prior, wins, losses, e",
    [
        (1, 60, 40, 0.91305),
        (1, 385, 315, 1.568339),
        (1, 420, 280, 61306.987581),
        (1, 55, 45, 0.204252),
        (10, 60, 40, 2.18659),
        (10, 385, 315, 4.997834),
        (10, 420, 280, 149281.170797),
        (10, 55, 45, 0.615305),
    ],
)
def test_e_value_is_the_published_one(prior, wins, losses, e):
    # Published to six decimals.
    assert e_value(wins, losses, prior=prior) == pytest.approx(e, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("votes", [1, 7, 40])
@pytest.mark.parametrize("prior", [1, 10])
def test_a_bet_on_a_fair_coin_is_worth_one(votes, prior):
    wins = np.arange(votes + 1)

    worth = (binom.pmf(wins, votes, 0.5) * e_value(wins, votes - wins, prior=prior)).sum()

    assert worth == pytest.approx(1)


@pytest.mark.parametrize("rate", [0.2, 0.9])
def test_a_bet_against_any_rate_is_worth_one_where_it_is_the_truth(rate):
    wins = np.arange(41)

    worth = (binom.pmf(wins, 40, rate) * e_value(wins, 40 - wins, null=rate)).sum()

    assert worth == pytest.approx(1)


@pytest.mark.parametrize("wins, losses", [(70, 30), (3, 400.5), (0, 50), (50, 0)])
def test_an_interval_for_any_time_ends_where_the_e_value_reaches_20(wins, losses):
    interval = anytime_interval(wins, losses)
    low, high = interval.low, interval.high

    assert 0 <= low < wins / (wins + losses) + 1e-9 and wins / (wins + losses) - 1e-9 < high <= 1
    ends = [end for end in (low, high) if 0 < end < 1]
    assert [e_value(wins, losses, null=end) for end in ends] == pytest.approx(
        [20] * len(ends), rel=1e-4
    )
    assert len(ends) == (2 if wins and losses else 1)


def test_a_bet_stays_fair_from_vote_to_vote():
    for wins, losses in [(0, 0), (3, 9), (50, 20)]:
        next_ones = e_value(wins + 1, losses) + e_value(wins, losses + 1)
        assert next_ones / 2 == pytest.approx(e_value(wins, losses))


def test_path_agrees_with_the_robust_variance_at_every_stage():
    votes = make_votes(define_pair(), prompts=80, raters=200)
    path = e_value_path(votes)

    for stop in (60, 150, 240):
        part = votes.iloc[:stop]
        clusters = {"prompt": part["prompt"], "rater": part["rater"]}
        mean = clustered_mean(part["choice"].eq("a"), clusters)
        rate = part["choice"].eq("a").mean()
        ratio = mean.error**2 / (rate * (1 - rate) / stop)
        found = path.loc[stop - 1, "design_effect"]
        # Student's widening makes it larger by little, one-way variances by no less than nothing.
        assert found == pytest.approx(max(ratio, 1), rel=0.25)
        assert found >= ratio


def test_resemblance_of_votes_lessens_the_evidence():
    votes = make_votes(define_pair(), prompts=60, raters=8, rates={("C1", "Q1"): 0.7})

    last = e_value_path(votes).iloc[-1]

    assert last["design_effect"] > 1
    assert 1 < last["e"] < last["e_independent"]


def test_path_does_not_depend_on_the_order_of_rows():
    votes = make_votes(define_pair())

    shuffled = e_value_path(votes.sample(frac=1, random_state=0))

    assert shuffled.equals(e_value_path(votes))


def test_only_the_primary_question_is_decided_and_stays_so():
    definition = load_definition("t2v-turbo")
    strong = {("C3", question): 0.85 for question in ("Q1", "Q2", "Q3")}
    votes = make_votes(definition, prompts=60, raters=60, rates=strong)

    table = tabulate_decisions(votes, definition).set_index(["comparison", "question"])

    assert table.loc[("C3", "Q3"), "decided"]
    assert table["decided"].sum() == 1
    assert table.loc[("C3", "Q3"), "threshold"] == pytest.approx(6 / 0.05)
    path = e_value_path(votes[(votes["comparison"] == "C3") & (votes["question"] == "Q3")])
    after = table.loc[("C3", "Q3"), "decided_after"]
    assert path["e"].iloc[after - 1] >= 120 > path["e"].iloc[: after - 1].max()


def test_nothing_is_bet_before_there_are_five_raters():
    votes = make_votes(define_pair(), prompts=40, raters=4, rates={("C1", "Q1"): 0.99})

    assert (e_value_path(votes)["e"] == 1).all()


def test_raters_who_all_agree_weigh_one_vote_each():
    votes = make_votes(define_pair(), prompts=200, raters=6).assign(choice="a")

    last = e_value_path(votes).iloc[-1]

    assert last["wins"] == 600
    # 2.571 is the 97.5 % point of Student's t with 5 degrees of freedom, from its table.
    assert last["design_effect"] == pytest.approx(100 * (2.571 / 1.96) ** 2, rel=1e-3)
    assert last["e"] < 2


def test_overwhelming_evidence_stays_a_number():
    assert 1e300 < e_value(60_000, 20_000) < np.inf
