"""The routes of raters: enter, get a pair, watch its clips, submit the answers.

A browser only chooses answers. Which rater, which pair, which sides and what time come from the
server. No reply names a system, and answers are acknowledged only once they are on disk.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, Header, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection

from human_eval.collection import assignment, pair_view, submission
from human_eval.collection.assignment import Assignment
from human_eval.collection.endings import record_ending
from human_eval.collection.pair_view import PairView
from human_eval.collection.progress import (
    Outcome,
    Progress,
    ending,
    is_screened_out,
    read_progress,
    stopping,
)
from human_eval.collection.quotas import session_quota
from human_eval.collection.shortage import find_shortage
from human_eval.collection.submission import Answer, Detail, Reason, Submission
from human_eval.definition.definition import Codes
from human_eval.errors import NotYours, StudyClosed, StudyPaused
from human_eval.server import sign_in
from human_eval.server.accounts import Authenticator, read_accounts
from human_eval.server.clip_server import ClipServer
from human_eval.server.http import READ, BodyRoute, create_json_app, reply
from human_eval.server.language import Language, load_language
from human_eval.server.lead_page import LeadPage
from human_eval.server.rate_page import create_page_router
from human_eval.server.sign_in import EntryBody, RaterSession, read_session
from human_eval.server.vote_service import VoteService
from human_eval.storage import events
from human_eval.study.store import StudyStore

PAID_OUTCOMES = {field.name for field in fields(Codes)}
router = APIRouter(route_class=BodyRoute)


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ClaimBody(_Body):
    """Which pair is wanted."""

    ahead: bool = False  # the one after the current pair, to load its clips in advance


class AnswerBody(_Body):
    """The answer to one question."""

    choice: Literal["left", "right", "tie", "both_bad"]
    strength: int = Field(0, ge=0, le=2)  # on a scale
    seconds: float = Field(allow_inf_nan=False)


class SubmitBody(_Body):
    """The answers to all questions of an assignment."""

    assignment: str = Field(max_length=500)  # signed by us
    answers: dict[str, AnswerBody] = Field(max_length=20)
    loops: int = Field(ge=0, le=10_000)
    revision: int = Field(0, ge=0, le=100)


class ReturnBody(_Body):
    """An assignment returned without answers."""

    assignment: str = Field(max_length=500)
    reason: Reason
    detail: Detail = ""


class StopBody(_Body):
    """The rater stops although pairs are left."""

    technical: bool = False  # because the videos do not work


async def get_service(request: Request) -> VoteService:
    """Return the service of this application."""
    service: VoteService = request.app.state.service
    return service


Service = Annotated[VoteService, Depends(get_service)]


async def get_rater(request: Request, service: Service) -> RaterSession:
    """Return the rater who sent the request, or refuse it."""
    return read_session(service.store.keys, request)


async def get_rater_if_any(request: Request, service: Service) -> RaterSession | None:
    """Return the rater who sent the request; None for a browser that has not entered."""
    try:
        return read_session(service.store.keys, request)
    except NotYours:
        return None


Rater = Annotated[RaterSession, Depends(get_rater)]
RaterIfAny = Annotated[RaterSession | None, Depends(get_rater_if_any)]


@router.post("/api/enter")
async def enter(body: EntryBody, request: Request, service: Service, rater: RaterIfAny) -> Response:
    """Let a rater in and set the cookie that identifies them."""
    store, state = service.store, request.app.state
    identity = await sign_in.identify(store, state.authenticator, body)
    now = store.clock()
    session: RaterSession = await service.write(
        lambda connection: sign_in.open_session(connection, store, identity, rater, now)
    )
    response = reply({"study": _describe_study(store, state.language, entered=True)})
    sign_in.set_cookie(response, store.keys, session, embedded=state.embedded)
    return response


@router.api_route("/api/study", methods=READ)
async def describe(request: Request, service: Service, rater: RaterIfAny) -> Response:
    """Describe the questions and the conditions of taking part."""
    language = request.app.state.language
    return reply(_describe_study(service.store, language, entered=rater is not None))


@router.post("/api/claim")
async def claim(body: ClaimBody, request: Request, service: Service, rater: Rater) -> Response:
    """Assign a pair, or return why there is none."""
    store, clips = service.store, request.app.state.clips
    found = await service.write(
        lambda connection: _claim_or_end(connection, store, rater, body.ahead)
    )
    if isinstance(found, _End):
        return reply({"assignment": None, **_describe_end(store, rater, found)})
    mine, view, progress = found
    clips.remember(mine.assignment_id, view)
    return reply(
        {
            "assignment": store.keys.sign("assignment", [mine.assignment_id, mine.attempt]),
            "prompt": view.prompt,
            **clips.addresses(mine.assignment_id),
            "width": view.width,
            "height": view.height,
            "fps": view.fps,
            "frames": view.frames,
            "seconds_left": max(0, mine.expires_at - store.clock()) / 1000,
            "progress": {"answered": progress.answered, "wanted": progress.wanted},
        }
    )


@router.post("/api/submit")
async def submit(body: SubmitBody, service: Service, rater: Rater) -> Response:
    """Store the answers to a pair; the reply is sent once they are on disk."""
    store, now = service.store, service.store.clock()
    assignment_id, attempt = store.keys.read("assignment", body.assignment)
    answers = {
        key: Answer(given.choice, given.seconds, given.strength)
        for key, given in body.answers.items()
    }
    submitted = Submission(
        assignment_id=assignment_id,
        attempt=attempt,
        rater_id=rater.rater_id,
        answers=answers,
        loops=body.loops,
        revision=body.revision,
    )
    receipt, following = await service.write(
        lambda connection: (
            submission.submit(connection, store.definition, submitted, now=now),
            _current_token(connection, store, rater.rater_id),
        )
    )
    return reply(
        {
            "answers": receipt.answers,
            "revision": receipt.revision,
            "duplicate": receipt.duplicate,
            "undo_seconds": store.definition.assignment.undo_seconds,
            "next": following,
        }
    )


@router.post("/api/return")
async def return_pair(body: ReturnBody, service: Service, rater: Rater) -> Response:
    """Take a pair back unanswered."""
    store, now = service.store, service.store.clock()
    assignment_id, _ = store.keys.read("assignment", body.assignment)

    def give_back(connection: Connection) -> str | None:
        submission.give_back(
            connection, rater.rater_id, assignment_id, body.reason, now=now, detail=body.detail
        )
        return _current_token(connection, store, rater.rater_id)

    return reply({"returned": True, "next": await service.write(give_back)})


@router.post("/api/stop")
async def stop(body: StopBody, service: Service, rater: Rater) -> Response:
    """Release a rater's open pairs for others, and return how their part ends."""
    store = service.store
    end = await service.write(lambda connection: _stop(connection, store, rater, body.technical))
    return reply(_describe_end(store, rater, end))


@router.api_route("/media/{token}", methods=READ)
async def send_clip(
    token: str, request: Request, requested: Annotated[str | None, Header(alias="range")] = None
) -> Response:
    """Send a clip."""
    response: Response = await request.app.state.clips.send(token, requested)
    return response


@router.api_route("/healthz", methods=READ)
async def health(service: Service) -> Response:
    """Report whether answers can be given and stored: 200, or 503 with the reasons."""
    problems = await service.problems()
    return reply({"problems": problems}, 503 if problems else 200)


def create_app(store: StudyStore, *, frames: Sequence[str] = ()) -> FastAPI:
    """Create the application of raters: its routes and its page.

    Args:
        frames: other sites that may show the page in a frame, besides those of the definition.
            With any, the page's cookie is a third-party one.
    """
    frames = [*frames, *store.definition.frame_ancestors]
    service = VoteService(store)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    def count_refusal(error: str, request: Request) -> None:
        try:
            actor = f"rater:{read_session(store.keys, request).rater_id}"
        except NotYours:
            actor = "unknown"
        service.count_refusal(error, actor)

    language = load_language(store.definition.language)
    lead_page = LeadPage(language, "Which video is better?", "Go to the study", "rate")
    app = create_json_app(count_refusal, lead_page=lead_page, lifespan=lifespan)
    app.state.service = service
    app.state.clips = ClipServer(store)
    app.state.authenticator = Authenticator(store.folder)
    app.state.embedded = bool(frames)
    app.state.language = language
    app.include_router(router)
    app.include_router(create_page_router(language, frames=frames))
    return app


@dataclass(frozen=True)
class _End:
    """How a rater's part in the study ends, for now or for good."""

    outcome: Outcome
    progress: Progress
    closed: bool = False  # the study is


_Claimed = tuple[Assignment, PairView, Progress]


def _claim_or_end(
    connection: Connection, store: StudyStore, rater: RaterSession, ahead: bool
) -> _Claimed | _End:
    """Claim a pair; store how the rater's part ends if it ends with a completion code."""
    session = sign_in.hash_session(store, rater)
    found = _claim(connection, store, rater.rater_id, session, ahead)
    if isinstance(found, _End) and found.outcome in PAID_OUTCOMES and not ahead:
        now = store.clock()
        record_ending(connection, rater.rater_id, found.outcome, session=session, now=now)
    return found


def _claim(
    connection: Connection, store: StudyStore, rater_id: int, session: str, ahead: bool
) -> _Claimed | _End:
    definition, now = store.definition, store.clock()
    progress = read_progress(connection, definition, rater_id, session=session)
    if is_screened_out(connection, rater_id):
        return _End("screened_out", progress)
    try:
        mine = assignment.claim(
            connection, definition, rater_id, session=session, now=now, rng=store.rng, ahead=ahead
        )
    except StudyPaused:
        complete = progress.wanted is not None and progress.complete
        return _End(ending(progress, "session") if complete else "paused", progress)
    except StudyClosed:
        return _End(ending(progress, "closed"), progress, closed=True)
    if mine is None:
        shortage = find_shortage(connection, definition, rater_id, session=session, now=now)
        # On PostgreSQL a pair may have become free in between: the rater asks again.
        return _End(ending(progress, shortage or "held"), progress)
    return mine, pair_view.show(connection, mine.assignment_id), progress


def _current_token(connection: Connection, store: StudyStore, rater_id: int) -> str | None:
    """Return the token of the rater's current assignment; one given early may be taken back."""
    current = assignment.find_current(connection, rater_id, now=store.clock())
    return current and store.keys.sign("assignment", list(current))


def _stop(connection: Connection, store: StudyStore, rater: RaterSession, technical: bool) -> _End:
    definition, rater_id, now = store.definition, rater.rater_id, store.clock()
    session = sign_in.hash_session(store, rater)
    progress = read_progress(connection, definition, rater_id, session=session)
    assignment.release_all(connection, rater_id)
    if is_screened_out(connection, rater_id):
        return _End("screened_out", progress)
    shortage = find_shortage(connection, definition, rater_id, session=session, now=now)
    outcome = stopping(progress, shortage, technical=technical)
    events.record(
        connection,
        "stopped",
        actor=f"rater:{rater_id}",
        subject="study",
        now=now,
        payload={"outcome": outcome, "session": session},
    )
    return _End(outcome, progress, closed=shortage == "closed")


def _describe_end(store: StudyStore, rater: RaterSession, end: _End) -> dict[str, Any]:
    """Describe how a rater's part ends, with the completion code of the outcome if it has one."""
    code = getattr(store.definition.codes, end.outcome, "")
    return {
        "outcome": end.outcome,
        "closed": end.closed,
        "code": code,
        "finish": sign_in.finish_link(store, rater, code, end.outcome),
        "progress": {"answered": end.progress.answered, "wanted": end.progress.wanted},
    }


def _describe_study(store: StudyStore, language: Language, *, entered: bool) -> dict[str, Any]:
    """Describe the study to raters, without its title, which may name the systems."""
    definition = store.definition
    return {
        "consent": definition.consent.text.strip(),
        "instructions": definition.instructions.strip(),
        "entry": {"anonymous": definition.anonymous, "staff": bool(read_accounts(store.folder))},
        "entered": entered,
        "min_loops": definition.viewing.min_loops,
        "wanted": session_quota(definition),
        "questions": [
            {
                "key": question.key,
                "wording": question.wording,
                "forced": question.forced,
                "choices": [
                    {"choice": choice.shown, "strength": choice.strength, "label": label}
                    for choice, label in zip(
                        question.offered, language.labels(question), strict=True
                    )
                ],
            }
            for question in definition.questions
        ],
    }
