"""Fixtures of the browser tests: servers in their own processes, and pages that log no error.

A browser test that cannot run is skipped on a developer's machine, and a failure where CI=true.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from tests.support.studies import free_port

ROOT = Path(__file__).parents[2]
BROWSER_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-component-update",
    "--autoplay-policy=no-user-gesture-required",
]


@dataclass(frozen=True)
class Server:
    """A page being served."""

    url: str
    data_dir: Path

    def engine_log(self) -> list[str]:
        """Return the events of the fake engine, one per line, without their times."""
        log = self.data_dir / "engine.log"
        return [line.split(" ", 1)[1] for line in log.read_text().splitlines()]

    def steps_until_stopped(self) -> int:
        """Wait until the fake engine has stopped, and count its steps since this call."""
        seen = len(self.engine_log())
        deadline = time.monotonic() + 20
        while (log := self.engine_log())[-1] != "stopped":
            assert time.monotonic() < deadline and log[-1] != "end", log[-3:]
            time.sleep(0.02)
        return sum(event.startswith("step") for event in log[seen:])


Serve = Callable[..., Server]


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Start servers that end with the session: `serve("app.py", "--model", "...", NAME="x")`."""
    processes = []

    def start(*command: str, **variables: str) -> Server:
        port, data_dir = free_port(), tmp_path_factory.mktemp("data")
        settings = {
            "HF_HUB_OFFLINE": "1",
            "GRADIO_ANALYTICS_ENABLED": "False",
            "GRADIO_TEMP_DIR": str(data_dir / "gradio"),
            "PYTHONPATH": str(ROOT),
        }
        flags = ["--port", str(port), "--data-dir", str(data_dir)]
        with (data_dir / "server.log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, *command, *flags],
                cwd=ROOT,
                env={**os.environ, **settings, **variables},
                stdout=log,
                stderr=log,
            )
        processes.append(process)
        url = f"http://127.0.0.1:{port}"
        _wait_until_open(url, process, data_dir / "server.log")
        return Server(url, data_dir)

    yield start
    for process in processes:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture(scope="session")
def fake_server(serve: Serve) -> Server:
    """The page with the fake engine, which takes 0.2 s per step."""
    return serve("-m", "tests.support.servers.fake_engine_server")


@pytest.fixture(scope="session")
def shapes_server(serve: Serve) -> Server:
    """The page as a user starts it, with the models of this repository."""
    return serve("app.py")


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """The program of an installed browser."""
    try:
        from tests.support.chromium import find_chromium

        path = find_chromium()
    except ImportError as missing:
        _cannot_run(f"{missing.name} is not installed: make test installs it.")
    if path is None:
        _cannot_run("No Chromium is installed: python tests/support/chromium.py installs one.")
    return path


@pytest.fixture(scope="session")
def chromium(chromium_path: str) -> Iterator[object]:
    """A running browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path, args=BROWSER_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium) -> Iterator[Callable]:
    """Open pages. The test fails if one of them writes an error to its console."""
    contexts, errors = [], []

    def open_one(
        server: Server,
        *,
        width: int = 1280,
        theme: str = "light",
        errors_expected: bool = False,
        loading: bool = False,
    ):
        context = chromium.new_context(viewport={"width": width, "height": 900})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        if not errors_expected:
            page.on("console", lambda line: line.type == "error" and errors.append(line.text))
            page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{server.url}/?__theme={theme}")
        page.get_by_role("button", name="Generate", exact=True).wait_for()
        # A new browser shows the guidelines over the page.
        page.locator("#guidelines-accept").click()
        # Another test's processes may hold the cores while the model loads.
        page.locator(f"#readiness .{'loading' if loading else 'ready'}").wait_for(timeout=120_000)
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert errors == []


def _cannot_run(why: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    pytest.skip(why)


def _wait_until_open(url: str, process: subprocess.Popen, log: Path) -> None:
    for _ in range(3600):
        try:
            with urlopen(url):
                return
        except (URLError, ConnectionError):
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
    raise TimeoutError(log.read_text())
