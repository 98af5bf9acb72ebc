"""Downloads for readers of a study: chart, tables, and the clips once the study is closed."""

import asyncio
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import FastAPI, Request, Response

from human_eval.collection.quarantine import clip_name
from human_eval.errors import NotFound, NotYours, StudyError
from human_eval.reporting.live_results import LiveResults, Results, is_published, table_as_csv
from human_eval.server.admin_session import read_researcher
from human_eval.server.http import READ, create_json_app, send_clip
from human_eval.server.language import Language
from human_eval.server.lead_page import LeadPage
from human_eval.storage.study_state import is_closed
from human_eval.study.store import StudyStore

MEDIA_TYPES = {"svg": "image/svg+xml", "png": "image/png", "pdf": "application/pdf"}
EPOCH = (1980, 1, 1, 0, 0, 0)  # time of every file in an archive: equal tables give equal bytes
POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'self'"


@dataclass(frozen=True)
class Access:
    """What a visitor may see of the results."""

    may_read: bool
    named: bool  # the names of the systems while the study is open


def find_access(store: StudyStore, cookies: Mapping[str, str]) -> Access:
    """Return what the owner of these cookies may see."""
    researcher = read_researcher(store, cookies) is not None
    with store.read() as connection:
        published = is_published(connection)
    return Access(may_read=researcher or published, named=researcher)


def create_results_app(store: StudyStore, results: LiveResults) -> FastAPI:
    """Create the application of the three downloads."""
    lead_page = LeadPage(Language("en"), "Results", "Go to the Results tab", "../")
    app = create_json_app(on_refusal=lambda error, request: None, lead_page=lead_page)

    @app.api_route("/chart.{kind}", methods=READ)
    async def chart(kind: str, request: Request, votes: str = "") -> Response:
        if kind not in MEDIA_TYPES:
            raise NotFound("The chart is available as svg, png and pdf.")
        named = await asyncio.to_thread(_check_access, store, request)
        drawn = await asyncio.to_thread(
            results.draw, kind, named=named, simulated=votes == "simulated"
        )
        if drawn is None:
            raise NotFound("There are no votes yet. Try again later.")
        return _send_file(drawn, MEDIA_TYPES[kind], f"win_rates.{kind}")

    @app.api_route("/tables.zip", methods=READ)
    async def tables(request: Request, votes: str = "") -> Response:
        named = await asyncio.to_thread(_check_access, store, request)
        current = await asyncio.to_thread(results.read, named=named, simulated=votes == "simulated")
        content = await asyncio.to_thread(_zip_tables, current)
        return _send_file(content, "application/zip", "tables.zip")

    @app.api_route("/clips/{token}", methods=READ)
    async def clip(token: str, request: Request) -> Response:
        return await asyncio.to_thread(send_stored_clip, store, token, request)

    return app


def send_stored_clip(store: StudyStore, token: str, request: Request) -> Response:
    """Send a clip by its signed token: to researchers always, to readers if the study is closed.

    Raises:
        NotYours: the study is open, or the token is forged.
    """
    access = find_access(store, request.cookies)
    with store.read() as connection:
        closed = is_closed(connection)
        if not access.named and not (closed and access.may_read):
            raise NotYours("Clips are shown when the study is closed.")
        [number] = store.keys.read("clip", token)
        name = clip_name(connection, number)
    try:
        content = (store.media / name).read_bytes()
    except FileNotFoundError as error:
        raise StudyError(
            "This clip is missing on the server. Restore the study's media folder."
        ) from error
    return send_clip(content, request.headers.get("range"))


def _check_access(store: StudyStore, request: Request) -> bool:
    """Return whether to show the names of the systems, or refuse."""
    access = find_access(store, request.cookies)
    if not access.may_read:
        raise NotYours("The results of this study are not published. Ask the researcher.")
    return access.named


def _zip_tables(results: Results) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, table in results.tables().items():
            prefix = "SIMULATED-" if results.simulated else ""
            archive.writestr(zipfile.ZipInfo(f"{prefix}{name}.csv", EPOCH), table_as_csv(table))
    return content.getvalue()


def _send_file(content: bytes, media_type: str, name: str) -> Response:
    headers = {
        "cache-control": "private, no-store",
        "content-disposition": f'inline; filename="{name}"',
        "content-security-policy": POLICY,
        "x-content-type-options": "nosniff",
    }
    return Response(content, 200, headers, media_type)
