"""What a rater is told when no pair is left, and which code: pay is at stake."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select, update

from human_eval.server.sign_in import entry_links
from human_eval.server.vote_api import create_app
from human_eval.storage.tables import AssignmentRow, PairRow
from human_eval.study.queries import read_votes
from tests.human_eval.server.test_sign_in import CODES, PAGE, PLATFORMS, Prolific, enter, work
from tests.support.studies import (
    claim_pair,
    enter_rater,
    exclude,
    find_defects,
    set_closed,
    set_paused,
)

ANN, BOB, CEM, DEE = (letter * 24 for letter in "abcd")


class Crowd:
    """Participants of Prolific, who take turns at one browser."""

    def __init__(self, store, client):
        self.client = client
        self.links = entry_links(store, PAGE)

    def arrive(self, who, *, visit="1", study="5"):
        self.client.cookies.clear()
        link = Prolific(self.links["prolific"]).link_for(who, visit * 24)
        link = link.replace("5" * 24, study * 24)
        assert enter(self.client, link).status_code == 200

    def claim(self, **body):
        return self.client.post("/api/claim", json=body).json()

    def vote(self, pair):
        answers = {key: {"choice": "left", "seconds": 3.0} for key in ("Q1", "Q2")}
        body = {"assignment": pair["assignment"], "answers": answers, "loops": 1}
        return self.client.post("/api/submit", json=body)

    def skip(self, pair):
        body = {"assignment": pair["assignment"], "reason": "skipped", "detail": "other"}
        return self.client.post("/api/return", json=body).json()

    def work(self, pairs=99):
        return work(self.client, pairs)

    def stop(self, **body):
        return self.client.post("/api/stop", json=body).json()


@pytest.fixture
def open_crowd(make_store):
    """Serve a study of so many pairs, k raters a pair, with a quota."""
    clients = []

    def make(quota="per_study = 20", *, pairs=3, k=2, platforms=PLATFORMS):
        extra = f"{platforms}{CODES}[quotas]\n{quota}\n"
        store = make_store(k=k, num_prompts=pairs, loops=0, extra=extra)
        with store.write() as connection:  # of two comparisons, one remains
            connection.execute(
                update(PairRow).where(PairRow.comparison == "C2").values(withheld=True)
            )
        clients.append(TestClient(create_app(store)))
        clients[-1].__enter__()
        return store, Crowd(store, clients[-1])

    yield make
    for client in clients:
        client.__exit__(None, None, None)


def told(end):
    return end["outcome"], end["code"], end["progress"]["answered"]


def test_nobody_below_the_quota_gets_the_code_for_pay(open_crowd):
    store, crowd = open_crowd()
    for who in (ANN, BOB):
        crowd.arrive(who)
        assert crowd.claim()["assignment"] and crowd.claim(ahead=True)["assignment"]

    crowd.arrive(CEM)
    third = crowd.work()
    crowd.arrive(DEE)
    fourth = crowd.work()

    # Of six places two are begun; the others, two of them given ahead, go to who comes first.
    assert told(third) == ("no_work_left", "N0W0RK", 3)
    assert (told(fourth), fourth["finish"]) == (("waiting", "", 1), "")
    assert told(crowd.stop()) == ("no_work_left", "N0W0RK", 1)
    crowd.arrive(ANN)
    assert told(crowd.work()) == ("waiting", "", 1)
    crowd.arrive(BOB)
    assert told(crowd.work()) == ("no_work_left", "N0W0RK", 1)
    assert len(read_votes(store)) == 2 * 6 and find_defects(store) == []


def test_who_waits_gets_the_pair_that_another_rater_lets_go(open_crowd):
    store, crowd = open_crowd(pairs=1, k=1)
    crowd.arrive(ANN)
    pair = crowd.claim()
    crowd.arrive(BOB)
    waiting = crowd.claim()
    crowd.arrive(ANN)
    crowd.skip(pair)
    crowd.arrive(BOB)
    free = crowd.claim()

    assert (waiting["assignment"], waiting["outcome"]) == (None, "waiting")
    assert free["assignment"]
    crowd.arrive(CEM)
    assert crowd.claim()["outcome"] == "waiting"
    store.clock.pass_seconds(3600)
    assert crowd.claim()["assignment"]


def test_a_rater_is_told_whether_the_pair_given_ahead_is_still_theirs(open_crowd):
    _, crowd = open_crowd(pairs=2, k=1)
    crowd.arrive(ANN)
    first, ahead = crowd.claim(), crowd.claim(ahead=True)
    kept = crowd.vote(first).json()["next"]
    crowd.arrive(BOB)
    assert crowd.claim()["outcome"] == "waiting"  # Ann has begun it
    crowd.arrive(CEM)
    assert crowd.claim()["outcome"] == "waiting"

    assert kept == ahead["assignment"]

    _, crowd = open_crowd(pairs=3, k=1)
    crowd.arrive(ANN)
    first, ahead = crowd.claim(), crowd.claim(ahead=True)
    crowd.arrive(BOB)
    pairs = [crowd.claim()["assignment"], crowd.claim(ahead=True)["assignment"]]
    assert pairs[0] and pairs[1] is None  # nobody takes a pair back in order to look ahead
    crowd.arrive(CEM)
    assert crowd.claim()["assignment"]
    crowd.arrive(ANN)
    assert crowd.skip(first)["next"] is None
    assert crowd.vote(ahead).status_code == 409


def test_a_pair_that_the_rater_has_had_is_not_worth_waiting_for(open_crowd):
    _, crowd = open_crowd(pairs=1)
    crowd.arrive(ANN)
    crowd.vote(crowd.claim())
    crowd.arrive(BOB)
    crowd.claim()
    crowd.arrive(ANN)

    assert told(crowd.claim()) == ("no_work_left", "N0W0RK", 1)


def test_a_rater_who_may_stop_at_any_time_does_not_wait(open_crowd):
    store, crowd = open_crowd(quota="", platforms="", pairs=2, k=1)
    other = enter_rater(store, "lab", "other")
    assert claim_pair(store, other)
    assert enter(crowd.client, PAGE).status_code == 200
    first = crowd.work(1)
    end = crowd.claim()
    crowd.client.cookies.clear()
    assert enter(crowd.client, PAGE).status_code == 200
    late = crowd.claim()

    assert first is None and told(end) == ("done", "D0NE", 1)
    assert told(late) == ("waiting", "", 0)


def test_the_quotas_of_the_comparisons_make_a_session_too(open_crowd):
    store, crowd = open_crowd(quota="per_study = 20\nper_comparison = 1", pairs=6)
    with store.write() as connection:
        connection.execute(update(PairRow).values(withheld=False))
    crowd.arrive(ANN)

    end = crowd.work()

    assert told(end) == ("done", "D0NE", 2) and end["progress"]["wanted"] == 2


def test_the_quota_of_a_day_does_not_end_a_session(open_crowd):
    store, crowd = open_crowd(quota="per_study = 5\nper_day = 3", pairs=6)
    crowd.arrive(ANN)

    assert told(crowd.work()) == ("later", "", 3)
    store.clock.pass_seconds(86_401)
    assert told(crowd.work()) == ("done", "D0NE", 5)


def test_a_complete_session_gets_its_code_whatever_happens_to_the_study(open_crowd):
    store, crowd = open_crowd(quota="per_study = 2", pairs=4)
    for who in (ANN, BOB):
        crowd.arrive(who)
        crowd.work(2)
    set_paused(store, True, author="ada")
    paused = crowd.claim()
    stopped = crowd.stop()
    set_closed(store, True, author="ada")
    crowd.arrive(ANN)

    assert [told(end) for end in (paused, stopped, crowd.claim(), crowd.stop())] == [
        ("done", "D0NE", 2)
    ] * 4


def test_an_excluded_rater_who_stops_gets_no_code_for_pay(open_crowd):
    store, crowd = open_crowd(quota="", platforms="")
    assert enter(crowd.client, PAGE).status_code == 200
    crowd.work(1)
    exclude(store, "rater:1", rule="always left", evidence={}, author="ada")

    assert told(crowd.stop()) == ("screened_out", "SCR33N", 1)


def test_a_second_session_of_a_platform_asks_for_pairs_of_its_own(open_crowd):
    store, crowd = open_crowd(quota="per_study = 2", pairs=5)
    crowd.arrive(ANN)
    first = crowd.work()
    crowd.arrive(ANN, visit="2", study="6")
    begun = crowd.claim()
    second = crowd.work()
    crowd.arrive(ANN, visit="3", study="7")
    third = crowd.work()
    crowd.arrive(ANN)
    again = crowd.claim()

    assert told(first) == told(again) == ("done", "D0NE", 2)
    assert begun["progress"] == {"answered": 0, "wanted": 2}
    assert told(second) == ("done", "D0NE", 2)
    assert told(third) == ("no_work_left", "N0W0RK", 1)  # the fifth and last pair
    votes = read_votes(store)
    assert votes["rater"].nunique() == 1 and votes["task_id"].nunique() == 5
    assert find_defects(store) == []


def test_two_sessions_of_a_rater_at_once_share_no_pair(open_crowd):
    store, crowd = open_crowd(quota="per_study = 2", pairs=5)
    crowd.arrive(ANN)
    open_in_first = crowd.claim()
    crowd.arrive(ANN, visit="2")
    second = crowd.work()
    crowd.arrive(ANN)
    crowd.vote(open_in_first)  # expired, or answered in the second session
    first = crowd.work()

    assert told(first) == told(second) == ("done", "D0NE", 2)
    assert read_votes(store)["task_id"].nunique() == 4


def test_a_platform_without_sessions_tells_them_apart_by_what_else_it_sends(open_crowd):
    panel = '[[providers]]\nkey = "panel"\nrater = "who"\nkeep = ["wave"]\n'
    store, crowd = open_crowd(quota="per_study = 2", pairs=5, platforms=panel)
    link = entry_links(store, PAGE)["panel"].replace("who=who", "who=ann")

    ends = []
    for wave in ("1", "1", "2"):
        crowd.client.cookies.clear()
        assert enter(crowd.client, link.replace("wave=wave", f"wave={wave}")).status_code == 200
        ends.append(crowd.claim(ahead=False).get("progress"))
        crowd.work()

    assert [end["answered"] for end in ends] == [0, 2, 0]


def test_raters_who_take_back_at_once_never_share_a_pair(make_store):
    store = make_store(k=1, num_prompts=8)
    hoarders = [enter_rater(store, "lab", f"hoarder {number}") for number in range(8)]
    for rater in hoarders:
        assert claim_pair(store, rater) and claim_pair(store, rater, ahead=True)
    waiting = [enter_rater(store, "lab", f"waiting {number}") for number in range(12)]

    with ThreadPoolExecutor(8) as threads:
        claimed = list(threads.map(lambda rater: claim_pair(store, rater), waiting))

    pairs = [lease.pair_id for lease in claimed if lease]
    assert len(pairs) == len(set(pairs)) <= 8
    with store.read() as connection:
        held = connection.execute(
            select(AssignmentRow.pair_id).where(AssignmentRow.state == "open")
        ).scalars()
        assert sorted(held) == sorted({*range(1, 17)})
    assert find_defects(store) == []
