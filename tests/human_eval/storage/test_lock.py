"""A restore and a running service keep out of each other's way."""

import urllib.request

import pytest
from fastapi.testclient import TestClient

from human_eval.cli.main import main
from human_eval.errors import StudyError
from human_eval.server.vote_api import create_app
from human_eval.storage.lock import alone, serving
from human_eval.study.backup import back_up, restore
from tests.human_eval.server.test_vote_api import claim, count_votes, enter, vote
from tests.support.studies import answer, claim_pair, enter_rater, submit_answers
from tests.support.vote_load import VoteServer


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
