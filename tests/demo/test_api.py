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
    assert endpoints["/generate"]["description"].startswith("Generate a video from a prompt.")
    assert endpoints["/compare"]["description"].startswith("Generate one video with every row")


def test_generate_returns_the_video_its_recipe_and_its_cost(client):
    made = client.predict(PROMPT, "fake-teacher", 3, 2.5, 7, api_name="/generate")

    with open(made["video"], "rb") as file:
        assert file.read(12)[4:8] == b"ftyp"
    assert made["recipe"] | {"steps": 3, "guidance": 2.5, "seed": 7} == made["recipe"]
    assert made["unet_calls"] == 6
    assert set(made["seconds"]) == {"text", "steps", "decode", "encode", "total"}


def test_generate_reports_its_progress(client):
    job = client.submit(PROMPT, "fake-student", 4, api_name="/generate")
    job.result()

    steps = [update["step"] for update in job.outputs() if update["stage"] == "denoise"]
    assert steps == [1, 2, 3, 4]


@pytest.mark.slow
def test_compare_returns_every_row(client):
    compared = client.predict("🎉 a party", 3, api_name="/compare")

    titles = [row["title"] for row in compared["rows"]]
    assert titles == ["Teacher · 12 steps", "Teacher · 4 steps", "Student · 4 steps"]
    assert {row["recipe"]["seed"] for row in compared["rows"]} == {3}


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": "x" * 10_000}, "10000 characters; at most 1000"),
        ({"prompt": "a\x00b"}, "control character"),
        ({"prompt": 5}, "prompt must be text"),
        ({"prompt": PROMPT, "steps": 99}, "from 1 to 8 .*not 99"),
        ({"prompt": PROMPT, "steps": 2.5}, "whole number"),
        ({"prompt": PROMPT, "steps": [4]}, "whole number"),
        ({"prompt": PROMPT, "guidance": 1e9}, "guidance must be a number from 1 to 15"),
        ({"prompt": PROMPT, "seed": -1}, "seed must be"),
        ({"prompt": PROMPT, "model": "gpt"}, "no such model"),
        ({"prompt": "explode"}, "The computation failed"),
    ],
)
def test_an_invalid_request_is_refused_with_the_reason(client, fields, message):
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


def test_a_call_with_too_few_values_is_refused_and_not_logged(fake_server):
    with join(fake_server, "short", b'"a hidden heart"') as answer:
        assert "event_id" in json.load(answer)
    with urlopen(f"{fake_server.url}/gradio_api/queue/data?session_hash=short") as stream:
        events = stream.read().decode()

    assert "takes 5 values" in events
    assert "hidden heart" not in (fake_server.data_dir / "server.log").read_text()


def test_a_call_with_half_a_character_is_refused(fake_server):
    with pytest.raises(HTTPError) as refusal:
        join(fake_server, "half", rb'"a \ud800 star", "fake-student", 4, 7.5, 0')

    assert refusal.value.code == 400
    assert "not valid" in refusal.value.read().decode()
    refusal.value.close()


def test_a_cancelled_job_ends_within_a_step(client, fake_server):
    job = client.submit(PROMPT, "fake-teacher", 60, api_name="/generate")
    while not any(update["stage"] == "denoise" for update in job.outputs()):
        pass

    job.cancel()

    assert fake_server.steps_until_stopped() <= 2
    client.predict(PROMPT, "fake-student", 1, api_name="/generate")  # the engine is free


def test_prompts_are_not_logged(client, fake_server):
    client.predict("a secret heart", api_name="/generate")

    assert "secret heart" not in (fake_server.data_dir / "server.log").read_text()
