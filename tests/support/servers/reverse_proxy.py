"""A small reverse proxy, as an operator or a Space puts one in front of a server."""

import itertools
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade"}
METHODS = ["GET", "HEAD", "POST"]


@contextmanager
def reverse_proxy(
    target: str,
    *,
    prefix: str = "",
    strip: bool = True,
    headers: Mapping[str, str] | None = None,
    keep_host: bool = True,
    sources: Sequence[str] = ("127.0.0.1",),
    port: int = 0,
) -> Iterator[str]:
    """Serve a target below a prefix until the end of the block; yield the public address.

    Args:
        target: address of the server, without a slash at the end.
        prefix: such as "/t2v"; other paths do not exist.
        strip: remove the prefix from the path before the request is passed on.
        headers: added to every request, such as x-forwarded-for.
        keep_host: pass the visitor's Host header on.
        sources: own addresses, which send the requests in turn.
    """
    clients: list[httpx.AsyncClient] = []
    turns = itertools.count()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        limits = httpx.Limits(max_connections=None)
        for source in sources:
            transport = httpx.AsyncHTTPTransport(local_address=source, limits=limits)
            clients.append(httpx.AsyncClient(transport=transport, timeout=None, trust_env=False))
        yield
        for client in clients:
            await client.aclose()

    async def pass_on(request: Request) -> Response:
        path = request.url.path
        if not path.startswith(f"{prefix}/"):
            return PlainTextResponse("The proxy has nothing here.", 404)
        path = path.removeprefix(prefix) if strip else path
        query = f"?{request.url.query}" if request.url.query else ""
        kept = [
            (name, value)
            for name, value in request.headers.items()
            if name not in HOP_BY_HOP and (keep_host or name != "host")
        ]
        client = clients[next(turns) % len(clients)]
        outgoing = client.build_request(
            request.method,
            f"{target}{path}{query}",
            headers=[*kept, *(headers or {}).items()],
            content=await request.body(),
        )
        answer = await client.send(outgoing, stream=True)
        response = StreamingResponse(answer.aiter_raw(), answer.status_code)
        response.raw_headers = [
            (name.lower(), value)
            for name, value in answer.headers.raw
            if name.lower().decode() not in HOP_BY_HOP
        ]
        return response

    app = Starlette(routes=[Route("/{path:path}", pass_on, methods=METHODS)], lifespan=lifespan)
    config = uvicorn.Config(
        app, port=port, log_level="critical", proxy_headers=False, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    listener = config.bind_socket()
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    while not server.started:  # it listens only then
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}{prefix}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        listener.close()
