"""The engine: loads models behind the open page and runs one computation at a time."""

import logging
import threading
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from time import perf_counter
from typing import TypeVar

from demo.clip_store import ClipStore
from demo.models import Request
from demo.prompt_filter import PromptFilter
from demo.session import EngineError, GeneratedClip, ServerStopping, Update, Updates

logger = logging.getLogger(__name__)

Shown = TypeVar("Shown")
Generate = Callable[[Request, Path], Updates]  # a loaded model; the Path is where the mp4 goes


class Engine:
    """Loads models one by one in a background thread, and generates clips with them.

    Other models are loaded on request. Only the last of these stays in memory, because two large
    models may not fit.

    Args:
        load: loads a model by name; slow, called in the background thread. Visitors see the text
            of an `EngineError` or a `MemoryError`; other exceptions go to the log.
        names: the models to load at the start, in this order; they stay in memory.
        clips: where the generated files go.
        refuses: whether the operator refuses a prompt; by default none.
    """

    def __init__(
        self,
        load: Callable[[str], Generate],
        names: Iterable[str],
        clips: ClipStore,
        refuses: PromptFilter | None = None,
    ) -> None:
        self.clips = clips
        self._refuses = refuses or (lambda prompt: False)
        self._load = load
        self._loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="load-model")
        self._preloaded: dict[str, Future[Generate]] = {name: Future() for name in names}
        self._on_request: dict[str, Future[Generate]] = {}  # one at most
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start loading. Call it when the page is open: importing torch takes seconds."""
        for name, future in self._preloaded.items():
            self._loader.submit(self._load_into, future, name)

    def is_loaded(self, name: str) -> bool:
        """Return whether the model is in memory."""
        model = self._preloaded.get(name) or self._on_request.get(name)
        return model is not None and model.done() and not model.exception()

    def readiness(self, name: str) -> str:
        """Return "loading", "ready" or "failed" for a model that is loaded at the start."""
        model = self._preloaded[name]
        if not model.done():
            return "loading"
        return "failed" if model.exception() else "ready"

    def run(
        self, name: str, request: Request, show: Callable[[Update], Shown]
    ) -> Generator[Shown, None, GeneratedClip]:
        """Generate a clip: yield `show(update)` for every update, then return the clip.

        Closing the generator stops the computation within a step. Gradio does so when a visitor
        presses Stop or leaves.

        Raises:
            EngineError: the prompt is refused, the model did not load, or the computation failed.
        """
        if self._refuses(request.prompt):
            raise EngineError(
                "Your prompt contains a word that this page does not make videos of. "
                "Please change the prompt."
            )
        start = perf_counter()
        model = self._preloaded.get(name) or self._load_on_request(name)
        while not model.done():
            yield show(Update(stage="load", seconds=perf_counter() - start))
            try:
                model.exception(timeout=0.3)
            except TimeoutError:
                continue
        if failure := model.exception():
            raise explain_load_failure(name, failure) from failure
        with explained_failure(name):
            path = self.clips.new_path()
        with explained_failure(name), closing(model.result()(request, path)) as updates:
            for update in updates:
                if update.clip is not None:
                    self.clips.describe(update.clip)
                    return update.clip
                yield show(update)
        raise RuntimeError("The last update of a computation has no clip.")

    def _load_on_request(self, name: str) -> Future[Generate]:
        """Return a model that is not preloaded; it replaces the last one of these."""
        with self._lock:
            model = self._on_request.get(name)
            if model is None or (model.done() and model.exception()):
                self._on_request.clear()
                self._on_request[name] = model = Future()
                self._loader.submit(self._load_into, model, name)
            return model

    def _load_into(self, future: Future[Generate], name: str) -> None:
        """Load a model. A failure is logged even if no visitor asks for the model."""
        try:
            future.set_result(self._load(name))
        except BaseException as failure:  # as executors do: a future must not stay pending
            log_load_failure(name, failure)
            future.set_exception(failure)


@contextmanager
def explained_load(name: str) -> Iterator[None]:
    """Log a failure to load, and turn it into a message for visitors."""
    try:
        yield
    except Exception as failure:
        log_load_failure(name, failure)
        raise explain_load_failure(name, failure) from failure


def log_load_failure(name: str, failure: BaseException) -> None:
    """Log why a model did not load, unless the server was shutting down."""
    if not isinstance(failure, ServerStopping):
        logger.error("Model %s did not load: %s: %s", name, type(failure).__name__, failure)


def explain_load_failure(name: str, failure: BaseException) -> EngineError:
    """Return the message for visitors about a model that did not load."""
    if isinstance(failure, EngineError | MemoryError):  # written for visitors
        return EngineError(str(failure))
    return EngineError(
        f"The model {name} did not load ({type(failure).__name__}). "
        "The server's log has the reason."
    )


@contextmanager
def explained_failure(name: str) -> Iterator[None]:
    """Turn the failure of a computation into an `EngineError` without paths or prompt."""
    try:
        yield
    except EngineError:  # written for visitors
        raise
    except MemoryError as failure:  # raised by the library, with a remedy in its text
        logger.error("A computation on %s ran out of memory.", name)
        raise EngineError(str(failure)) from failure
    except OSError as failure:
        reason = failure.strerror or type(failure).__name__
        logger.error("A clip could not be stored: %s", reason)
        raise EngineError(
            f"The video could not be stored on this machine ({reason}). "
            "Its operator has to make room for it or allow writing."
        ) from failure
    except (RuntimeError, ValueError) as failure:  # torch raises RuntimeError
        kind = type(failure).__name__
        # Log neither traceback nor message: either could contain the prompt.
        place = traceback.extract_tb(failure.__traceback__)[-1]
        logger.error(
            "A computation on %s failed: %s at %s:%s", name, kind, place.filename, place.lineno
        )
        raise EngineError(
            f"The computation failed ({kind}). Try again, with fewer steps if it repeats."
        ) from failure
