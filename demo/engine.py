"""The engine room: models load behind the open page, and one computation runs at a time."""

import logging
import threading
import traceback
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from time import perf_counter

from demo.session import Generate, Request, Update

logger = logging.getLogger(__name__)


class EngineError(RuntimeError):
    """A model could not be loaded or a computation failed; the text is fit for visitors."""


class Engine:
    """Runs requests on models that it loads in the background, once each, after `start`.

    Other models are loaded when somebody asks for them, and only the last of these is kept: they
    may be too large to stay side by side.

    Args:
        load: makes a model ready and returns what generates with it; slow, called in a thread.
            What it raises as `EngineError` or `MemoryError` is told to visitors word for word.
        names: models to load at the start, in this order, and to keep.
    """

    def __init__(self, load: Callable[[str], Generate], names: Iterable[str]) -> None:
        self._load = load
        self._loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="load-model")
        self._models: dict[str, Future[Generate]] = {name: Future() for name in names}
        self._guests: dict[str, Future[Generate]] = {}  # one at most
        self._lock = threading.Lock()

    def start(self) -> None:
        """Begin to load, once the page is open: importing torch would hold it up for seconds."""
        for name, promised in self._models.items():
            loading = self._loader.submit(self._load_or_log, name)
            loading.add_done_callback(partial(_keep, promised))

    def holds(self, name: str) -> bool:
        """Return whether the model is in memory."""
        model = self._models.get(name) or self._guests.get(name)
        return model is not None and model.done() and not model.exception()

    def readiness(self, name: str) -> str:
        """Return "loading", "ready" or "failed", of a model that is loaded at the start."""
        model = self._models[name]
        if not model.done():
            return "loading"
        return "failed" if model.exception() else "ready"

    def generate(self, request: Request, path: Path) -> Generator[Update, None, None]:
        """Yield where the computation stands; closing this iterator ends it within a step.

        Raises:
            EngineError: the model did not load, or the computation failed.
        """
        began = perf_counter()
        model = self._models.get(request.model) or self._invite(request.model)
        while not model.done():
            yield Update(stage="load", seconds=perf_counter() - began)
            try:
                model.exception(timeout=0.3)
            except TimeoutError:
                continue
        if failure := model.exception():
            if isinstance(failure, EngineError | MemoryError):
                raise EngineError(str(failure)) from failure
            raise EngineError(
                f"The model {request.model} did not load ({type(failure).__name__}). "
                "The server's log says why."
            )
        try:
            yield from model.result()(request, path)
        except MemoryError as failure:  # of the library, which says what to do
            logger.error("A computation on %s ran out of memory.", request.model)
            raise EngineError(str(failure)) from failure
        except (RuntimeError, ValueError, OSError) as failure:  # torch raises RuntimeError
            # No traceback and no message: either could hold the prompt.
            place = traceback.extract_tb(failure.__traceback__)[-1]
            logger.error(
                "A computation on %s failed: %s at %s:%s",
                *(request.model, type(failure).__name__, place.filename, place.lineno),
            )
            raise EngineError(
                f"The computation failed ({type(failure).__name__}). "
                "Try again, with fewer steps if it repeats."
            ) from failure

    def _invite(self, name: str) -> Future[Generate]:
        """Return a model that is not among those of the start; another such one has to leave."""
        with self._lock:
            guest = self._guests.get(name)
            if guest is None or (guest.done() and guest.exception()):
                self._guests.clear()
                self._guests[name] = guest = self._loader.submit(self._load_or_log, name)
            return guest

    def _load_or_log(self, name: str) -> Generate:
        """Load a model; the log says why it did not, whether or not a visitor asks for it."""
        try:
            return self._load(name)
        except Exception as failure:
            logger.error("Model %s did not load: %s: %s", name, type(failure).__name__, failure)
            raise


def _keep(promised: Future[Generate], loaded: Future[Generate]) -> None:
    """Fulfil a promised model with what was loaded."""
    if failure := loaded.exception():
        promised.set_exception(failure)
    else:
        promised.set_result(loaded.result())
