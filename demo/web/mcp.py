"""MCP: the tools generate, compare and verify, for programs that use this page as people do.

A tool calls the page's own API inside this program, from the address of its caller. So the guard,
the rate limits, the filter of prompts and the queue apply to it as they do to a visitor.
"""

import asyncio
import json
import logging
import secrets
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx2
from fastapi import FastAPI
from pydantic import WithJsonSchema

from demo.context import PageContext
from demo.models import Request, RequestError, read_request, sha256_of
from demo.recipe_link import read_recipe
from demo.tabs.compare import read_comparison
from demo.web.gradio_internals import FILE_ROUTE, JOIN, QUEUE_DATA, Page

MCP_ROUTE = "/mcp"
INSTRUCTIONS = (
    "Makes short videos from prompts. A video's recipe and seed make it again, bit for bit. "
    "Models: {models}."
)


def _schema(kind: str, about: str) -> WithJsonSchema:
    return WithJsonSchema({"type": kind, "description": about})


# Parameters take any value: the page's own checks refuse it, in words.
Prompt = Annotated[Any, _schema("string", "what the video shows, at most 1000 characters")]
Model = Annotated[Any, _schema("string", "name of a model; none takes the page's default")]
Steps = Annotated[Any, _schema("integer", "network steps; none takes the model's default")]
Guidance = Annotated[
    Any, _schema("number", "how closely to follow the prompt; none takes the model's default")
]
Seed = Annotated[Any, _schema("integer", "0 to 4294967295; none draws one")]
Recipe = Annotated[Any, _schema("object", "the recipe of a video, from generate or from its mp4")]
Sha256 = Annotated[Any, _schema("string", "the SHA-256 of the mp4 file, in hexadecimal digits")]


def add_mcp(app: FastAPI, page: Page, context: PageContext) -> AbstractAsyncContextManager[None]:
    """Add the route of MCP, which answers while the returned context is entered.

    Needs the package `mcp`.
    """
    from mcp.server.mcpserver import Context
    from mcp.server.mcpserver.exceptions import ToolError
    from mcp.server.transport_security import TransportSecuritySettings

    logging.basicConfig(format="%(message)s")  # or MCPServer would set up a log of its own style
    server = _create_server(
        "T2V-Turbo",
        instructions=INSTRUCTIONS.format(models=", ".join(context.models)),
        log_level="WARNING",  # at INFO, the messages of refusals are logged
    )

    @contextmanager
    def refusals() -> Iterator[None]:
        """Tell the caller of a tool why the page refused it."""
        try:
            yield
        except (RequestError, CallFailed) as refusal:
            raise ToolError(str(refusal)) from None

    async def call(mcp: Context, name: str, *values: Any) -> Any:
        """Call an endpoint of `demo.api` through the queue, as the caller of the tool."""
        with refusals():
            return await _call_api(app, page, mcp.request_context.request, name, values)

    async def make(mcp: Context, model: str, request: Request) -> dict[str, Any]:
        values = (request.prompt, model, request.steps, request.guidance, request.seed)
        return await _describe(mcp, await call(mcp, "generate", *values))

    @server.tool()
    async def generate(
        mcp: Context,
        prompt: Prompt,
        model: Model = None,
        steps: Steps = None,
        guidance: Guidance = None,
        seed: Seed = None,
    ) -> dict[str, Any]:
        """Make a video from a prompt: its address, SHA-256, recipe, and a link to its settings."""
        model = context.default_model if model is None else model
        with refusals():
            request = read_request(
                context.models, model, prompt, steps=steps, guidance=guidance, seed=seed
            )
        return await make(mcp, model, request)

    @server.tool()
    async def compare(mcp: Context, prompt: Prompt, seed: Seed = None) -> dict[str, Any]:
        """Make one video with each row of the page's comparison, with the same prompt and seed."""
        with refusals():
            request = read_comparison(context, prompt, seed)[0]
        made = await call(mcp, "compare", request.prompt, request.seed)
        return {"rows": [await _describe(mcp, row) for row in made["rows"]]}

    @server.tool()
    async def verify(mcp: Context, recipe: Recipe, sha256: Sha256) -> dict[str, Any]:
        """Make a video again by its recipe, and tell whether its file is the same, bit for bit."""
        if not isinstance(recipe, dict):
            raise ToolError("The recipe must be an object, such as the one of generate.")
        if not isinstance(sha256, str) or len(sha256) != 64:
            raise ToolError("The SHA-256 must be text of 64 hexadecimal digits.")
        with refusals():
            model, request = read_recipe(recipe, context.models)
        made = await make(mcp, model, request)
        fields = sorted(
            name
            for name in {*recipe, *made["recipe"]}
            if recipe.get(name) != made["recipe"].get(name)
        )
        return {"same": made["sha256"] == sha256.lower(), "other_fields": fields[:20], "made": made}

    # The guard refuses the calls of other sites' pages; the page has no fixed host.
    routes = server.streamable_http_app(
        streamable_http_path=MCP_ROUTE,
        stateless_http=True,
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
    ).routes
    app.router.routes.extend(routes)
    return server.session_manager.run()


def _create_server(name: str, **options: Any) -> Any:
    """Create a server whose tools refuse unknown and missing arguments."""
    from mcp.server.mcpserver import MCPServer
    from mcp.server.mcpserver.exceptions import ToolError

    class Server(MCPServer):
        async def call_tool(self, name: str, arguments: dict[str, Any], context: Any = None) -> Any:
            tools = {tool.name: tool.input_schema for tool in await self.list_tools()}
            if (schema := tools.get(name)) is not None:
                known = schema["properties"]
                if unknown := sorted(set(arguments) - set(known)):
                    raise ToolError(
                        f"{name} has no parameter {unknown[0][:80]!r}. It takes {', '.join(known)}."
                    )
                # The page's own checks refuse None, in words.
                arguments = {**dict.fromkeys(schema.get("required", ())), **arguments}
            return await super().call_tool(name, arguments, context)

    return Server(name, **options)


class CallFailed(Exception):
    """The page refused a call, or it failed; the text is for its caller."""


async def _call_api(
    app: FastAPI, page: Page, caller: Any, name: str, values: tuple[Any, ...]
) -> Any:
    """Return the last value of an endpoint of `demo.api`.

    Args:
        caller: the HTTP request of the tool's caller.
    """
    session = secrets.token_hex(8)
    call = {"fn_index": page.index_of(name), "session_hash": session, "data": list(values)}
    address = (caller.client.host, caller.client.port) if caller.client else ("?", 0)
    # A root path in this inner address would be the caller's; the inner call needs none.
    transport = httpx2.ASGITransport(app=app, client=address)
    async with httpx2.AsyncClient(transport=transport, base_url="http://page") as client:
        joined = await client.post(JOIN, json=call)
        if joined.status_code != 200:
            raise CallFailed(joined.json().get("detail") or "The page is busy. Try again later.")
        events = await client.get(QUEUE_DATA, params={"session_hash": session}, timeout=None)
    messages = [json.loads(line[5:]) for line in events.text.splitlines() if line[:5] == "data:"]
    last = next((each for each in messages if each["msg"] == "process_completed"), None)
    if last is None:
        raise CallFailed("The page stopped before the video was made. Try again.")
    if not last["success"]:
        raise CallFailed(last["output"].get("error") or "The computation failed. Try again.")
    return last["output"]["data"][0]


async def _describe(mcp: Any, made: dict[str, Any]) -> dict[str, Any]:
    """Replace the path of a video by its address, and add the file's SHA-256."""
    path = made["video"]["path"]
    base = str(mcp.request_context.request.base_url).rstrip("/")
    return {
        **{name: value for name, value in made.items() if name not in ("stage", "video")},
        "video": f"{base}{FILE_ROUTE}{path}",
        "sha256": await asyncio.to_thread(sha256_of, Path(path)),
        "link": f"{base}/{made['link']}",
    }
