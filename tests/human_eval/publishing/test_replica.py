import json
import shutil
import sys
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import pytest
from pandas.testing import assert_frame_equal
from sqlalchemy import delete, update

from human_eval.cli.main import main
from human_eval.errors import NotYours, StudyError, StudyNotReady
from human_eval.publishing.data_set import DataSet
from human_eval.publishing.journal import read_news, read_origin, start_replica
from human_eval.publishing.replica import Place, Replica
from human_eval.publishing.space_folder import PACKAGES, publish, write_folders
from human_eval.reporting.report import write_report
from human_eval.server.accounts import add_account, read_accounts
from human_eval.storage import events, study_state
from human_eval.storage.tables import Study, Vote
from human_eval.study import backup as backups
from human_eval.study.queries import count_answers, read_votes
from tests.kills import journal as kills
from tests.support.servers.fake_hub import TOKEN
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
from tests.test_architecture import all_imports

DATA = "me/study-votes"


@pytest.fixture
def database_url():
    return None


@pytest.fixture
def published(hub, make_store, monkeypatch, tmp_path):
    """A study whose data set is on the fake Hub, as its researcher has it."""
    store = make_store(k=3, num_prompts=4)
    write_folders(store, tmp_path / "published", DATA)
    hub.add_data_set(DATA, tmp_path / "published" / "data")
    monkeypatch.setenv("HUMAN_EVAL_SECRET", store.keys.secret)
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


def test_the_public_space_tells_nothing_about_the_study(published, hub):
    publish(published, "me/study", DATA, TOKEN)
    assert hub.secrets == {"HUMAN_EVAL_SECRET": published.keys.secret}
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


def test_votes_outlive_the_disk_and_the_report_is_the_same_byte_for_byte(
    published, serve, tmp_path
):
    replica = serve("first")
    rate(replica, "ann", "ben")
    exclude(replica._store, "rater:2", rule="slow", evidence={}, author="ada")
    replica.sync()
    before = votes_of(replica)
    tables = (list_win_rates(replica), read_votes(replica._store))
    shutil.rmtree(tmp_path / "first")

    again = serve("first")

    assert votes_of(again) == before and len(before) == 8
    assert not find_defects(again._store)
    assert list_win_rates(again) == tables[0]
    assert_frame_equal(read_votes(again._store), tables[1])


@pytest.mark.slow
def test_the_report_of_a_rebuilt_study_is_the_same_byte_for_byte(published, serve, tmp_path):
    reports = []
    for name in ("first", "second"):
        replica = serve(name)
        if not reports:
            rate(replica, *(f"rater {number}" for number in range(3)), pairs=3)
            replica.sync()
        folder = tmp_path / f"report of {name}"
        write_report(read_votes(replica._store), replica._store.definition, folder)
        reports.append({path.name: path.read_bytes() for path in folder.iterdir()})

    assert reports[0] == reports[1]


@pytest.mark.slow
def test_two_servers_share_votes_and_decisions(published, serve):
    one, two = serve("one"), serve("two")
    rate(one, "ann")
    one.sync()
    two.sync()  # takes ann's answers in
    event = exclude(
        two._store, f"rater:{number_of(two, 'ann')}", rule="slow", evidence={}, author="ada"
    )
    rate(two, "ben", shown="right")
    two.sync()
    one.sync()
    assert votes_of(one) == votes_of(two) and len(votes_of(one)) == 8
    assert list(read_votes(one._store)["excluded"]) == [True] * 4 + [False] * 4

    [entry] = excluded_on(one)
    revoke(one._store, entry.event_id, author="eve", reason="it was a slow line")
    set_closed(one._store, True, author="eve")
    one.sync()
    two.sync()
    three = serve("three")

    assert event not in [entry.event_id for entry in excluded_on(two)]
    for replica in (one, two, three):
        assert not excluded_on(replica) and not find_defects(replica._store)
        assert is_closed(replica) and votes_of(replica) == votes_of(one)
        assert replica.count().pending == 0 and replica.count().stored == 8


@pytest.mark.slow
def test_a_pair_with_enough_raters_still_takes_the_votes_of_other_servers(published, serve):
    one, two = serve("one"), serve("two")
    rate(one, "a", "b", "c", pairs=8)
    rate(two, "d", "e", "f", pairs=8)  # each pair has its three raters on each server
    for replica in (one, two, one):
        replica.sync()

    assert votes_of(one) == votes_of(two) and len(votes_of(one)) == 6 * 8 * 2
    assert not find_defects(one._store)


@pytest.mark.slow
def test_a_rater_who_answers_a_pair_on_two_servers_counts_once(published, serve):
    one, two = serve("one"), serve("two")
    rate(one, "ann", pairs=8)
    rate(two, "ann", pairs=8, shown="right")
    for replica in (one, two, one):
        replica.sync()

    for replica in (one, two, serve("three")):
        votes = read_votes(replica._store)
        assert len(votes) == 16 and not votes.duplicated(["rater", "task_id", "question"]).any()


def test_a_vote_is_pending_until_it_is_in_the_data_set(published, hub, serve):
    replica = serve("first")
    hub.fault = lambda method, path: "forbidden" if "commit" in path else ""
    given = rate(replica, "ann")
    replica.sync()

    status = replica.count()
    assert (status.stored, status.synced, status.pending) == (given, 0, given)
    assert "HF_TOKEN" in status.problem

    hub.fault = lambda method, path: ""
    replica.sync()
    status = replica.count()
    assert (status.synced, status.pending, status.problem) == (given, 0, "")


def test_an_unexpected_error_is_reported_and_the_next_round_uploads(published, serve, monkeypatch):
    replica = serve("first")
    given = rate(replica, "ann")

    def fail(data_set):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(DataSet, "list_journal", fail)
        replica.sync()
    assert "No space left" in replica.status.problem and replica.status.pending == given

    replica.sync()
    assert (replica.status.pending, replica.status.problem) == (0, "")


def test_votes_that_get_the_numbers_of_erased_ones_are_journalled(published, serve, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    replica = serve("first")
    rate(replica, "ann", "ben")
    replica.sync()
    main(["collect", str(published.folder), "--data-set", DATA])
    with published.write() as connection:
        connection.execute(update(Study).values(erasing=True))
        connection.execute(delete(Vote))
        connection.execute(update(Study).values(erasing=False))
        start_replica(connection, now=1)

    given = rate(SimpleNamespace(_store=published), "eve")

    with published.read() as connection:
        origin = read_origin(connection)
        _, lines = read_news(connection, origin, origin.start)
    assert sum("vote" in json.loads(line) for line in lines.splitlines()) == given > 0


@pytest.mark.parametrize("command", [["amend"], ["restore"], ["erase", "link", "ann"]])
def test_a_servers_copy_is_not_changed_behind_its_data_set(published, serve, command, capsys):
    replica = serve("first", kept=True)
    rate(replica, "ann")
    backups.back_up(replica._store)
    replica.sync()
    before = votes_of(replica)
    replica._store.close()

    with pytest.raises(SystemExit):
        main([command[0], str(replica.place.study), *command[1:]])

    assert DATA in capsys.readouterr().err
    assert votes_of(serve("first", kept=True)) == before


def test_a_server_without_a_data_set_erases_its_raters(published, tmp_path):
    replica = Replica(Place(tmp_path / "published" / "data", kept=True), None)
    replica.open()
    rate(replica, "ann", "ben")
    replica.sync()
    replica._store.close()

    main(["erase", str(replica.place.study), "link", "ann"])

    with closing(replica.open()):
        assert any(vote[0].startswith("erased-") for vote in votes_of(replica))


def test_a_commit_whose_reply_was_lost_is_not_made_twice(published, hub, serve):
    replica = serve("first")
    rate(replica, "ann")
    hub.fault = lambda method, path: "lost" if "commit" in path else ""
    replica.sync()
    assert replica.count().problem
    hub.fault = lambda method, path: ""
    commits = hub.repositories[f"datasets/{DATA}"].commits
    replica.sync()

    assert replica.count().pending == 0
    assert hub.repositories[f"datasets/{DATA}"].commits == commits
    assert votes_of(serve("second")) == votes_of(replica)


def test_without_a_token_nobody_rates_where_the_disk_is_not_kept(published, hub, serve):
    with pytest.raises(StudyNotReady, match="HF_TOKEN"):
        serve("first", token=None)
    hub.fault = lambda method, path: "forbidden" if "commit" in path else ""
    with pytest.raises(StudyNotReady, match="HF_TOKEN"):  # it may read only
        serve("second")
    with pytest.raises(StudyNotReady, match="401"):
        serve("third", token="hf_wrong")
    hub.fault = lambda method, path: ""
    hub.repositories[f"datasets/{DATA}"].private = False
    with pytest.raises(StudyNotReady, match="public"):
        serve("fourth")


@pytest.mark.slow
def test_without_a_token_votes_stay_on_a_disk_that_is_kept(published, hub, serve):
    rate(serve("first", kept=True), "ann")
    replica = serve("first", kept=True, token=None)
    rate(replica, "ben")
    replica.sync()

    status = replica.count()
    assert (status.stored, status.pending) == (8, 8) and "token" in status.problem


@pytest.mark.slow
def test_a_kept_disk_goes_on_while_the_hub_is_away(published, hub, serve):
    first = serve("first", kept=True)
    rate(first, "ann")
    first._store.close()
    hub.fault = lambda method, path: "forbidden"

    again = serve("first", kept=True)

    assert len(votes_of(again)) == 4 and again.count().pending == 4
    with pytest.raises(StudyNotReady):
        serve("second")


@pytest.mark.slow
def test_a_study_that_is_published_again_keeps_its_votes(published, hub, serve):
    replica = serve("first", kept=True)
    rate(replica, "ann")
    publish(published, "me/study", DATA, TOKEN)

    again = serve("first", kept=True)

    assert votes_of(again) == votes_of(replica) and len(votes_of(again)) == 4
    assert (again.place.study / "version").read_text() != (
        next(again.place.folder.glob("study-until-*")) / "version"
    ).read_text()


@pytest.mark.slow
def test_the_researcher_collects_the_votes(published, hub, serve, monkeypatch, capsys):
    replica = serve("first")
    rate(replica, "ann")
    replica.sync()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    command = ["collect", str(published.folder), "--data-set", DATA]
    main(command)
    main(command)

    assert "2 new submissions" in (told := capsys.readouterr().out) and "0 new" in told
    assert set(read_votes(published)["task_id"]) == {row[1] for row in votes_of(replica)}
    publish(published, "me/study", DATA, TOKEN)
    assert len(votes_of(serve("second"))) == 4  # in the new copy, and not again from the journal


@pytest.mark.slow
def test_a_journal_of_another_study_or_a_damaged_one_is_refused(published, hub, serve):
    replica = serve("first")
    rate(replica, "ann")
    replica.sync()
    files = hub.repositories[f"datasets/{DATA}"].files
    path = max(path for path in files if path.startswith("journal/"))
    for damaged in (files[path][:-9], files[path].replace(b'"pair": ', b'"pair": 99')):
        files[path] = damaged
        with pytest.raises(StudyError):
            serve("second")
        shutil.rmtree(replica.place.folder.parent / "second")


def test_a_cookie_of_another_server_names_nobody_here(published):
    one, two = (replace(published.keys, server=name) for name in ("one", "two"))

    assert two.read("link", one.sign("link", ["link"])) == ["link"]
    with pytest.raises(NotYours):
        two.read("rater", one.sign("rater", [1, "link", {}]))


@pytest.mark.slow
def test_a_dry_run_is_served_without_a_hub(published, serve, tmp_path):
    add_account(published.folder, "ada", "correct horse battery", "admin")
    write_folders(published, tmp_path / "dry", DATA)
    (tmp_path / "dry" / "data").rename(tmp_path / "served")

    replica = serve("served", kept=True, token=None)

    assert rate(replica, "ann") == 4 and read_accounts(replica.place.study)


def number_of(replica, name: str) -> int:
    return enter_rater(replica._store, "link", name)


def excluded_on(replica) -> list[events.Exclusion]:
    with replica._store.read() as connection:
        return events.exclusions(connection)


def is_closed(replica) -> bool:
    with replica._store.read() as connection:
        return study_state.is_closed(connection)


def list_win_rates(replica) -> list[dict]:
    return count_answers(replica._store).to_dict("records")


@pytest.mark.slow
def test_killed_servers_lose_no_synced_vote(tmp_path):
    found = kills.measure(10, tmp_path, report=False)

    assert found["wipes"] and found["told as synced"] and found["back"] >= found["told as synced"]


def test_a_space_installs_every_package_that_the_program_imports():
    installed = {name.partition("[")[0] for name in PACKAGES}
    imported = {
        name.partition(".")[0]
        for module, names in all_imports().items()
        if module.startswith(("human_eval", "turbo.text_files", "turbo.display"))
        for name in names
    }
    ours = {"human_eval", "turbo", "__future__", "starlette"}  # fastapi brings starlette

    assert imported - ours - sys.stdlib_module_names <= installed
