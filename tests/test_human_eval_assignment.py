"""Who gets which pair: exactly k raters a pair, nobody twice, sides in balance, nothing lost."""

from collections import Counter

import pytest

from human_eval.errors import NotYours, StudyClosed, TooLate
from studies import answer


def test_each_pair_is_answered_by_exactly_k_raters(make_store):
    store = make_store(k=2, num_prompts=3)
    raters = [store.enter("lab", f"rater {number}") for number in range(4)]

    turns = []
    for _ in range(10):
        for rater in raters:
            lease = store.claim(rater)
            if lease:
                store.submit(answer(store, lease))
                turns.append((lease.task_id, rater))

    assert len(turns) == len(set(turns)) == 2 * 2 * 3
    assert set(Counter(task for task, _ in turns).values()) == {2}
    assert store.list_defects() == []
