"""The study next to the page: when it opens, and what its visitors read until then."""

import asyncio

import pytest
from starlette.testclient import TestClient

from human_eval.errors import StorageBusy, StudyError
from human_eval.server import study_mount
from human_eval.server.study_mount import FAILED, PREPARING, StudyMount
from human_eval.storage.lock import alone
from tests.support.apart import run_apart


@pytest.fixture(autouse=True)
def no_patience(monkeypatch):
    monkeypatch.setattr(study_mount, "RETRY_SECONDS", 0.02)


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


async def until_open(mount):
    await until(lambda: mount.store is not None)
    await asyncio.to_thread(mount.live_results.read)  # after the first reading, which has begun


def test_a_study_opens_once_another_program_has_released_its_lock(make_store):
    store = make_store()
    mount = StudyMount(lambda: store)

    async def scene():
        async with mount.running():
            with alone(store.database, store.folder):
                await until(lambda: mount.note != PREPARING)
                note, reply = mount.note, TestClient(mount.apps["/study"]).get("/rate")
                problems = await mount.problems()
            await until_open(mount)
            return note, reply, problems, await mount.problems()

    note, reply, problems, problems_after = run_apart(scene())

    assert note != FAILED and str(store.folder) not in note
    assert reply.status_code == 503 and note in reply.text and "refresh" in reply.text
    assert problems == [note] and problems_after == []


def test_a_study_opens_once_its_database_answers(make_store):
    store, attempts = make_store(), []

    def open_store():
        attempts.append(1)
        if len(attempts) == 1:
            raise StorageBusy("The database is busy.")
        return store

    mount = StudyMount(open_store)

    async def scene():
        async with mount.running():
            await until_open(mount)

    run_apart(scene())

    assert len(attempts) == 2


def test_a_study_that_cannot_be_used_is_not_opened_again():
    attempts = []

    def open_store():
        attempts.append(1)
        raise StudyError("A newer version made this study.")

    mount = StudyMount(open_store)

    async def scene():
        async with mount.running():
            await until(lambda: mount.note != PREPARING)
            await asyncio.sleep(0.1)

    run_apart(scene())

    assert mount.note == FAILED and len(attempts) == 1
