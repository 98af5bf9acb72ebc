"""The house: one web application with the page, the study, its results and its administration.

Raters and readers never wait in the line of those who generate: votes go to routes of their own,
and only generations stand in Gradio's queue.
"""

import os
import shutil
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from gradio.queueing import Event, Queue
from starlette.responses import JSONResponse, RedirectResponse

from demo.context import Studio
from demo.web.calls import CallChecker
from demo.web.guard import Guard
from demo.web.limits import Limits
from demo.web.study_mount import Desk
from demo.widgets import theme
from human_eval.server.sign_in import COOKIE

FIRST_PORT, PORTS = 7860, 100
MIN_FREE = 2**30  # bytes on disk, below which the house is not well
SPACE_FRAMES = "'self' https://huggingface.co https://*.hf.space"


def build_house(
    page: gr.Blocks,
    studio: Studio,
    desk: Desk,
    *,
    when_open: Callable[[], None] = lambda: None,
    limits: Limits | None = None,
) -> FastAPI:
    """Make the application: the study's doors first, the page behind them, the guard in front.

    Args:
        when_open: called once everything answers; starts what may take its time.
    """

    @asynccontextmanager
    async def lifespan(house: FastAPI) -> AsyncIterator[None]:
        async with desk.running():
            when_open()
            yield

    house = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    # No other site may read what is here; with this middleware Gradio adds no rule of its own.
    house.add_middleware(CORSMiddleware, allow_origins=[])
    for name, door in (
        ("study", desk.raters),
        ("results", desk.readers),
        ("admin", desk.researchers),
    ):
        house.add_route(f"/{name}", _lead_inside)
        house.mount(f"/{name}", door)
    house.add_route("/healthz", _tell_health(page, studio, desk))
    keep_queue_alive(page._queue)
    gr.mount_gradio_app(house, page, path="/", **mount_options(studio))
    # Added last, so it comes first.
    house.add_middleware(
        Guard,
        calls=CallChecker(page),
        files=[studio.shelf.folder, Path(page.GRADIO_CACHE)],
        limits=limits or Limits(rater_cookie=COOKIE),
        framed_by=SPACE_FRAMES if "SPACE_ID" in os.environ else "'self'",
    )
    return house


def mount_options(studio: Studio) -> dict[str, Any]:
    """Return the keyword arguments that keep the page looking well and closed."""
    return {
        "theme": theme.build_theme(),
        "css": theme.CSS,
        "allowed_paths": [str(studio.shelf.folder)],
        "blocked_paths": [str(studio.shelf.folder.parent / "studies")],
        "show_error": False,  # unexpected messages hold paths; ours are `gr.Error`
        "footer_links": ["api"],
        "run_history": False,
        "max_file_size": "1kb",  # nothing here takes a file
        "enable_monitoring": False,
        "ssr_mode": False,
        "mcp_server": False,
        "pwa": False,
    }


def serve_house(house: FastAPI, *, host: str | None = None, port: int | None = None) -> None:
    """Serve until interrupted.

    Args:
        host, port: None is this machine only, and the first free port from 7860; a Space's
            environment variables say otherwise.
    """
    host = host or os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")
    listener = _listen(host, port or int(os.environ.get("GRADIO_SERVER_PORT", "0")))
    number = listener.getsockname()[1]
    print(
        f"The page is at http://{'127.0.0.1' if host == '0.0.0.0' else host}:{number}", flush=True
    )
    config = uvicorn.Config(
        house,
        log_level="warning",
        access_log=False,
        server_header=False,
        # Whoever connects may claim any address: only a proxy that the operator names is believed.
        forwarded_allow_ips=os.environ.get("FORWARDED_ALLOW_IPS", ""),
        limit_concurrency=2_000,
        timeout_keep_alive=20,
        h11_max_incomplete_event_size=32_768,
        timeout_graceful_shutdown=5,
    )
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run([listener])


def _listen(host: str, port: int) -> socket.socket:
    """Take the port, or the first free one."""
    ports = [port] if port else range(FIRST_PORT, FIRST_PORT + PORTS)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for number in ports:
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, number))
        except OSError:
            listener.close()
            continue
        listener.listen(1024)
        return listener
    raise SystemExit(f"Expected a free port, got none at {host} from {ports[0]}. Name another one.")


def keep_queue_alive(queue: Queue) -> None:
    """Let the queue survive a session that it has forgotten while its job was waiting.

    Gradio remembers 2,000 sessions. A message to a forgotten one raises KeyError in the task that
    serves everybody, which ends it for good.
    """
    send = queue.send_message

    def send_or_drop(event: Event, event_message: Any) -> None:
        try:
            send(event, event_message)
        except KeyError:
            event.alive = False

    queue.send_message = send_or_drop  # type: ignore[method-assign]


def _tell_health(page: gr.Blocks, studio: Studio, desk: Desk) -> Callable[[Request], Any]:
    async def health(request: Request) -> Response:
        """Answer 200, or 503 and what is wrong: queue, model, disk, study."""
        problems = []
        if page._queue.stopped:
            problems.append("the queue of generations has stopped; restart the program")
        if studio.readiness(studio.default_model) == "failed":
            problems.append("the model did not load; the log says why")
        if shutil.disk_usage(studio.shelf.folder).free < MIN_FREE:
            problems.append("the disk is nearly full")
        problems += await desk.problems()
        headers = {"cache-control": "no-store"}
        return JSONResponse({"problems": problems}, 503 if problems else 200, headers)

    return health


async def _lead_inside(request: Request) -> Response:
    """Send /study on to /study/."""
    query = f"?{request.url.query}" if request.url.query else ""
    return RedirectResponse(f"{request.url.path.rpartition('/')[2]}/{query}", 307)
