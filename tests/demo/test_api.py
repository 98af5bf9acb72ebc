import json
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

PROMPT = "a red star moving left on a black background"


@pytest.fixture(scope="module")
def client(fake_server, tmp_path_factory):
    client = Client(
        fake_server.url, verbose=False, download_files=tmp_path_factory.mktemp("downloads")
    )
    yield client
    client.close()


def test_generate_and_compare_are_the_public_names(client):
    endpoints = client.view_api(return_format="dict")["named_endpoints"]

    assert set(endpoints) == {"/generate", "/compare"}
    names = [each["parameter_name"] for each in endpoints["/generate"]["parameters"]]
    assert names == ["prompt", "model", "steps", "guidance", "seed"]
    assert endpoints["/generate"]["description"].startswith("Make a video from a prompt.")
    assert endpoints["/compare"]["description"].startswith("Make one video with every contender")


def test_generate_returns_the_video_its_recipe_and_its_cost(client):
    made = client.predict(PROMPT, "fake-teacher", 3, 2.5, 7, api_name="/generate")

    with open(made["video"], "rb") as file:
        assert file.read(12)[4:8] == b"ftyp"
    assert made["recipe"] | {"steps": 3, "guidance": 2.5, "seed": 7} == made["recipe"]
    assert made["unet_calls"] == 6
    assert set(made["seconds"]) == {"text", "steps", "decode", "encode", "total"}


def test_generate_tells_its_progress(client):
    job = client.submit(PROMPT, "fake-student", 4, api_name="/generate")
    job.result()

    steps = [update["step"] for update in job.outputs() if update["stage"] == "denoise"]
    assert steps == [1, 2, 3, 4]


def test_compare_returns_a_row_for_each_contender(client):
    compared = client.predict("🎉 a party", 3, api_name="/compare")

    titles = [row["title"] for row in compared["rows"]]
    assert titles == ["Teacher · 12 steps", "Teacher · 4 steps", "Student · 4 steps"]
    assert {row["recipe"]["seed"] for row in compared["rows"]} == {3}


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"prompt": ""}, "Expected a prompt, got an empty one"),
        ({"prompt": "x" * 10_000}, "at most 1000 characters, got 10000"),
        ({"prompt": "a\x00b"}, "control character"),
        ({"prompt": 5}, "Expected a prompt in words"),
        ({"prompt": PROMPT, "steps": 99}, "between 1 and 8, got 99"),
        ({"prompt": PROMPT, "steps": 2.5}, "whole number"),
        ({"prompt": PROMPT, "steps": [4]}, "whole number"),
        ({"prompt": PROMPT, "guidance": 1e9}, "Expected guidance between 1 and 15"),
        ({"prompt": PROMPT, "seed": -1}, "Expected seed"),
        ({"prompt": PROMPT, "model": "gpt"}, "Expected a model from"),
        ({"prompt": "explode"}, "The computation failed"),
    ],
)
def test_what_cannot_be_used_is_refused_in_words(client, fields, message):
    with pytest.raises(AppError, match=message) as refusal:
        client.predict(**fields, api_name="/generate")
    assert "Traceback" not in str(refusal.value) and "/etc" not in str(refusal.value)


def join(server, session: str, fields: bytes):
    """Call `generate` as the page does, with any bytes for its values."""
    with urlopen(f"{server.url}/config") as config:
        functions = json.load(config)["dependencies"]
    [index] = [entry["id"] for entry in functions if entry["api_name"] == "generate"]
    body = b'{"fn_index": %d, "session_hash": "%b", "data": [%b]}'
    body %= (index, session.encode(), fields)
    address = f"{server.url}/gradio_api/queue/join"
    return urlopen(Request(address, body, {"Content-Type": "application/json"}))


def test_a_request_that_is_too_short_is_refused_in_words(fake_server):
    with join(fake_server, "short", b'"a hidden heart"') as answer:
        assert "event_id" in json.load(answer)
    with urlopen(f"{fake_server.url}/gradio_api/queue/data?session_hash=short") as stream:
        told = stream.read().decode()

    assert "Expected 5 fields, got 1" in told
    assert "hidden heart" not in (fake_server.data_dir / "server.log").read_text()


def test_a_request_with_half_a_character_is_refused_in_words(fake_server):
    with pytest.raises(HTTPError) as refusal:
        join(fake_server, "half", rb'"a \ud800 star", "fake-student", 4, 7.5, 0')

    assert refusal.value.code == 400
    assert "half of a character" in refusal.value.read().decode()
    refusal.value.close()


def test_a_cancelled_job_ends_within_a_step(client, fake_server):
    job = client.submit(PROMPT, "fake-teacher", 60, api_name="/generate")
    while not any(update["stage"] == "denoise" for update in job.outputs()):
        pass

    job.cancel()

    client.predict(PROMPT, "fake-student", 1, api_name="/generate")  # waits for the engine
    log = fake_server.engine_log()
    stopped = len(log) - 1 - log[::-1].index("stopped")
    begun = len(log) - 1 - log[::-1].index("begin 60")
    assert begun < stopped < begun + 10


def test_prompts_are_not_logged(client, fake_server):
    client.predict("a secret heart", api_name="/generate")

    assert "secret heart" not in (fake_server.data_dir / "server.log").read_text()
