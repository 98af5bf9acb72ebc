"""Who gets which pair: exactly k raters a pair, nobody twice, sides in balance, nothing lost."""

from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Thread

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from human_eval.collection.assignment import claim
from human_eval.collection.submission import give_back
from human_eval.errors import NotAcceptable, NotYours, StudyClosed, StudyError, TooLate
from human_eval.storage.tables import AssignmentRow, PairRow, Vote
from human_eval.study.queries import read_study_progress, read_votes
from human_eval.study.store import StudyStore
from tests.support.studies import (
    answer,
    claim_pair,
    enter_rater,
    find_defects,
    set_closed,
    submit_answers,
    sweep_expired,
)

MIXED = """
[checks]
gold_share = 0.2
mirror_share = 0.2
mirror_distance = 2
"""
ACTIONS = ["claim", "ahead", "submit", "again", "change", "wait", "sweep", "return"]


def enter(store: StudyStore, count: int) -> list[int]:
    return [enter_rater(store, "lab", f"rater {number}") for number in range(count)]


def finish(store: StudyStore, raters: list[int]) -> list[tuple[int, int]]:
    """Let everybody answer until nothing is left; return (pair, rater) of each turn."""
    turns = []
    waiting = list(raters)
    while waiting:
        rater = waiting.pop(0)
        lease = claim_pair(store, rater)
        store.clock.pass_seconds(1)
        if lease:
            submit_answers(store, answer(store, lease))
            turns.append((lease.pair_id, rater))
            waiting.append(rater)
    return turns


def real_turns(store: StudyStore) -> list[tuple[int, int]]:
    """Return (pair, rater) of every stored answer to a real pair."""
    with store.read() as connection:
        return [
            (row.pair_id, row.rater_id)
            for row in connection.execute(
                select(AssignmentRow.pair_id, AssignmentRow.rater_id)
                .join(PairRow, PairRow.id == AssignmentRow.pair_id)
                .where(AssignmentRow.state == "submitted", PairRow.kind == "real")
            )
        ]


def test_each_pair_is_answered_by_exactly_k_raters(make_store):
    store = make_store(k=2, num_prompts=3)

    turns = finish(store, enter(store, 4))

    assert len(turns) == len(set(turns)) == 2 * 2 * 3
    assert set(Counter(pair for pair, _ in turns).values()) == {2}
    assert find_defects(store) == []


@pytest.mark.slow
@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(ACTIONS), st.integers(0, 4), st.integers(0, 2)), max_size=60
    )
)
def test_no_interleaving_gives_a_pair_too_many_raters_or_a_rater_two_votes(make_store, steps):
    store = make_store(k=2, num_prompts=2, extra=MIXED)
    raters = enter(store, 5)
    leases = {rater: [] for rater in raters}
    acknowledged = {}
    for action, place, choice in steps:
        act(store, raters[place], action, ["left", "right", "left"][choice], leases, acknowledged)

    finish(store, [*raters, *enter(store, 12)[5:]])

    turns = real_turns(store)
    assert len(turns) == len(set(turns))
    assert set(Counter(pair for pair, _ in turns).values()) == {2}
    votes = read_votes(store)
    assert not votes.duplicated(["task_id", "rater", "question"]).any()
    assert find_defects(store) == []
    with store.read() as connection:
        stored = connection.execute(
            select(Vote.assignment_id, Vote.choice, AssignmentRow.side_a)
            .join(AssignmentRow, AssignmentRow.id == Vote.assignment_id)
            .where(Vote.question == "Q2")
            .order_by(Vote.revision)
        )
        shown = {row[0]: (row[1] == "a") == (row[2] == "left") for row in stored}
    for assignment_id, side in acknowledged.items():
        assert shown[assignment_id] == (side == "left")


def act(store, rater, action, side, leases, acknowledged):
    """Do one thing a rater, a browser or the clock may do at any moment."""
    mine = leases[rater]
    if action == "wait":
        store.clock.pass_seconds(400)
    elif action == "sweep":
        sweep_expired(store)
    elif action in ("claim", "ahead"):
        lease = claim_pair(store, rater, ahead=action == "ahead")
        if lease:
            mine.append(lease)
    elif mine and action == "return":
        with store.write() as connection:
            try:
                give_back(connection, rater, mine[-1].assignment_id, "skipped", now=store.clock())
            except TooLate:
                pass
    elif mine:
        lease = mine[-1] if action == "submit" else mine[0]
        revision = 1 if action == "change" else 0
        try:
            receipt = submit_answers(store, answer(store, lease, side, revision=revision))
        except (TooLate, NotAcceptable):
            return
        acknowledged[lease.assignment_id] = receipt.answers["Q2"]


def test_parallel_raters_never_overshoot(make_store):
    store = make_store(k=3, num_prompts=4)
    raters = enter(store, 12)
    failures = []

    def work(rater):
        try:
            finish(store, [rater])
        except StudyError as error:  # a busy database would be one
            failures.append(error)

    threads = [Thread(target=work, args=[rater]) for rater in raters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    turns = real_turns(store)
    assert len(set(turns)) == len(turns) == 3 * 2 * 4
    assert find_defects(store) == []


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("fails", [False, True])
def test_none_is_left_only_once_the_claims_under_way_are_done(make_store, fails):
    store = make_store(k=1, num_prompts=1)
    first, second, waiting = enter(store, 3)

    def take(connection, rater):
        now, rng = store.clock(), store.rng
        return claim(connection, store.definition, rater, now=now, rng=rng)

    connect = store.database.writing.connect
    with ThreadPoolExecutor(1) as pool, connect() as one, connect() as other:
        taken = [take(one, first), take(other, second)]  # both pairs, not yet committed
        claimed = pool.submit(claim_pair, store, waiting)
        with suppress(TimeoutError):
            claimed.result(timeout=0.5)
        one.commit()
        other.rollback() if fails else other.commit()
        lease = claimed.result(timeout=10)

    assert (lease and lease.pair_id) == (taken[1].pair_id if fails else None)
    assert find_defects(store) == []


def test_claiming_again_returns_the_same_pair(make_store):
    store = make_store()
    [rater] = enter(store, 1)

    first, second, ahead, ahead_again = (
        claim_pair(store, rater, ahead=ahead) for ahead in (False, False, True, True)
    )

    assert first == second
    assert ahead == ahead_again and ahead.pair_id != first.pair_id


def test_an_abandoned_pair_returns_and_goes_to_somebody_else(make_store):
    store = make_store(k=1, num_prompts=1)
    gone, other, third = enter(store, 3)
    kept = [claim_pair(store, gone), claim_pair(store, gone, ahead=True)]
    assert claim_pair(store, other).pair_id == kept[1].pair_id  # which was given ahead
    assert claim_pair(store, third) is None

    store.clock.pass_seconds(901)

    assert claim_pair(store, third).pair_id in {lease.pair_id for lease in kept}
    with pytest.raises(TooLate, match="time for this pair is over"):
        submit_answers(store, answer(store, kept[0]))


def test_a_rater_who_comes_back_finds_the_pair_with_its_sides_unchanged(make_store):
    store = make_store(k=1, num_prompts=1)
    [rater] = enter(store, 1)
    first = claim_pair(store, rater)
    store.clock.pass_seconds(901)
    again = [claim_pair(store, rater), claim_pair(store, rater, ahead=True)]

    [same] = [lease for lease in again if lease.pair_id == first.pair_id]
    assert (same.assignment_id, same.side_a, same.attempt) == (
        first.assignment_id,
        first.side_a,
        2,
    )
    with pytest.raises(TooLate):
        submit_answers(store, answer(store, first))
    submit_answers(store, answer(store, same))


def test_sides_are_balanced_within_rater_and_comparison(make_store):
    store = make_store(k=3, num_prompts=20)
    finish(store, enter(store, 5))

    with store.read() as connection:
        rows = connection.execute(
            select(
                AssignmentRow.rater_id,
                AssignmentRow.comparison,
                AssignmentRow.side_a,
                AssignmentRow.ordinal,
            ).order_by(AssignmentRow.ordinal)
        ).all()
    blocks = defaultdict(list)
    for rater, comparison, side, ordinal in rows:
        blocks[rater, comparison, ordinal // 4].append(side)
    whole = [block for block in blocks.values() if len(block) == 4]
    assert len(whole) > 20
    assert all(block.count("left") == 2 for block in whole)
    assert len({tuple(block) for block in whole}) > 3  # in random order, not always the same


def test_a_mirror_swaps_the_sides_of_an_earlier_pair(make_store):
    store = make_store(k=1, num_prompts=12, extra="[checks]\nmirror_share = 0.5")
    [rater] = enter(store, 1)

    finish(store, [rater])

    votes = read_votes(store)
    pairs = votes[votes["question"] == "Q2"]
    mirrors = pairs[pairs["kind"] == "mirror"]
    assert len(mirrors) > 2
    both = pairs[pairs["kind"] == "real"].merge(mirrors, on=["comparison", "prompt_index"])
    assert len(both) == len(mirrors)
    assert (both["side_a_x"] != both["side_a_y"]).all()
    order = pairs.sort_values("vote_id").reset_index(drop=True)
    for _, row in both.iterrows():
        places = order.index[order["vote_id"].isin([row["vote_id_x"], row["vote_id_y"]])]
        assert places[1] - places[0] > 5


@pytest.mark.parametrize(
    "quota, expected", [("per_study = 4", 4), ("per_comparison = 2", 4), ("per_day = 3", 3)]
)
def test_a_rater_meets_their_quota(make_store, quota, expected):
    store = make_store(k=2, num_prompts=6, extra=f"[quotas]\n{quota}")
    [rater] = enter(store, 1)

    turns = finish(store, [rater])

    assert len(turns) == expected
    store.clock.pass_seconds(2 * 86_400)
    assert (claim_pair(store, rater) is not None) == ("day" in quota)


def test_a_fixed_list_is_handed_out_in_its_order(make_store):
    store = make_store(k=1, num_prompts=4, extra='[assignment]\npolicy = "fixed"')
    [rater] = enter(store, 1)

    finish(store, [rater])

    votes = read_votes(store)
    order = votes[votes["question"] == "Q2"].sort_values("vote_id")
    assert list(zip(order["prompt_index"], order["comparison"], strict=True)) == [
        (index, comparison) for index in range(4) for comparison in ("C1", "C2")
    ]


def test_a_pair_that_three_raters_report_is_withheld(make_store):
    store = make_store(k=5, num_prompts=1, extra='[assignment]\npolicy = "fixed"')
    raters = enter(store, 4)

    for rater in raters[:3]:
        lease = claim_pair(store, rater)
        with store.write() as connection:
            give_back(connection, rater, lease.assignment_id, "broken", now=store.clock())

    assert claim_pair(store, raters[3]).pair_id != lease.pair_id
    assert read_study_progress(store).comparisons["withheld"].sum() == 1
    assert claim_pair(store, raters[0]).pair_id != lease.pair_id
    assert find_defects(store) == []


def test_a_closed_study_hands_out_and_takes_nothing(make_store):
    store = make_store()
    [rater] = enter(store, 1)
    lease = claim_pair(store, rater)
    set_closed(store, True, author="me")

    with pytest.raises(StudyClosed, match="closed"):
        claim_pair(store, rater)
    with pytest.raises(StudyClosed):
        submit_answers(store, answer(store, lease))
    with pytest.raises(StudyError, match="already closed"):
        set_closed(store, True, author="me")

    set_closed(store, False, author="me")
    submit_answers(store, answer(store, lease))


def test_answers_wait_until_the_clips_can_have_been_watched(make_store):
    store = make_store(k=1, loops=2)  # twice two seconds for each pair
    [rater] = enter(store, 1)
    first, second = claim_pair(store, rater), claim_pair(store, rater, ahead=True)

    store.clock.pass_seconds(3.9)
    with pytest.raises(NotAcceptable, match="watch both"):
        submit_answers(store, answer(store, first))
    store.clock.pass_seconds(0.1)
    with pytest.raises(NotAcceptable, match="watch both"):
        submit_answers(store, answer(store, first, loops=1))
    submit_answers(store, answer(store, first))
    store.clock.pass_seconds(3.9)
    with pytest.raises(NotAcceptable):  # one pair at a time: the first took four seconds
        submit_answers(store, answer(store, second))
    store.clock.pass_seconds(0.1)
    assert submit_answers(store, answer(store, second)).duplicate is False


def test_the_database_itself_refuses_what_code_must_never_do(make_store):
    store = make_store(k=1)
    rater, other = enter(store, 2)
    lease = claim_pair(store, rater)
    submit_answers(store, answer(store, lease))
    person = {"rater_id": other, "simulated": False}

    for statement in (
        PairRow.__table__.update().values(taken=PairRow.taken + 1, target=0),
        Vote.__table__.update().values(choice="b"),
        Vote.__table__.delete(),
        AssignmentRow.__table__.update().values(simulated=True),
        AssignmentRow.__table__.update().values(**person, pair_id=lease.pair_id, side_a="up"),
    ):
        with pytest.raises(IntegrityError), store.write() as connection:
            connection.execute(statement)
    with store.read() as connection:
        assert connection.execute(select(func.count()).select_from(Vote)).scalar() == 2


def test_the_next_pair_is_found_by_an_index(make_store, database_url):
    if database_url is not None:
        pytest.skip("PostgreSQL plans by its statistics, not by its indexes alone")
    store = make_store()
    statement = "EXPLAIN QUERY PLAN SELECT id FROM pair WHERE simulated = 0 AND kind = 'real' AND \
taken < target AND NOT withheld ORDER BY taken, order_key LIMIT 1"
    with store.read() as connection:
        plan = " ".join(str(row) for row in connection.exec_driver_sql(statement))
    assert "ix_pair_next" in plan and "TEMP B-TREE" not in plan


def test_an_unknown_rater_gets_nothing(make_store):
    store = make_store()

    with pytest.raises(NotYours, match="not signed in"):
        claim_pair(store, 99)


def test_random_order_differs_between_studies(make_store):
    first, second = (make_store(k=1, num_prompts=10, seed=seed) for seed in (1, 2))
    orders = [[pair for pair, _ in finish(store, enter(store, 1))] for store in (first, second)]

    assert orders[0] != orders[1]
    assert orders[0] != sorted(orders[0])
