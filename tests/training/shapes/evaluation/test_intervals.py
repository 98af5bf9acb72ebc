"""Intervals clustered by scene: equal to textbook tests where these hold."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from human_eval.statistics import intervals as human_eval
from training.shapes.evaluation.intervals import (
    SHARE,
    clustered_mean,
    clustered_ratio,
    mcnemar_p,
)


def draw_clustered(rng: np.random.Generator, scenes: int = 40, each: int = 3):
    """Values with as much spread between scenes as within, and their scenes."""
    values = rng.normal(size=(scenes, 1)) + rng.normal(size=(scenes, each)) + 0.3
    return values.ravel(), {"scene": np.repeat(np.arange(scenes), each)}


def test_one_clip_a_scene_gives_students_t_test():
    values = np.random.default_rng(0).normal(0.2, 1, 60)

    ours = clustered_mean(values, {"scene": np.arange(60)}, null=0.0)

    theirs = stats.ttest_1samp(values, 0.0)
    low, high = theirs.confidence_interval(0.95)
    assert (ours.low, ours.high, ours.p) == pytest.approx((low, high, theirs.pvalue))
    assert ours.clips == 60


def test_the_null_is_what_p_is_about():
    values = np.random.default_rng(0).normal(0.2, 1, 60)

    ours = clustered_mean(values, {"scene": np.arange(60)}, null=0.5)

    assert ours.p == pytest.approx(stats.ttest_1samp(values, 0.5).pvalue)
    assert ours.mean == pytest.approx(values.mean())


def test_repeated_clips_do_not_narrow_the_interval():
    values = np.random.default_rng(1).normal(size=50)
    once = clustered_mean(values, {"scene": np.arange(50)})
    thrice = clustered_mean(np.repeat(values, 3), {"scene": np.repeat(np.arange(50), 3)})

    assert thrice.high - thrice.low == pytest.approx(once.high - once.low, rel=0.02)


def test_intervals_agree_with_a_bootstrap_of_scenes():
    values, scenes = draw_clustered(np.random.default_rng(2))
    sums = np.bincount(scenes["scene"], values)

    ours = clustered_mean(values, scenes)

    theirs = stats.bootstrap((sums / 3,), np.mean, n_resamples=4000, rng=0, method="percentile")
    assert ours.high - ours.low == pytest.approx(np.ptp(theirs.confidence_interval), rel=0.1)


def test_nineteen_of_twenty_intervals_contain_the_mean():
    rng = np.random.default_rng(3)
    covered = []
    for _ in range(400):
        estimate = clustered_mean(*draw_clustered(rng))
        covered.append(estimate.low <= 0.3 <= estimate.high)

    assert 0.92 <= np.mean(covered) <= 0.98  # three standard errors


@pytest.mark.parametrize("spread", [0.0, 0.02])
def test_intervals_over_scenes_and_three_runs_contain_the_mean(spread):
    rng, covered = np.random.default_rng(7), []
    clusters = {"scene": np.tile(np.arange(60), 3), "run": np.repeat(np.arange(3), 60)}
    for _ in range(300):
        scenes, runs = rng.normal(0, 0.2, 60), rng.normal(0, spread, (3, 1))
        values = (scenes + runs + rng.normal(0, 0.15, (3, 60))).ravel()
        estimate = clustered_mean(values, clusters)
        covered.append(estimate.low <= 0 <= estimate.high)

    assert 0.90 <= np.mean(covered) <= 0.985  # three standard errors around 0.94


def test_equal_values_without_bounds_have_an_interval_of_no_width():
    estimate = clustered_mean(np.full(6, 0.5), {"scene": np.arange(6)}, null=0.5)

    assert (estimate.mean, estimate.low, estimate.high, estimate.p) == (0.5, 0.5, 0.5, 1.0)


def test_a_single_scene_is_refused():
    with pytest.raises(ValueError, match="at least two scenes"):
        clustered_mean(np.array([1.0, 2.0]), {"scene": np.array([0, 0])})


def test_rates_of_independent_clips_have_wilsons_interval():
    hits = np.random.default_rng(4).random(300) < 0.8

    ours = clustered_mean(hits, {"scene": np.arange(300)}, bounds=SHARE)

    assert (ours.low, ours.high) == pytest.approx(
        proportion_confint(hits.sum(), 300, method="wilson"), abs=0.002
    )


@pytest.mark.parametrize("hit", [False, True])
def test_unanimous_clips_have_the_exact_interval_of_one_clip_per_scene(hit):
    hits, scenes = np.full(60, hit), {"scene": np.repeat(np.arange(20), 3)}
    low, high = proportion_confint(20 * hit, 20, method="beta")  # of 20 clips, not 60

    share = clustered_mean(hits, scenes, null=0.5, bounds=SHARE)
    votes = human_eval.clustered_mean(hits, {"prompt": scenes["scene"]})

    assert (share.low, share.high) == pytest.approx((low, high))
    assert (votes.low, votes.high) == pytest.approx((low, high))
    assert share.p == pytest.approx(votes.p) == pytest.approx(2 * 0.5**20)


def test_hits_that_come_by_scene_widen_the_interval():
    by_scene = np.repeat(np.random.default_rng(5).random(50) < 0.5, 4)

    together = clustered_mean(by_scene, {"scene": np.repeat(np.arange(50), 4)}, bounds=SHARE)
    apart = clustered_mean(by_scene, {"scene": np.arange(200)}, bounds=SHARE)

    assert together.high - together.low > 1.8 * (apart.high - apart.low)  # twice, nearly


def test_ratios_agree_with_a_bootstrap_of_scenes():
    rng = np.random.default_rng(6)
    reference = rng.uniform(0.5, 1.5, 200)
    values = 0.9 * reference + rng.normal(0, 0.3, 200)

    ours = clustered_ratio(values, reference, {"scene": np.arange(200)})

    theirs = stats.bootstrap(
        (values, reference),
        lambda a, b, axis: a.mean(axis=axis) / b.mean(axis=axis),
        paired=True,
        n_resamples=4000,
        rng=0,
        method="percentile",
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_mcnemar_is_a_coin_toss_over_the_prompts_that_differ():
    ours = np.array([1, 1, 1, 1, 1, 1, 1, 0, 1, 0], dtype=bool)
    theirs = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 0], dtype=bool)

    assert mcnemar_p(ours, theirs) == pytest.approx(stats.binomtest(6, 7).pvalue)
