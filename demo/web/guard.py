"""The guard: first before every route. What the page does not need does not exist here.

Gradio serves some fifty routes beside those that its pages use, takes bodies of any size, and lets
a client choose whose session it is. The guard knows the routes, reads short bodies alone, checks
calls (`demo.web.calls`), keeps each session to one address, and slows down who asks too often.
"""

import asyncio
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from demo.web.calls import CallChecker, CallError
from demo.web.limits import Limits, Sessions, TooMany

MAX_BODY = 64 * 1024  # bytes
BODY_SECONDS = 15  # for a body to arrive
METHODS = {"GET", "HEAD", "POST"}
OURS = re.compile(r"/(study|results|admin)(/[\w.~=+-]*)*")
OPEN = re.compile(
    r"/|/healthz|/config/?|/theme\.css|/favicon\.ico|/manifest\.json|/robots\.txt"
    r"|/(assets|static|svelte)/[\w./@~+-]{1,150}"
    r"|/gradio_api/(info|heartbeat/[A-Za-z0-9-]+|queue/data|startup-events|app_id)/?"
)
CALLS = re.compile(r"/gradio_api/(queue/join|run/\w{1,60}|cancel|reset)/?")
FILE = "/gradio_api/file="
SESSION = re.compile(r"[A-Za-z0-9-]{1,64}")
# Gradio's file route repeats these from the request in its response.
REPEATED = ("cookie", "authorization", "host", "user-agent", "range", "accept", "referer")
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
    "cross-origin-opener-policy": "same-origin",
}


@dataclass(frozen=True)
class Refusal(Exception):
    """A request that goes no further."""

    status: int
    message: str
    retry_after: int = 0  # seconds


class Guard:
    """ASGI middleware; see the head of this file."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        calls: CallChecker,
        files: Sequence[Path],
        limits: Limits,
        framed_by: str = "'self'",
    ) -> None:
        """
        Args:
            files: folders whose videos Gradio may serve.
            framed_by: sites that may show the page in a frame, as Content-Security-Policy has it.
        """
        self.app = app
        self._calls = calls
        self._files = [str(folder.resolve()) + "/" for folder in files]
        self._limits = limits
        self._sessions = Sessions()
        self._policy = f"frame-ancestors {framed_by}; object-src 'none'; base-uri 'self'"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        send = self._with_headers(send, scope["path"])
        try:
            client = str((scope.get("client") or ("?", 0))[0])
            self._check_route(scope)
            self._limits.check(client, scope)
            body = await _read_body(receive) if scope["method"] == "POST" else b""
            session = self._find_session(scope, body)
            if session is not None:
                self._sessions.bind(session, client)
        except Refusal as refusal:
            await _refuse(refusal)(scope, receive, send)
            return
        except (CallError, TooMany) as error:
            status = 429 if isinstance(error, TooMany) else 400
            await _refuse(Refusal(status, str(error), 2 * (status == 429)))(scope, receive, send)
            return
        await self._pass_on(scope, _replay(body, receive), send, client, session)

    async def _pass_on(
        self, scope: Scope, receive: Receive, send: Send, client: str, session: str | None
    ) -> None:
        stream = scope["path"].startswith(("/gradio_api/queue/data", "/gradio_api/heartbeat"))
        if not stream:
            await self.app(scope, receive, send)
            return
        try:
            with self._limits.streaming(client), self._sessions.kept(session):
                await self.app(scope, receive, send)
        except TooMany as error:
            await _refuse(Refusal(429, str(error), 5))(scope, receive, send)

    def _check_route(self, scope: Scope) -> None:
        path, method = scope["path"], scope["method"]
        if method not in METHODS:
            raise Refusal(405, f"Expected GET or POST, got {method[:20]!r}.")
        if OURS.fullmatch(path):
            return
        if method == "POST":
            if not CALLS.fullmatch(path):
                raise Refusal(404, "Expected an address of this page, got another one.")
            return
        if not (OPEN.fullmatch(path) and ".." not in path) and not self._is_video(path):
            raise Refusal(404, "Expected an address of this page, got another one.")

    def _is_video(self, path: str) -> bool:
        name = path.removeprefix(FILE)
        if name == path or not name.endswith(".mp4") or ".." in name or "\0" in name:
            return False
        return any(name.startswith(folder) for folder in self._files)

    def _find_session(self, scope: Scope, body: bytes) -> str | None:
        """Return the session that the request speaks of, having checked the call, if it is one."""
        path = scope["path"].rstrip("/")
        if CALLS.fullmatch(path):
            _check_kind(scope)
            session = self._calls.check(path, _read_json(body))
        elif path == "/gradio_api/queue/data":
            query = parse_qs(scope["query_string"].decode("latin-1"))
            session = (query.get("session_hash") or [""])[0]
            if session not in self._sessions:
                raise Refusal(404, "Expected a session of this page, got another one. Reload it.")
        elif path.startswith("/gradio_api/heartbeat/"):
            session = path.rpartition("/")[2]
        else:
            return None
        if session is not None and not SESSION.fullmatch(session):
            raise Refusal(400, "Expected a session of letters, digits and dashes, got another one.")
        return session

    def _with_headers(self, send: Send, path: str) -> Send:
        gradio = not OURS.fullmatch(path)

        async def add(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("content-security-policy", self._policy)
                if gradio:
                    for name in REPEATED:
                        del headers[name]
            await send(message)

        return add


def _check_kind(scope: Scope) -> None:
    """Refuse what a form of another site could send without asking."""
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
    if headers.get(b"sec-fetch-site") == "cross-site":
        raise Refusal(403, "Expected a call of our own page, got another site's. Open our page.")
    kind = headers.get(b"content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(415, "Expected application/json, got another type. Set content-type.")


def _read_json(body: bytes) -> Any:
    try:
        text = body.decode("utf-8")
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "Expected JSON in UTF-8, got something else.") from error


async def _read_body(receive: Receive) -> bytes:
    """Read a whole body, before anything else sees the request."""
    body = bytearray()
    deadline = time.monotonic() + BODY_SECONDS
    while True:
        try:
            message = await asyncio.wait_for(receive(), max(deadline - time.monotonic(), 0.001))
        except TimeoutError as error:
            raise Refusal(408, f"Expected the body within {BODY_SECONDS} s, got less.") from error
        if message["type"] == "http.disconnect":
            raise Refusal(400, "Expected the whole body, got a part.")
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            raise Refusal(413, f"Expected at most {MAX_BODY} bytes, got more. Send less.")
        if not message.get("more_body", False):
            return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Hand the body on in one piece, then whatever comes after it."""
    sent = False

    async def again() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _refuse(refusal: Refusal) -> JSONResponse:
    headers = {"retry-after": str(refusal.retry_after)} if refusal.retry_after else {}
    # Gradio's clients show `detail`, ours `error`.
    content = {"detail": refusal.message, "error": refusal.message}
    return JSONResponse(content, refusal.status, headers)
