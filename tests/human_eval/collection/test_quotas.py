import pytest

from human_eval.collection.quotas import add_default_quota, describe_quotas
from human_eval.statistics.votes import BUSY
from tests.support.crowd import define_pair


def test_no_rater_of_a_new_study_can_give_more_than_the_marked_share_of_a_comparison():
    definition = add_default_quota(define_pair("raters_per_pair = 3\n"), prompts=100)

    assert definition.quotas.per_comparison == BUSY * 300
    assert "45" in describe_quotas(definition)


@pytest.mark.parametrize(
    "extra, prompts, why",
    [
        ("raters_per_pair = 3\n[quotas]\nper_comparison = 0\n", 100, "the researcher chose"),
        ("raters_per_pair = 3\nquotas = {per_day = 9}\n", 100, "the researcher chose"),
        ("raters_per_pair = 3\n", 33, "too few answers"),
        ("raters_per_pair = 7\n", 100, "all pairs once are less than the share"),
    ],
)
def test_a_study_keeps_its_definition_where_no_quota_is_due(extra, prompts, why):
    definition = define_pair(extra)

    assert add_default_quota(definition, prompts) is definition, why
