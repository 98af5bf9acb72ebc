"""The models in a process of their own."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from demo.compute.process import ModelProcess
from demo.models import Request
from demo.session import EngineError, ServerStopping
from tests.support import fake_models

ROOT = Path(__file__).parents[2]
PAGE = """
import os, signal, sys
from pathlib import Path
from demo.compute.process import ModelProcess
from demo.models import Request
from tests.support import fake_models

if __name__ == "__main__":
    request = Request(prompt="a red star", seed=0, steps=1, guidance=1.0)
    list(ModelProcess(fake_models.load, ["a"], None).load("a")(request, Path(sys.argv[1])))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def a_request(steps: int = 3) -> Request:
    return Request(prompt="a red star", seed=0, steps=steps, guidance=1.0)


@pytest.fixture
def process():
    process = ModelProcess(fake_models.load, ["a", "b"], idle_seconds=0.0)
    yield process
    process.end()


def pid_in(path) -> int:
    return int(path.read_text().split()[0])


def test_updates_and_clip_come_from_another_process(process, tmp_path):
    generate = process.load("a")

    *updates, last = generate(a_request(), tmp_path / "clip")

    assert [update.step for update in updates] == [0, 1, 2] and last.clip.path == tmp_path / "clip"
    assert psutil.Process(pid_in(tmp_path / "clip")).ppid() == psutil.Process().pid


def test_closing_the_updates_stops_the_computation_within_a_step(process, tmp_path):
    generate = process.load("a")
    with closing(generate(a_request(steps=1000), tmp_path / "clip")) as updates:
        next(updates)
        next(updates)

    list(generate(a_request(), tmp_path / "next"))  # waits for the end of the first

    assert len((tmp_path / "clip").read_text().split()) < 10


def test_the_process_ends_without_use_and_the_next_computation_starts_it_again(process, tmp_path):
    generate = process.load("a")
    list(generate(a_request(), tmp_path / "clip"))

    process.end_if_idle()
    assert not psutil.pid_exists(pid_in(tmp_path / "clip")) and not process.is_running

    first, *_, last = generate(a_request(), tmp_path / "again")
    assert (first.stage, last.stage) == ("load", "done")
    assert pid_in(tmp_path / "again") != pid_in(tmp_path / "clip")


def test_neither_a_computation_nor_an_open_page_loses_the_process(process, tmp_path):
    generate = process.load("a")
    with closing(generate(a_request(), tmp_path / "clip")) as updates:
        next(updates)
        process.end_if_idle()
        assert process.is_running
    process.end_if_idle(visited=True)
    assert process.is_running


def test_a_process_that_must_not_end_stays(tmp_path):
    process = ModelProcess(fake_models.load, ["a"], idle_seconds=None)
    process.load("a")
    process.end_if_idle()
    assert process.is_running
    process.end()


def test_a_visitor_wakes_the_process(process):
    process.wake("a")
    assert not process.is_running  # the start of the program loads the models
    process.load("a")
    process.end_if_idle()

    process.wake("a")

    until = time.monotonic() + 60
    while not process.is_running and time.monotonic() < until:
        time.sleep(0.05)
    assert process.is_running


def test_a_killed_process_is_an_error_for_the_visitor_and_the_next_one_computes(process, tmp_path):
    with pytest.raises(EngineError, match="Try again"):
        list(process.load("killed")(a_request(), tmp_path / "clip"))

    *_, last = process.load("a")(a_request(), tmp_path / "clip")
    assert last.clip is not None


def test_the_end_of_the_server_is_the_reason_of_a_load_that_it_stops(process):
    with ThreadPoolExecutor() as pool:
        load = pool.submit(process.load, "endless")
        while not process.is_running or not process._calls:
            time.sleep(0.05)
        process.end()

        for reason in (load.exception(), pytest.raises(EngineError, process.load, "a").value):
            assert isinstance(reason, ServerStopping)
    assert not process.is_running


def test_failures_keep_their_type_and_lose_the_prompt(process, tmp_path, capfd):
    with pytest.raises(MemoryError, match="90 GB"):
        process.load("unloadable")
    with pytest.raises(EngineError, match="RuntimeError") as failure:
        list(process.load("failing")(a_request(), tmp_path / "clip"))

    assert "a red star" not in str(failure.value) + capfd.readouterr().err


def test_the_process_ends_with_the_page_even_if_that_is_killed(tmp_path):
    script = tmp_path / "page.py"
    script.write_text(PAGE)

    subprocess.run(
        [sys.executable, script, tmp_path / "clip"], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )

    until = time.monotonic() + 60
    while psutil.pid_exists(pid_in(tmp_path / "clip")) and time.monotonic() < until:
        time.sleep(0.05)
    assert not psutil.pid_exists(pid_in(tmp_path / "clip"))
