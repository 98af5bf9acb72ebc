from functools import cache
from math import sqrt

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.stats import beta, binom, norm, t, ttest_1samp

from human_eval.statistics.intervals import (
    clopper_pearson,
    clustered_mean,
    crossed_variance,
    sign_test,
    wilson,
)

# 24 votes: prompt, rater, whether system_a won.
ROWS = (
    "1a1 1b1 1c0 2a1 2d1 2e1 3b0 3c0 3d1 4a0 4c0 4e0 "
    "5b1 5d1 5e0 6a1 6b1 6e1 7c0 7d1 7e1 8a1 8b0 8d1"
).split()
PROMPTS = [row[0] for row in ROWS]
RATERS = [row[1] for row in ROWS]
WINS = [float(row[2]) for row in ROWS]


@pytest.mark.parametrize(
    "wins, votes, low, high",
    [
        (385, 700, 0.512973, 0.586482),
        (420, 700, 0.563258, 0.635651),
        (350, 700, 0.463061, 0.536939),
        (7, 10, 0.396778, 0.892209),
        (0, 10, 0.0, 0.277533),
        (10, 10, 0.722467, 1.0),
        (57, 100, 0.472154, 0.662667),
    ],
)
def test_wilson_interval_is_the_published_one(wins, votes, low, high):
    found = wilson(wins, votes)

    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-6)


@pytest.mark.parametrize("wins, votes", [(8, 10), (3, 43), (50, 100)])
def test_wilson_bounds_solve_the_score_equation(wins, votes):
    found = wilson(wins, votes)

    for bound in (found.low, found.high):
        z = (wins / votes - bound) / sqrt(bound * (1 - bound) / votes)
        assert abs(z) == pytest.approx(1.95996, abs=1e-5)


@pytest.mark.parametrize(
    "wins, votes, low, high",
    [(385, 700, 0.512286, 0.587291), (7, 10, 0.347547, 0.93326), (0, 10, 0.0, 0.308497)],
)
def test_exact_interval_is_the_published_one(wins, votes, low, high):
    found = clopper_pearson(wins, votes)

    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-6)


@pytest.mark.parametrize(
    "wins, losses, p",
    [
        (385, 315, 0.00906052),
        (420, 280, 1.4e-07),  # published to two digits
        (350, 350, 1.0),
        (7, 3, 0.34375),
        (10, 0, 0.00195312),
        (57, 43, 0.1933479),
        (20, 0, 1.9073486e-06),
        (300, 250, 0.036578745549102676),
    ],
)
def test_sign_test_is_the_published_one(wins, losses, p):
    assert sign_test(wins, losses) == pytest.approx(p, rel=0.05 if p < 1e-6 else 1e-5)


@pytest.mark.parametrize(
    "right, pairs, share",
    [(3, 3, 0.125), (4, 5, 0.1875), (5, 6, 0.1094), (7, 8, 0.0352), (8, 10, 0.0547)]
    + [(9, 10, 0.0107)],
)
def test_sign_test_tells_how_often_blind_clicks_pass_a_check(right, pairs, share):
    # It is two-sided: half of it is the chance of so many right ones. Published to four digits.
    assert sign_test(right, pairs - right) / 2 == pytest.approx(share, abs=5e-5)


BOTH = {"prompt": PROMPTS, "rater": RATERS}


def normal_interval(mean) -> list[float]:
    """Return the 95 % interval that the error alone gives, without Student's t."""
    return [mean.mean - norm.ppf(0.975) * mean.error, mean.mean + norm.ppf(0.975) * mean.error]


def test_votes_that_share_nothing_have_the_error_of_independent_ones():
    found = clustered_mean(WINS, {"prompt": range(24)})

    assert found.error == pytest.approx(0.10094660663590607, abs=1e-9)


def test_the_interval_clustered_by_prompt_alone_is_the_published_one():
    found = clustered_mean(WINS, {"prompt": PROMPTS})

    assert normal_interval(found) == pytest.approx(
        [0.3960876762408937, 0.8539123237591063], abs=1e-9
    )


def leave_one_out_error(values, groups) -> float:
    """Return the jackknife's standard error of the mean, leaving out one group at a time."""
    values, groups = np.asarray(values), np.asarray(groups)
    means = [values[groups != group].mean() for group in np.unique(groups)]
    count = len(means)
    return sqrt((count - 1) / count * sum((mean - values.mean()) ** 2 for mean in means))


def test_the_standard_error_allows_for_prompts_and_raters():
    found = clustered_mean(WINS, BOTH)

    each = leave_one_out_error(WINS, range(24))  # no rater saw a prompt twice
    by_prompt, by_rater = (leave_one_out_error(WINS, groups) for groups in BOTH.values())
    assert found.mean == pytest.approx(0.625)
    assert found.error == pytest.approx(sqrt(by_prompt**2 + by_rater**2 - each**2))


@pytest.mark.parametrize("single", ["rater", "prompt"])
def test_a_single_rater_or_prompt_leaves_the_other_clusters(single):
    [other] = {"rater", "prompt"} - {single}

    found = clustered_mean(WINS, BOTH | {single: ["one"] * len(WINS)})

    assert found.error == pytest.approx(leave_one_out_error(WINS, BOTH[other]))
    assert found.p == 1 and f"one {single} only" in found.note


def test_few_raters_widen_the_interval_and_say_so():
    found = clustered_mean(WINS, BOTH)

    assert 3 < found.df <= 4  # five raters, of four to six votes
    assert "few raters" in found.note
    votes = 0.625 * 0.375 / found.error**2
    assert found.low < wilson(round(0.625 * votes), round(votes)).low


def test_one_value_per_cluster_gives_students_t_test():
    values = np.random.default_rng(0).normal(0.2, 1, 60)

    found = clustered_mean(values, {"scene": range(60)}, null=0.0, bounds=(-np.inf, np.inf))

    reference = ttest_1samp(values, 0.0)
    assert found.p == pytest.approx(reference.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(reference.confidence_interval(0.95)))


def test_interval_of_unanimous_votes_is_no_point():
    found = clustered_mean(np.ones(24), BOTH)

    exact = clopper_pearson(5, 5)  # the five raters, each counting once
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high))
    assert found.p == pytest.approx(2 / 2**5)


def test_equal_values_between_the_bounds_have_the_exact_interval_of_the_rest():
    found = clustered_mean(np.zeros(60), {"scene": np.arange(60) // 3}, null=0.0, bounds=(-1, 1))

    unseen = clopper_pearson(0, 20).high  # the share of scenes that may differ
    assert (found.low, found.high) == pytest.approx((-unseen, unseen))
    assert (found.mean, found.error, found.p) == (0, 0, 1)


@pytest.mark.parametrize("value, null", [(0.0, 0.5), (1.0, 0.3), (0.5, 0.2), (0.5, 0.9)])
def test_the_test_of_equal_values_agrees_with_their_interval(value, null):
    p = clustered_mean(np.full(9, value), {"scene": range(9)}, null=null).p

    ends = clustered_mean(np.full(9, value), {"scene": range(9)}, null=null, confidence=1 - p)
    assert null == pytest.approx(ends.high if null > value else ends.low)


def test_equal_values_without_bounds_say_nothing():
    found = clustered_mean([3.0] * 8, {"scene": range(8)}, null=0.0, bounds=(-np.inf, np.inf))

    assert (found.low, found.high, found.p) == (-np.inf, np.inf, 1)


def test_swapping_the_systems_mirrors_the_interval():
    ours = clustered_mean(WINS, BOTH)
    theirs = clustered_mean(1 - np.array(WINS), BOTH)

    assert (theirs.low, theirs.high) == pytest.approx((1 - ours.high, 1 - ours.low))
    assert theirs.p == pytest.approx(ours.p)


def test_repeating_every_vote_adds_no_certainty():
    once = clustered_mean(WINS, BOTH)
    twice = clustered_mean(WINS * 2, {"prompt": PROMPTS * 2, "rater": RATERS * 2})

    assert twice.error == pytest.approx(once.error, rel=0.05)


@pytest.mark.parametrize("wins, votes", [(0, 0), (11, 10), (-1, 10)])
def test_impossible_counts_are_refused(wins, votes):
    with pytest.raises(ValueError, match="Expected between 0 and"):
        wilson(wins, votes)


def test_votes_on_one_pair_by_one_rater_have_no_interval():
    with pytest.raises(ValueError, match="a single"):
        clustered_mean([0, 1], {"prompt": ["p", "p"], "rater": ["r", "r"]})
    with pytest.raises(ValueError, match="no votes"):
        clustered_mean([], {"prompt": []})


def test_the_error_is_never_below_that_of_one_way_alone():
    rng = np.random.default_rng(4)
    below = 0
    for _ in range(20):
        votes = rng.integers(0, 2, 60).astype(float)
        codes = [rng.integers(0, 8, 60), rng.integers(0, 8, 60)]
        one, two, both = (
            leave_one_out_error(votes, groups) ** 2 for groups in (*codes, codes[0] * 8 + codes[1])
        )
        variances = [one, two, one + two - both]

        mean = clustered_mean(votes, dict(zip(["prompt", "rater"], codes, strict=True)))

        assert mean.error == pytest.approx(max(variances) ** 0.5)
        below += variances[-1] < max(variances)
    assert below  # else this shows nothing


def test_degrees_of_freedom_are_those_of_the_smaller_number_whichever_variance_is_taken():
    # Raters who agree with each other: the variance over the twenty prompts alone is the largest.
    prompts, raters = np.repeat(np.arange(20), 4), np.tile(np.arange(4), 20)
    votes = (np.random.default_rng(0).random(20) < 0.6).repeat(4).astype(float)
    votes[raters == 3] = np.tile([0.0, 1.0], 10)

    found = clustered_mean(votes, {"prompt": prompts, "rater": raters})

    by_prompt = sm.OLS(votes, np.ones(80)).fit(cov_type="cluster", cov_kwds={"groups": prompts})
    assert found.error == pytest.approx(by_prompt.bse[0])
    assert "few raters: t with 3 degrees" in found.note
    assert found.df == pytest.approx(3)


def busy_rater() -> tuple[list[float], dict[str, list[int]]]:
    """Return the votes of one rater on all 150 prompts, 105 wins, and of 40 others, at a half."""
    prompts = [*range(150), *range(100)]
    raters = [0] * 150 + [1 + 2 * vote // 5 for vote in range(100)]
    return [1.0] * 105 + [0.0] * 45 + [1.0, 0.0] * 50, {"prompt": prompts, "rater": raters}


def test_a_majority_that_one_busy_rater_makes_is_not_taken_for_a_fact():
    found = clustered_mean(*busy_rater())

    assert found.mean == pytest.approx(0.62)
    assert found.low < 0.5 and found.p > 0.05
    assert found.df < 3 and "uneven shares" in found.note


@pytest.mark.parametrize("seed", range(3))
def test_degrees_of_freedom_match_the_spread_of_simulated_variances(seed):
    # Satterthwaite's df makes a chi-square of the same mean and variance: 2 mean^2 / variance.
    rng = np.random.default_rng(seed)
    sizes = rng.geometric(0.05, 12)
    groups = np.repeat(np.arange(12), sizes)
    values = rng.normal(size=(20_000, len(groups)))

    variances, df = crossed_variance(values, [groups])

    assert np.median(df) == pytest.approx(2 * variances.mean() ** 2 / variances.var(), rel=0.05)
    assert df.max() < 11


def test_clusters_of_one_size_have_students_degrees_of_freedom():
    votes = np.random.default_rng(0).integers(0, 2, 60)

    assert clustered_mean(votes, {"scene": np.arange(60) // 5}).df == pytest.approx(11)


@cache
def independent_ends(votes: int) -> np.ndarray:
    """Return the interval of 0, 1, ... wins of so many independent votes, shape (wins, 2)."""
    prompts = {"prompt": np.arange(votes)}
    found = [clustered_mean(np.arange(votes) < wins, prompts) for wins in range(votes + 1)]
    return np.array([[mean.low, mean.high] for mean in found])


@pytest.mark.parametrize("wins, votes", [(1, 2), (45, 50), (13, 100), (498, 500)])
def test_the_interval_of_independent_votes_is_that_of_a_beta_distribution(wins, votes):
    found = clustered_mean(np.arange(votes) < wins, {"prompt": np.arange(votes)})

    rate, effective = wins / votes, votes - 1  # as the variance over n - 1 has it
    exact = beta(effective * rate + 0.7, effective * (1 - rate) + 0.7).interval(0.95)
    assert (found.low, found.high) == pytest.approx(exact)


@pytest.mark.parametrize("votes", [2, 3, 5, 8, 20, 50, 100])
def test_one_more_win_never_lowers_a_bound(votes):
    rises = np.diff(independent_ends(votes), axis=0)
    assert (rises >= 0).all()
    assert (rises[1:-1] > 0).all()  # but of two votes, whose interval is [0, 1] up to rounding


def test_an_interval_does_not_contain_what_was_seen_not_to_be():
    for wins, votes in ((18, 20), (1, 19), (99, 100)):
        low, high = independent_ends(votes)[wins]
        assert 0 < low < high < 1


@pytest.mark.parametrize("votes", [50, 100, 200, 500])
@pytest.mark.parametrize("rate", [0.5, 0.8, *(percent / 100 for percent in range(90, 100))])
def test_intervals_of_independent_votes_cover_lopsided_rates(votes, rate):
    low, high = independent_ends(votes).T

    covers = (low <= rate) & (rate <= high)
    assert binom.pmf(np.arange(votes + 1), votes, rate) @ covers >= 0.93


@pytest.mark.parametrize("seed", range(5))
def test_the_test_agrees_with_the_interval(seed):
    rng = np.random.default_rng(seed)
    votes, groups = rng.random(90) < 0.62, rng.integers(0, 15, 90)

    p = clustered_mean(votes, {"rater": groups}).p

    for doubt in (0.9 * p, 0.99 * p, 1.01 * p, 1.1 * p):  # of the interval, 1 - confidence
        found = clustered_mean(votes, {"rater": groups}, confidence=1 - doubt)
        inside = found.low <= 0.5 <= found.high
        assert inside if doubt < p else not found.low < 0.5 < found.high


def test_a_kind_that_shares_nothing_has_at_most_the_votes_that_were_given():
    votes = [1.0, 0.0] * 20  # every rater once for either system: no variance between raters

    found = clustered_mean(votes, {"rater": np.arange(40) // 2})

    assert found.error == 0
    assert found.high - found.low > 2 * 0.9 * t.ppf(0.975, 19) * sqrt(0.25 / 40)
