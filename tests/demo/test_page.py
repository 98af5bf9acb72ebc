from dataclasses import replace
from pathlib import Path

import pytest

from app import fetch_model, load_model, state_of
from demo.clip_store import Shelf
from demo.context import Studio
from demo.engine import EngineError
from demo.session import Clip, Update
from demo.tabs.compare import lay_tiles, read_comparison
from demo.tabs.generate import may_fetch, model_choices
from demo.widgets.history import KEPT, remember, show_history
from demo.widgets.html import escape
from demo.widgets.player import show_screen, show_tiles
from demo.widgets.status import StepClock, show_done, show_update
from tests.support.fake_engine import CONTENDERS, MODELS, FakeEngine
from turbo.disk_space import check_space
from turbo.models import cli


def make_clip(prompt: str = "a star", total: float = 1.0, seed: int = 0) -> Clip:
    return Clip(
        path=Path("/clips/one.mp4"),
        seconds={"text": 0.01, "steps": 0.5, "decode": 0.2, "encode": 0.1, "total": total},
        unet_calls=4,
        frames=16,
        fps=8,
        recipe={"model": "m", "prompt": prompt, "seed": seed, "steps": 4, "guidance": 7.5},
    )


@pytest.fixture
def studio(tmp_path):
    fake = FakeEngine(seconds_per_step=0)
    return Studio(
        models=MODELS,
        default_model="fake-student",
        contenders=CONTENDERS,
        generate=fake.generate,
        readiness=lambda name: "ready",
        shelf=Shelf(tmp_path),
    )


def test_markup_of_a_prompt_is_shown_literally():
    hostile = "<script>alert(1)</script> \"'{{x}} ${y} `z`"

    for page in (
        escape(hostile),
        show_screen(make_clip(hostile)),
        show_history([make_clip(hostile)]),
        show_tiles(lay_tiles(CONTENDERS, [make_clip(hostile)])),
    ):
        assert "<script" not in page
        assert not set(escape(hostile)) & set("{}$`<>\"'")
        assert "${" not in page and "{{" not in page


def test_the_clock_foretells_the_rest_from_the_pace_of_the_steps():
    clock = StepClock()

    def denoise(step: int, seconds: float) -> Update:
        return Update(stage="denoise", step=step, steps=10, seconds=seconds)

    assert clock.remaining(Update(stage="text")) is None
    assert clock.remaining(denoise(0, 1.0)) is None
    assert clock.remaining(denoise(1, 1.5)) == pytest.approx(4.5)
    assert clock.remaining(denoise(4, 3.0)) == pytest.approx(3.0)


def test_the_strip_says_step_k_of_n_and_the_timing_line_every_stage():
    running = show_update(Update(stage="denoise", step=2, steps=4, seconds=0.5), 0.5)
    done = show_done(make_clip())

    assert "step 2 of 4" in running and "about 0.5 s" in running
    assert "text 10 ms · steps 500 ms · decode 200 ms · encode 100 ms · total 1.0 s" in done


def test_every_contender_gets_the_same_prompt_and_seed(studio):
    requests = read_comparison(studio, "a red star", None)

    assert [request.model for request in requests] == [row.model for row in CONTENDERS]
    assert [request.steps for request in requests] == [row.steps for row in CONTENDERS]
    assert len({(request.prompt, request.seed) for request in requests}) == 1


def test_contenders_without_a_clip_wait_in_their_place():
    tiles = lay_tiles(CONTENDERS, [make_clip()])

    assert [tile.note for tile in tiles] == ["", "computing", "waiting"]
    assert [tile.title for tile in tiles] == [row.title for row in CONTENDERS]


def test_the_history_keeps_the_newest_first_and_ends():
    clips: list[Clip] = []
    for seed in range(KEPT + 3):
        clips = remember(clips, make_clip(seed=seed))

    assert len(clips) == KEPT
    assert clips[0].recipe["seed"] == KEPT + 2


def test_the_shelf_forgets_the_oldest_clips(tmp_path):
    shelf = Shelf(tmp_path, keep=3)
    for _ in range(5):
        shelf.new_path().write_bytes(b"clip")

    assert len(list(tmp_path.iterdir())) == 3


def test_a_closed_run_stops_the_engine_and_leaves_no_file(studio, tmp_path):
    [_, _, request] = read_comparison(studio, "a star", 0)
    shown = studio.run(request, lambda update: update.stage)
    assert [next(shown), next(shown)] == ["text", "denoise"]

    shown.close()

    assert list(tmp_path.iterdir()) == []


def test_the_picker_says_what_every_model_needs(studio):
    needs = {"fake-student": "ready", "fake-teacher": "needs 5.6 GB download"}
    studio = replace(studio, need=needs.__getitem__)

    assert model_choices(studio) == [
        ("Fake student · ready", "fake-student"),
        ("Fake teacher · needs 5.6 GB download", "fake-teacher"),
    ]


@pytest.mark.parametrize("allowed", [True, False])
def test_only_what_can_be_downloaded_is_offered_and_only_where_allowed(studio, allowed):
    needs = {"fake-student": "needs 9.0 GB memory", "fake-teacher": "needs 5.6 GB download"}
    fetch = (lambda name: iter(())) if allowed else None
    studio = replace(studio, need=needs.__getitem__, fetch=fetch)

    assert not may_fetch(studio, "fake-student")
    assert may_fetch(studio, "fake-teacher") == allowed


def test_a_download_counts_gigabytes():
    strip = show_update(
        Update(stage="download", step=1_400_000_000, steps=5_600_000_000, seconds=7.0), None
    )

    assert "Downloading: 1.40 of 5.60 GB" in strip and "width:25%" in strip


def test_a_full_disk_is_told_with_what_helps_and_without_paths(monkeypatch):
    def fill(card):
        check_space(Path("/secret"), 10**18)
        yield

    monkeypatch.setattr("turbo.models.fetch.fetch_model", fill)

    with pytest.raises(EngineError, match="this machine is too full. Its operator can") as refusal:
        list(fetch_model("t2v-turbo-v2"))

    assert "secret" not in str(refusal.value)


def test_what_needs_a_choice_is_not_offered_and_says_who_can_make_it(studio, monkeypatch, tmp_path):
    card = replace(cli.MODELS["t2v-turbo-ms"], folder=tmp_path / "modelscope")
    monkeypatch.setitem(cli.MODELS, card.name, card)
    studio = replace(studio, need=state_of, fetch=fetch_model)

    assert not may_fetch(studio, card.name)
    with pytest.raises(EngineError, match="fetch t2v-turbo-ms --projection zeros"):
        load_model(card.name)
