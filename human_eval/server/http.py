"""What the study's routes share: the size of a body, JSON replies, errors as JSON, byte ranges."""

import json
import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from human_eval.errors import (
    NotAcceptable,
    NotFound,
    NotYours,
    StorageBusy,
    StorageDamaged,
    StorageFull,
    StudyClosed,
    StudyError,
    StudyPaused,
    TooLate,
)
from human_eval.server.lead_page import LeadPage, is_for_browser

STATUS: dict[type[StudyError], int] = {
    NotYours: 403,
    NotAcceptable: 422,
    NotFound: 404,
    TooLate: 409,
    StudyClosed: 410,
    StudyPaused: 423,
    StorageBusy: 503,
    StorageFull: 507,
    StorageDamaged: 500,
}
BY_STATUS = {
    400: "The request could not be read. Reload the page.",
    404: "This address does not exist. Check the link.",
    405: "This address does not accept this kind of request.",
}
MAX_BODY = 64 * 1024  # bytes
RETRY_SECONDS = 2
READ = ["GET", "HEAD"]  # the methods of a route that changes nothing


def reply(content: Any, status: int = 200) -> Response:
    """Return JSON that is never cached. It is ASCII only, so any text in it can be sent."""
    response = Response(json.dumps(content), status, media_type="application/json")
    response.headers["cache-control"] = "private, no-store"
    response.headers["x-content-type-options"] = "nosniff"
    return response


async def read_body(request: Request, limit: int) -> bytes:
    """Read the body of a request that one of our own pages sent.

    Args:
        limit: bytes.

    Raises:
        NotYours: another site's page sent it.
        NotAcceptable: it is longer than the limit.
    """
    if request.headers.get("sec-fetch-site") == "cross-site":
        raise NotYours("This request came from another website. Open the study's own page.")
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > limit:
            raise NotAcceptable(
                "The request is larger than {limit} bytes. Reload the page.", limit=limit
            )
    return bytes(content)


class BodyRoute(APIRoute):
    """A route that checks the sender and the size of a body before FastAPI parses it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def check_then_handle(request: Request) -> Response:
            if request.method in READ:
                return await handle(request)
            content = await read_body(request, MAX_BODY)

            async def receive() -> dict[str, Any]:
                return {"type": "http.request", "body": content}

            return await handle(Request(request.scope, receive))

        return check_then_handle


def create_json_app(
    on_refusal: Callable[[str, Request], None], *, lead_page: LeadPage, **options: Any
) -> FastAPI:
    """Create an application without API documentation that answers errors with {"error": ...}.

    At its root and in place of errors, a browser gets a page that leads on.

    Args:
        on_refusal: called with the error's class name for every request that is refused, and not
            for failures of the storage.
        lead_page: what a browser gets in place of JSON, in the language of all messages.
        options: of FastAPI.
    """

    def answer(request: Request, message: str, status: int, **values: object) -> Response:
        translated = lead_page.language.translate(message, **values)
        if is_for_browser(request):
            return lead_page.render(request, translated, status)
        return reply({"error": translated}, status)

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, **options)

    @app.exception_handler(StudyError)
    async def refuse(request: Request, error: StudyError) -> Response:
        status = STATUS.get(type(error), 400)
        response = answer(request, error.message, status, **error.values)
        if status >= 500:
            response.headers["retry-after"] = str(RETRY_SECONDS)
        else:
            on_refusal(type(error).__name__, request)
        return response

    @app.exception_handler(RequestValidationError)
    async def refuse_body(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:]) or "body"
        refusal = NotAcceptable(
            "The request has an error in {place}: {problem}. Reload the page.",
            place=repr(place[:80]),
            problem=first["msg"],
        )
        return await refuse(request, refusal)

    @app.exception_handler(HTTPException)
    async def refuse_route(request: Request, error: HTTPException) -> Response:
        message = BY_STATUS.get(error.status_code, BY_STATUS[400])
        return answer(request, message, error.status_code)

    @app.api_route("/", methods=READ)
    async def root(request: Request) -> Response:
        return lead_page.render(request)

    return app


def send_clip(content: bytes, requested: str | None) -> Response:
    """Send a clip, or part of it. No header describes the file.

    Args:
        requested: the request's Range header.
    """
    headers = {
        "accept-ranges": "bytes",
        "cache-control": "private, max-age=3600",
        "x-content-type-options": "nosniff",
    }
    size = len(content)
    match = re.fullmatch(r"bytes=(\d{0,15})-(\d{0,15})", requested or "")
    if match is None or match.group(1) == match.group(2) == "":
        return Response(content, 200, headers, "video/mp4")
    first, last = match.groups()
    if first == "":  # the last bytes
        begin, end = max(0, size - int(last)), size - 1
    else:
        begin, end = int(first), min(int(last or size - 1), size - 1)
    if begin > end:
        return Response(b"", 416, {**headers, "content-range": f"bytes */{size}"})
    headers["content-range"] = f"bytes {begin}-{end}/{size}"
    return Response(content[begin : end + 1], 206, headers, "video/mp4")
