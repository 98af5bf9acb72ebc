"""Calls of the page's functions, checked before Gradio sees them.

Whatever the page hides or disables, anybody can call. So a call has to name a function that the
page has, with as many values as it takes at most; what the values mean is the function's business.
"""

from typing import Any

import gradio as gr

KEYS = {
    "session_hash",
    "event_id",
    "data",
    "event_data",
    "fn_index",
    "trigger_id",
    "simple_format",
    "batched",
}
MAX_DEPTH = 12


class CallError(ValueError):
    """A call that no page of ours makes."""


class CallChecker:
    """Knows the functions of a page; build it once the page is laid out."""

    def __init__(self, page: gr.Blocks) -> None:
        self._inputs = {index: len(fn.inputs) for index, fn in page.fns.items()}
        self._queued = {index: fn.queue is not False for index, fn in page.fns.items()}

    def check(self, path: str, body: Any) -> str | None:
        """Return the session that a call is of.

        Args:
            path: where it was sent: /gradio_api/queue/join, run/..., cancel or reset.

        Raises:
            CallError: no page of ours makes it.
        """
        if not isinstance(body, dict):
            raise CallError("Expected a JSON object, got something else.")
        _check_text(body)
        if path.endswith("/reset"):
            if not isinstance(body.get("event_id"), str):
                raise CallError("Expected the text event_id, got none.")
            return None
        session = body.get("session_hash")
        if session is not None and not isinstance(session, str):
            raise CallError("Expected session_hash to be text, got something else.")
        if path.endswith(("/cancel", "/queue/join")) and session is None:
            raise CallError("Expected a session_hash, got none.")
        index = self._function(body)
        if path.endswith("/cancel"):
            if not isinstance(body.get("event_id"), str):
                raise CallError("Expected the text event_id, got none.")
            return session
        self._check_values(body, index)
        if "/run/" in path and self._queued[index]:
            raise CallError("Expected this function to be called through the queue.")
        return session

    def _function(self, body: dict[str, Any]) -> int:
        index = body.get("fn_index")
        if type(index) is not int or index not in self._inputs:
            raise CallError("Expected fn_index to be the number of a function of this page.")
        return index

    def _check_values(self, body: dict[str, Any], index: int) -> None:
        if unknown := set(body) - KEYS:
            raise CallError(f"Expected keys from {sorted(KEYS)}, got {sorted(unknown)[0][:40]!r}.")
        data = body.get("data")
        if not isinstance(data, list) or len(data) > self._inputs[index]:
            raise CallError(f"Expected data to be a list of {self._inputs[index]} values.")
        if body.get("batched") or body.get("simple_format"):
            raise CallError("Expected a single call, got a batch.")
        if type(body.get("trigger_id", 0)) not in (int, type(None)):
            raise CallError("Expected trigger_id to be a number, got something else.")
        if type(body.get("event_id", "")) not in (str, type(None)):
            raise CallError("Expected event_id to be text, got something else.")


def _check_text(value: Any, depth: int = 0) -> None:
    """Refuse text that is no Unicode, and nesting that no page makes."""
    if depth > MAX_DEPTH:
        raise CallError("Expected values without deep nesting, got deeper ones.")
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise CallError("Expected text in Unicode, got half of a character.") from error
    elif isinstance(value, dict):
        for key, inner in value.items():
            _check_text(key, depth + 1)
            _check_text(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _check_text(inner, depth + 1)
