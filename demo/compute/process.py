"""Runs the models in a child process, which ends when it is idle and so frees its memory.

The imports of torch and diffusers alone take 0.85 GB, which a process cannot give back. The page
calls functions of the process, one connection a call; what they yield comes back over it. Closing
a connection stops its call at the next value.
"""

import gc
import pickle
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import partial
from multiprocessing import current_process, get_context
from multiprocessing.connection import Client, Connection, Listener
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from demo.compute.engine import Generate, explained_failure, explained_load
from demo.models import Request, availability, download_model
from demo.session import EngineError, ServerStopping, Update, Updates

Load = Callable[[str], Generate]
JOIN_SECONDS = 5  # for the process to end by itself


class ModelProcess:
    """Starts the process when a model is needed, and ends it when it is idle.

    Args:
        load: loads a model by name. The process imports it, so it is a function of a module.
        kept: the models that stay in memory. Of the others, only the most recent one stays.
        idle_seconds: after which the process may end; None keeps it.
    """

    def __init__(self, load: Load, kept: Collection[str], idle_seconds: float | None) -> None:
        self._models = (load, frozenset(kept))
        self._idle_seconds = idle_seconds
        self._lock = threading.Lock()
        self._process: BaseProcess | None = None
        self._life: Connection | None = None  # the process ends when this is closed
        self._address: Any = None
        self._is_over = False  # with the page's program
        self._calls = 0  # that run now
        self._used = time.monotonic()

    @property
    def is_running(self) -> bool:
        """Whether there is such a process now."""
        return self._process is not None and self._process.is_alive()

    def load(self, name: str) -> Generate:
        """Load a model, and return the function that generates with it.

        That function starts the process and loads the model again if the process has ended.
        """
        deque(self._call(_load, *self._models, name), maxlen=0)
        return partial(self._call, _generate, *self._models, name)

    def wake(self, name: str) -> None:
        """A visitor has come: load a model in the background if the process has ended."""
        if self._process is not None and not self.is_running:
            threading.Thread(target=self._load_again, args=[name], daemon=True).start()

    def end_if_idle(self, *, visited: bool = False) -> None:
        """End the process if nothing has used it for long enough.

        Args:
            visited: whether the page is open in a browser, which counts as use.
        """
        with self._lock:
            now = time.monotonic()
            if visited or self._calls:
                self._used = now
            elif self._idle_seconds is not None and now - self._used >= self._idle_seconds:
                self._end()

    def end(self) -> None:
        """End the process for good, because the page's program ends."""
        with self._lock:
            self._is_over = True
            self._end()

    def download(self, name: str) -> Updates:
        """Download a model in the process; see `demo.models.download_model`."""
        return self._call(download_model, name)

    def availability(self, name: str, placement: Mapping[str, Any]) -> str:
        """Return `demo.models.availability`; memory is measured while there is a process."""
        state = availability(name)
        if state != "ready" or not self.is_running:
            return state
        [measured] = self._call(_availability, name, placement)
        return measured

    def _load_again(self, name: str) -> None:
        with suppress(Exception):  # a computation meets the failure again, and explains it
            self.load(name)

    def _call(self, function: Callable[..., Iterator[Any]], *arguments: Any) -> Generator[Any]:
        """Run a function of this module in the process: yield its results, raise its exceptions."""
        try:
            with self._connected() as connection:
                connection.send((function, arguments))
                while (message := connection.recv())[0] == "yielded":
                    yield message[1]
        except (EOFError, ConnectionError, FileNotFoundError) as failure:
            if self._is_over:
                raise ServerStopping from failure
            if self._process is not None:  # its connections close before it counts as ended
                self._process.join(1)
            raise EngineError(
                "The process that makes the videos has ended, perhaps for lack of memory. "
                "Try again."
            ) from failure
        if message[0] == "raised":
            raise message[1]

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        """Connect to the process. Start it if there is none."""
        with self._lock:
            if self._is_over:
                raise ServerStopping
            if not self.is_running:
                self._start()
            self._calls += 1
        try:
            with Client(self._address, authkey=current_process().authkey) as connection:
                yield connection
        finally:
            with self._lock:
                self._calls -= 1
                self._used = time.monotonic()

    def _start(self) -> None:
        context = get_context("spawn")  # a fork would copy the locks of the page's threads
        self._life, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=[theirs], daemon=True)
        self._process.start()
        theirs.close()
        self._address = self._life.recv()

    def _end(self) -> None:
        if self._process is None or self._life is None:
            return
        self._life.close()
        self._process.join(JOIN_SECONDS)
        self._process.kill()
        self._process.join()


# What follows runs in the process.

_loaded: dict[str, Generate] = {}
_loading, _computing = threading.Lock(), threading.Lock()


def _serve(life: Connection) -> None:
    """Answer calls until the page's process closes its end of the pipe, or ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both; the page ends this one
    with Listener(authkey=current_process().authkey) as listener:
        life.send(listener.address)
        threading.Thread(target=_accept, args=[listener], daemon=True).start()
        with suppress(EOFError, OSError):
            life.recv()


def _accept(listener: Listener) -> None:
    while True:
        with suppress(EOFError, OSError):  # a caller that has gone
            threading.Thread(target=_answer, args=[listener.accept()], daemon=True).start()


def _answer(connection: Connection) -> None:
    with connection, suppress(EOFError, ConnectionError):  # the caller has closed it
        try:
            function, arguments = connection.recv()  # imports the module of the function
            with closing(function(*arguments)) as values:
                for value in values:
                    connection.send(("yielded", value))
        except (EOFError, ConnectionError):
            raise
        except BaseException as failure:
            _send_failure(connection, failure)
        else:
            connection.send(("ended", None))


def _send_failure(connection: Connection, failure: BaseException) -> None:
    try:
        pickle.loads(pickle.dumps(failure))
    except Exception:  # some exceptions cannot be sent
        failure = RuntimeError(f"{type(failure).__name__}: {failure}")
    connection.send(("raised", failure))


def _find(load: Load, kept: Collection[str], name: str) -> Generate:
    """Return a model. Load it first if necessary."""
    with _loading:
        if name not in _loaded:
            if name not in kept:
                for other in _loaded.keys() - kept:  # before the next one takes its memory
                    del _loaded[other]
                gc.collect()
            _loaded[name] = load(name)
        return _loaded[name]


def _load(load: Load, kept: Collection[str], name: str) -> Iterator[None]:
    _find(load, kept, name)
    yield


def _generate(
    load: Load, kept: Collection[str], name: str, request: Request, path: Path
) -> Updates:
    if name not in _loaded:
        yield Update(stage="load")
    with explained_load(name):
        model = _find(load, kept, name)
    with _computing, explained_failure(name), closing(model(request, path)) as updates:
        yield from updates


def _availability(name: str, placement: Mapping[str, Any]) -> Iterator[str]:
    yield availability(name, placement)
