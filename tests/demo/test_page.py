from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest

from demo import page
from demo.clip_store import ClipStore
from demo.models import ModelInfo
from demo.session import GeneratedClip, Update
from demo.tabs.compare import make_tiles, read_comparison
from demo.tabs.controls import can_download, model_choices
from demo.widgets.history import MAX_CLIPS, add_to_history, show_history
from demo.widgets.html import escape
from demo.widgets.player import show_clip, show_tiles
from demo.widgets.status import StatusLine, show_done
from demo.world import World
from human_eval.server.study_mount import StudyMount
from tests.support.apart import run_apart
from tests.support.fake_engine import MODELS, ROWS, FakeEngine, create_fake_context


def make_clip(prompt: str = "a star", total: float = 1.0, seed: int = 0) -> GeneratedClip:
    return GeneratedClip(
        path=Path("/clips/one.mp4"),
        seconds={"text": 0.01, "steps": 0.5, "decode": 0.2, "encode": 0.1, "total": total},
        unet_calls=4,
        frames=16,
        fps=8,
        recipe={"model": "m", "prompt": prompt, "seed": seed, "steps": 4, "guidance": 7.5},
    )


@pytest.fixture
def context(tmp_path):
    return create_fake_context(FakeEngine(0).load, tmp_path, StudyMount(lambda: None))


def test_markup_of_a_prompt_is_shown_literally():
    hostile = "<script>alert(1)</script> \"'{{x}} ${y} `z`"

    for shown in (
        escape(hostile),
        show_clip(make_clip(hostile)),
        show_history([make_clip(hostile)]),
        show_tiles(make_tiles(ROWS, [make_clip(hostile)])),
    ):
        assert "<script" not in shown
        assert not set(escape(hostile)) & set("{}$`<>\"'")
        assert "${" not in shown and "{{" not in shown


def test_the_remaining_time_follows_from_the_pace_of_the_steps():
    line = StatusLine()

    def denoise(step: int, seconds: float) -> Update:
        return Update(stage="denoise", step=step, steps=10, seconds=seconds)

    assert line.remaining(Update(stage="text")) is None
    assert line.remaining(denoise(0, 1.0)) is None
    assert line.remaining(denoise(1, 1.5)) == pytest.approx(4.5)
    assert line.remaining(denoise(4, 3.0)) == pytest.approx(3.0)


def test_the_status_line_has_the_step_and_finally_the_time_of_every_stage():
    line = StatusLine()
    line.show(Update(stage="denoise", step=1, steps=4, seconds=0.25))
    running = line.show(Update(stage="denoise", step=2, steps=4, seconds=0.5))
    done = show_done(make_clip())

    assert "step 2 of 4" in running and "about 0.5 s" in running
    assert "text 10 ms · steps 500 ms · decode 200 ms · encode 100 ms · total 1.0 s" in done


def test_every_row_gets_the_same_prompt_and_seed(context):
    requests = read_comparison(context, "a red star", None)

    assert [request.steps for request in requests] == [row.steps for row in ROWS]
    assert len({(request.prompt, request.seed) for request in requests}) == 1


def test_rows_without_a_clip_wait_in_their_place():
    tiles = make_tiles(ROWS, [make_clip()])

    assert [tile.note for tile in tiles] == ["", "computing", "waiting"]
    assert [tile.title for tile in tiles] == [row.title for row in ROWS]


def test_the_history_keeps_the_newest_first_and_ends():
    clips: list[GeneratedClip] = []
    for seed in range(MAX_CLIPS + 3):
        clips = add_to_history(clips, make_clip(seed=seed))

    assert len(clips) == MAX_CLIPS
    assert clips[0].recipe["seed"] == MAX_CLIPS + 2


def test_the_clip_store_deletes_the_oldest_clips(tmp_path):
    store = ClipStore(tmp_path, keep=3)
    for _ in range(5):
        store.new_path().write_bytes(b"clip")

    assert len(list(tmp_path.iterdir())) == 3


def test_the_model_list_shows_what_every_model_needs(context):
    needs = {"fake-student": "ready", "fake-teacher": "needs 5.6 GB download"}
    context = replace(context, availability=needs.__getitem__)

    assert model_choices(context) == [
        ("Fake student · ready", "fake-student"),
        ("Fake teacher · needs 5.6 GB download", "fake-teacher"),
    ]


@pytest.mark.parametrize("allowed", [True, False])
def test_only_what_can_be_downloaded_is_offered_and_only_where_allowed(context, allowed):
    needs = {"fake-student": "needs 9.0 GB memory", "fake-teacher": "needs 5.6 GB download"}
    download = (lambda name: iter(())) if allowed else None
    context = replace(context, availability=needs.__getitem__, download=download)

    assert not can_download(context, "fake-student")
    assert can_download(context, "fake-teacher") == allowed


def test_a_download_counts_gigabytes():
    shown = StatusLine().show(
        Update(stage="download", step=1_400_000_000, steps=5_600_000_000, seconds=7.0)
    )

    assert "Downloading: 1.40 of 5.60 GB" in shown and "width:25%" in shown


def build(context):
    """Return the page of a context, and its parts by their HTML id."""

    async def lay_out():
        return page.build_page(context)

    built = run_apart(lay_out())
    return built, {part.elem_id: part for part in built.blocks.values()}


def find_handler(built, name: str):
    return next(function.fn for function in built.fns.values() if function.name == name)


def test_a_video_of_the_history_whose_file_is_gone_gives_its_settings_back(context):
    path = context.engine.clips.new_path()
    recipe = {**make_clip().recipe, "model": "fake-student", "seed": 7}
    clip = replace(make_clip(), path=path, recipe=recipe)
    path.touch()
    on_restore = find_handler(build(context)[0], "on_restore")

    def restore() -> dict:
        shown = on_restore([clip], SimpleNamespace(index=0))
        return {part.elem_id: value for part, value in shown.items()}

    there = restore()
    path.unlink()
    gone = restore()

    assert "<video" in there["screen"] and "Finished" in there["status"]
    assert "<video" not in gone["screen"] and "Finished" not in gone["status"]
    for shown in (there, gone):
        assert (shown["prompt"], shown["seed"], shown["recipe"]) == ("a star", 7, recipe)


def test_compare_begins_with_a_prompt_that_its_small_models_know(context):
    published = ModelInfo(card=MODELS["fake-student"].card, world=World(slots={}, examples=("x",)))
    models = {"published": published, **MODELS}
    built, parts = build(replace(context, models=models, default_model="published"))
    notices = [
        function.inputs
        for function in built.fns.values()
        if function.name == "_on_change" and function.inputs[0] is parts["compare-prompt"]
    ]

    assert MODELS[ROWS[0].model].world.knows(parts["compare-prompt"].value)
    assert [model.value for _, model in notices] == [ROWS[0].model]
    assert parts["prompt"].value == "x"


@pytest.mark.parametrize("model", [None, "gone", ["fake-student"]])
def test_a_model_that_is_not_in_the_list_changes_no_control(context, model):
    on_model = find_handler(build(context)[0], "on_model")

    assert [*on_model(model, "fake-student").values()] == [gr.skip()]
    needs = {"fake-student": "needs 5.6 GB download"}
    offering = replace(context, availability=needs.__getitem__, download=lambda name: iter(()))
    assert not can_download(offering, model)


def test_no_example_changes_no_prompt(context):
    built, parts = build(context)
    [on_example] = [
        function.fn
        for function in built.fns.values()
        if [*function.inputs] == [parts["examples"]] and [*function.outputs] == [parts["prompt"]]
    ]

    assert on_example(["a star"]) == "a star"
    assert on_example(None) == gr.skip()


def test_a_tab_is_one_function_in_one_list(context, monkeypatch):
    async def lay_out():
        return page.build_page(context).config

    def build_tab(context, tab):
        gr.HTML("Hello from a new tab", elem_id="new")

    before = list(page.TABS)
    monkeypatch.setitem(page.TABS, "New", build_tab)

    components = run_apart(lay_out())["components"]

    tabs = [each["props"]["label"] for each in components if each["type"] == "tabitem"]
    assert tabs == [*before, "New"]
    assert any(each["props"].get("elem_id") == "new" for each in components)
