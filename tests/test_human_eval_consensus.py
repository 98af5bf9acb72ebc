import pandas as pd
import pytest

from human_eval.consensus import consensus

TRUTH = {1: "a", 2: "b", 3: "a", 4: "b", 5: "a", 6: "b"}
OTHER = {"a": "b", "b": "a"}
WRONG = {"w1": {5}, "w2": set(), "w3": {6}, "w4": set(TRUTH)}


@pytest.fixture
def table() -> pd.DataFrame:
    """Return what four raters say together: two err once, one never, one always."""
    votes = [
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
    return consensus(pd.DataFrame(votes)).set_index("prompt_index")


def test_weighted_votes_find_the_truth_that_the_majority_misses(table):
    assert table["weighted"].to_dict() == TRUTH


def test_a_split_vote_has_no_majority(table):
    assert table["majority"].to_dict() == {**TRUTH, 5: "", 6: ""}
