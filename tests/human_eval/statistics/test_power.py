from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from human_eval.definition.definition import load_definition
from human_eval.statistics.e_values import e_value
from human_eval.statistics.power import (
    design_effect,
    detectable_rate,
    exact_power,
    forecast_decisions,
    forecast_power,
    plan_study,
    smallest_win,
    votes_needed,
    votes_to_decide,
)
from tests.support.crowd import define_pair, make_votes

EIGHTEENTH = 0.05 / 18


@pytest.mark.parametrize(
    "rate, needed",
    [
        (0.51, [19620, 26265, 36726, 45639]),
        (0.52, [4904, 6563, 9179, 11406]),
        (0.53, [2178, 2915, 4078, 5067]),
        (0.55, [783, 1047, 1466, 1821]),
        (0.6, [194, 259, 365, 451]),
        (0.65, [85, 113, 160, 198]),
        (0.7, [47, 62, 89, 109]),
    ],
)
def test_votes_needed_are_the_published_ones(rate, needed):
    settings = [(level, power) for level in (0.05, EIGHTEENTH) for power in (0.8, 0.9)]

    found = [votes_needed(rate, level=level, power=power) for level, power in settings]

    assert found == pytest.approx(needed, abs=1)


def test_exact_numbers_are_the_published_ones():
    for rate, power, needed in [(0.55, 0.8, 820), (0.55, 0.9, 1080), (0.6, 0.8, 210)]:
        assert exact_power(rate, needed - 1) < power  # the last number that is too few
        assert all(exact_power(rate, needed + more) >= power for more in range(200))
    assert [smallest_win(700), smallest_win(700, level=EIGHTEENTH)] == [377, 391]
    powers = [exact_power(0.55, n, level=a) for n in (700, 1400, 2100) for a in (0.05, EIGHTEENTH)]
    assert powers == pytest.approx([0.741, 0.338, 0.959, 0.766, 0.995, 0.940], abs=5e-4)


def test_detectable_rates_are_the_published_ones():
    levels = (0.05, 0.05 / 6, EIGHTEENTH)

    assert [detectable_rate(700, level=level) for level in levels] == pytest.approx(
        [0.5537, 0.5665, 0.5736], abs=5e-5
    )
    found = [detectable_rate(n, level=a) for n in (2100, 3500) for a in (0.05, EIGHTEENTH)]
    assert found == pytest.approx([0.5308, 0.5422, 0.5238, 0.5324], abs=5e-5)
    assert detectable_rate(3) == 1  # three of three is no evidence


def test_smallest_win_is_significant_and_one_less_is_not():
    for votes in (10, 57, 700):
        wins = smallest_win(votes)
        assert 2 * binom.sf(wins - 1, votes, 0.5) <= 0.05 < 2 * binom.sf(wins - 2, votes, 0.5)


@pytest.mark.parametrize(
    "k, correlation, effective", [(3, 0.1, 1750), (3, 0.2, 1500), (3, 0.5, 1050), (5, 0.3, 1591)]
)
def test_effective_votes_are_the_published_ones(k, correlation, effective):
    assert 700 * k / design_effect(k, correlation) == pytest.approx(effective, abs=1)


@pytest.mark.parametrize("rate, mean", [(0.6, 210), (0.65, 105), (0.7, 62)])
def test_votes_to_decide_are_near_the_published_ones(rate, mean):
    found = votes_to_decide(np.full(400, rate), 20, np.random.default_rng(0))

    assert found.mean() == pytest.approx(mean, rel=0.15)


def test_an_even_match_is_hardly_ever_decided():
    found = votes_to_decide(np.full(60, 0.5), 20, np.random.default_rng(0))

    assert np.isinf(found).mean() > 0.9
    with pytest.raises(ValueError, match="other than 0.5"):
        votes_needed(0.5)


@pytest.mark.parametrize(
    "k, assignments, pay, fee, hours",
    [(1, 4200, 840, 168, 35), (3, 12_600, 2520, 504, 105), (5, 21_000, 4200, 840, 175)],
)
def test_plan_adds_up_to_the_published_costs(k, assignments, pay, fee, hours):
    preset = load_definition("t2v-turbo")
    definition = replace(
        preset,
        raters_per_pair=k,
        checks=replace(preset.checks, gold_share=0.0, mirror_share=0.0),
        pay=replace(preset.pay, platform_fee=0.2),
    )

    plan = plan_study(definition, prompts=700)

    assert (plan.pairs, plan.assignments, plan.votes) == (4200, assignments, 3 * assignments)
    assert (plan.pay, plan.fee, plan.hours) == pytest.approx((pay, fee, hours))
    assert plan.total == pytest.approx(pay + fee)


def test_checks_cost_assignments():
    definition = load_definition("t2v-turbo")
    checks = replace(definition.checks, gold_share=0.05, mirror_share=0.05)

    plan = plan_study(replace(definition, checks=checks), prompts=700)

    assert plan.assignments == 14_000


def test_power_grows_with_the_win_rate():
    table = forecast_power(load_definition("t2v-turbo"), prompts=700)

    assert table["power"].is_monotonic_increasing
    assert (table["power_family"] <= table["power"]).all()
    assert table["votes_needed"].is_monotonic_decreasing


def test_forecast_knows_what_is_decided_and_what_is_near():
    definition = define_pair()
    clear = make_votes(definition, prompts=60, raters=60, rates={("C1", "Q1"): 0.9})
    close = make_votes(definition, prompts=60, raters=60, rates={("C1", "Q1"): 0.55})

    decided = forecast_decisions(clear, definition).iloc[0]
    open_ = forecast_decisions(close, definition).iloc[0]

    assert decided["decided"] and decided["more"] == 0
    assert not open_["decided"] and 0 < open_["more_low"] <= open_["more"] <= open_["more_high"]


def test_without_pay_an_even_match_costs_nothing_however_many_votes_it_takes():
    definition = define_pair()
    even = make_votes(definition, prompts=1000, raters=200, rates={("C1", "Q1"): 0.5})

    row = forecast_decisions(even, definition).iloc[0]

    assert (row["more"], row["cost"]) == (np.inf, 0)


def test_forecast_without_votes_leaves_everything_open():
    definition = define_pair()

    row = forecast_decisions(make_votes(definition).iloc[:0], definition).iloc[0]

    assert row["votes"] == 0 and not row["decided"]


@pytest.mark.parametrize("wins, losses", [(0.0, 0.0), (3.7, 11.2), (40.0, 38.5)])
@pytest.mark.parametrize("rate", [0.5, 0.58, 0.8])
def test_forecast_futures_end_as_often_as_a_look_at_every_vote_decides(rate, wins, losses):
    rates = np.full(10_000, rate)

    found = votes_to_decide(rates, 120.0, np.random.default_rng(2), wins=wins, losses=losses)

    undecided = np.ones(1)  # probability of 0, 1, ... further wins without a decision
    for votes in range(1, 801):
        undecided = np.append(undecided * (1 - rate), 0) + np.append(0, undecided * rate)
        gained = np.arange(votes + 1)
        undecided[e_value(wins + gained, losses + votes - gained) >= 120] = 0
        # Off by more with a probability of 2 exp(-2 * 10,000 * 0.025^2) = 7e-6 (Massart, 1990).
        assert (found <= votes).mean() == pytest.approx(1 - undecided.sum(), abs=0.025)
