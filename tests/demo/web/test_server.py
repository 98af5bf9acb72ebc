"""The whole application: access, what it reveals, and that votes cannot be forged."""

import asyncio
import json
import random
import string
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec

import pytest
from gradio.queueing import Queue
from sqlalchemy import func, select

from demo.web.limits import Limits, Rate
from human_eval.storage.tables import Event, Vote
from tests.support.apart import run_apart
from tests.support.page_server import (
    NO_LIMITS,
    SECRETS,
    claim,
    enter,
    run_page_server,
    sign_in,
    vote,
)
from tests.support.studies import set_paused, stored_clips

LETTERS = string.ascii_letters + string.digits + "-_."


@pytest.fixture(autouse=True)
def no_patience(monkeypatch):
    """Let results be as new as can be, however slow the machine."""
    monkeypatch.setattr("human_eval.reporting.live_results.MAX_AGE", 0.0)
    monkeypatch.setattr("human_eval.reporting.live_results.MAX_LOAD", 1e9)
    monkeypatch.setattr("human_eval.reporting.live_results.MAX_WAIT", 1e9)


def run(test):
    """Run an asynchronous test to its end."""
    return run_apart(test)


def count(store, table=Vote):
    with store.read() as connection:
        return connection.execute(select(func.count()).select_from(table)).scalar()


def events(store) -> Counter:
    with store.read() as connection:
        rows = connection.execute(select(Event.kind, func.sum(Event.count)).group_by(Event.kind))
        return Counter({kind: int(number) for kind, number in rows})


def test_raters_page_and_votes_are_below_study(tmp_path):
    async def scene():
        async with run_page_server(tmp_path) as server:
            outside = await server.client.get("/study")
            page = await server.client.get("/study/rate")
            guessed = await server.client.get("/rate?lang=de")
            await enter(server.client)
            receipt = await vote(server.client, (await claim(server.client))["assignment"])

            assert (outside.status_code, outside.headers["location"]) == (307, "study/")
            assert guessed.status_code == 307, guessed.text[:300]
            assert guessed.headers["location"] == "study/rate?lang=de"
            assert page.status_code == 200 and "<html" in page.text
            assert receipt.status_code == 200
            assert count(server.store) == 2

    run(scene())


def test_an_idle_page_looks_for_work_at_most_twenty_times_a_second(tmp_path, monkeypatch):
    looks = Counter()

    def length(queue: Queue) -> int:
        looks["queue"] += 1
        return 0

    async def scene():
        async with run_page_server(tmp_path) as server:
            await server.client.get("/")  # Gradio starts the queue with the first request
            await asyncio.sleep(1)
            looks.clear()
            await asyncio.sleep(1)

    monkeypatch.setattr(Queue, "__len__", length)
    run(scene())

    assert 0 < looks["queue"] <= 25


async def join(server, client, session: str, steps: int = 8):
    body = {
        "fn_index": server.page.index_of("generate"),
        "data": ["a red star", "fake-student", steps, 7.5, 1],
        "session_hash": session,
    }
    return await client.post("/gradio_api/queue/join", json=body)


async def until_queue_is_empty(server):
    async with asyncio.timeout(30):
        while len(server.page._queue):
            await asyncio.sleep(0.01)


def test_one_address_leaves_room_in_the_queue_for_others(tmp_path, monkeypatch):
    async def scene():
        limits = replace(NO_LIMITS, waiting=2)
        async with run_page_server(tmp_path, limits=limits, pace=0.3) as server:
            replies = [await join(server, server.client, "first")]
            await until_queue_is_empty(server)  # it runs
            replies += [await join(server, server.client, f"s{number}") for number in range(3)]
            async with server.visitor("192.0.2.7") as other:
                replies += [await join(server, other, "other")]
                monkeypatch.setattr(server.page._queue, "max_size", 3)
                replies += [await join(server, other, "full")]
            return replies

    replies = run(scene())

    assert [reply.status_code for reply in replies] == [200, 200, 200, 429, 200, 503]
    assert "Max size" not in replies[-1].text


def test_a_computation_that_nobody_listens_to_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("demo.web.gradio_internals.LISTEN_SECONDS", 0.5)

    async def scene():
        async with run_page_server(tmp_path, pace=0.2) as server:
            for session in ("runs", "waits"):
                assert (await join(server, server.client, session)).status_code == 200
            await asyncio.sleep(0.6)
            assert (await join(server, server.client, "listens", steps=4)).status_code == 200
            events = await server.client.get("/gradio_api/queue/data?session_hash=listens")
            return events.text

    events = run(scene())

    assert '"process_completed"' in events
    assert len(list((tmp_path / "clips").glob("*.mp4"))) == 1


def test_nothing_that_a_rated_study_shows_names_a_system(tmp_path):
    async def scene():
        async with run_page_server(tmp_path) as server:
            seen = []
            await enter(server.client)
            for _ in range(3):
                pair = await claim(server.client)
                await vote(server.client, pair["assignment"])
                seen += [json.dumps(pair)]
                for side in ("left", "right"):
                    clip = await server.client.get("/study/" + pair[side])
                    seen.append(clip.content.decode("latin-1") + str(clip.headers))
            set_paused(server.store, True, author="ada")
            async with server.visitor() as researcher:
                await sign_in(researcher)
                await publish(server, researcher)
            addresses = [
                *("/", "/config", "/gradio_api/info", "/study/rate", "/study/api/study"),
                *("/results/chart.svg", "/results/chart.pdf", "/results/tables.zip"),
                *("/healthz", "/admin/", "/study/healthz"),
            ]
            for address in addresses:
                reply = await server.client.get(address)
                seen.append(str(reply.headers) + reply.content.decode("latin-1"))
            results = await call_tab(server, "on_refresh", [None, False])
            seen.append(results.text)

            text = "\n".join(seen)
            assert "System " in results.text
            hidden = SECRETS + [clip.stored_name for clip in stored_clips(server.store)]
            hidden += [server.store.definition.hash, str(server.store.folder)]
            assert [secret for secret in hidden if secret in text] == []

    run(scene())


async def publish(server, researcher):
    token = (await researcher.get("/admin/")).text.split('name="token" value="')[1].split('"')[0]
    reply = await researcher.post("/admin/publish", data={"token": token})
    assert reply.status_code == 303, reply.text


async def call_tab(server, name, data, client=None):
    [index] = [index for index, fn in server.page.fns.items() if fn.name == name]
    body = {"fn_index": index, "data": data, "session_hash": "abc"}
    return await (client or server.client).post("/gradio_api/run/predict", json=body)


def test_results_are_for_researchers_until_they_are_published(tmp_path):
    async def scene():
        async with run_page_server(tmp_path) as server:
            await enter(server.client)
            await vote(server.client, (await claim(server.client))["assignment"])
            async with server.visitor() as researcher:
                await sign_in(researcher)

                before = await server.client.get("/results/chart.svg")
                page_before = await call_tab(server, "on_refresh", ["People", False])
                named = await call_tab(server, "on_refresh", ["People", False], researcher)
                drawn = await researcher.get("/results/chart.svg")
                await publish(server, researcher)
            after = await server.client.get("/results/chart.svg")
            page_after = await call_tab(server, "on_refresh", ["People", False])

            assert (before.status_code, drawn.status_code, after.status_code) == (403, 200, 200)
            assert "has not published" in page_before.text
            assert "Quokka 4" in named.text
            assert "System " in page_after.text and "Quokka" not in page_after.text

    run(scene())


def test_entering_and_signing_in_are_limited_by_address_whatever_the_cookie(tmp_path):
    limits = Limits(entering=Rate(0.0001, 3))

    async def scene():
        statuses = Counter()
        async with run_page_server(tmp_path, limits=limits) as server:
            await enter(server.client)
            for number in range(3):
                own = server.client.cookies["human_eval_rater"]
                for cookie in (f"junk{number}", f"{own}{number}", own):
                    async with server.visitor(cookies={"human_eval_rater": cookie}) as visitor:
                        reply = await visitor.post("/study/api/enter", json={"consent": True})
                        statuses["enter", reply.status_code] += 1
                        reply = await sign_in(visitor, password="guess")
                        statuses["sign in", reply.status_code] += 1
        return statuses

    assert run(scene()) == {
        ("enter", 200): 1,
        ("enter", 429): 8,
        ("sign in", 403): 1,
        ("sign in", 429): 8,
    }


def test_only_a_cookie_with_a_valid_signature_has_a_rate_of_its_own(tmp_path):
    async def scene():
        statuses = []
        async with run_page_server(tmp_path, limits=Limits(rating=Rate(0.0001, 2))) as server:
            for number in range(4):
                async with server.visitor(cookies={"human_eval_rater": f"junk{number}"}) as visitor:
                    statuses.append((await visitor.post("/study/api/claim", json={})).status_code)
            for _ in range(3):
                async with server.visitor() as rater:
                    await enter(rater)
                    statuses.append((await rater.post("/study/api/claim", json={})).status_code)
        return statuses

    assert run(scene()) == [403, 403, 429, 429, 200, 200, 200]


def test_no_cookie_of_a_rater_opens_the_administration(tmp_path):
    async def scene():
        async with run_page_server(tmp_path) as server:
            await enter(server.client)
            rater = server.client.cookies["human_eval_rater"]
            server.client.cookies.set("human_eval_researcher", rater)

            shown = await server.client.get("/admin/")
            fetched = [
                await server.client.get(f"/admin/{name}")
                for name in ("counts", "export.zip", "report.zip", "check", "clips/x")
            ]
            done = [
                await server.client.post(f"/admin/{deed}", data={"token": "x"})
                for deed in ("close", "pause", "publish", "exclude", "back-up", "release")
            ]

            assert "Password" in shown.text and "Counts" not in shown.text
            assert {reply.status_code for reply in (*fetched, *done)} == {403}
            assert set(events(server.store)) <= {"refused", "entered"}

    run(scene())


def test_no_other_site_may_read_answers(tmp_path):
    async def scene():
        async with run_page_server(tmp_path) as server:
            for host in ("page", "127.0.0.1:7860"):
                for origin in ("https://evil.example", "null"):
                    for path in ("/config", "/study/api/study", "/results/tables.zip"):
                        reply = await server.client.get(
                            path, headers={"origin": origin, "host": host}
                        )

                        assert "access-control-allow-origin" not in reply.headers
                        assert "access-control-allow-credentials" not in reply.headers

    run(scene())


def test_health_reports_a_stopped_queue_or_writer_and_a_disk_that_takes_nothing(
    tmp_path, monkeypatch
):
    async def scene():
        async with run_page_server(tmp_path) as server:
            well = await server.client.get("/healthz")
            server.page._queue.stopped = True
            stopped = await server.client.get("/healthz")
            server.page._queue.stopped = False
            monkeypatch.setattr("demo.web.server.MIN_FREE", 2**62)
            full = await server.client.get("/healthz")
            monkeypatch.undo()
            clips = server.study.store.folder.parents[1] / "clips"
            clips.rename(clips.with_name("moved"))
            unwritable = await server.client.get("/healthz")
            clips.with_name("moved").rename(clips)
            service = server.study.service
            await asyncio.to_thread(service._writer.close)
            silent = await server.client.get("/healthz")

            assert (well.status_code, well.json()) == (200, {"problems": []})
            assert stopped.status_code == 503 and "queue" in stopped.text
            assert full.status_code == 503 and "disk" in full.text
            assert unwritable.status_code == 503 and "clips" in unwritable.text
            assert str(tmp_path) not in unwritable.text
            assert silent.status_code == 503 and "writer" in silent.text

    run(scene())


def test_the_queue_survives_sessions_that_gradio_has_forgotten(tmp_path):
    async def scene():
        async with run_page_server(tmp_path, pace=0.02) as server:
            [index] = [index for index, fn in server.page.fns.items() if fn.name == "generate"]
            call = {"fn_index": index, "data": ["a red star", "fake-student", 8, 7.5, 1]}
            for number in range(8):  # wait in the line
                body = {**call, "session_hash": f"waiting{number}"}
                reply = await server.client.post("/gradio_api/queue/join", json=body)
                assert reply.status_code == 200, reply.text
            remembered = server.page._queue.pending_messages_per_session
            for number in range(2_100):  # what two thousand visitors do to it
                remembered[f"visitor{number}"] = asyncio.Queue()
            assert "waiting7" not in remembered
            server.page._queue.broadcast_estimations("engine")
            async with asyncio.timeout(60):
                while len(server.page._queue):
                    await asyncio.sleep(0.05)

            assert not server.page._queue.stopped
            assert (await server.client.get("/healthz")).status_code == 200

    run(scene())


def test_only_clips_of_the_store_are_served_as_files(tmp_path):
    async def scene():
        async with run_page_server(tmp_path) as server:
            clip = tmp_path / "clips" / "0123456789abcdef.mp4"
            clip.write_bytes(b"clip")
            wanted = [
                server.store.folder / "study.db",
                server.store.folder / "secret",
                server.store.media / stored_clips(server.store)[0].stored_name,
                "/etc/passwd",
                f"{tmp_path}/clips/../studies/test/study.db",
                "app.py",
            ]
            statuses = [
                (await server.client.get(f"/gradio_api/file={path}")).status_code for path in wanted
            ]
            shown = await server.client.get(
                f"/gradio_api/file={clip}", headers={"cookie": "mine=secret"}
            )

            assert set(statuses) == {404}
            assert (shown.status_code, shown.content) == (200, b"clip")
            assert "secret" not in str(shown.headers)

    run(scene())


def forge(token: str, other: str, number: int, rng: random.Random) -> str:
    """Return a token that we did not sign."""
    place = rng.randrange(len(token))
    letter = rng.choice(LETTERS.replace(token[place], ""))
    return [
        token[:place] + letter + token[place + 1 :],
        token[:place],
        "".join(rng.choices(LETTERS, k=len(token))),
        token + letter,
        other,
    ][number % 5]


def all_addresses(server) -> list[str]:
    """Return every address of the application, Gradio's and the study's."""
    found = set()
    apps = [(server.app, "")]
    while apps:
        app, prefix = apps.pop()
        for route in app.routes:
            path = getattr(route, "path", "")
            inner = getattr(route, "app", None)
            if hasattr(inner, "app") and hasattr(inner, "note"):  # a DeferredApp
                inner = inner.app
            if hasattr(inner, "routes") and not hasattr(route, "endpoint"):
                apps.append((inner, prefix + path))
            else:
                found.add(prefix + path)
    for prefix, deferred in server.study.apps.items():
        found |= {prefix + getattr(route, "path", "") for route in deferred.app.routes}
    return sorted(found)


def fill_in(address: str, value: str) -> str:
    """Put a value in the place of every parameter."""
    while "{" in address:
        before, _, rest = address.partition("{")
        address = before + value + rest.partition("}")[2]
    return address


@pytest.mark.slow
def test_no_forged_vote_of_five_thousand_and_no_replay_adds_a_row(tmp_path):
    async def scene():
        async with run_page_server(tmp_path) as server:
            rng = random.Random(0)
            await enter(server.client)
            token = (await claim(server.client))["assignment"]
            other = server.store.keys.sign("media", server.store.keys.read("assignment", token))
            addresses = [address for address in all_addresses(server) if "heartbeat" not in address]
            statuses = Counter()
            for number in range(5_000):
                forged = forge(token, other, number, rng)
                if number % 2:
                    statuses[(await vote(server.client, forged)).status_code] += 1
                    continue
                # The valid token, sent where no vote is taken, or by another visitor.
                address = fill_in(rng.choice(addresses), rng.choice(["submit", forged[:20], "1"]))
                async with server.visitor() as stranger:
                    body = {
                        "assignment": token,
                        "answers": {},
                        "data": [token, "left"],
                        "fn_index": 3,
                    }
                    if address == "/study/api/submit":
                        reply = await vote(stranger, token)
                    else:
                        reply = await stranger.post(address, json=body)
                statuses[reply.status_code] += 1
                assert reply.status_code not in range(500, 600), (address, reply.text)
            assert count(server.store) == 0

            assert (await vote(server.client, token, "left")).status_code == 200
            for _ in range(1_000):
                choice = rng.choice(["left", "right"])
                reply = await vote(server.client, token, choice, revision=0)
                assert reply.status_code in (200, 409)
            assert count(server.store) == 2
            assert statuses[200] == 0 or statuses[200] < 200, statuses
            assert set(events(server.store)) <= {"refused", "entered"}

    run(scene())


def hostile_bodies(rng: random.Random) -> list[bytes]:
    """Return bodies that no browser sends."""
    deep = b"[" * 2_000 + b"]" * 2_000
    texts = ["\ud800", "\x00", "<script>", "${7*7}", "{{7*7}}", "../../etc/passwd", "A" * 10_000]
    bodies = [
        *(b"", b"null", b"[]", b"{", b"\xff\xfe\x00", deep, b'{"a":' * 500, b"1e400", b"NaN"),
        *(json.dumps({"data": [text], "fn_index": 1}).encode() for text in texts),
        *(json.dumps({"session_hash": text, "fn_index": 1}).encode() for text in texts),
        *(json.dumps({"assignment": text, "answers": {text: 1}}).encode() for text in texts),
        *(json.dumps({"consent": text, "invitation": text}).encode() for text in texts),
    ]
    values = [None, True, -1, 2**70, 1e308, "x", [], {}, [[]], {"a": {}}]
    for _ in range(60):
        keys = ["data", "fn_index", "session_hash", "assignment", "answers", "consent", "event_id"]
        chosen = rng.sample(keys, rng.randrange(1, 6))
        bodies.append(json.dumps({key: rng.choice(values) for key in chosen}).encode())
    for method in ["tools/call", "tools/list", "initialize", "ping", "resources/read", "", None]:
        for arguments in (
            None,
            [],
            {"prompt": ["\x00"]},
            {"recipe": {}, "sha256": 1},
            {"seed": {}},
        ):
            params = {
                "name": rng.choice(["generate", "compare", "verify", "x"]),
                **({"arguments": arguments, "uri": rng.choice(texts)}),
            }
            call = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
            bodies.append(json.dumps(call).encode())
    for index in range(40):
        data = [rng.choice([None, -1, "x", {}, [], 1e99]) for _ in range(rng.randrange(6))]
        call = {"fn_index": index, "session_hash": "abc", "data": data}
        bodies.append(json.dumps(call).encode())
    return bodies


@pytest.mark.slow
def test_ten_thousand_malformed_calls_meet_only_plain_refusals(tmp_path):
    async def scene():
        async with run_page_server(tmp_path, mcp=find_spec("mcp") is not None) as server:
            rng = random.Random(0)
            bodies = hostile_bodies(rng)
            values = ["x", "..", "%2e%2e%2f", "\u2603", "0" * 300, "predict", "-1"]
            kinds = ["application/json", "text/plain", "multipart/form-data", "video/mp4", ""]
            broken = Counter()
            await enter(server.client)
            addresses = [address for address in all_addresses(server) if "heartbeat" not in address]
            for number in range(10_000):
                address = fill_in(addresses[number % len(addresses)], rng.choice(values))
                kind = rng.choice(kinds[:1] * 5 + kinds)
                method = rng.choice(["POST", "POST", "POST", "GET", "PUT", "HEAD"])
                reply = await server.client.request(
                    method,
                    address,
                    content=rng.choice(bodies) if method != "GET" else None,
                    headers={"content-type": kind},
                )

                leaks = any(secret in reply.text for secret in ("Traceback", str(tmp_path)))
                if reply.status_code >= 500 or leaks:
                    broken[method, address[:80], reply.text[:200]] += 1
            assert not broken
            assert not server.page._queue.stopped
            assert (await server.client.get("/healthz")).status_code == 200
            assert count(server.store) == 0

    run(scene())
