import errno
import logging
import threading
import time
from dataclasses import replace

import pytest

from demo.clip_store import ClipStore
from demo.compute.engine import Engine
from demo.models import Request
from demo.session import EngineError, ServerStopping
from tests.support.fake_engine import FakeEngine

REQUEST = Request(prompt="a star", steps=3, guidance=1.0, seed=0)


@pytest.fixture
def fake():
    return FakeEngine(seconds_per_step=0.001)


@pytest.fixture
def start(tmp_path):
    """Start an engine that preloads the fake student."""

    def start(load) -> Engine:
        engine = Engine(load, ["fake-student"], ClipStore(tmp_path))
        engine.start()
        return engine

    return start


def run(engine: Engine, model: str = "fake-student", request: Request = REQUEST):
    """Return the updates and the clip."""
    updates = []
    shown = engine.run(model, request, updates.append)
    while True:
        try:
            next(shown)
        except StopIteration as end:
            return updates, end.value


def test_updates_count_the_steps_and_end_with_the_clip(fake, start):
    updates, clip = run(start(fake.load))

    assert [u.step for u in updates if u.stage == "denoise"] == [1, 2, 3]
    assert clip.path.stat().st_size > 0


def test_closing_the_updates_ends_the_computation_within_a_step(fake, start, tmp_path):
    updates = start(fake.load).run("fake-student", REQUEST, lambda update: update)
    while next(updates).step < 1:
        pass

    updates.close()

    assert fake.log == ["begin 3", "step 1", "stopped"]
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_computed_for_a_prompt_that_the_operator_refuses(fake, tmp_path):
    engine = Engine(fake.load, ["fake-student"], ClipStore(tmp_path), lambda prompt: "x" in prompt)
    engine.start()

    with pytest.raises(EngineError, match="change the prompt"):
        run(engine, request=replace(REQUEST, prompt="a fox"))

    assert fake.log == []
    assert run(engine)[1]


def test_a_request_waits_for_its_model(fake, start):
    loaded = threading.Event()

    def load(name):
        loaded.wait()
        return fake.load(name)

    engine = start(load)
    updates = engine.run("fake-student", REQUEST, lambda update: update)

    assert engine.readiness("fake-student") == "loading"
    assert next(updates).stage == "load"
    loaded.set()
    assert list(updates)[-1].stage == "decode"
    assert engine.readiness("fake-student") == "ready"


def test_a_model_that_does_not_load_is_an_error_for_visitors(start):
    def load(name):
        raise FileNotFoundError("/secret/path")

    engine = start(load)

    with pytest.raises(EngineError, match="did not load") as failure:
        run(engine)
    assert "/secret" not in str(failure.value)
    assert engine.readiness("fake-student") == "failed"


def test_a_load_failure_is_logged_before_a_visitor_asks_for_the_model(start, caplog):
    def load(name):
        raise ValueError("This machine has no device 'cuda'.")

    engine = start(load)
    while engine.readiness("fake-student") == "loading":
        time.sleep(0.01)

    assert "fake-student did not load: ValueError: This machine has no device" in caplog.text


def test_a_load_that_the_end_of_the_server_stops_is_no_failure_in_the_log(start, caplog):
    def load(name):
        raise ServerStopping

    engine = start(load)
    while engine.readiness("fake-student") == "loading":
        time.sleep(0.01)

    assert not caplog.text


def test_a_load_failure_on_request_is_logged_once(fake, start, caplog):
    def load(name):
        if name == "large":
            raise FileNotFoundError("/secret/path")
        return fake.load(name)

    with pytest.raises(EngineError, match="did not load"):
        run(start(load), "large")

    assert caplog.text.count("large did not load: FileNotFoundError: /secret/path") == 1


def test_neither_page_nor_log_has_the_prompt_of_a_failed_computation(fake, start, caplog):
    request = replace(REQUEST, prompt="explode now")

    with caplog.at_level(logging.DEBUG), pytest.raises(EngineError) as failure:
        run(start(fake.load), request=request)

    assert "RuntimeError" in str(failure.value)
    assert "explode" not in str(failure.value) + caplog.text
    assert "/etc/secret" not in str(failure.value) + caplog.text


def test_other_models_are_loaded_on_request_and_only_the_last_is_kept(fake, start):
    loads = []

    def load(name):
        loads.append(name)
        return fake.load(name)

    engine = start(load)

    for name in ("large", "large", "larger", "large"):
        assert run(engine, name)[1].recipe["model"] == name

    assert loads == ["fake-student", "large", "larger", "large"]
    assert engine.is_loaded("large") and engine.is_loaded("fake-student")
    assert not engine.is_loaded("larger")


@pytest.mark.parametrize("failure", [EngineError, MemoryError])
def test_a_reason_for_visitors_reaches_them_and_loading_is_tried_again(failure, start):
    loads = []

    def load(name):
        loads.append(name)
        if name == "large":
            raise failure("It needs 9 GB.")

    engine = start(load)

    for _ in range(2):
        with pytest.raises(EngineError, match="It needs 9 GB."):
            run(engine, "large")
    assert loads.count("large") == 2


def test_the_remedy_of_a_memory_error_reaches_the_visitor(start):
    def generate(request, path):
        raise MemoryError("The next smaller option is memory 'sliced'.")
        yield

    with pytest.raises(EngineError, match="'sliced'"):
        run(start(lambda name: generate))


def test_nothing_is_computed_for_a_folder_that_cannot_be_written(fake, start, tmp_path, caplog):
    engine = start(fake.load)
    tmp_path.rmdir()

    with pytest.raises(EngineError, match="could not be stored on this machine") as failure:
        run(engine)

    assert fake.log == [] and "steps" not in str(failure.value)
    assert str(tmp_path) not in str(failure.value)
    assert engine.clips.problem()
    tmp_path.mkdir()
    assert run(engine)[1].path.exists() and not engine.clips.problem()


def test_a_disk_that_fills_up_is_not_blamed_on_the_steps(start):
    def generate(request, path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))
        yield

    with pytest.raises(EngineError, match="No space left on device") as failure:
        run(start(lambda name: generate))

    assert "steps" not in str(failure.value) and ".mp4" not in str(failure.value)
