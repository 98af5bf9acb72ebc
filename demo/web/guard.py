"""Middleware in front of every route: it rejects whatever the page does not need.

Gradio has some fifty routes that its pages do not use, accepts bodies of any size, and lets a
client choose the session that it acts for. The guard passes the necessary routes only, limits the
body, checks calls (`gradio_internals`), and limits rates. A session belongs to whoever knows its
name, which the page draws at random; an address may change at any time.
"""

import asyncio
import re
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from demo.dropped_clips import MAX_BYTES
from demo.web.gradio_internals import (
    CALL_ROUTES,
    COPIED_HEADERS,
    FILE_ROUTE,
    HEARTBEAT,
    PAGE_ROUTES,
    QUEUE_DATA,
    CallChecker,
    CallError,
)
from demo.web.limits import DROP, STUDY_API, Limits, Sessions, TooMany, visitor
from human_eval.hosting.proxies import path_below_root

MAX_BODY = 64 * 1024  # bytes
BODY_SECONDS = 15  # for a body to arrive
METHODS = {"GET", "HEAD", "POST"}
DROP_SECONDS = 60  # for a dropped video to arrive
OWN_ROUTES = re.compile(r"/healthz|/rate|/dropped|/(study|results|admin)(/[\w.~=+-]*)*")
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
    "cross-origin-opener-policy": "same-origin",
}
NO_SUCH_ADDRESS = "This address does not exist."


@dataclass(eq=False)  # not frozen: Python sets the traceback of an exception
class Refusal(Exception):
    """A request that is not passed on; the message is for its user."""

    status: int
    message: str
    retry_after: int = 0  # seconds


class Guard:
    """ASGI middleware; see the top of this file."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        calls: CallChecker,
        video_folders: Sequence[Path],
        limits: Limits,
        sessions: Sessions,
        find_rater: Callable[[Scope], int | None] = lambda scope: None,
        frames: Sequence[str] = (),
        further_calls: Collection[str] = (),
    ) -> None:
        """
        Args:
            video_folders: the folders whose mp4 files Gradio may serve.
            find_rater: returns which rater sent a request, by a cookie that it has verified; None
                for anybody else.
            frames: other sites that may show the page in a frame.
            further_calls: further addresses that take JSON calls, which they check themselves.
        """
        self.app = app
        self._calls = calls
        self._folders = [str(folder.resolve()) + "/" for folder in video_folders]
        self._limits = limits
        self._find_rater = find_rater
        self._further_calls = frozenset(further_calls)
        self._sessions = sessions
        ancestors = " ".join(["'self'", *frames])
        self._policy = f"frame-ancestors {ancestors}; object-src 'none'; base-uri 'self'"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        path = path_below_root(scope)
        send = self._with_headers(send, path)
        try:
            client = visitor(scope)
            self._check_route(scope["method"], path)
            rater = self._find_rater(scope) if path.startswith(STUDY_API) else None
            self._limits.check(client, scope, rater)
            if path == DROP:
                await self._receive_video(scope, receive, send)
                return
            body = await _read_body(receive) if scope["method"] == "POST" else b""
            session = self._find_session(scope, path.rstrip("/"), body)
            if session is not None:
                self._sessions.use(session, client)
            if path.startswith((QUEUE_DATA, HEARTBEAT)):
                listening = path.startswith(QUEUE_DATA)
                with (
                    self._limits.streaming(client),
                    self._sessions.connected(session, listening=listening),
                ):
                    await self.app(scope, receive, send)
            else:
                await self.app(scope, _replay(body, receive), send)
        except Refusal as refusal:
            await _refuse(refusal)(scope, receive, send)
        except CallError as error:
            await _refuse(Refusal(400, str(error)))(scope, receive, send)
        except TooMany as error:
            await _refuse(Refusal(429, str(error), retry_after=2))(scope, receive, send)

    async def _receive_video(self, scope: Scope, receive: Receive, send: Send) -> None:
        _check_origin(scope, "video/mp4")
        with self._limits.receiving():
            body = await _read_body(receive, MAX_BYTES, DROP_SECONDS)
            await self.app(scope, _replay(body, receive), send)

    def _check_route(self, method: str, path: str) -> None:
        if method not in METHODS:
            raise Refusal(405, "This method is not supported. Use GET or POST.")
        if OWN_ROUTES.fullmatch(path):
            return
        if path in self._further_calls and method == "POST":
            return
        if method == "POST":
            exists = CALL_ROUTES.fullmatch(path) is not None
        else:
            exists = (PAGE_ROUTES.fullmatch(path) and ".." not in path) or self._is_video(path)
        if not exists:
            raise Refusal(404, NO_SUCH_ADDRESS)

    def _is_video(self, path: str) -> bool:
        name = path.removeprefix(FILE_ROUTE)
        if name == path or not name.endswith(".mp4") or ".." in name or "\0" in name:
            return False
        return any(name.startswith(folder) for folder in self._folders)

    def _find_session(self, scope: Scope, path: str, body: bytes) -> str | None:
        """Return the session of the request, if it has one. Calls are checked."""
        if CALL_ROUTES.fullmatch(path):
            _check_origin(scope)
            return self._calls.check(path, body)
        if path in self._further_calls:
            _check_origin(scope)
            return None
        if path == QUEUE_DATA:
            query = parse_qs(scope["query_string"].decode("latin-1"))
            session = (query.get("session_hash") or [""])[0]
            if session not in self._sessions:
                raise Refusal(404, "This session has ended. Reload the page.")
            return session
        if path.startswith(HEARTBEAT):
            return path.removeprefix(HEARTBEAT)
        return None

    def _with_headers(self, send: Send, path: str) -> Send:
        is_gradio = not OWN_ROUTES.fullmatch(path)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("content-security-policy", self._policy)
                if is_gradio:
                    for name in COPIED_HEADERS:
                        del headers[name]
            await send(message)

        return send_with_headers


def _check_origin(scope: Scope, wanted: str = "application/json") -> None:
    """Refuse the calls that a page of another site can make a browser send."""
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
    if headers.get(b"sec-fetch-site") == "cross-site":
        raise Refusal(403, "Another site made this call. Open the page itself.")
    kind = headers.get(b"content-type", "").partition(";")[0].strip().lower()
    if kind != wanted:
        raise Refusal(415, f"The content type must be {wanted}.")


async def _read_body(
    receive: Receive, limit: int = MAX_BODY, seconds: float | None = None
) -> bytes:
    """Read the whole body before the application sees the request."""
    body = bytearray()
    seconds = BODY_SECONDS if seconds is None else seconds
    deadline = time.monotonic() + seconds
    while True:
        try:
            message = await asyncio.wait_for(receive(), max(deadline - time.monotonic(), 0.001))
        except TimeoutError as error:
            raise Refusal(408, f"The body took longer than {seconds} seconds.") from error
        if message["type"] == "http.disconnect":
            raise Refusal(400, "The connection closed before the whole body arrived.")
        body += message.get("body", b"")
        if len(body) > limit:
            raise Refusal(413, f"The body is too large. The limit is {limit} bytes.")
        if not message.get("more_body", False):
            return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body in one piece, then what follows."""
    sent = False

    async def receive_again() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again


def _refuse(refusal: Refusal) -> JSONResponse:
    headers = {"retry-after": str(refusal.retry_after)} if refusal.retry_after else {}
    # Gradio's clients show `detail`; the study's pages show `error`.
    content = {"detail": refusal.message, "error": refusal.message}
    return JSONResponse(content, refusal.status, headers)
