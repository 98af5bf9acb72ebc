"""The status of a computation: a line with its progress, and the Run and Stop buttons.

Gradio hides its own progress bar after the first update of a generator, so the page has its own.
"""

import json
from typing import Any

import gradio as gr
from gradio.events import Dependency

from demo.context import NO_QUEUE
from demo.session import GeneratedClip, Update
from demo.widgets.html import escape

_STAGES = {
    "queue": "Waiting for the engine",
    "load": "Loading the model",
    "text": "Encoding the prompt",
    "denoise": "Denoising",
    "decode": "Decoding the frames",
    "encode": "Writing the video",
    "download": "Downloading",
    "check": "Checking the files",
    "convert": "Converting",
}
_BYTES = ("download", "check", "convert")  # stages that count bytes


class StatusLine:
    """Shows the updates of one computation.

    Args:
        prefix: what the line starts with.
    """

    def __init__(self, prefix: str = "") -> None:
        self._prefix = escape(prefix) if prefix else ""
        self._first: Update | None = None  # of the denoising steps

    def show(self, update: Update) -> str:
        """Return the line of an update as HTML."""
        label = self._prefix + _STAGES[update.stage]
        if update.stage == "denoise":
            label += f": step {update.step} of {update.steps}"
        if update.stage in _BYTES:
            label += f": {update.step / 1e9:.2f} of {update.steps / 1e9:.2f} GB"
        clock = f"{update.seconds:.1f} s"
        remaining = self.remaining(update)
        if remaining is not None:
            clock += f" · about {remaining:.1f} s of steps left"
        share = update.step / update.steps if update.steps else 0.0
        return _line(f"<b>{label}</b><span>{clock}</span>", kind="running", share=share)

    def remaining(self, update: Update) -> float | None:
        """Estimate the seconds of the remaining steps; None until two steps are measured."""
        if update.stage != "denoise":
            return None
        if self._first is None:
            self._first = update
        done = update.step - self._first.step
        if done < 1:
            return None
        pace = (update.seconds - self._first.seconds) / done
        return pace * (update.steps - update.step)


def show_idle(text: str = "Ready.") -> str:
    """Return the line of a page that computes nothing."""
    return _line(escape(text), kind="idle")


def show_refusal(message: str) -> str:
    """Return the status line for a request that was refused or failed."""
    return _line(escape(message), kind="refused")


def show_done(clip: GeneratedClip, prefix: str = "Done") -> str:
    """Return the line of a finished computation, with the time of every stage."""
    parts = " · ".join(
        f"{stage} {_duration(clip.seconds[stage])}"
        for stage in ("text", "steps", "decode", "encode")
        if stage in clip.seconds
    )
    calls = f"{clip.unet_calls} network call{'' if clip.unet_calls == 1 else 's'}"
    total = _duration(clip.seconds["total"])
    unread = clip.recipe.get("unread")
    note = f"<span>The model did not read these words: {escape(unread)}</span>" if unread else ""
    return _line(
        f"<b>{escape(prefix)} in {total}</b><span>{parts} · total {total} · {calls}</span>{note}",
        kind="done",
        share=1.0,
    )


def idle_buttons(run: gr.Button, stop: gr.Button) -> dict[Any, Any]:
    """Return the state of the two buttons while nothing is computed."""
    return {run: gr.Button(interactive=True), stop: gr.Button(interactive=False)}


def busy_buttons(run: gr.Button, stop: gr.Button) -> dict[Any, Any]:
    """Return the state of the two buttons during a computation."""
    return {run: gr.Button(interactive=False), stop: gr.Button(interactive=True)}


def connect_refusal(computing: Dependency, status: gr.HTML) -> None:
    """Show that a request was refused before its function ran: by a limit, the queue or a proxy.

    Gradio shows the reason in a message that soon disappears. A function that runs must not raise:
    it shows its own refusal and calls `demo.context.warn`.
    """
    computing.failure(None, status, status, js=_SHOW_REFUSAL, **NO_QUEUE)


def connect_stop(
    computing: list[Dependency], run: gr.Button, stop: gr.Button, status: gr.HTML
) -> None:
    """Let the Stop button end the computation, then show that it has ended."""
    stopping = connect_end(computing, stop)
    stopping.then(
        lambda: {status: show_idle("Stopped."), **idle_buttons(run, stop)},
        None,
        [status, run, stop],
        **NO_QUEUE,
    )


def connect_end(computing: list[Dependency], button: gr.Button) -> Dependency:
    """Let a button end the computation.

    Returns:
        The event of the end. What follows it is not overwritten by the computation's last update.
    """
    button.click(None, js="() => { window.stoppedAt = Date.now(); }", **NO_QUEUE)
    return button.click(None, cancels=[*computing], **NO_QUEUE)


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _line(content: str, *, kind: str, share: float = 0.0) -> str:
    return (
        f'<div class="status-line {kind}" role="status" aria-live="polite">'
        f'<div class="status-text">{content}</div>'
        f'<div class="status-bar"><i style="width:{100 * share:.0f}%"></i></div></div>'
    )


# The argument and the result are the HTML of the status line. For Gradio, a computation that was
# stopped has failed.
_SHOW_REFUSAL = ("(shown) => Date.now() - (window.stoppedAt ?? 0) < 5000 ? shown : {}").format(
    json.dumps(
        show_refusal("The server did not accept the request. Wait a moment, then try again.")
    )
)
