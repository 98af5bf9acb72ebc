"""What readers of a study may fetch: its chart, its tables, and after its end the clips."""

import asyncio
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import FastAPI, Request, Response
from sqlalchemy import select

from human_eval.collection.quarantine import clip_name
from human_eval.errors import NotYours, StudyError
from human_eval.reporting.live_results import LiveResults, Results, is_published, table_as_csv
from human_eval.server import http
from human_eval.server.admin_session import who_is
from human_eval.storage.tables import Study
from human_eval.study.store import StudyStore

KINDS = {"svg": "image/svg+xml", "png": "image/png", "pdf": "application/pdf"}
EPOCH = (1980, 1, 1, 0, 0, 0)  # of every file in an archive: the same tables, the same bytes
POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'self'"


@dataclass(frozen=True)
class Access:
    """What somebody may see of the results."""

    may_read: bool
    named: bool  # the systems of a study that is still open


def find_access(store: StudyStore, cookies: Mapping[str, str]) -> Access:
    """Return what the holder of these cookies may see."""
    researcher = who_is(store, cookies) is not None
    with store.read() as connection:
        published = is_published(connection)
    return Access(may_read=researcher or published, named=researcher)


def create_reading_app(store: StudyStore, results: LiveResults) -> FastAPI:
    """Make the application of the three routes; it is mounted beside the page."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    async def chart(request: Request) -> Response:
        kind = request.path_params["kind"]
        if kind not in KINDS:
            return http.reply({"error": f"Expected svg, png or pdf, got {kind[:20]!r}."}, 404)
        named, simulated = _check(store, request)
        drawn = await asyncio.to_thread(results.draw, kind, named=named, simulated=simulated)
        if drawn is None:
            return http.reply({"error": "Expected votes to draw, got none yet."}, 404)
        return _send(drawn, KINDS[kind], f"win_rates.{kind}")

    async def tables(request: Request) -> Response:
        named, simulated = _check(store, request)
        current = await asyncio.to_thread(results.read, named=named, simulated=simulated)
        content = await asyncio.to_thread(_zip_tables, current)
        return _send(content, "application/zip", "tables.zip")

    async def clip(request: Request) -> Response:
        return await asyncio.to_thread(send_stored_clip, store, request)

    for path, handler in (
        ("/chart.{kind}", chart),
        ("/tables.zip", tables),
        ("/clips/{token}", clip),
    ):
        app.add_route(path, http.guard(handler, lambda kind, request: None), methods=["GET"])
    return app


def send_stored_clip(store: StudyStore, request: Request) -> Response:
    """Send a clip by its token, to researchers, and to readers once the study is closed.

    Raises:
        NotYours: the study is open, or the token is forged.
    """
    access = find_access(store, request.cookies)
    with store.read() as connection:
        closed = connection.execute(select(Study.closed_at)).scalar_one() is not None
        if not access.named and not (closed and access.may_read):
            raise NotYours("Expected a closed study, got an open one. Clips are shown at the end.")
        [number] = store.keys.read("clip", request.path_params["token"])
        name = clip_name(connection, number)
    try:
        content = (store.media / name).read_bytes()
    except FileNotFoundError as error:
        raise StudyError("Expected a clip, got none. Restore the media folder.") from error
    return http.send_clip(content, request.headers.get("range"))


def _check(store: StudyStore, request: Request) -> tuple[bool, bool]:
    """Return whether systems are named and votes simulated, or refuse."""
    access = find_access(store, request.cookies)
    if not access.may_read:
        raise NotYours("Expected published results, got others. Ask the researcher.")
    return access.named, request.query_params.get("votes") == "simulated"


def _zip_tables(results: Results) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, table in results.tables().items():
            prefix = "SIMULATED-" if results.simulated else ""
            archive.writestr(zipfile.ZipInfo(f"{prefix}{name}.csv", EPOCH), table_as_csv(table))
    return content.getvalue()


def _send(content: bytes, kind: str, name: str) -> Response:
    headers = {
        "cache-control": "private, no-store",
        "content-disposition": f'inline; filename="{name}"',
        "content-security-policy": POLICY,
        "x-content-type-options": "nosniff",
    }
    return Response(content, 200, headers, kind)
