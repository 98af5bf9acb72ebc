"""Every private part of Gradio that the page uses, as read from version 6.31.0.

A newer Gradio may change any of it: its routes, the body of a call, its queue, its input check.
Compare these with the new version's `routes.py`, `data_classes.py`, `queueing.py` and `blocks.py`.
"""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import gradio as gr
from fastapi import HTTPException
from gradio import route_utils
from gradio.blocks import BlockFunction
from gradio.queueing import Event
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.types import Scope

VERSION = "6.31.0"

# routes.py: what a browser with the page open requests, and gradio_client.
PAGE_ROUTES = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/manifest\.json|/robots\.txt"
    r"|/(assets|static|svelte)/[\w./@~+-]{1,150}"
    r"|/gradio_api/(info|heartbeat/[A-Za-z0-9-]{1,64}|queue/data|startup-events|app_id)/?"
)
CALL_ROUTES = re.compile(r"/gradio_api/(queue/join|run/\w{1,60}|cancel|reset)/?")
JOIN, QUEUE_DATA, HEARTBEAT = (
    f"/gradio_api/{name}" for name in ("queue/join", "queue/data", "heartbeat/")
)
FILE_ROUTE = "/gradio_api/file="
# The file route copies these headers of the request into its response.
COPIED_HEADERS = ("cookie", "authorization", "host", "user-agent", "range", "accept", "referer")
# queueing.py: beyond this many sessions, it drops those that still wait.
REMEMBERED_SESSIONS = 2_000
# queueing.py: how often an idle queue looks for work, in seconds. Gradio's own values on Windows;
# elsewhere it looks 1,000 times a second, which takes 6 % of a core while nobody visits.
QUEUE_INTERVAL, PROGRESS_INTERVAL = 0.05, 0.1

LISTEN_SECONDS = 20  # after a call, until its session must listen for the answer

MAX_DEPTH = 12  # of the values in a call

_Session = Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,64}$")]


class CallError(ValueError):
    """A request that the page's own scripts never send."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Reset(_Body):
    event_id: str


class _Cancel(_Body):
    event_id: str
    session_hash: _Session
    fn_index: int


class _Run(_Body):
    """`PredictBody` of data_classes.py, without tokens and batches."""

    fn_index: int
    data: list[Any]
    session_hash: _Session | None = None
    event_id: str | None = None
    event_data: Any = None
    trigger_id: int | None = None
    simple_format: Literal[False] = False
    batched: Literal[False] | None = False


class _Join(_Run):
    session_hash: _Session


class CallChecker:
    """Checks calls of a page's functions. Create it when the page is laid out.

    The browser hides and disables controls, but a client can call any function with any values.
    A call must name an existing function and may not pass more values than it takes. The function
    checks the values themselves.
    """

    def __init__(self, page: gr.Blocks) -> None:
        self._functions = page.fns

    def check(self, path: str, body: bytes) -> str | None:
        """Return the session of a call.

        Args:
            path: matches `CALL_ROUTES`.

        Raises:
            CallError: the page's own scripts never send this.
        """
        try:
            call = _body_type(path).model_validate_json(body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(map(str, first["loc"])) or "the body"
            raise CallError(f"This call is not valid: {field}: {first['msg']}.") from None
        if isinstance(call, _Reset):
            return None
        assert isinstance(call, _Cancel | _Run)
        if call.fn_index not in self._functions:
            raise CallError("This page has no such function. Reload the page.")
        if isinstance(call, _Run):
            function = self._functions[call.fn_index]
            if len(call.data) > len(function.inputs):
                raise CallError(f"This function takes {len(function.inputs)} values at most.")
            if not isinstance(call, _Join) and function.queue is not False:
                raise CallError("Call this function through the queue.")
            _check_depth([call.data, call.event_data])
        return call.session_hash


def _body_type(path: str) -> type[_Body]:
    if path.endswith("/reset"):
        return _Reset
    if path.endswith("/cancel"):
        return _Cancel
    return _Join if path.startswith(JOIN) else _Run


def _check_depth(value: Any, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise CallError("The values of this call are nested too deeply.")
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            _check_depth(inner, depth + 1)


class Page(gr.Blocks):
    """A `gr.Blocks` whose log contains no prompt.

    Gradio answers a call with too few values with a message that repeats the values, and logs it.
    """

    def validate_inputs(self, block_fn: BlockFunction, inputs: list[Any]) -> None:
        if (wanted := len(block_fn.inputs)) > len(inputs):
            raise gr.Error(
                f"This function takes {wanted} values, and the call has {len(inputs)}.",
                title="Not started",
                print_exception=False,
            )

    def index_of(self, api_name: str) -> int:
        """Return the number by which calls name an endpoint of the API."""
        return next(i for i, function in self.fns.items() if function.api_name == api_name)

    @property
    def queue_has_stopped(self) -> bool:
        """Whether the task that serves the queue has ended."""
        return self._queue.stopped

    @property
    def cached_files(self) -> Path:
        """The folder of Gradio's copies of served files."""
        return Path(self.GRADIO_CACHE)

    def slow_idle_queue(self) -> None:
        """Let an idle queue look for work 20 times a second."""
        self._queue.sleep_when_free = QUEUE_INTERVAL
        self._queue.progress_update_sleep_when_free = PROGRESS_INTERVAL

    def keep_queue_alive(self) -> None:
        """Let the queue survive messages to sessions that it has dropped.

        Such a message raises a KeyError in the task that serves every visitor, which ends it.
        """
        send = self._queue.send_message

        def send_or_drop(event: Event, event_message: Any) -> None:
            try:
                send(event, event_message)
            except KeyError:
                event.alive = False

        self._queue.send_message = send_or_drop  # type: ignore[method-assign]

    def limit_queue(
        self, client_of: Callable[[Scope], str], per_client: int, listens: Callable[[str], bool]
    ) -> None:
        """Limit how many calls of a client may wait, and end calls that no client listens to.

        Gradio computes the calls of a session that never listens, and ends the others when their
        session stops listening.

        Args:
            client_of: returns whom a request counts for.
            listens: returns whether a session listens for answers.
        """
        queue, push = self._queue, self._queue.push
        watches: set[asyncio.Task[None]] = set()

        async def end_unless_heard(session: str, event_id: str) -> None:
            await asyncio.sleep(LISTEN_SECONDS)
            if not listens(session):
                await queue.clean_events(event_id=event_id)
                queue.pending_event_ids_session.get(session, set()).discard(event_id)

        async def push_within_limits(body: Any, request: Any, username: str | None) -> Any:
            lanes = queue.event_queue_per_concurrency_id.values()
            waiting = [event for lane in lanes for event in lane.queue]
            client = client_of(request.scope)
            if sum(client_of(event.request.scope) == client for event in waiting) >= per_client:
                raise HTTPException(
                    429,
                    f"{per_client} computations from your network are waiting already. Try again "
                    "when one of them is done.",
                )
            if queue.max_size is not None and len(waiting) >= queue.max_size:
                raise HTTPException(503, "The page is busy. Try again in a few minutes.")
            success, result, state = await push(body, request, username)
            if success:
                watch = asyncio.create_task(end_unless_heard(body.session_hash, str(result)))
                watches.add(watch)  # the loop itself keeps no task
                watch.add_done_callback(watches.discard)
            return success, result, state

        queue.push = push_within_limits  # type: ignore[method-assign]

    def find_root_in_browser(self) -> None:
        """Let the page take its address from the browser, which always knows it.

        Gradio guesses the address from the request. Behind a proxy that changes the path or the
        host, the page would send its calls elsewhere.
        """
        route_utils.get_root_url = _relative_or_guessed_root


_guess_root = route_utils.get_root_url


def _relative_or_guessed_root(request: Any, route_path: str, root_path: str | None) -> str:
    return "./" if route_path == "/" else _guess_root(request, route_path, root_path)
