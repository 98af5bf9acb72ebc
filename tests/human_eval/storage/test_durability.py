"""What was acknowledged is stored: through kills, power cuts, locks and a full disk."""

import asyncio
import random
import shutil
import time
from collections import Counter
from pathlib import Path
from unittest import mock

import pytest
from fastapi.testclient import TestClient

from human_eval.definition.prompts import Prompt
from human_eval.server.vote_api import create_app
from human_eval.storage.database import open_database
from human_eval.study.queries import read_study_progress
from human_eval.study.store import StudyStore, create_study, open_study
from tests.human_eval.server.test_vote_api import claim, count_votes, enter, vote
from tests.support.apart import run_apart
from tests.support.power_cut import Disk, driver
from tests.support.studies import (
    Clock,
    answer,
    claim_pair,
    define,
    enter_rater,
    fill,
    find_defects,
    run_postgresql,
    stored_clips,
    submit_answers,
    sweep_expired,
)
from tests.support.vote_load import Load, VoteServer, lost_receipts, rate

ROOT = Path(__file__).parents[3]
sqlite_only = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def cut_power(tmp_path, make_store, synchronous, cuts, seed):
    """Answer pairs until the power has been cut so often; return the disk."""
    store = make_store(k=3, num_prompts=40)
    store.close()
    rng = random.Random(seed)
    disk = Disk(tmp_path / "cuts", rng, chance=0.15)
    disk.folder.mkdir()
    with driver(disk, synchronous) as module:
        with mock.patch("human_eval.storage.database.safe_sqlite", lambda: module):
            database = open_database(store.folder / "study.db")
        store = StudyStore(store.folder, database, store.definition, store.keys, Clock(), rng)
        while len(disk.cuts) < cuts:
            rater = enter_rater(store, "lab", str(rng.randrange(30)))
            lease = claim_pair(store, rater)
            if lease is None:
                continue
            receipt = submit_answers(store, answer(store, lease, rng.choice(["left", "right"])))
            disk.acknowledged.append((receipt.assignment_id, receipt.answers["Q2"]))
        store.close()
    return store, disk


def inspect(store, cut):
    """Open a database as the power cut left it; return its answers and what is wrong with it."""
    folder, _ = cut
    database = open_database(folder / "study.db")
    found = StudyStore(store.folder, database, store.definition, store.keys)
    with found.read() as connection:
        rows = connection.exec_driver_sql(
            "SELECT a.id, v.choice, a.side_a FROM vote v JOIN assignment a "
            "ON a.id = v.assignment_id WHERE v.question = 'Q2'"
        ).all()
    defects = find_defects(found)
    found.close()
    shutil.rmtree(folder)
    other = {"left": "right", "right": "left"}
    return {(turn, side if choice == "a" else other[side]) for turn, choice, side in rows}, defects


@sqlite_only
@pytest.mark.parametrize("cuts", [30, pytest.param(300, marks=pytest.mark.slow)])
def test_power_cuts_lose_no_receipt(tmp_path, make_store, cuts):
    store, disk = cut_power(tmp_path, make_store, "FULL", cuts=cuts, seed=0)

    promised = 0
    for cut in disk.cuts:
        stored, defects = inspect(store, cut)
        assert set(cut[1]) <= stored
        assert defects == []
        promised += len(cut[1])
    assert promised > cuts


@sqlite_only
def test_the_power_cuts_do_bite_where_commits_are_not_synced(tmp_path, make_store):
    store, disk = cut_power(tmp_path, make_store, "NORMAL", cuts=60, seed=1)

    lost = sum(len(set(cut[1]) - inspect(store, cut)[0]) for cut in disk.cuts)

    assert lost > 0


@pytest.fixture
def forker(make_store):
    """A study and a process that serves it, to be killed."""
    store = make_store(k=3, num_prompts=400, loops=0)
    for clip in stored_clips(store):
        (store.media / clip.stored_name).write_bytes(b"clip" * 250)
    server = VoteServer(store.folder)
    yield store, server
    server.close()


async def kill_repeatedly(store, server, kills, rng):
    load = Load()
    stop = []
    server.start()
    raters = [
        asyncio.create_task(rate(server.port, load, rng, lambda: not stop, think=0.02, watch=False))
        for _ in range(16)
    ]
    for number in range(kills):
        seen = len(load.receipts)
        while len(load.receipts) < seen + 3:
            await asyncio.sleep(0.01)
        await asyncio.sleep(rng.expovariate(20))
        server.kill()
        server.start()
        if number % 10 == 0:
            assert lost_receipts(store, load) == []
    stop.append(True)
    await asyncio.gather(*raters)
    server.kill()
    return load


def check_kills(forker, kills):
    store, server = forker
    kill = kill_repeatedly(store, server, kills, random.Random(0))
    load = run_apart(kill)

    assert load.failures == []
    assert load.retries > 0
    assert len(load.receipts) > 3 * kills
    assert lost_receipts(store, load) == []
    again = open_study(store.folder)
    assert find_defects(again) == []
    # Leases of raters who were cut off run out, and their pairs come back.
    store = StudyStore(again.folder, again.database, again.definition, again.keys, Clock())
    store.clock.now = time.time_ns() // 10**6 + 1000 * 3600
    sweep_expired(store)
    assert "open" not in read_study_progress(store).assignments
    assert find_defects(store) == []
    store.close()


@pytest.mark.slow
def test_fifty_kills_of_the_server_lose_no_receipt(forker):
    check_kills(forker, kills=50)


async def kill_database_repeatedly(database, server, kills, rng):
    load = Load()
    stop = []
    raters = [
        asyncio.create_task(rate(server.port, load, rng, lambda: not stop, think=0.02, watch=False))
        for _ in range(16)
    ]
    for _ in range(kills):
        seen = len(load.receipts)
        while len(load.receipts) < seen + 3:
            assert not load.failures, load.failures
            await asyncio.sleep(0.01)
        await asyncio.sleep(rng.expovariate(20))
        await asyncio.to_thread(database.kill)
        await asyncio.to_thread(database.start)
    stop.append(True)
    await asyncio.gather(*raters)
    return load


def check_database_kills(tmp_path, kills):
    """Kill PostgreSQL, all its processes at once, below a service that goes on."""
    prompts = [Prompt(index, f"prompt {index}") for index in range(400)]
    with run_postgresql() as database:
        folder = tmp_path / "study"
        store = create_study(folder, define(3, loops=0), prompts, database_url=database.url)
        fill(store, len(prompts))
        server = VoteServer(folder)
        server.start()
        try:
            load = run_apart(kill_database_repeatedly(database, server, kills, random.Random(0)))
        finally:
            server.close()
        lost, defects = lost_receipts(store, load), find_defects(store)
        store.close()

    assert load.failures == []
    assert load.retries > 0 and len(load.receipts) > 3 * kills
    assert lost == [] and defects == []


@pytest.mark.slow
@pytest.mark.usefixtures("postgresql")
def test_fifty_kills_of_postgresql_lose_no_receipt(tmp_path):
    check_database_kills(tmp_path, kills=50)


@sqlite_only
def test_a_locked_database_says_so_and_takes_the_answer_later(make_store, monkeypatch):
    monkeypatch.setattr("human_eval.storage.database.BUSY_MILLISECONDS", 200)
    store = make_store(loops=0)
    with TestClient(create_app(store)) as client:
        enter(client)
        ballot = claim(client)["assignment"]
        lock = open_database(store.folder / "study.db").writing.connect()
        lock.begin()
        refused = vote(client, ballot)
        sick = client.get("/healthz")
        lock.rollback()
        lock.close()
        stored = vote(client, ballot)

    assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
    assert "nothing was stored" in refused.json()["error"]
    assert sick.status_code == 503
    assert (stored.status_code, stored.json()["duplicate"]) == (200, False)
    assert count_votes(store) == 2


@sqlite_only
def test_a_full_disk_says_so_and_keeps_what_was_stored(make_store):
    store = make_store(k=9, num_prompts=40, loops=0)
    kept = Counter()
    with TestClient(create_app(store)) as client:
        enter(client)
        with store.read() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        limit_pages(client, store, pages + 2)
        for _ in range(200):
            pair = client.post("/api/claim", json={})
            kept[pair.status_code] += 1
            if pair.status_code == 507:
                break
            reply = vote(client, pair.json()["assignment"])
            kept[reply.status_code] += 1
            if reply.status_code == 507:
                break
        answered = count_votes(store)
        limit_pages(client, store, 10**6)
        assert vote(client, claim(client)["assignment"]).status_code == 200

    assert kept[507] == 1 and kept[200] > 1 and set(kept) == {200, 507}
    assert count_votes(store) == answered + 2
    assert find_defects(store) == []


def limit_pages(client, store, pages):
    """Let the database grow no further, on the connection that the writer uses."""
    with store.database.writing.connect() as connection:
        connection.connection.driver_connection.execute(f"PRAGMA max_page_count={pages}")


@sqlite_only
def test_a_database_that_is_gone_is_not_replaced_by_an_empty_one(make_store):
    store = make_store(loops=0)
    store.close()
    (store.folder / "study.db").rename(store.folder / "elsewhere.db")

    with pytest.raises(Exception, match="does not exist"):
        open_study(store.folder)
    assert not (store.folder / "study.db").exists()
