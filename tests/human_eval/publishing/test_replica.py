import os
import shutil

import pytest

from human_eval.errors import StudyError, StudyNotReady
from human_eval.publishing.data_set import DataSet
from human_eval.publishing.replica import Place, Replica, merge_all
from human_eval.publishing.space_folder import publish, write_folders
from human_eval.reporting.report import write_report
from human_eval.server.accounts import add_account
from human_eval.storage import events
from human_eval.study.queries import read_votes
from tests.support.fake_hub import TOKEN
from tests.support.studies import (
    answer,
    claim_pair,
    enter_rater,
    exclude,
    find_defects,
    revoke,
    set_closed,
    submit_answers,
)

DATA = "me/study-votes"


@pytest.fixture
def database_url():
    return None


@pytest.fixture
def published(hub, make_store, monkeypatch):
    """A study on the fake Hub, as its researcher has it."""
    store = make_store(k=3, num_prompts=4)
    publish(store, "me/study", DATA, TOKEN)
    monkeypatch.setenv("HUMAN_EVAL_SECRET", hub.secrets["HUMAN_EVAL_SECRET"])
    return store


@pytest.fixture
def serve(tmp_path):
    """Start servers by name, each with a disk of its own that is not kept."""
    opened = []

    def start(name: str, *, kept: bool = False, token: str | None = TOKEN) -> Replica:
        place = Place(tmp_path / name, kept=kept)
        replica = Replica(place, DataSet(DATA, token) if token else None)
        opened.append(replica.open())
        return replica

    yield start
    for store in opened:
        store.close()


def rate(replica, *raters, pairs=2, shown="left"):
    """Let raters answer pairs; return how many votes that were."""
    store, given = replica._store, 0
    for name in raters:
        rater = enter_rater(store, "link", name)
        for _ in range(pairs):
            lease = claim_pair(store, rater)
            given += len(submit_answers(store, answer(store, lease, shown)).answers)
    return given


def votes_of(replica) -> set[tuple]:
    votes = read_votes(replica._store)
    return set(
        votes[["rater", "task_id", "question", "choice", "answered_at"]].itertuples(
            index=False, name=None
        )
    )


def journal_of(hub) -> list[str]:
    return [path for path in hub.repositories[f"datasets/{DATA}"].files if "journal" in path]


def test_the_public_space_tells_nothing_about_the_study(published, hub):
    space = hub.repositories["spaces/me/study"]
    data = hub.repositories[f"datasets/{DATA}"]

    assert data.private and not space.private
    assert {"README.md", "Dockerfile", "human_eval/server/pages/rate.html"} <= set(space.files)
    own = {
        path: text
        for path, text in space.files.items()
        if not path.startswith(("human_eval/", "turbo/"))
    }
    assert set(own) == {"README.md", "Dockerfile", "requirements.txt"}
    for word in (b"Ours", b"Theirs", b"appealing", b"prompt 1", published.keys.secret.encode()):
        assert not [path for path, text in own.items() if word in text]
    assert not [path for path in space.files if path.endswith((".mp4", ".db"))]
    assert not [path for path, text in data.files.items() if published.keys.secret.encode() in text]


def test_votes_outlive_the_disk(published, hub, serve, tmp_path):
    replica = serve("first")
    rate(replica, "ann", "ben")
    replica.sync()
    before, report = votes_of(replica), tmp_path / "before"
    write_report(read_votes(replica._store), replica._store.definition, report)
    shutil.rmtree(tmp_path / "first")

    again = serve("first")

    assert votes_of(again) == before and len(before) == 8
    assert not find_defects(again._store)
    rebuilt = tmp_path / "after"
    write_report(read_votes(again._store), again._store.definition, rebuilt)
    assert {p.name: p.read_bytes() for p in report.iterdir()} == {
        p.name: p.read_bytes() for p in rebuilt.iterdir()
    }
