"""The promises of the statistics on a few simulated studies; `study_coverage` has the many.

With 40 studies the bounds leave room for chance: a share of 95 % is below 34 of 40 in one run of
a hundred.
"""

import pytest

from tests.benchmarks.study_coverage import measure_coverage, measure_false_claims

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("loads", ["12 raters", "one of 3 raters", "60 % and 40 others"])
def test_intervals_cover_the_truth_and_peeking_does_not_mislead(loads):
    found = measure_coverage(loads, 1.0, 0.5, studies=40)

    assert found.covered >= 34 / 40
    assert max(found.claimed, found.misled) <= 5 / 40


def test_intervals_that_know_no_raters_would_not():
    found = measure_coverage("12 raters", 1.0, 0.8, studies=40)

    assert found.covered >= 34 / 40 > found.covered_independent


def test_a_study_without_differences_claims_none():
    for differ in (False, True):
        assert measure_false_claims(differ, 15, prompts=20) <= 3 / 15
