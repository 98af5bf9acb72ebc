"""Two services on one PostgreSQL: whatever reaches either of them is stored once."""

import asyncio
import random
import signal

import pytest

from human_eval.study.queries import read_votes
from tests.support.apart import run_apart
from tests.support.studies import find_defects
from tests.support.vote_load import Load, VoteServer, lost_receipts, rate


async def share(ports):
    load, rng = Load(), random.Random(0)
    await asyncio.gather(
        *(
            rate(ports[number % len(ports)], load, rng, lambda: True, watch=False)
            for number in range(12)
        )
    )
    return load


@pytest.mark.slow
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_two_services_on_one_postgresql_lose_and_double_nothing(make_store):
    store = make_store(k=3, num_prompts=10, loops=0)
    servers = [VoteServer(store.folder) for _ in range(2)]
    for server in servers:
        server.start()
    try:
        load = run_apart(share([server.port for server in servers]))
    finally:
        for server in servers:
            server.kill(signal.SIGTERM)
            server.close()

    assert load.failures == []
    assert len(load.receipts) == 3 * 2 * 10
    assert lost_receipts(store, load) == []
    assert len(read_votes(store)) == 2 * 3 * 2 * 10
    assert not read_votes(store).duplicated(["task_id", "rater", "question"]).any()
    assert find_defects(store) == []
