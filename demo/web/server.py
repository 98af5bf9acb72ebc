"""One web application with the page, the study, its results and its administration.

Raters and readers have routes of their own and never wait in the queue of computations.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from functools import partial
from socket import socket
from typing import Any

import gradio as gr
from fastapi import FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, RedirectResponse
from starlette.types import Scope

from demo.compute.process import ModelProcess
from demo.context import PageContext
from demo.dropped_clips import DropError
from demo.web.gradio_internals import CallChecker, Page
from demo.web.guard import Guard
from demo.web.limits import DROP, Limits, Sessions, visitor
from demo.web.mcp import MCP_ROUTE, add_mcp
from demo.widgets import theme
from human_eval.errors import NotYours
from human_eval.hosting.deployment import Deployment
from human_eval.hosting.listener import address_of, serve_on
from human_eval.hosting.proxies import BehindProxy
from human_eval.server.sign_in import read_session
from human_eval.server.study_mount import StudyMount

IDLE_CHECK_SECONDS = 10
MIN_FREE = 2**30  # bytes on disk, below which /healthz reports a problem
THIS_MACHINE = Deployment()


def create_page_app(
    page: Page,
    context: PageContext,
    *,
    limits: Limits | None = None,
    deployment: Deployment = THIS_MACHINE,
    mcp: bool = False,
) -> FastAPI:
    """Create the application. At its start, it begins to load the models and the study.

    Args:
        mcp: serve the tools of `demo.web.mcp` too.
    """
    limits = limits or Limits()
    sessions = Sessions()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(context.study.running())
            await stack.enter_async_context(_ending_when_idle(context.process, limits))
            await stack.enter_async_context(tools)
            context.engine.start()
            yield

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    # No other site may read the responses. With this middleware, Gradio does not add its own.
    app.add_middleware(CORSMiddleware, allow_origins=[])
    tools = add_mcp(app, page, context) if mcp else nullcontext()
    study = context.study
    for path, mounted in study.apps.items():
        app.add_route(path, _add_slash)
        app.mount(path, mounted)
    app.add_route("/rate", _lead_to_study)  # the address of `human_eval serve`
    app.add_route(DROP, _keep_dropped(context), methods=["POST"])
    app.add_route("/healthz", _report_health(page, context))
    page.keep_queue_alive()
    page.slow_idle_queue()
    page.limit_queue(visitor, limits.waiting, sessions.listens)
    page.find_root_in_browser()
    gr.mount_gradio_app(app, page, path="/", **mount_options(context))
    # The middleware that is added last runs first.
    app.add_middleware(
        Guard,
        calls=CallChecker(page),
        video_folders=[context.engine.clips.folder, page.cached_files],
        limits=limits,
        sessions=sessions,
        find_rater=partial(_find_rater, study),
        frames=deployment.frames,
        further_calls=[MCP_ROUTE] if mcp else [],
    )
    app.add_middleware(BehindProxy, deployment=deployment)
    return app


def _find_rater(study: StudyMount, scope: Scope) -> int | None:
    """Return the number of the rater who sent a request; None for anybody else."""
    if study.store is None:
        return None
    try:
        return read_session(study.store.keys, Request(scope)).rater_id
    except NotYours:
        return None


@asynccontextmanager
async def _ending_when_idle(process: ModelProcess | None, limits: Limits) -> AsyncIterator[None]:
    """End the model process when the page has not been open for a while, and at shutdown."""
    if process is None:
        yield
        return

    async def watch() -> None:
        while True:
            await asyncio.sleep(IDLE_CHECK_SECONDS)
            await asyncio.to_thread(process.end_if_idle, visited=limits.open_streams > 0)

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.to_thread(process.end)


def mount_options(context: PageContext) -> dict[str, Any]:
    """Return the keyword arguments of `gr.mount_gradio_app`: appearance, and disabled features."""
    clips = context.engine.clips.folder
    return {
        "theme": theme.build_theme(),
        "css": theme.CSS,
        "allowed_paths": [str(clips)],
        "blocked_paths": [str(clips.parent / "studies")],
        "show_error": False,  # unexpected messages may contain paths; ours are `gr.Error`
        "footer_links": ["api"],
        "run_history": False,
        "max_file_size": "1kb",  # nothing on the page takes a file
        "enable_monitoring": False,
        "ssr_mode": False,
        # `demo.web.mcp` serves it. Gradio's own calls come back to the page from the address in the
        # first caller's Host header, by one client for all callers, so that neither the limits nor
        # the address can be trusted.
        "mcp_server": False,
        "pwa": True,  # the address of its manifest is fixed, so not below a path
    }


def serve(app: FastAPI, listener: socket) -> None:
    """Serve until interrupted."""
    print(f"The page is at {address_of(listener)}", flush=True)
    serve_on(listener, app, limit_concurrency=2_000, timeout_graceful_shutdown=5)


def _keep_dropped(context: PageContext) -> Callable[[Request], Any]:
    async def keep(request: Request) -> Response:
        """Store a video that was dropped on the page, and reply with its name."""
        content = await request.body()
        try:
            name = await asyncio.to_thread(context.dropped.keep, content)
        except DropError as refusal:
            return JSONResponse({"detail": str(refusal)}, 422)
        return JSONResponse({"clip": name})

    return keep


def _report_health(page: Page, context: PageContext) -> Callable[[Request], Any]:
    async def health(request: Request) -> Response:
        """Reply 200, or 503 with the problems of queue, model, disk, clips and study."""
        problems = []
        if page.queue_has_stopped:
            problems.append("the queue of computations has stopped; restart the program")
        if context.engine.readiness(context.default_model) == "failed":
            problems.append("the model did not load; the log has the reason")
        if problem := context.engine.clips.problem():
            problems.append(problem)
        elif shutil.disk_usage(context.engine.clips.folder).free < MIN_FREE:
            problems.append("the disk is nearly full")
        problems += await context.study.problems()
        headers = {"cache-control": "no-store"}
        return JSONResponse({"problems": problems}, 503 if problems else 200, headers)

    return health


async def _add_slash(request: Request) -> Response:
    """Redirect /study to /study/."""
    query = f"?{request.url.query}" if request.url.query else ""
    return RedirectResponse(f"{request.url.path.rpartition('/')[2]}/{query}", 307)


async def _lead_to_study(request: Request) -> Response:
    query = f"?{request.url.query}" if request.url.query else ""
    return RedirectResponse(f"study/rate{query}", 307)
