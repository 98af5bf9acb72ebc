"""The researchers' application: who may sign in, and that decisions are stored as events."""

import io
import re
import zipfile
from collections import Counter

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select, update

from human_eval.server.accounts import add_account
from human_eval.server.admin import create_admin_app
from human_eval.server.admin_session import COOKIE
from human_eval.server.vote_api import create_app
from human_eval.storage.tables import Event, PairRow, Study
from human_eval.study.queries import read_votes
from tests.support.studies import (
    add_clips,
    answer,
    claim_pair,
    enter_rater,
    exclude,
    make_clip,
    stored_clips,
    submit_answers,
)

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
PASSWORD = "correct horse battery"


@pytest.fixture
def store(make_store):
    store = make_store(k=2, num_prompts=3)
    add_account(store.folder, "ada", PASSWORD, "admin")
    add_account(store.folder, "rita", PASSWORD, "rater")
    for number in range(2):
        rater = enter_rater(store, "test", f"rater {number}")
        while lease := claim_pair(store, rater):
            store.clock.pass_seconds(20)
            submit_answers(store, answer(store, lease, "left"))
    return store


@pytest.fixture
def service(store):
    with TestClient(create_app(store)) as raters:
        yield raters.app.state.service


@pytest.fixture
def stranger(store, service):
    return TestClient(create_admin_app(store, service), base_url="http://study", client=("a", 1))


@pytest.fixture
def ada(stranger):
    assert sign_in(stranger).status_code == 303
    return stranger


def sign_in(client, name="ada", password=PASSWORD):
    form = {"name": name, "password": password}
    return client.post("/sign-in", data=form, follow_redirects=False)


def form_token(client):
    return re.search(r'name="token" value="([^"]+)"', client.get("/").text)[1]


def decide(client, action, **form):
    form = {"token": form_token(client), **form}
    return client.post(f"/{action}", data=form, follow_redirects=False)


def events(store):
    with store.read() as connection:
        rows = connection.execute(select(Event.kind, Event.actor).where(Event.actor == "ada"))
        return Counter(kind for kind, _ in rows)


def test_only_a_researcher_with_the_password_gets_in(stranger):
    assert "Password" in stranger.get("/").text
    assert sign_in(stranger, password="wrong password").status_code == 403
    assert sign_in(stranger, name="rita").status_code == 403
    assert sign_in(stranger, name="nobody").status_code == 403
    assert stranger.post("/sign-in", content=b"\xff" * 99).status_code == 400
    assert COOKIE not in stranger.cookies
    assert sign_in(stranger).status_code == 303
    assert "Counts" in stranger.get("/").text


def test_the_cookie_is_for_this_site_alone_and_not_for_scripts(stranger):
    cookie = sign_in(stranger).headers["set-cookie"].lower()

    assert "httponly" in cookie and "samesite=strict" in cookie


def test_a_session_ends_after_half_a_day_and_with_the_account(store, ada):
    assert "Counts" in ada.get("/").text
    add_account(store.folder, "ada", PASSWORD, "rater")
    assert "Counts" not in ada.get("/").text
    add_account(store.folder, "ada", PASSWORD, "admin")
    assert "Counts" in ada.get("/").text
    store.clock.pass_seconds(13 * 3600)
    assert "Counts" not in ada.get("/").text


def test_without_an_account_the_page_shows_the_command_that_creates_one(make_store):
    store = make_store()
    with TestClient(create_app(store)) as raters:
        client = TestClient(create_admin_app(store, raters.app.state.service))
        assert f"python -m human_eval staff {store.folder}" in client.get("/").text


def test_the_dashboard_counts_what_the_database_holds(ada):
    page = ada.get("/").text
    counts = ada.get("/counts").text

    assert "12 of 12 assignments" not in page  # two comparisons of six each
    assert page.count("6 of 6 assignments") == 2
    assert "<b>12</b> pairs answered" in counts and "<b>2</b> raters" in counts
    assert "Ours" in page and "Theirs" in page


def test_a_study_is_paused_resumed_closed_and_reopened(store, ada):
    rater = enter_rater(store, "test", "late")
    for action in ("pause", "resume", "close", "reopen"):
        reply = decide(ada, action, confirm="yes")
        assert (reply.status_code, reply.headers["location"]) == (303, "/")

    assert events(store) == {"paused": 1, "resumed": 1, "closed": 1, "reopened": 1}
    assert decide(ada, "resume").status_code == 400
    assert claim_pair(store, rater) is None  # all is answered; neither paused nor closed


def test_closing_is_confirmed_first(store, ada):
    asked = decide(ada, "close")

    assert asked.status_code == 200 and 'name="confirm" value="yes"' in asked.text
    assert "names of the systems" in asked.text and not events(store)
    form = dict(re.findall(r'name="(\w+)" value="([^"]+)"', asked.text))
    assert ada.post("/close", data=form, follow_redirects=False).status_code == 303
    assert events(store) == {"closed": 1}
    assert decide(ada, "close").status_code == 410  # closed already
    assert decide(ada, "reopen").status_code == 303


def test_an_unknown_page_is_answered_with_a_page(ada):
    reply = ada.get("/no/such/page")

    assert reply.status_code == 404
    assert 'href="/static/admin.css"' in reply.text and 'role="alert"' in reply.text


def test_a_decision_needs_a_form_token_of_the_same_researcher(store, ada):
    add_account(store.folder, "bea", PASSWORD, "admin")
    hers = TestClient(ada.app, base_url="http://study")
    sign_in(hers, "bea")

    for token in ("", "x", form_token(hers), ada.cookies[COOKIE]):
        reply = ada.post("/close", data={"token": token}, follow_redirects=False)
        assert reply.status_code == 403
    foreign = ada.post(
        "/close", data={"token": form_token(ada)}, headers={"sec-fetch-site": "cross-site"}
    )
    assert foreign.status_code == 403
    with store.read() as connection:
        assert connection.execute(select(Study.closed_at)).scalar() is None
    assert not events(store)


def test_an_unknown_decision_or_number_is_refused(ada):
    for action, form in (
        ("explode", {}),
        ("revoke", {"event": "1"}),
        ("revoke", {"event": "1e3", "reason": "so"}),
        ("revoke", {"event": "99999999", "reason": "so"}),
        ("release", {"pair": "-1"}),
        ("release", {"pair": "1"}),
        ("release", {}),
        ("exclude", {"subject": "rater:1", "rule": "whim"}),
    ):
        reply = decide(ada, action, **form)
        assert reply.status_code == 400, action
        assert 'role="alert"' in reply.text
    assert ada.post("/close", content=b"\xff" * 20_000).status_code == 400


def test_a_rater_is_excluded_by_a_rule_and_the_exclusion_revoked(make_store):
    store = make_store(k=2, num_prompts=12)
    add_account(store.folder, "ada", PASSWORD, "admin")
    rater = enter_rater(store, "test", "always left")
    while lease := claim_pair(store, rater):
        store.clock.pass_seconds(20)
        submit_answers(store, answer(store, lease, "left"))
    with TestClient(create_app(store)) as raters:
        ada = TestClient(create_admin_app(store, raters.app.state.service), base_url="http://h")
        sign_in(ada)
        assert "one_sided" in ada.get("/").text
        assert "was revoked" not in ada.get("/").text
        assert decide(ada, "exclude", subject=f"rater:{rater}", rule="one_sided").status_code == 303
        assert read_votes(store)["excluded"].all()
        [event] = re.findall(r'name="event" value="(\d+)"', ada.get("/").text)
        assert decide(ada, "revoke", event=event, reason="").status_code == 400
        assert decide(ada, "revoke", event=event, reason="a pilot").status_code == 303
        assert "was revoked" in ada.get("/").text
    assert not read_votes(store)["excluded"].any()
    assert events(store) == {"exclude": 1, "revoke": 1}


def test_raters_are_listed_excluded_and_blocked_by_hand(store, ada):
    page = ada.get("/").text
    names = [store.keys.pseudonym("test", f"rater {number}") for number in range(2)]
    assert all(name in page and name in ada.get("/raters.csv").text for name in names)

    assert decide(ada, "exclude-rater", rater="1", reason="a bot").status_code == 303
    assert decide(ada, "block-rater", rater="2", reason="rude").status_code == 303
    page = ada.get("/").text
    assert "by hand, a bot" in page and "blocked: rude" in page and "Unblock" in page
    assert read_votes(store)["excluded"].sum() * 2 == len(read_votes(store))
    assert decide(ada, "unblock-rater", rater="2", reason="a mistake").status_code == 303

    for action, form in (
        ("exclude-rater", {"rater": "1", "reason": "twice"}),
        ("block-rater", {"rater": "2", "reason": " "}),
        ("block-rater", {"rater": "99", "reason": "nobody"}),
        ("unblock-rater", {"rater": "2", "reason": "not blocked"}),
    ):
        assert decide(ada, action, **form).status_code == 400
    assert events(store) == {"exclude": 1, "block": 1, "unblock": 1}


def test_a_withheld_pair_can_be_reviewed_and_released(store, ada):
    for clip in stored_clips(store):
        (store.media / clip.stored_name).write_bytes(b"a clip")
    with store.write() as connection:
        connection.execute(update(PairRow).where(PairRow.id == 1).values(withheld=True))

    page = ada.get("/").text
    clips = re.findall(r'src="(clips/[^"]+)"', page)
    assert len(clips) == 2
    assert [ada.get("/" + clip).content for clip in clips] == [b"a clip"] * 2
    assert decide(ada, "release", pair="1").status_code == 303
    assert "clips/" not in ada.get("/").text
    ada.cookies.clear()
    assert ada.get("/" + clips[0]).status_code == 403


def test_a_rejected_clip_is_shown_with_the_reason(store, ada):
    refused = make_clip("third", 3, status="quarantined", reason="0003.mp4: cut short")
    add_clips(store, [refused], pair=False)

    assert "third 0003: 0003.mp4: cut short" in ada.get("/").text


def test_report_and_export_come_as_archives(ada):
    report = zipfile.ZipFile(io.BytesIO(ada.get("/report.zip").content))
    export = zipfile.ZipFile(io.BytesIO(ada.get("/export.zip").content))

    assert {"test-report/report.md", "test-report/win_rates.png"} <= set(report.namelist())
    assert {"test-export/votes.csv", "test-export/SHA256SUMS"} <= set(export.namelist())


def test_storage_is_backed_up_and_checked(store, ada):
    assert decide(ada, "back-up").status_code == 303
    assert len(list(store.backups.glob("*.db"))) == 1
    assert "No defects found" in ada.get("/check").text


def test_a_storage_problem_is_shown_on_the_dashboard(store, ada, service, monkeypatch):
    monkeypatch.setattr("human_eval.server.vote_service.MIN_FREE", 2**62)

    assert "the disk is nearly full" in ada.get("/").text


def test_stored_text_is_escaped(store, ada):
    exclude(store, "rater:1", rule="<script>alert(1)</script>", evidence={}, author="<b>x</b>")

    page = ada.get("/").text

    assert "<script>alert" not in page and "<b>x</b>" not in page
    assert "&lt;script&gt;" in page


def test_pages_have_a_strict_content_security_policy(ada):
    for path in ("/", "/counts", "/check"):
        policy = ada.get(path).headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
