"""The researchers' application: how the study is, and what they may decide about it.

An application of its own, mounted beside that of the raters and never reachable from it: raters'
cookies open nothing here. Every decision is a form with a token of its own, and an event with its
author. Pages are plain HTML; they work without scripts.
"""

import asyncio
import io
import tempfile
import zipfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from fastapi import FastAPI, Request, Response
from jinja2 import Environment, FileSystemLoader, select_autoescape
from starlette.responses import HTMLResponse, RedirectResponse
from starlette.staticfiles import StaticFiles

from human_eval.collection import quarantine
from human_eval.errors import NotYours, StudyError
from human_eval.reporting.live_results import set_published
from human_eval.server import admin_session, dashboard, http
from human_eval.server.accounts import Door
from human_eval.server.results_api import send_stored_clip
from human_eval.server.sign_in import list_ways_in
from human_eval.server.vote_api import VoteService
from human_eval.study import backup
from human_eval.study.store import StudyStore

PAGES = Path(__file__).parent / "pages" / "admin"
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; media-src 'self'; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "cache-control": "private, no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
}
MAX_FORM = 16 * 1024  # bytes

Form = dict[str, str]
Decision = Callable[[Form, str], Any]  # the form and its author
Handler = Callable[[Request, str], Awaitable[Response]]  # the request and who signed in


def create_admin_app(store: StudyStore, service: VoteService, *, embedded: bool = False) -> FastAPI:
    """Make the application; mount it where raters' pages do not link to."""
    office = Office(store, service, embedded=embedded)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.mount("/static", StaticFiles(directory=PAGES / "static"))
    app.add_route("/", office.show, methods=["GET"])
    app.add_route("/sign-in", office.sign_in, methods=["POST"])
    for path, handler in (
        ("/counts", office.counts),
        ("/export.zip", office.export),
        ("/report.zip", office.report),
        ("/check", office.check),
        ("/clips/{token}", office.clip),
    ):
        app.add_route(path, office.guarded(handler), methods=["GET"])
    app.add_route("/{deed}", office.guarded(office.decide), methods=["POST"])
    return app


class Office:
    """The handlers of the application."""

    def __init__(self, store: StudyStore, service: VoteService, *, embedded: bool) -> None:
        self._store = store
        self._service = service
        self._embedded = embedded
        self._door = Door(store.folder)
        self._templates = Environment(
            loader=FileSystemLoader(PAGES), autoescape=select_autoescape(), trim_blocks=True
        )
        self._deeds: dict[str, Decision] = {
            "pause": lambda form, author: store.set_paused(True, author=author),
            "resume": lambda form, author: store.set_paused(False, author=author),
            "close": lambda form, author: store.set_closed(True, author=author),
            "reopen": lambda form, author: store.set_closed(False, author=author),
            "publish": lambda form, author: set_published(store, True, author=author),
            "withdraw": lambda form, author: set_published(store, False, author=author),
            "exclude": self._exclude,
            "revoke": self._revoke,
            "release": self._release,
            "back-up": lambda form, author: backup.back_up(store),
        }

    def guarded(self, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        """Let researchers through who have signed in; show others the way."""

        async def guarded(request: Request) -> Response:
            name = admin_session.who_is(self._store, request.cookies)
            if name is None:
                return self._page("sign_in.html", 403, self._sign_in_facts())
            try:
                return await handler(request, name)
            except StudyError as refusal:
                status = http.STATUS.get(type(refusal), 400)
                return self._page("refusal.html", status, {"message": str(refusal)})

        return guarded

    async def show(self, request: Request) -> Response:
        """Show the dashboard, or the form to sign in."""
        name = admin_session.who_is(self._store, request.cookies)
        if name is None:
            return self._page("sign_in.html", 200, self._sign_in_facts())
        facts = await asyncio.to_thread(self._read_facts, request)
        facts["problems"] = await self._service.problems()
        facts["waiting"] = self._service.waiting
        facts["name"] = name
        facts["token"] = admin_session.issue_form_token(self._store, name)
        return self._page("dashboard.html", 200, facts)

    async def counts(self, request: Request, name: str) -> Response:
        """Show the counts alone; the dashboard fetches them now and then."""
        counts = await asyncio.to_thread(dashboard.read_counts, self._store)
        return self._page("counts.html", 200, {"counts": counts})

    async def sign_in(self, request: Request) -> Response:
        """Check name and password, and hand out the cookie."""
        try:
            form = await _read_form(request)
            await asyncio.to_thread(
                self._door.admit, form.get("name", ""), form.get("password", ""), "admin"
            )
        except StudyError as refusal:
            facts = {**self._sign_in_facts(), "message": str(refusal)}
            return self._page("sign_in.html", http.STATUS.get(type(refusal), 400), facts)
        response = self._back(request)
        response.set_cookie(
            admin_session.COOKIE,
            admin_session.issue_cookie(self._store, form["name"]),
            max_age=admin_session.SIGNED_IN // 1000,
            httponly=True,
            secure=self._embedded or request.url.scheme == "https",
            samesite="none" if self._embedded else "strict",
        )
        return response

    async def decide(self, request: Request, name: str) -> Response:
        """Carry out a decision and show the dashboard again."""
        form = await _read_form(request)
        admin_session.check_form(self._store, name, form.get("token", ""))
        response = self._back(request)
        deed = request.path_params["deed"]
        if deed == "sign-out":
            response.delete_cookie(admin_session.COOKIE)
            return response
        if deed not in self._deeds:
            raise StudyError(f"Expected a decision from {sorted(self._deeds)}, got {deed[:40]!r}.")
        await asyncio.to_thread(self._deeds[deed], form, name)
        return response

    async def check(self, request: Request, name: str) -> Response:
        """Check the database row by row, and say what is wrong."""
        defects = await asyncio.to_thread(self._store.list_defects)
        return self._page("check.html", 200, {"defects": defects})

    async def clip(self, request: Request, name: str) -> Response:
        """Send a clip by its token."""
        return await asyncio.to_thread(send_stored_clip, self._store, request)

    async def export(self, request: Request, name: str) -> Response:
        """Send the export as one archive."""
        return await asyncio.to_thread(self._pack, "export")

    async def report(self, request: Request, name: str) -> Response:
        """Send the report as one archive."""
        return await asyncio.to_thread(self._pack, "report")

    def _pack(self, what: str) -> Response:
        from human_eval.reporting.export import write_export  # both take seconds to import
        from human_eval.reporting.report import write_report

        store = self._store
        votes = store.votes()
        if votes.empty:
            raise StudyError("Expected at least one answer, got none. Wait for raters.")
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / what
            if what == "export":
                written = write_export(votes, store.definition, folder, clips=store.clips())
            else:
                written = write_report(votes, store.definition, folder)
            archive = io.BytesIO()
            with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
                for path in written:
                    packed.write(path, f"{store.definition.name}-{what}/{path.name}")
        name = f"{store.definition.name}-{what}.zip"
        headers = {**HEADERS, "content-disposition": f'attachment; filename="{name}"'}
        return Response(archive.getvalue(), 200, headers, "application/zip")

    def _exclude(self, form: Form, author: str) -> None:
        """Exclude a rater whom a rule speaks against, with the rule's own evidence."""
        quality = dashboard.read_quality(self._store)
        for proposal in quality.proposals:
            if (proposal.subject, proposal.rule) == (form.get("subject"), form.get("rule")):
                evidence = {"found": proposal.evidence}
                self._store.exclude(
                    proposal.subject, rule=proposal.rule, evidence=evidence, author=author
                )
                return
        raise StudyError("Expected a rater whom a rule speaks against, got another. Reload.")

    def _revoke(self, form: Form, author: str) -> None:
        reason = form.get("reason", "").strip()
        if not reason:
            raise StudyError("Expected a reason, got none. Say why the exclusion is taken back.")
        self._store.revoke(_number(form, "event"), author=author, reason=reason[:500])

    def _release(self, form: Form, author: str) -> None:
        with self._store.write() as connection:
            pair, now = _number(form, "pair"), self._store.clock()
            quarantine.release_pair(connection, pair, author=author, now=now)

    def _read_facts(self, request: Request) -> dict[str, Any]:
        quality = dashboard.read_quality(self._store)
        sign = self._store.keys.sign
        return {
            "study": self._store.definition,
            "counts": dashboard.read_counts(self._store),
            "quality": quality,
            "clips": {
                number: "clips/" + sign("clip", [number])
                for pair in quality.withheld
                for number in (pair.clip_a, pair.clip_b)
            },
            "storage": dashboard.read_storage(self._store),
            "events": dashboard.read_events(self._store),
            "ways_in": list_ways_in(self._store, _rate_address(request)),
        }

    def _sign_in_facts(self) -> dict[str, Any]:
        return {
            "folder": self._store.folder,
            "anybody": admin_session.has_researchers(self._store),
            "message": "",
        }

    def _page(self, template: str, status: int, facts: dict[str, Any]) -> HTMLResponse:
        text = self._templates.get_template(template).render(facts)
        return HTMLResponse(text, status, HEADERS)

    def _back(self, request: Request) -> RedirectResponse:
        return RedirectResponse(f"{request.scope.get('root_path', '')}/", 303, HEADERS)


async def _read_form(request: Request) -> Form:
    """Read a form that our own page sent.

    Raises:
        NotYours: another site's page sent it.
        StudyError: it is too long, or no form.
    """
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise NotYours("Expected a form of our own page, got another site's. Open our page.")
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > MAX_FORM:
            raise StudyError(f"Expected at most {MAX_FORM} bytes, got more. Send less.")
    try:
        fields = parse_qs(content.decode("ascii"), keep_blank_values=True, max_num_fields=20)
    except ValueError as error:
        raise StudyError("Expected a form, got something else. Use the page.") from error
    return {name: values[-1] for name, values in fields.items()}


def _number(form: Form, name: str) -> int:
    text = form.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) < 12):
        raise StudyError(f"Expected a number for {name}, got {text[:20]!r}. Reload the page.")
    return int(text)


def _rate_address(request: Request) -> str:
    """Return the address of the raters' page, which lies beside this application."""
    root = request.scope.get("root_path", "").rpartition("/")[0]
    return f"{request.url.scheme}://{request.url.netloc}{root}/study/rate"
