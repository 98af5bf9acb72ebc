"""The web application of a published study: rate page, results and administration."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI, Request, Response
from starlette.responses import JSONResponse, RedirectResponse

from human_eval.hosting.deployment import Deployment
from human_eval.publishing.replica import Replica
from human_eval.server.http import READ
from human_eval.server.study_mount import StudyMount


def create_hosted_app(replica: Replica, deployment: Deployment, *, every: float) -> FastAPI:
    """Create the application, which opens the study and journals votes until it stops.

    Args:
        every: seconds between two rounds of the journal.
    """
    mount = StudyMount(replica.open, frames=deployment.frames)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with mount.running():
            stopping = asyncio.Event()
            syncing = asyncio.create_task(_sync_until(stopping, replica, mount, every))
            try:
                yield
            finally:
                stopping.set()
                await syncing

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    for path, mounted in mount.apps.items():
        app.mount(path, mounted)

    @app.api_route("/", methods=READ)
    @app.api_route("/rate", methods=READ)
    async def lead_to_study(request: Request) -> Response:
        query = f"?{request.url.query}" if request.url.query else ""
        return RedirectResponse(f"study/rate{query}", 307)

    @app.api_route("/healthz", methods=READ)
    async def report_health() -> Response:
        problems = await mount.problems()
        return JSONResponse({"problems": problems}, 503 if problems else 200)

    return app


async def _sync_until(
    stopping: asyncio.Event, replica: Replica, mount: StudyMount, every: float
) -> None:
    """Journal the votes every few minutes, and once more at the end."""
    while not stopping.is_set():
        if mount.service is not None:
            mount.service.read_sync = replica.count
        with suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), timeout=every if mount.service else 0.2)
        if mount.service is not None:
            await asyncio.to_thread(replica.sync)
