import logging
import threading
import time

import pytest

from demo.engine import Engine, EngineError
from demo.session import Request
from tests.support.fake_engine import FakeEngine

REQUEST = Request(model="fake-student", prompt="a star", steps=3, guidance=1.0, seed=0)


@pytest.fixture
def fake():
    return FakeEngine(seconds_per_step=0.001)


def start(load) -> Engine:
    engine = Engine(load, ["fake-student"])
    engine.start()
    return engine


def test_updates_count_the_steps_and_end_with_the_clip(fake, tmp_path):
    engine = start(lambda name: fake.generate)

    updates = list(engine.generate(REQUEST, tmp_path / "clip.mp4"))

    assert [u.step for u in updates if u.stage == "denoise"] == [1, 2, 3]
    assert updates[-1].clip.path.stat().st_size > 0


def test_closing_the_updates_ends_the_computation_within_a_step(fake, tmp_path):
    engine = start(lambda name: fake.generate)
    updates = engine.generate(REQUEST, tmp_path / "clip.mp4")
    while next(updates).step < 1:
        pass

    updates.close()

    assert fake.log == ["begin 3", "step 1", "stopped"]
    assert list(tmp_path.iterdir()) == []


def test_a_request_waits_for_its_model_and_says_so(fake, tmp_path):
    loaded = threading.Event()

    def load(name):
        loaded.wait()
        return fake.generate

    engine = start(load)
    updates = engine.generate(REQUEST, tmp_path / "clip.mp4")

    assert engine.readiness("fake-student") == "loading"
    assert next(updates).stage == "load"
    loaded.set()
    assert list(updates)[-1].stage == "done"
    assert engine.readiness("fake-student") == "ready"


def test_a_model_that_does_not_load_is_an_error_for_visitors(tmp_path, caplog):
    def load(name):
        raise FileNotFoundError("/secret/path")

    engine = start(load)

    with pytest.raises(EngineError, match="did not load") as failure:
        list(engine.generate(REQUEST, tmp_path / "clip.mp4"))
    assert "/secret" not in str(failure.value)
    assert engine.readiness("fake-student") == "failed"


def test_the_log_says_why_a_model_did_not_load_before_anybody_asks_for_it(caplog):
    def load(name):
        raise ValueError("Expected a device of this machine: cpu, got 'cuda'.")

    engine = start(load)
    while engine.readiness("fake-student") == "loading":
        time.sleep(0.01)

    assert "fake-student did not load: ValueError: Expected a device of this machine" in caplog.text


def test_the_log_says_why_a_model_that_a_visitor_asked_for_did_not_load(fake, tmp_path, caplog):
    def load(name):
        if name == "large":
            raise FileNotFoundError("/secret/path")
        return fake.generate

    request = Request(model="large", prompt="a star", steps=1, guidance=1.0, seed=0)

    with pytest.raises(EngineError, match="did not load"):
        list(start(load).generate(request, tmp_path / "clip.mp4"))

    assert caplog.text.count("large did not load: FileNotFoundError: /secret/path") == 1


def test_a_failed_computation_tells_neither_page_nor_log_the_prompt(fake, tmp_path, caplog):
    engine = start(lambda name: fake.generate)
    request = Request(model="fake-student", prompt="explode now", steps=1, guidance=1.0, seed=0)

    with caplog.at_level(logging.DEBUG), pytest.raises(EngineError) as failure:
        list(engine.generate(request, tmp_path / "clip.mp4"))

    assert "RuntimeError" in str(failure.value)
    assert "explode" not in str(failure.value) + caplog.text
    assert "/etc/secret" not in str(failure.value) + caplog.text


def test_other_models_are_loaded_when_asked_for_and_only_the_last_is_kept(fake, tmp_path):
    loads = []

    def load(name):
        loads.append(name)
        return fake.generate

    engine = start(load)

    for name in ("large", "large", "larger", "large"):
        request = Request(model=name, prompt="a star", steps=1, guidance=1.0, seed=0)
        assert list(engine.generate(request, tmp_path / "clip.mp4"))[-1].stage == "done"

    assert loads == ["fake-student", "large", "larger", "large"]
    assert engine.holds("large") and engine.holds("fake-student") and not engine.holds("larger")


@pytest.mark.parametrize("failure", [EngineError, MemoryError])
def test_a_reason_written_for_visitors_reaches_them_and_loading_is_tried_again(failure, tmp_path):
    def load(name):
        if name == "large":
            raise failure("It needs 9 GB.")

    engine = start(load)
    request = Request(model="large", prompt="a star", steps=1, guidance=1.0, seed=0)

    for _ in range(2):
        with pytest.raises(EngineError, match="It needs 9 GB."):
            list(engine.generate(request, tmp_path / "clip.mp4"))


def test_running_out_of_memory_tells_what_to_do(tmp_path):
    def generate(request, path):
        raise MemoryError("The next smaller option is memory 'sliced'.")
        yield

    engine = start(lambda name: generate)

    with pytest.raises(EngineError, match="'sliced'"):
        list(engine.generate(REQUEST, tmp_path / "clip.mp4"))
