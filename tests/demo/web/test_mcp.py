"""MCP: the tools make what the page makes, and pass the same gate."""

import hashlib
import json
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from gradio_client import Client

from demo.recipe_link import read_link
from demo.web.limits import Limits, Rate
from tests.support.apart import run_apart
from tests.support.fake_engine import MODELS
from tests.support.page_server import run_page_server
from turbo.provenance import read_provenance

pytest.importorskip("mcp")
PROMPT = "a red star moving left on a black background"
GENERATE = {"name": "generate", "arguments": {"prompt": PROMPT, "steps": 1}}


@pytest.fixture(scope="module")
def mcp_server(serve):
    return serve("-m", "tests.support.servers.fake_engine_server", "--mcp")


@asynccontextmanager
async def open_client(server):
    from mcp.client import Client

    async with Client(f"{server.url}/mcp") as client:
        yield client


def call(server, name: str, arguments: dict):
    """Call a tool over HTTP, as an agent does; return its result."""

    async def scene():
        async with open_client(server) as client:
            return await client.call_tool(name, arguments)

    return run_apart(scene())


async def post(client: httpx.AsyncClient, params: dict, **headers: str) -> httpx.Response:
    """Call a tool of a server in this process."""
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    accepted = {"accept": "application/json, text/event-stream", **headers}
    return await client.post("/mcp", json=body, headers=accepted)


def result_in(reply: httpx.Response) -> dict:
    [line] = [line for line in reply.text.splitlines() if line.startswith("data: {")]
    return json.loads(line[6:])["result"]


def test_the_tools_are_generate_compare_and_verify(mcp_server):
    async def scene():
        async with open_client(mcp_server) as client:
            return (await client.list_tools()).tools

    tools = {tool.name: tool.input_schema for tool in run_apart(scene())}

    assert set(tools) == {"generate", "compare", "verify"}
    assert set(tools["generate"]["properties"]) == {"prompt", "model", "steps", "guidance", "seed"}
    assert tools["generate"]["required"] == ["prompt"]


def test_tool_api_and_link_make_the_same_file(mcp_server, tmp_path):
    made = call(mcp_server, "generate", {"prompt": PROMPT, "seed": 7, "steps": 2})
    made = made.structured_content
    client = Client(mcp_server.url, verbose=False, download_files=tmp_path)
    by_api = client.predict(PROMPT, seed=7, steps=2, api_name="/generate")
    model, request = read_link(made["link"].partition("?recipe=")[2], MODELS)
    by_link = client.predict(
        *(request.prompt, model, request.steps, request.guidance, request.seed),
        api_name="/generate",
    )
    client.close()

    downloaded = httpx.get(made["video"]).content
    files = [downloaded, *(Path(each["video"]).read_bytes() for each in (by_api, by_link))]
    assert {hashlib.sha256(file).hexdigest() for file in files} == {made["sha256"]}


def test_a_video_is_verified_by_the_recipe_in_its_file(mcp_server, tmp_path):
    made = call(mcp_server, "generate", {"prompt": PROMPT, "seed": 8}).structured_content
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(httpx.get(made["video"]).content)
    recipe = dict(read_provenance(clip).recipe)
    sha256 = hashlib.sha256(clip.read_bytes()).hexdigest()

    same = call(mcp_server, "verify", {"recipe": recipe, "sha256": sha256}).structured_content
    edited = {**recipe, "seed": 9, "made_by": "hand"}
    other = call(mcp_server, "verify", {"recipe": edited, "sha256": sha256}).structured_content

    assert (same["same"], same["other_fields"]) == (True, [])
    assert (other["same"], other["other_fields"]) == (False, ["made_by"])


def test_every_row_is_compared(mcp_server):
    rows = call(mcp_server, "compare", {"prompt": PROMPT, "seed": 3}).structured_content["rows"]

    assert [row["title"] for row in rows][0] == "Teacher · 12 steps" and len(rows) == 3
    assert {row["recipe"]["seed"] for row in rows} == {3}
    assert all(httpx.head(row["video"]).status_code == 200 for row in rows)


@pytest.mark.parametrize(
    "name, arguments, words",
    [
        ("generate", {}, "The prompt must be text"),
        ("generate", {"prompt": PROMPT, "step": 2}, "step"),
        ("compare", {"prompt": PROMPT, "steps": 2, "x" * 5_000: 1}, "steps"),
        ("generate", {"prompt": ["a"]}, "The prompt must be text"),
        ("generate", {"prompt": PROMPT, "seed": "7"}, "The seed must be a whole number"),
        ("generate", {"prompt": PROMPT, "steps": 99}, "The number of steps must be"),
        ("generate", {"prompt": PROMPT, "model": "none"}, "There is no such model"),
        ("generate", {"prompt": "explode"}, "The computation failed"),
        ("compare", {"prompt": "", "seed": 1}, "The prompt is empty"),
        ("verify", {"recipe": [], "sha256": "0" * 64}, "The recipe must be an object"),
        ("verify", {"recipe": {"model": "x"}, "sha256": "0" * 64}, "This recipe is not complete"),
        ("verify", {"sha256": "0" * 64}, "The recipe must be an object"),
        ("verify", {"recipe": {}, "sha256": 7}, "The SHA-256 must be"),
    ],
)
def test_a_call_that_cannot_be_served_is_refused_in_words(name, arguments, words, mcp_server):
    refused = call(mcp_server, name, arguments)

    assert refused.is_error and words in refused.content[0].text
    assert "/etc/secret" not in refused.content[0].text
    assert "pydantic" not in refused.content[0].text and len(refused.content[0].text) < 500


def test_calls_count_against_the_rate_of_their_address(tmp_path):
    limits = Limits(join=Rate(0.0001, 2))

    async def scene():
        async with run_page_server(tmp_path, limits=limits, mcp=True) as server:
            replies = [result_in(await post(server.client, GENERATE)) for _ in range(3)]
            transport = httpx.ASGITransport(server.app, client=("192.0.2.7", 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://page") as other:
                return replies, result_in(await post(other, GENERATE))

    replies, of_another = run_apart(scene())

    assert [reply.get("isError", False) for reply in replies] == [False, False, True]
    assert "Too many requests" in replies[-1]["content"][0]["text"]
    assert not of_another.get("isError", False)


def test_other_sites_and_pages_without_the_flag_have_no_tools(tmp_path):
    async def scene():
        async with run_page_server(tmp_path / "with", mcp=True) as server:
            cross = await post(server.client, GENERATE, **{"sec-fetch-site": "cross-site"})
            opened = await server.client.get("/mcp")
        async with run_page_server(tmp_path / "without") as server:
            return (
                cross.status_code,
                opened.status_code,
                (await post(server.client, GENERATE)).status_code,
            )

    assert run_apart(scene()) == (403, 404, 404)
