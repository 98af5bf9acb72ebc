"""The guard in front of an application that answers everything."""

import asyncio
import json

import gradio as gr
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from demo.web import guard, limits
from demo.web.gradio_internals import REMEMBERED_SESSIONS, VERSION, CallChecker
from demo.web.guard import MAX_BODY, Guard
from demo.web.limits import MAX_SESSIONS, Limits, Rate, Sessions, TokenBuckets, TooMany, visitor
from tests.support.apart import run_apart


async def _anything(request):
    headers = {"cookie": request.headers.get("cookie", ""), "x-kept": "1"}
    body = await request.body()
    return PlainTextResponse(f"reached with {len(body)} bytes", 200, headers)


async def _lay_out():
    with gr.Blocks(analytics_enabled=False) as page:
        text, number = gr.Textbox(), gr.Number()
        text.submit(lambda text, number: text, [text, number], text)  # 0, through the queue
        text.change(lambda text: text, text, text, queue=False)  # 1, directly
    return page


@pytest.fixture(scope="module")
def page():
    # Outside of a running loop Gradio makes loops that it never closes.
    return run_apart(_lay_out())


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "clips").mkdir()
    return tmp_path / "clips"


@pytest.fixture
def client(page, folder):
    methods = ["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"]
    inner = Starlette(routes=[Route("/{path:path}", _anything, methods=methods)])
    guarded = Guard(
        inner, calls=CallChecker(page), video_folders=[folder], limits=Limits(), sessions=Sessions()
    )
    return TestClient(guarded, base_url="http://page")


def call(client, path="/gradio_api/queue/join", **changes):
    body = {"fn_index": 0, "data": ["a", 1], "session_hash": "abc", **changes}
    return client.post(path, json={key: body[key] for key in body if body[key] is not ...})


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/config",
        "/assets/index-8fe1.js",
        "/theme.css",
        "/healthz",
        "/?recipe=WyJhIl0",
        "/study/rate",
        "/study/media/WzEsImxlZnQiXQ.x-Y_z",
        "/results/chart.svg",
        "/admin/",
        "/gradio_api/info",
        "/gradio_api/heartbeat/0123abc",
    ],
)
def test_what_the_page_needs_passes(client, path):
    assert client.get(path).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/upload",
        "//gradio_api/upload",
        "/gradio_api//upload",
        "/gradio_api/%75pload",
        "/GRADIO_API/upload",
        "/gradio_api/./upload",
        "/assets/../gradio_api/upload",
        "/gradio_api/upload/",
        "/gradio_api/process_recording",
        "/gradio_api/component_server",
        "/gradio_api/proxy=http://127.0.0.1/",
        "/gradio_api/file=http://example.com/a.mp4",
        "/gradio_api/file/etc/passwd",
        "/gradio_api/deep_link",
        "/gradio_api/runs",
        "/gradio_api/openapi.json",
        "/gradio_api/stream/1/2/3/playlist.m3u8",
        "/gradio_api/call/generate",
        "/gradio_api/token",
        "/monitoring/summary",
        "/login",
        "/docs",
        "/openapi.json",
        "/assets/%2e%2e/%2e%2e/secret",
        "/study\\..\\..\\secret",
    ],
)
def test_what_the_page_does_not_need_is_not_there(client, path):
    assert client.get(path).status_code == 404
    assert client.post(path, json={}).status_code == 404


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
def test_methods_that_no_page_uses_are_refused(client, method):
    assert client.request(method, "/config").status_code == 405


def test_only_videos_of_the_named_folders_are_served(client, folder):
    def ask(path):
        return client.get(f"/gradio_api/file={path}").status_code

    assert ask(folder / "0123.mp4") == 200
    assert ask(folder.parent / "study.db") == 404
    assert ask(f"{folder}/../study.db") == 404
    assert ask(f"{folder}/../other/a.mp4") == 404
    assert ask(f"{folder}/study.db") == 404
    assert ask(f"{folder}x/a.mp4") == 404


def test_a_body_is_read_up_to_its_limit_and_no_further(client):
    def chunks(count):
        yield from (b"x" * 1024 for _ in range(count))

    fits = client.post("/study/api/submit", content=b"x" * MAX_BODY)
    beyond = client.post("/study/api/submit", content=b"x" * (MAX_BODY + 1))
    chunked = client.post("/study/api/submit", content=chunks(1024))

    assert fits.text == f"reached with {MAX_BODY} bytes"
    assert (beyond.status_code, chunked.status_code) == (413, 413)


def test_a_body_that_never_ends_is_given_up(page, folder, monkeypatch):
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.05)
    sent = []

    async def drip():
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def keep(message):
        sent.append(message)

    guarded = Guard(
        _anything,
        calls=CallChecker(page),
        video_folders=[folder],
        limits=Limits(),
        sessions=Sessions(),
    )
    scope = {"type": "http", "method": "POST", "path": "/study/api/submit", "headers": []}
    run_apart(guarded({**scope, "client": ("one", 1), "query_string": b""}, drip, keep))

    assert sent[0]["status"] == 408


def test_a_dropped_video_may_be_large_but_not_too_large(client, monkeypatch):
    monkeypatch.setattr(guard, "MAX_BYTES", 3 * MAX_BODY)

    def drop(size, kind="video/mp4", **headers):
        headers = {"content-type": kind, **headers}
        return client.post("/dropped", content=b"x" * size, headers=headers).status_code

    assert [drop(size) for size in (2 * MAX_BODY, 3 * MAX_BODY + 1)] == [200, 413]
    assert drop(1, "application/json") == drop(1, "text/plain") == 415
    assert drop(1, **{"sec-fetch-site": "cross-site"}) == 403


def test_few_dropped_videos_are_received_at_the_same_time_and_in_a_row(client):
    rates = Limits(dropping=Rate(0.001, 3))
    scope = {"path": "/dropped", "method": "POST", "headers": []}
    with rates.receiving(), rates.receiving():
        with pytest.raises(TooMany), rates.receiving():
            pass
    with rates.receiving():
        pass
    for _ in range(3):
        rates.check("10.0.0.1", scope)
    with pytest.raises(TooMany):
        rates.check("10.0.0.1", scope)


@pytest.mark.parametrize(
    "changes",
    [
        {"fn_index": 2},
        {"fn_index": -1},
        {"fn_index": "0"},
        {"fn_index": True},
        {"fn_index": 0.0},
        {"fn_index": ...},
        {"data": ["a", 1, 2]},
        {"data": {"0": "a"}},
        {"data": ...},
        {"session_hash": 7},
        {"session_hash": ...},
        {"session_hash": "../x"},
        {"session_hash": "x" * 65},
        {"session_hash": ""},
        {"oauth_token": "x"},
        {"batched": True},
        {"simple_format": True},
        {"trigger_id": "1"},
        {"event_id": 3},
        {"request": {}},
    ],
)
def test_a_call_that_no_page_makes_is_refused(client, changes):
    reply = call(client, **changes)

    assert reply.status_code == 400
    assert reply.json()["error"].endswith(".")


def test_gradio_is_the_version_that_its_internals_were_read_from():
    assert gr.__version__ == VERSION


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe",
        b"[" * 30_000,
        b'{"fn_index": 0, "session_hash": "a", "data": ["\\ud800"]}',
        b'{"fn_index": 0, "session_hash": "a", "data": [' + b"[" * 20 + b"]" * 20 + b"]}",
    ],
)
def test_a_body_that_is_no_call_is_refused(client, body):
    headers = {"content-type": "application/json"}
    reply = client.post("/gradio_api/queue/join", content=body, headers=headers)

    assert reply.status_code == 400


def test_a_call_of_the_page_passes(client):
    assert call(client).status_code == 200
    assert call(client, path="/gradio_api/run/predict", fn_index=1, data=["a"]).status_code == 200


def test_a_queued_function_cannot_be_called_directly(client):
    assert call(client, path="/gradio_api/run/predict").status_code == 400


def test_another_sites_page_makes_no_calls(client):
    body = json.dumps({"fn_index": 0, "data": ["a", 1], "session_hash": "abc"})
    path = "/gradio_api/queue/join"
    foreign = {"content-type": "application/json", "sec-fetch-site": "cross-site"}

    assert client.post(path, content=body, headers=foreign).status_code == 403
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        assert client.post(path, content=body, headers={"content-type": kind}).status_code == 415


def test_a_session_goes_on_when_the_address_of_its_page_changes(page, folder):
    inner = Starlette(routes=[Route("/{path:path}", _anything, methods=["GET", "POST"])])
    guarded = Guard(
        inner, calls=CallChecker(page), video_folders=[folder], limits=Limits(), sessions=Sessions()
    )
    before = TestClient(guarded, client=("10.0.0.1", 1))
    after = TestClient(guarded, client=("2001:db8::1", 1))

    assert call(before).status_code == 200
    assert after.get("/gradio_api/queue/data?session_hash=abc").status_code == 200
    assert after.get("/gradio_api/heartbeat/abc").status_code == 200
    assert call(after).status_code == 200
    assert after.get("/gradio_api/queue/data?session_hash=unknown").status_code == 404


def test_every_answer_has_the_headers_that_keep_it_safe(client):
    for path in ("/", "/nowhere", "/study/rate"):
        headers = client.get(path).headers

        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"
        assert "frame-ancestors 'self'" in headers["content-security-policy"]
        assert "camera=()" in headers["permissions-policy"]


def test_only_the_named_sites_may_show_the_page_in_a_frame(page, folder):
    guarded = Guard(
        PlainTextResponse(""),
        calls=CallChecker(page),
        video_folders=[folder],
        limits=Limits(),
        sessions=Sessions(),
        frames=["https://lab.example"],
    )

    policy = TestClient(guarded, base_url="http://page").get("/").headers["content-security-policy"]

    assert "frame-ancestors 'self' https://lab.example;" in policy


def test_no_header_of_the_request_comes_back(client):
    reply = client.get("/config", headers={"cookie": "secret=1"})

    assert "cookie" not in reply.headers and reply.headers["x-kept"] == "1"


def test_only_the_client_with_too_many_requests_is_refused(page, folder):
    inner = Starlette(routes=[Route("/{path:path}", _anything)])
    rates = Limits(any_request=Rate(1, 5))
    guarded = Guard(
        inner, calls=CallChecker(page), video_folders=[folder], limits=rates, sessions=Sessions()
    )
    hasty = TestClient(guarded, client=("10.0.0.1", 1))
    patient = TestClient(guarded, client=("10.0.0.2", 1))

    statuses = [hasty.get("/").status_code for _ in range(8)]

    assert statuses == [200] * 5 + [429] * 3
    assert "retry-after" in hasty.get("/").headers
    assert patient.get("/").status_code == 200


@pytest.mark.parametrize(
    "address, counted",
    [
        ("203.0.113.7", "203.0.113.7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:aaaa::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:bbbb::2", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unknown", "unknown"),
        ("x" * 5_000, "x" * 64),
    ],
)
def test_a_visitor_is_counted_once_whatever_the_address(address, counted):
    assert visitor({"type": "http", "client": (address, 1)}) == counted


def test_a_bucket_fills_again_with_time():
    now = [0.0]
    bucket = TokenBuckets(Rate(per_second=2, burst=3), lambda: now[0])
    taken = [bucket.take("one") for _ in range(4)]
    now[0] = 1.0

    assert taken == [True, True, True, False]
    assert [bucket.take("one") for _ in range(3)] == [True, True, False]


def test_raters_behind_one_address_do_not_slow_each_other_down():
    rates = Limits(rating=Rate(0.001, 2))

    def ask(rater):
        scope = {"path": "/study/api/claim", "method": "POST", "headers": []}
        rates.check("10.0.0.1", scope, rater)

    for _ in range(2):
        ask(1), ask(2), ask(None)
    for rater in (1, None):
        with pytest.raises(TooMany):
            ask(rater)
    ask(3)


def test_sessions_are_few_and_forgotten_when_unused(monkeypatch):
    monkeypatch.setattr(limits, "SESSIONS_PER_CLIENT", 3)
    now = [0.0]
    sessions = Sessions(lambda: now[0])
    for name in ("a", "b", "c"):
        sessions.use(name, "one")
    with pytest.raises(TooMany):
        sessions.use("d", "one")
    with sessions.connected("a"):
        now[0] = limits.SESSION_SECONDS + 1
        sessions.use("d", "one")

        assert "a" in sessions and "b" not in sessions


def test_a_session_listens_while_a_connection_that_brings_answers_is_open():
    sessions = Sessions(lambda: 0.0)
    sessions.use("a", "one")

    with sessions.connected("a"):
        assert not sessions.listens("a")
    with sessions.connected("a", listening=True):
        assert sessions.listens("a")
    assert not sessions.listens("a") and not sessions.listens("unknown")


def test_all_sessions_together_stay_below_what_gradio_remembers():
    sessions = Sessions(lambda: 0.0)
    for number in range(MAX_SESSIONS):
        sessions.use(f"s{number}", f"client {number}")

    with pytest.raises(TooMany):
        sessions.use("one-more", "another client")
    assert MAX_SESSIONS < REMEMBERED_SESSIONS


def test_open_connections_are_counted():
    rates = Limits(streams=2)
    with rates.streaming("one"), rates.streaming("one"):
        with pytest.raises(TooMany), rates.streaming("one"):
            pass
        with rates.streaming("two"):
            pass
    with rates.streaming("one"):
        pass
