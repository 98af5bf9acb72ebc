"""What every tab gets: the models, the engine that runs them, and the study."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from demo.compute.engine import Engine
from demo.compute.process import ModelProcess
from demo.dropped_clips import DroppedClips
from demo.models import ModelInfo
from demo.session import CompareRow, Download
from human_eval.server.study_mount import StudyMount

# Options of every event that does not compute. Such events skip the queue of computations.
NO_QUEUE: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
# Options of every event that computes: they share one queue and run one at a time.
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_id": "engine", "concurrency_limit": 1}


@dataclass(frozen=True, kw_only=True)
class PageContext:
    """Everything that the page needs; `app.py` creates it."""

    models: Mapping[str, ModelInfo]
    default_model: str
    rows: Sequence[CompareRow]  # of the Compare tab
    engine: Engine
    study: StudyMount
    dropped: DroppedClips
    availability: Callable[[str], str] = lambda name: "ready"  # or "needs a 5.6 GB download"
    download: Download | None = None  # None if the operator does not allow downloads
    process: ModelProcess | None = None  # where the engine computes; None if it is this one
    contact: str | None = None  # mailbox or address where visitors report videos


def error_message(error: Exception, title: str) -> gr.Error:
    """Return the error as a message on the page and for API clients. Nothing is logged."""
    return gr.Error(str(error), title=title, duration=12, print_exception=False)


def warn(error: Exception, title: str) -> None:
    """Show the error as a message on the page, from a function that has shown it in its outputs.

    A `gr.Error` would also run the events of a failure, and those cannot tell whether the outputs
    are on the page yet.
    """
    gr.Warning(str(error), title=title, duration=12)
