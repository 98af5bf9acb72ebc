"""A restore and a running service keep out of each other's way."""

import time
import urllib.request
from contextlib import ExitStack, contextmanager, suppress

import pytest
from fastapi.testclient import TestClient

from human_eval.cli.main import main
from human_eval.errors import StudyError
from human_eval.server.vote_api import create_app
from human_eval.storage.lock import LockLost, alone, serving
from human_eval.study.backup import back_up, open_to_restore, restore
from tests.human_eval.server.test_vote_api import claim, count_votes, enter, vote
from tests.support.studies import answer, claim_pair, enter_rater, submit_answers
from tests.support.vote_load import VoteServer

sqlite_only = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
postgresql_only = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


def test_a_restore_waits_until_the_service_has_stopped(make_store):
    store = make_store(loops=0)
    copy = back_up(store)
    with TestClient(create_app(store)) as client:
        enter(client)
        receipt = vote(client, claim(client)["assignment"])
        with pytest.raises(StudyError, match="is taking answers"):
            restore(store, copy)
        assert receipt.status_code == 200
        assert count_votes(store) == 2

    restore(store, copy)

    assert count_votes(store) == 0


def end_session_of_the_lock(store):
    """End the connection that holds the lock, as a restart of PostgreSQL does."""
    with store.write() as connection:
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' "
            "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )


@postgresql_only
def test_a_service_takes_its_lock_again_after_a_restart_of_postgresql(make_store):
    store = make_store(loops=0)
    copy = back_up(store)
    with TestClient(create_app(store)) as client:
        enter(client)
        end_session_of_the_lock(store)
        time.sleep(2.5)  # its work every second
        with pytest.raises(StudyError, match="is taking answers"):
            restore(store, copy)
        assert vote(client, claim(client)["assignment"]).status_code == 200


@postgresql_only
def test_a_lock_that_another_command_took_meanwhile_is_lost(make_store):
    store = make_store()
    with serving(store.database, store.folder) as renew, ExitStack() as stack:
        end_session_of_the_lock(store)
        for _ in range(50):  # until the session has ended
            with suppress(StudyError):
                stack.enter_context(alone(store.database, store.folder))
                break
            time.sleep(0.1)
        with pytest.raises(LockLost):
            renew()


def test_a_service_that_lost_its_lock_stores_nothing_more(make_store, monkeypatch):
    store = make_store(loops=0)

    @contextmanager
    def lose(database, folder):
        yield raise_lost

    def raise_lost():
        raise LockLost("Start the service again.")

    monkeypatch.setattr("human_eval.server.vote_service.serving", lose)
    with TestClient(create_app(store)) as client:
        enter(client)
        time.sleep(1.5)  # its work every second

        assert client.post("/api/claim", json={}).status_code == 503
        assert "Start the service again." in client.get("/healthz").text


@sqlite_only
def test_a_restore_leaves_the_database_of_a_running_service_where_it_is(make_store, monkeypatch):
    store = make_store(loops=0)
    back_up(store)
    monkeypatch.setattr("human_eval.study.backup._is_sound", lambda path: False)
    with TestClient(create_app(store)):
        file = (store.folder / "study.db").stat().st_ino
        with pytest.raises(StudyError, match="is taking answers"):
            open_to_restore(store.folder, None)

        assert (store.folder / "study.db").stat().st_ino == file


def test_no_service_starts_while_a_backup_is_being_restored(make_store):
    store = make_store()
    with (
        alone(store.database, store.folder),
        pytest.raises(StudyError, match=r"Another service or a restore|is being restored"),
        TestClient(create_app(store)),
    ):
        pass
    with TestClient(create_app(store)) as client:
        assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_second_serve_is_refused_in_one_line(make_store, capsys):
    store = make_store()
    with serving(store.database, store.folder), pytest.raises(SystemExit) as exit:
        main(["serve", str(store.folder), "--port", "0"])

    shown = capsys.readouterr()
    assert exit.value.code == 2 and "Raters' page" not in shown.out
    assert shown.err.startswith("human_eval serve: Another service")


def test_a_service_that_was_killed_leaves_no_lock_behind(make_store):
    store = make_store()
    copy = back_up(store)
    server = VoteServer(store.folder)
    server.start()
    # The socket listens before the server has started: the answer comes when it has.
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/healthz", timeout=60) as reply:
        assert reply.status == 200
    with pytest.raises(StudyError, match="is taking answers"):
        restore(store, copy)
    server.kill()
    server.close()

    restore(store, copy)

    assert (
        submit_answers(
            store, answer(store, claim_pair(store, enter_rater(store, "lab", "x")))
        ).duplicate
        is False
    )
