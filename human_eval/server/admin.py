"""The application of researchers: the state of the study, and the decisions about it.

It is separate from the raters' application, and a rater's cookie opens nothing here. Every decision
is a form with its own token, and is stored as an event with its author. The pages are plain HTML
and work without scripts.
"""

import asyncio
import io
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from jinja2 import Environment, FileSystemLoader, select_autoescape
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, RedirectResponse
from starlette.staticfiles import StaticFiles

from human_eval.collection.pairs import list_clips
from human_eval.collection.quarantine import list_refused, list_withheld, release_pair
from human_eval.collection.raters import check_rater
from human_eval.errors import NotAcceptable, NotYours, StudyError
from human_eval.reporting.live_results import set_published, table_as_csv
from human_eval.server import admin_session, dashboard, http
from human_eval.server.accounts import Authenticator
from human_eval.server.results_api import send_stored_clip
from human_eval.server.sign_in import entry_links
from human_eval.server.vote_service import VoteService
from human_eval.storage import events
from human_eval.storage.study_state import check_open, set_closed, set_paused
from human_eval.study import backup
from human_eval.study.media_check import find_lost_clips
from human_eval.study.queries import (
    list_defects,
    read_planned_pairs,
    read_study_progress,
    read_votes,
)
from human_eval.study.rater_table import tabulate_raters
from human_eval.study.store import StudyStore

PAGES = Path(__file__).parent / "pages" / "admin"
TEMPLATES = Environment(
    loader=FileSystemLoader(PAGES), autoescape=select_autoescape(), trim_blocks=True
)
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
router = APIRouter()


class _NotSignedIn(Exception):
    """The request needs a signed-in researcher."""


async def get_store(request: Request) -> StudyStore:
    """Return the study of this application."""
    store: StudyStore = request.app.state.store
    return store


Store = Annotated[StudyStore, Depends(get_store)]


async def get_researcher(request: Request, store: Store) -> str:
    """Return the name of the signed-in researcher, or show the form to sign in."""
    name = admin_session.read_researcher(store, request.cookies)
    if name is None:
        raise _NotSignedIn
    return name


Researcher = Annotated[str, Depends(get_researcher)]


def create_admin_app(store: StudyStore, service: VoteService, *, embedded: bool = False) -> FastAPI:
    """Create the application. Mount it where no rater's page links to.

    Args:
        embedded: the page is shown in another site's frame.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.store, app.state.service, app.state.embedded = store, service, embedded
    app.state.authenticator = Authenticator(store.folder)
    app.mount("/static", StaticFiles(directory=PAGES / "static"))
    app.include_router(router)

    @app.exception_handler(_NotSignedIn)
    async def ask_to_sign_in(request: Request, error: _NotSignedIn) -> Response:
        return _sign_in_page(store, 200 if request.url.path == _root(request) else 403)

    @app.exception_handler(StudyError)
    async def show_refusal(request: Request, error: StudyError) -> Response:
        status = http.STATUS.get(type(error), 400)
        return _page("refusal.html", status, message=str(error), root=_root(request))

    @app.exception_handler(HTTPException)
    async def show_missing(request: Request, error: HTTPException) -> Response:
        message = "There is no such page."
        return _page("refusal.html", error.status_code, message=message, root=_root(request))

    return app


@router.api_route("/", methods=http.READ)
async def show_dashboard(request: Request, store: Store, name: Researcher) -> Response:
    """Show the state of the study and the forms for decisions."""
    service: VoteService = request.app.state.service
    facts = await asyncio.to_thread(_read_facts, store, request)
    return _page(
        "dashboard.html",
        **facts,
        problems=await service.problems(),
        waiting=service.waiting,
        sync=service.read_sync and service.read_sync(),
        name=name,
        token=admin_session.issue_form_token(store, name),
    )


@router.api_route("/counts", methods=http.READ)
async def show_counts(store: Store, name: Researcher) -> Response:
    """Show the counts only; the dashboard fetches them every few seconds."""
    return _page("counts.html", counts=await asyncio.to_thread(dashboard.read_counts, store))


@router.api_route("/check", methods=http.READ)
async def check_database(store: Store, name: Researcher) -> Response:
    """Check the database row by row and the clips byte by byte, and show the defects."""

    def check() -> list[str]:
        with store.read() as connection:
            defects = list_defects(connection)
        return defects + [f"clip of {clip}" for clip in find_lost_clips(store, read=True)]

    return _page("check.html", defects=await asyncio.to_thread(check))


@router.api_route("/clips/{token}", methods=http.READ)
async def show_clip(token: str, request: Request, store: Store, name: Researcher) -> Response:
    """Send a clip by its signed token."""
    return await asyncio.to_thread(send_stored_clip, store, token, request)


@router.api_route("/export.zip", methods=http.READ)
async def download_export(store: Store, name: Researcher) -> Response:
    """Send the export as one archive."""
    return await asyncio.to_thread(_zip_files, store, "export")


@router.api_route("/report.zip", methods=http.READ)
async def download_report(store: Store, name: Researcher) -> Response:
    """Send the report as one archive."""
    return await asyncio.to_thread(_zip_files, store, "report")


@router.api_route("/raters.csv", methods=http.READ)
async def download_raters(store: Store, name: Researcher) -> Response:
    """Send the list of all raters, under their pseudonyms."""

    def write() -> bytes:
        return table_as_csv(tabulate_raters(store).drop(columns="rater_number"))

    headers = {**HEADERS, "content-disposition": 'attachment; filename="raters.csv"'}
    return Response(await asyncio.to_thread(write), 200, headers, "text/csv")


@router.post("/sign-in")
async def sign_in(request: Request, store: Store) -> Response:
    """Check name and password and set the cookie."""
    state = request.app.state
    try:
        form = await _read_form(request)
        name, password = form.get("name", ""), form.get("password", "")
        await asyncio.to_thread(state.authenticator.check, name, password, "admin")
    except StudyError as refusal:
        return _sign_in_page(store, http.STATUS.get(type(refusal), 400), str(refusal))
    response = _back_to_dashboard(request)
    response.set_cookie(
        admin_session.COOKIE,
        admin_session.issue_cookie(store, name),
        max_age=admin_session.SESSION_SECONDS,
        httponly=True,
        secure=state.embedded or request.url.scheme == "https",
        samesite="none" if state.embedded else "strict",
    )
    return response


@router.post("/{action}")
async def decide(action: str, request: Request, store: Store, name: Researcher) -> Response:
    """Carry out a decision and show the dashboard again."""
    form = await _read_form(request)
    admin_session.check_form_token(store, name, form.get("token", ""))
    response = _back_to_dashboard(request)
    if action == "sign-out":
        response.delete_cookie(admin_session.COOKIE)
        return response
    if action not in ACTIONS:
        raise StudyError("This action does not exist. Reload the page.")
    if action == "close" and form.get("confirm") != "yes":
        return await asyncio.to_thread(_ask_to_close, store, request, name)
    await asyncio.to_thread(ACTIONS[action], store, form, name)
    return response


def _ask_to_close(store: StudyStore, request: Request, name: str) -> Response:
    """Show what closing means, and a form that does it."""
    with store.read() as connection:
        check_open(connection)
    waiting = read_study_progress(store).assignments.get("open", 0)
    token = admin_session.issue_form_token(store, name)
    return _page("close.html", open=waiting, token=token, root=_root(request))


def _exclude(store: StudyStore, form: Form, author: str) -> None:
    """Exclude a rater by a rule that they fail, with the rule's own evidence."""
    for proposal in dashboard.read_rater_checks(store).proposals:
        if (proposal.subject, proposal.rule) == (form.get("subject"), form.get("rule")):
            evidence = {"found": proposal.evidence}
            with store.write() as connection:
                events.exclude(
                    connection,
                    proposal.subject,
                    rule=proposal.rule,
                    evidence=evidence,
                    author=author,
                    now=store.clock(),
                )
            return
    raise StudyError("This rater no longer fails the rule. Reload the page.")


def _decide_by_hand(decision: Callable[..., int]) -> Callable[[StudyStore, Form, str], None]:
    """Return the action that excludes, blocks or unblocks a rater for a given reason."""

    def act(store: StudyStore, form: Form, author: str) -> None:
        number, reason = _number(form, "rater"), form.get("reason", "")
        with store.write() as connection:
            check_rater(connection, number)
            decision(connection, number, reason=reason, author=author, now=store.clock())

    return act


def _revoke(store: StudyStore, form: Form, author: str) -> None:
    reason = form.get("reason", "").strip()
    if not reason:
        raise StudyError("Please give a reason for revoking the exclusion.")
    number, now = _number(form, "event"), store.clock()
    with store.write() as connection:
        events.revoke(connection, number, author=author, reason=reason[:500], now=now)


def _release(store: StudyStore, form: Form, author: str) -> None:
    with store.write() as connection:
        release_pair(connection, _number(form, "pair"), author=author, now=store.clock())


def _set(change: Callable[..., None], value: bool) -> Callable[[StudyStore, Form, str], None]:
    """Return the action that changes the state of the study."""

    def act(store: StudyStore, form: Form, author: str) -> None:
        with store.write() as connection:
            change(connection, value, author=author, now=store.clock())

    return act


ACTIONS: dict[str, Callable[[StudyStore, Form, str], Any]] = {  # by the address of the form
    "pause": _set(set_paused, True),
    "resume": _set(set_paused, False),
    "close": _set(set_closed, True),
    "reopen": _set(set_closed, False),
    "publish": lambda store, form, author: set_published(store, True, author=author),
    "withdraw": lambda store, form, author: set_published(store, False, author=author),
    "exclude": _exclude,
    "exclude-rater": _decide_by_hand(events.exclude_by_hand),
    "block-rater": _decide_by_hand(events.block),
    "unblock-rater": _decide_by_hand(events.unblock),
    "revoke": _revoke,
    "release": _release,
    "back-up": lambda store, form, author: backup.back_up(store),
}


def _read_facts(store: StudyStore, request: Request) -> dict[str, Any]:
    with store.read() as connection:
        withheld, refused = list_withheld(connection), list_refused(connection)
    return {
        "study": store.definition,
        "counts": dashboard.read_counts(store),
        "checks": dashboard.read_rater_checks(store),
        "raters": dashboard.read_raters(store),
        "withheld": withheld,
        "refused": refused,
        "clips": {
            number: "clips/" + store.keys.sign("clip", [number])
            for pair in withheld
            for number in (pair.clip_a, pair.clip_b)
        },
        "storage": dashboard.read_storage(store),
        "events": dashboard.read_events(store),
        "entry_links": entry_links(store, _rate_address(request)),
    }


def _zip_files(store: StudyStore, kind: str) -> Response:
    from human_eval.reporting.export import write_export  # both take seconds to import
    from human_eval.reporting.report import write_report

    votes = read_votes(store)
    if votes.empty:
        raise StudyError("There are no votes yet. Try again when raters have answered.")
    pairs = read_planned_pairs(store)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / kind
        if kind == "export":
            with store.read() as connection:
                clips = list_clips(connection)
            written = write_export(votes, store.definition, folder, clips=clips, pairs=pairs)
        else:
            written = write_report(votes, store.definition, folder, pairs=pairs)
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in written:
                archive.write(path, f"{store.definition.name}-{kind}/{path.name}")
    name = f"{store.definition.name}-{kind}.zip"
    headers = {**HEADERS, "content-disposition": f'attachment; filename="{name}"'}
    return Response(content.getvalue(), 200, headers, "application/zip")


def _page(template: str, status: int = 200, **facts: Any) -> HTMLResponse:
    return HTMLResponse(TEMPLATES.get_template(template).render(facts), status, HEADERS)


def _sign_in_page(store: StudyStore, status: int, message: str = "") -> HTMLResponse:
    has_accounts = admin_session.has_researchers(store)
    return _page(
        "sign_in.html", status, folder=store.folder, has_accounts=has_accounts, message=message
    )


def _back_to_dashboard(request: Request) -> RedirectResponse:
    return RedirectResponse(_root(request), 303, HEADERS)


def _root(request: Request) -> str:
    """Return the address at which this application is mounted."""
    return f"{request.scope.get('root_path', '')}/"


def _rate_address(request: Request) -> str:
    """Return the address of the Rate page, which is served next to this application."""
    root = request.scope.get("root_path", "").rpartition("/")[0]
    return f"{request.url.scheme}://{request.url.netloc}{root}/study/rate"


async def _read_form(request: Request) -> Form:
    """Read a form that our own page sent.

    Raises:
        NotYours: another site's page sent it.
        StudyError: it is too long, or not a form.
    """
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise NotYours("This form was sent by another website. Open the study's own page.")
    try:
        content = await http.read_body(request, MAX_FORM)
        fields = parse_qs(content.decode("ascii"), keep_blank_values=True, max_num_fields=20)
    except (NotAcceptable, ValueError) as error:
        raise StudyError("The form could not be read. Reload the page and try again.") from error
    return {name: values[-1] for name, values in fields.items()}


def _number(form: Form, name: str) -> int:
    text = form.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) < 12):
        raise StudyError("The form is not complete. Reload the page and try again.")
    return int(text)
