"""The studio: everything the tabs need, handed in by `app.py`."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

import gradio as gr
from gradio.events import Dependency

from demo.clip_store import Shelf
from demo.session import Clip, Contender, Fetch, Generate, ModelInfo, Request, Update
from demo.widgets.status import show_idle

Shown = TypeVar("Shown")

ONE_AT_A_TIME = "engine"  # concurrency id of every event that computes
# Options of every event that computes nothing: it must not wait in the line of those that do.
QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


@dataclass(frozen=True, kw_only=True)
class Studio:
    """The models, what runs them, and where their clips go."""

    models: Mapping[str, ModelInfo]
    default_model: str
    contenders: Sequence[Contender]  # rows of the Compare tab
    generate: Generate
    readiness: Callable[[str], str]  # of the default model: "loading", "ready" or "failed"
    shelf: Shelf
    # What a model needs before it can run here, such as "needs 5.6 GB download", or "ready".
    need: Callable[[str], str] = lambda name: "ready"
    fetch: Fetch | None = None  # None where the operator does not allow downloads

    def run(
        self, request: Request, show: Callable[[Update], Shown]
    ) -> Generator[Shown, None, Clip]:
        """Yield what `show` makes of every update; the value of the generator is the clip.

        Closing it, as Gradio does when a visitor stops or leaves, ends the computation.
        """
        with closing(self.generate(request, self.shelf.new_path())) as updates:
            for update in updates:
                if update.clip is not None:
                    return update.clip
                yield show(update)
        raise RuntimeError("Expected a clip in the last update, got none.")


def at_rest(run: gr.Button, stop: gr.Button) -> dict[Any, Any]:
    """Return the two buttons as they are while nothing computes."""
    return {run: gr.Button(interactive=True), stop: gr.Button(interactive=False)}


def connect_stop(
    computing: list[Dependency], run: gr.Button, stop: gr.Button, status: gr.HTML
) -> None:
    """Let the button end the computation, and say so once it has ended."""
    # Saying so in the same event would lose the race against the last update under way.
    stopping = stop.click(None, cancels=[*computing], **QUIET)
    stopping.then(
        lambda: {status: show_idle("Stopped."), **at_rest(run, stop)},
        None,
        [status, run, stop],
        **QUIET,
    )


def toast(error: Exception, title: str) -> gr.Error:
    """Return the error as a message on the page and to API clients; nothing is logged."""
    return gr.Error(str(error), title=title, duration=12, print_exception=False)
