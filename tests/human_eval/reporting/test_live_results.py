"""Live results: masked while a study is open, named once it is closed, always up to date."""

import random

import pandas as pd
import pytest

from human_eval.errors import StudyError
from human_eval.reporting.answered_pairs import list_answered, read_pair
from human_eval.reporting.blinding import mask_definition, mask_votes
from human_eval.reporting.live_results import LiveResults, is_published, set_published
from human_eval.statistics.win_rates import win_rates
from human_eval.storage.keys import Keys
from human_eval.study.queries import read_votes
from human_eval.study.simulation import Crowd, simulate
from tests.support.studies import (
    answer,
    claim_pair,
    define,
    enter_rater,
    exclude,
    set_closed,
    submit_answers,
)

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
NAMES = ("ours", "theirs", "third", "Ours", "Theirs", "Third")


@pytest.fixture
def store(make_store):
    """Three raters have answered every pair; A wins two thirds."""
    store = make_store(k=3, num_prompts=4)
    rng = random.Random(1)
    for number in range(3):
        rater = enter_rater(store, "test", f"rater {number}")
        while assignment := claim_pair(store, rater):
            store.clock.pass_seconds(20)
            other = "right" if assignment.side_a == "left" else "left"
            shown = assignment.side_a if rng.random() < 2 / 3 else other
            submit_answers(store, answer(store, assignment, shown))
    return store


def test_an_open_study_is_read_in_letters(store):
    results = LiveResults(store).read()

    told = repr(results.definition) + "".join(
        table.to_csv() for table in (*results.tables().values(), results.votes)
    )
    assert not results.named
    assert {system.key for system in results.definition.systems} == {"A", "B", "C"}
    assert [name for name in NAMES if name in told] == []
    assert set(results.votes["rater"]) == {"rater 1", "rater 2", "rater 3"}


def wins_of(table, system):
    return sum(table.loc[table["system_a"] == system, "wins"]) + sum(
        table.loc[table["system_b"] == system, "losses"]
    )


def test_masking_takes_no_vote_from_its_system(store):
    definition = store.definition
    plain = win_rates(read_votes(store), definition)
    votes = mask_votes(read_votes(store), definition, store.keys)
    masked = win_rates(votes, mask_definition(definition, store.keys))
    [ours] = set.intersection(
        *(set(pair) for pair in masked[["system_a", "system_b"]].itertuples(index=False))
    )

    assert wins_of(masked, ours) == wins_of(plain, "ours") != plain["votes"].sum() / 2
    assert masked["votes"].tolist() == plain["votes"].tolist()
    assert masked["p"].tolist() == pytest.approx(plain["p"].tolist())
    assert sorted(wins_of(masked, letter) for letter in "ABC") == sorted(
        wins_of(plain, system) for system in ("ours", "theirs", "third")
    )


def test_the_order_of_letters_follows_the_secret_and_not_the_definition(database_url):
    orders = set()
    definition = define()
    for number in range(12):
        keys = Keys(f"a secret of 32 characters, no. {number:02d}")
        votes = pd.DataFrame(
            {
                "comparison": ["C1"], "choice": ["a"], "side_a": ["left"], "gold_answer": [None],
                "system_a": ["ours"], "system_b": ["theirs"], "rater": ["x"],
                "definition_hash": ["h"],
            }
        )  # fmt: skip
        masked = mask_votes(votes, definition, keys).iloc[0]
        orders.add((masked["system_a"], masked["choice"]))
        assert masked["system_a"] < masked["system_b"]

    assert {choice for _, choice in orders} == {"a", "b"}


def test_a_closed_study_is_read_by_name(store):
    live = LiveResults(store)
    live.read()
    set_closed(store, True, author="ada")

    results = live.read()

    assert results.named and results.closed
    assert results.rates["system_a"].tolist() == ["ours"] * 4


def test_a_researcher_reads_names_before(store):
    assert LiveResults(store).read(named=True).rates["system_a"].tolist() == ["ours"] * 4


def test_a_new_vote_counts_and_an_old_result_is_not_computed_again(store, monkeypatch):
    live = LiveResults(store)
    monkeypatch.setattr("human_eval.reporting.live_results.MAX_AGE", 0.0)
    monkeypatch.setattr("human_eval.reporting.live_results.MAX_LOAD", 1e9)
    monkeypatch.setattr("human_eval.reporting.live_results.MAX_WAIT", 1e9)
    before = live.read(named=True)
    assert live.read(named=True) is before

    exclude(store, "rater:1", rule="gold", evidence={}, author="ada")
    after = live.read(named=True)

    assert (before.answers, before.excluded) == (48, 0)
    assert (after.answers, after.excluded) == (32, 16)
    assert after.rates["votes"].sum() == 32
    assert after.rates_with_excluded["votes"].sum() == 48


def test_readers_of_a_large_study_never_wait_for_new_results(store, monkeypatch):
    live = LiveResults(store)
    monkeypatch.setattr("human_eval.reporting.live_results.MAX_AGE", 0.0)
    monkeypatch.setattr("human_eval.reporting.live_results.MAX_LOAD", 1e9)
    monkeypatch.setattr("human_eval.reporting.live_results.MAX_WAIT", 0.0)
    before = live.read()

    exclude(store, "rater:1", rule="gold", evidence={}, author="ada")
    meanwhile = live.read()
    live._refreshing.join()

    assert meanwhile is before
    assert live.read().answers == 32


def test_simulated_votes_stand_apart_and_say_so(store):
    simulate(store, Crowd(raters=5))
    live = LiveResults(store)

    assert live.read().answers == 48 and not live.read().simulated
    assert live.read(simulated=True).simulated
    assert b"SIMULATED" not in live.draw("svg", simulated=False)
    assert live.draw("png", simulated=True)[:4] == b"\x89PNG"


def test_an_empty_study_has_results_to_show(make_store):
    live = LiveResults(make_store())

    assert live.read().rates.empty and live.read().answers == 0
    assert live.draw("svg") is None


def test_pairs_are_read_one_by_one_at_the_end_alone(store):
    live = LiveResults(store)
    with pytest.raises(StudyError, match="shown when the study is closed"):
        list_answered(live.read())
    set_closed(store, True, author="ada")
    results = live.read()

    pairs = list_answered(results)
    pair = read_pair(store, results, pairs[0])

    assert len(pairs) == 8
    assert (pair.title_a, pair.title_b, pair.prompt) == ("Ours", "Theirs", "prompt 0")
    assert len(pair.answers) == 6
    [number] = store.keys.read("clip", pair.clip_a)
    assert number > 0
    with pytest.raises(StudyError, match="has not been answered"):
        read_pair(store, results, 10**6)


def test_publishing_is_the_last_decision(store):
    with store.read() as connection:
        assert not is_published(connection)
    set_published(store, True, author="ada")
    set_published(store, False, author="ada")
    set_published(store, True, author="ada")

    with store.read() as connection:
        assert is_published(connection)
