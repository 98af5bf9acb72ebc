"""Two services on one PostgreSQL: whatever reaches either of them is stored once."""

import asyncio
import random
import subprocess
import sys
from pathlib import Path

import pytest

from vote_load import Load, lost_receipts, rate, run_apart

ROOT = Path(__file__).parents[1]


async def share(ports):
    load, rng = Load(), random.Random(0)
    await asyncio.gather(
        *(
            rate(ports[number % len(ports)], load, rng, lambda: True, watch=False)
            for number in range(12)
        )
    )
    return load


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_two_services_on_one_postgresql_lose_and_double_nothing(make_store):
    store = make_store(k=3, num_prompts=10, loops=0)
    servers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.vote_server", store.folder],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    ports, children = [], []
    for server in servers:
        ports.append(int(server.stdout.readline()))
        server.stdin.write("\n")
        server.stdin.flush()
        children.append(int(server.stdout.readline()))
    try:
        load = run_apart(share(ports))
    finally:
        for server, child in zip(servers, children, strict=True):
            subprocess.run(["kill", str(child)], check=True)
            server.stdin.close()
            server.wait()
            server.stdout.close()

    assert load.failures == []
    assert len(load.receipts) == 3 * 2 * 10
    assert lost_receipts(store, load) == []
    assert len(store.votes()) == 2 * 3 * 2 * 10
    assert not store.votes().duplicated(["task_id", "rater", "question"]).any()
    assert store.list_defects() == []
