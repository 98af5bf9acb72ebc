"""One request and its reply: what a body may hold, and what an error becomes on the wire."""

import json
import re
from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeVar

from fastapi import Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from human_eval.collection.returns import Detail, Reason
from human_eval.errors import (
    NotAcceptable,
    NotYours,
    StorageBusy,
    StorageDamaged,
    StorageFull,
    StudyClosed,
    StudyError,
    StudyPaused,
    TooLate,
)

STATUS: dict[type[StudyError], int] = {
    NotYours: 403,
    NotAcceptable: 422,
    TooLate: 409,
    StudyClosed: 410,
    StudyPaused: 423,
    StorageBusy: 503,
    StorageFull: 507,
    StorageDamaged: 500,
}
MAX_BODY = 64 * 1024  # bytes
RETRY_SECONDS = 2
MAX_QUOTED = 80  # characters of what came, in a message

Checked = TypeVar("Checked", bound=BaseModel)
Handler = Callable[[Request], Awaitable[Response]]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class EnterBody(_Body):
    """How a rater comes in: invited by name, by a link, as staff, or just so."""

    consent: bool
    invitation: str | None = Field(None, max_length=2000)
    link: str | None = Field(None, max_length=500)
    parameters: dict[str, str] = Field({}, max_length=20)  # what a platform wrote into the link
    name: str | None = Field(None, max_length=64)
    password: str | None = Field(None, max_length=200)


class ClaimBody(_Body):
    """Which pair is wanted."""

    ahead: bool = False


class AnswerBody(_Body):
    """What a rater says to one question."""

    choice: Literal["left", "right", "tie", "both_bad"]
    seconds: float = Field(allow_inf_nan=False)


class SubmitBody(_Body):
    """The answers to one pair."""

    ballot: str = Field(max_length=500)
    answers: dict[str, AnswerBody] = Field(max_length=20)
    loops: int = Field(ge=0, le=10_000)
    revision: int = Field(0, ge=0, le=100)


class ReturnBody(_Body):
    """A pair handed back."""

    ballot: str = Field(max_length=500)
    reason: Reason
    detail: Detail = ""


class StopBody(_Body):
    """A rater who stops although pairs are left."""

    technical: bool = False  # because something does not work


async def read_body(request: Request, shape: type[Checked]) -> Checked:
    """Read a JSON body of the given shape.

    Raises:
        NotAcceptable: it is too long, or of another shape.
        NotYours: another site's page sent it.
    """
    if request.headers.get("sec-fetch-site") == "cross-site":
        raise NotYours("Expected a request of our own page, got another site's. Open our page.")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise NotAcceptable(f"Expected application/json, got {_quote(kind)}. Set content-type.")
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > MAX_BODY:
            raise NotAcceptable(f"Expected at most {MAX_BODY} bytes, got more. Send less.")
    try:
        return shape.model_validate_json(bytes(content))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the body"
        raise NotAcceptable(
            f"Expected another {_quote(place)}: {first['msg']}; got {_quote(first.get('input'))}. "
            "Correct the request."
        ) from error


def _quote(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_QUOTED else text[:MAX_QUOTED] + "..."


def reply(content: Any, status: int = 200) -> Response:
    """Return JSON that nobody keeps and that holds ASCII alone, whatever text is in it."""
    response = Response(json.dumps(content), status, media_type="application/json")
    response.headers["cache-control"] = "private, no-store"
    response.headers["x-content-type-options"] = "nosniff"
    return response


def guard(handler: Handler, refused: Callable[[str, Request], None]) -> Handler:
    """Turn a handler's `StudyError` into its status and text, and count refusals."""

    async def guarded(request: Request) -> Response:
        try:
            return await handler(request)
        except StudyError as error:
            status = STATUS.get(type(error), 400)
            response = reply({"error": str(error)}, status)
            if status >= 500:
                response.headers["retry-after"] = str(RETRY_SECONDS)
            else:
                refused(type(error).__name__, request)
            return response

    return guarded


def send_clip(content: bytes, asked: str | None) -> Response:
    """Send a clip or the range of bytes that is asked for; headers tell nothing about the file."""
    headers = {
        "accept-ranges": "bytes",
        "cache-control": "private, max-age=3600",
        "x-content-type-options": "nosniff",
    }
    size = len(content)
    match = re.fullmatch(r"bytes=(\d{0,15})-(\d{0,15})", asked or "")
    if match is None or match.group(1) == match.group(2) == "":
        return Response(content, 200, headers, "video/mp4")
    first, last = match.groups()
    if first == "":
        begin, end = max(0, size - int(last)), size - 1
    else:
        begin, end = int(first), min(int(last or size - 1), size - 1)
    if begin > end:
        return Response(b"", 416, {**headers, "content-range": f"bytes */{size}"})
    headers["content-range"] = f"bytes {begin}-{end}/{size}"
    return Response(content[begin : end + 1], 206, headers, "video/mp4")
