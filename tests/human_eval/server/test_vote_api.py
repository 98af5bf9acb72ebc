"""The routes of raters: what an honest browser gets, and what cannot be forged."""

import json
import random
import re
import string
import time
from contextlib import contextmanager

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from human_eval.clips.media import PADDING
from human_eval.server.sign_in import COOKIE
from human_eval.server.vote_api import create_app
from human_eval.storage.events import Event
from human_eval.storage.tables import AssignmentRow, Vote
from human_eval.study.queries import read_study_progress, read_votes
from tests.support.studies import stored_clips

CLIP = (bytes(range(256)) * 4)[:999]


@contextmanager
def serve(store):
    for clip in stored_clips(store):
        (store.media / clip.stored_name).write_bytes(clip.system.encode()[:1] + CLIP)
    with TestClient(create_app(store)) as client:
        yield client


@pytest.fixture
def store(make_store):
    return make_store(k=2, num_prompts=4, loops=0)


@pytest.fixture
def client(store):
    with serve(store) as client:
        yield client


def enter(client):
    client.cookies.clear()
    reply = client.post("/api/enter", json={"consent": True})
    assert reply.status_code == 200, reply.text
    return reply


def claim(client, **body):
    return client.post("/api/claim", json=body).json()


def vote(client, token, choice="left", **changes):
    answers = {key: {"choice": choice, "seconds": 2.5} for key in ("Q1", "Q2")}
    body = {"assignment": token, "answers": answers, "loops": 2, **changes}
    return client.post("/api/submit", json=body)


def count_votes(store):
    with store.read() as connection:
        return connection.execute(select(func.count()).select_from(Vote)).scalar()


def count_refusals(store):
    with store.read() as connection:
        return connection.execute(
            select(func.coalesce(func.sum(Event.count), 0)).where(Event.kind == "refused")
        ).scalar()


def test_a_rater_enters_watches_and_answers(store, client):
    study = enter(client).json()["study"]
    pair = claim(client)
    left, right = (client.get("/" + pair[side]) for side in ("left", "right"))
    receipt = vote(client, pair["assignment"], "right").json()

    assert [question["key"] for question in study["questions"]] == ["Q1", "Q2"]
    offered = [choice["choice"] for choice in study["questions"][0]["choices"]]
    assert offered == ["left", "right", "tie"]
    assert pair["prompt"].startswith("prompt ")
    assert {left.content[:1], right.content[:1]} in ({b"o", b"t"}, {b"t", b"o"})
    assert receipt["answers"] == {"Q1": "right", "Q2": "right"}
    [row] = read_votes(store)[lambda votes: votes["question"] == "Q2"].to_dict("records")
    seen = {"left": left, "right": right}[row["side_a"]]
    assert seen.content[:1] == b"o"
    assert row["choice"] == ("a" if row["side_a"] == "right" else "b")
    assert (row["seconds"], row["loops"]) == (2.5, 2)


def test_a_clip_is_sent_by_ranges_without_headers_about_the_file(client):
    enter(client)
    url = "/" + claim(client)["left"]
    whole = client.get(url)
    part = client.get(url, headers={"range": "bytes=10-19"})
    end = client.get(url, headers={"range": "bytes=-5"})
    rest = client.get(url, headers={"range": "bytes=900-"})
    beyond = client.get(url, headers={"range": "bytes=99999-"})

    size = 1 + len(CLIP) + PADDING
    assert (whole.status_code, len(whole.content)) == (200, size)
    assert (part.status_code, part.content) == (206, whole.content[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{size}"
    assert end.content == whole.content[-5:]
    assert rest.content == whole.content[900:]
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{size}")
    for header in ("etag", "last-modified", "content-disposition"):
        assert header not in whole.headers


def test_no_reply_names_a_system(store, client):
    seen = []
    client.event_hooks["response"].append(
        lambda reply: seen.append(
            str(reply.url) + str(reply.headers) + reply.read().decode("latin")
        )
    )
    enter(client)
    client.get("/api/study")
    for _ in range(4):
        pair = claim(client)
        assert vote(client, pair["assignment"]).status_code == 200
        seen.append(json.dumps(pair))

    secrets = [system.key for system in store.definition.systems]
    secrets += [entry.key for entry in store.definition.comparisons]
    secrets += [clip.stored_name for clip in stored_clips(store)] + [store.definition.hash]
    text = "\n".join(seen)
    assert not [secret for secret in secrets if re.search(rf"\b{re.escape(secret)}\b", text)]


def test_sending_the_same_answers_again_changes_nothing(store, client):
    enter(client)
    token = claim(client)["assignment"]

    replies = [vote(client, token) for _ in range(20)]

    assert {reply.status_code for reply in replies} == {200}
    assert [reply.json()["duplicate"] for reply in replies] == [False] + [True] * 19
    assert count_votes(store) == 2


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_replays_with_other_answers_change_nothing(store, client, count):
    enter(client)
    token = claim(client)["assignment"]
    first = vote(client, token, "left")
    store.clock.pass_seconds(60)
    rng = random.Random(0)

    replies = [
        vote(client, token, rng.choice(["right", "left"]), revision=rng.choice([0, 1]))
        for _ in range(count)
    ]

    assert first.status_code == 200
    assert {reply.status_code for reply in replies} == {200, 409}
    assert all(
        reply.json()["answers"] == {"Q1": "left", "Q2": "left"}
        for reply in replies
        if reply.status_code == 200
    )
    assert count_votes(store) == 2
    assert set(read_votes(store)["choice"]) == {first_choice(store)}


def first_choice(store):
    with store.read() as connection:
        [side] = connection.execute(
            select(AssignmentRow.side_a).where(AssignmentRow.state == "submitted")
        ).one()
    return "a" if side == "left" else "b"


def test_an_answer_can_be_revised_for_a_while(store, client):
    enter(client)
    token = claim(client)["assignment"]
    vote(client, token, "left")

    revised = vote(client, token, "right", revision=1)
    store.clock.pass_seconds(11)
    late = vote(client, token, "left", revision=2)

    assert (revised.status_code, late.status_code) == (200, 409)
    assert late.json()["error"]
    votes = read_votes(store)
    side = votes["side_a"].iloc[0]
    assert len(votes) == 2 and set(votes["choice"]) == {"a" if side == "right" else "b"}


@pytest.mark.parametrize("count", [200, pytest.param(5000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_no_forged_token_becomes_a_vote(store, count):
    rng = random.Random(0)
    letters = string.ascii_letters + string.digits + "-_."
    with serve(store) as client:
        enter(client)
        token = claim(client)["assignment"]
        other = store.keys.sign("media", store.keys.read("assignment", token))
        statuses = set()
        for number in range(count):
            place = rng.randrange(len(token))
            letter = rng.choice(letters.replace(token[place], ""))
            forged = [
                token[:place] + letter + token[place + 1 :],
                token[:place],
                "".join(rng.choices(letters, k=len(token))),
                token + letter,
                other,
            ][number % 5]
            statuses.add(vote(client, forged).status_code)

        assert statuses == {403}
        assert count_votes(store) == 0
        assert vote(client, token).status_code == 200
    assert count_refusals(store) == count
    assert count_votes(store) == 2


def test_no_rater_can_answer_for_another(store, client):
    enter(client)
    theirs = claim(client)["assignment"]
    enter(client)
    mine = client.cookies[COOKIE]

    stolen = vote(client, theirs)
    client.cookies.clear()
    anonymous = vote(client, theirs)
    client.cookies[COOKIE] = mine[:-1] + ("A" if mine[-1] != "A" else "B")
    forged = vote(client, theirs)

    assert [reply.status_code for reply in (stolen, anonymous, forged)] == [403] * 3
    assert "not assigned to you" in stolen.json()["error"]
    assert count_votes(store) == 0


@pytest.mark.parametrize(
    "changes, status",
    [
        ({"answers": {"Q1": {"choice": "left", "seconds": 1}}}, 422),
        ({"answers": {}}, 422),
        ({"answers": {key: {"choice": "left", "seconds": 1} for key in ("Q1", "Q2", "Q3")}}, 422),
        ({"answers": {key: {"choice": "tie", "seconds": 1} for key in ("Q1", "Q2")}}, 422),
        ({"answers": {key: {"choice": "a", "seconds": 1} for key in ("Q1", "Q2")}}, 422),
        ({"answers": {key: {"choice": "left", "seconds": -1} for key in ("Q1", "Q2")}}, 422),
        ({"answers": {key: {"choice": "left", "seconds": 1e99} for key in ("Q1", "Q2")}}, 422),
        ({"answers": {"Q1": "left", "Q2": "left"}}, 422),
        ({"loops": -1}, 422),
        ({"loops": 10**30}, 422),
        ({"loops": "2"}, 422),
        ({"loops": True}, 422),
        ({"revision": 1}, 422),
        ({"rater": 2}, 422),
        ({"side_a": "left"}, 422),
        ({"assignment": ""}, 403),
        ({"assignment": None}, 422),
        ({"assignment": "x" * 501}, 422),
        ({"assignment": "\u2603"}, 403),
    ],
)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_manipulated_answer_is_refused_with_an_event(store, changes, status):
    with serve(store) as client:
        enter(client)
        token = claim(client)["assignment"]

        reply = vote(client, token, **changes)

        assert reply.status_code == status
        assert isinstance(reply.json()["error"], str)
        assert count_votes(store) == 0
        assert vote(client, token).status_code == 200
    assert count_refusals(store) == 1


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_no_body_causes_a_server_error(store, client):
    enter(client)
    token = claim(client)["assignment"]
    good = json.dumps({"assignment": token, "answers": {}, "loops": 2})
    surrogate = {"\ud800": {"choice": "left", "seconds": 1}}
    bodies = [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe",
        b"[" * 50_000,
        good.encode()[:-3],
        b'{"assignment": "\\ud800", "answers": {}, "loops": 2}',
        json.dumps({"assignment": "x", "answers": surrogate, "loops": 1}).encode(),
        b'{"assignment": "x", "answers": {}, "loops": 1e400}',
        b'{"assignment": "x\\u0000", "answers": {}, "loops": 1}',
        b" " * 70_000,
    ]
    for body in bodies:
        reply = client.post(
            "/api/submit", content=body, headers={"content-type": "application/json"}
        )
        assert 400 <= reply.status_code < 500, body[:60]
    wrong = client.post("/api/submit", content=good, headers={"content-type": "text/plain"})
    foreign = client.post(
        "/api/submit", json=json.loads(good), headers={"sec-fetch-site": "cross-site"}
    )
    assert (wrong.status_code, foreign.status_code) == (422, 403)


def test_an_answer_before_the_clips_can_have_been_seen_is_refused(make_store):
    store = make_store(num_prompts=4, loops=2)  # of clips of two seconds
    with serve(store) as client:
        enter(client)
        token = claim(client)["assignment"]
        ahead = claim(client, ahead=True)["assignment"]
        store.clock.pass_seconds(3.9)
        early = vote(client, token)
        store.clock.pass_seconds(0.1)
        unseen = vote(client, token, loops=1)
        seen = vote(client, token)
        store.clock.pass_seconds(3.9)
        early_again = vote(client, ahead)
        store.clock.pass_seconds(0.1)
        seen_again = vote(client, ahead)

    refused = (early, unseen, early_again)
    assert [reply.status_code for reply in refused] == [422] * 3
    assert "watch both" in early.json()["error"]
    assert (seen.status_code, seen_again.status_code) == (200, 200)


def test_an_expired_pair_is_refused_and_its_clips_are_not_served(store, client):
    enter(client)
    pair = claim(client)
    store.clock.pass_seconds(1000)

    assert vote(client, pair["assignment"]).status_code == 409
    assert client.get("/" + pair["left"]).status_code == 409
    assert count_votes(store) == 0


def test_a_study_by_invitation_admits_only_invited_raters(make_store):
    store = make_store()
    object.__setattr__(store.definition, "anonymous", False)
    with serve(store) as client:
        uninvited = client.post("/api/enter", json={"consent": True})
        token = store.keys.sign("invitation", ["prolific", "5f1"])
        twice = [
            client.post("/api/enter", json={"consent": True, "invitation": token}) for _ in range(2)
        ]
        unwilling = client.post("/api/enter", json={"consent": False, "invitation": token})

    assert uninvited.status_code == 403
    assert [reply.status_code for reply in twice] == [200, 200]
    assert read_study_progress(store).raters == 1
    assert unwilling.status_code == 422
    assert "5f1" not in read_votes(store).to_csv()


def test_a_returned_pair_is_free_for_other_raters(store, client):
    enter(client)
    pair = claim(client)
    reply = client.post("/api/return", json={"assignment": pair["assignment"], "reason": "skipped"})
    again = client.post("/api/return", json={"assignment": pair["assignment"], "reason": "skipped"})

    assert (reply.status_code, again.status_code) == (200, 409)
    assert claim(client)["prompt"] and read_study_progress(store).assignments["returned"] == 1


def test_the_last_pair_is_followed_by_the_completion_code(make_store):
    extra = '[codes]\ndone = "D1"\nno_work_left = "N1"'
    store = make_store(k=1, num_prompts=1, extra=extra, loops=0)
    with serve(store) as client:
        enter(client)
        while (pair := claim(client))["assignment"]:
            vote(client, pair["assignment"])
        enter(client)
        late = claim(client)

    assert (pair["outcome"], pair["code"]) == ("done", "D1")
    assert (late["outcome"], late["code"]) == ("no_work_left", "N1")


def test_health_is_reported(client):
    reply = client.get("/healthz")

    assert (reply.status_code, reply.json()) == (200, {"problems": []})


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_periodic_work_resumes_when_the_database_can_be_written_again(store, client):
    enter(client)
    token = claim(client)["assignment"]
    client.cookies.clear()

    set_read_only(store, True)
    assert vote(client, token).status_code == 403
    wait_until(lambda: client.get("/healthz").status_code == 503)
    store.clock.pass_seconds(1000)
    time.sleep(2)  # the periodic work fails
    assert "readonly" in client.get("/healthz").text
    set_read_only(store, False)

    wait_until(lambda: client.get("/healthz").status_code == 200)
    assert count_refusals(store) == 1
    assert read_study_progress(store).assignments == {"expired": 1}


def set_read_only(store, wanted):
    """Make every write on the writer's connection fail, or succeed again."""
    with store.database.writing.connect() as connection:
        connection.connection.driver_connection.execute(f"PRAGMA query_only={int(wanted)}")


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_second_service_on_one_file_is_refused(store, client):
    with pytest.raises(Exception, match="Another service"), TestClient(create_app(store)):
        pass


def test_scripts_cannot_read_the_cookie(client):
    header = enter(client).headers["set-cookie"].lower()

    assert "httponly" in header and "samesite=lax" in header
