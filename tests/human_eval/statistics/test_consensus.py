import warnings

import pandas as pd
import pytest

from human_eval.definition.definition import load_definition
from human_eval.statistics.consensus import consensus, tabulate_consensus
from tests.support.crowd import make_votes

TRUTH = {1: "a", 2: "b", 3: "a", 4: "b", 5: "a", 6: "b"}
OTHER = {"a": "b", "b": "a"}
WRONG = {"w1": {5}, "w2": set(), "w3": {6}, "w4": set(TRUTH)}


@pytest.fixture
def votes() -> pd.DataFrame:
    """Return what four raters say: two err once, one never, one always."""
    rows = [
        {
            "comparison": "C1",
            "prompt_index": prompt,
            "question": "Q1",
            "rater": rater,
            "choice": OTHER[truth] if prompt in wrong else truth,
        }
        for rater, wrong in WRONG.items()
        for prompt, truth in TRUTH.items()
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def table(votes) -> pd.DataFrame:
    return consensus(votes).set_index("prompt_index")


def test_weighted_votes_find_the_truth_that_the_majority_misses(table):
    assert table["weighted"].to_dict() == TRUTH


def test_a_split_vote_has_no_majority(table):
    assert table["majority"].to_dict() == {**TRUTH, 5: "", 6: ""}


def test_library_keeps_the_published_skills(votes):
    from crowdkit.aggregation import OneCoinDawidSkene

    names = {"prompt_index": "task", "rater": "worker", "choice": "label"}
    model = OneCoinDawidSkene(n_iter=100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(votes.rename(columns=names)[["task", "worker", "label"]])

    skills = model.skills_.to_dict()
    assert skills == pytest.approx({"w1": 0.8333, "w2": 1.0, "w3": 0.8333, "w4": 0.0}, abs=1e-4)


def test_a_comparison_is_tabulated_by_pairs_won():
    definition = load_definition("t2v-turbo")
    votes = make_votes(definition, prompts=20, rates={("C1", "Q3"): 0.9})

    table = tabulate_consensus(votes, definition).set_index("comparison")

    assert (table["pairs"] == 20).all()
    for name in ("majority", "weighted"):
        assert (table[[f"{name}_a", f"{name}_b", f"{name}_none"]].sum(axis=1) == 20).all()
        assert table.loc["C1", f"{name}_a"] >= 15


def test_too_many_answers_are_not_weighed(monkeypatch):
    monkeypatch.setattr("human_eval.statistics.consensus.MAX_ANSWERS", 100)
    definition = load_definition("t2v-turbo")

    table = tabulate_consensus(make_votes(definition, prompts=10), definition)

    assert table["weighted_a"].isna().all() and table["majority_a"].notna().all()
    assert table["note"].str.contains("100,000").all()
