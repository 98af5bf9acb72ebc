"""The shapes recipe end to end, in a few steps: every stage runs, resumes, and feeds the next."""

from dataclasses import replace
from pathlib import Path

import pytest

from training.shapes import __main__ as recipe
from training.shapes.models import reward_card, rewards, student, teacher, text, vae
from training.shapes.world.scenes import HELD_OUT_SCENES
from turbo.models.registry import find_card
from turbo.pipeline import VideoPipeline

STAGES = ("vae", "text", "teacher", "polish", "rewards", "students", "matching", "runs")


@pytest.fixture
def folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> recipe.Folders:
    """Shorten every stage to two steps of a few clips."""
    for stage in (vae, text):
        monkeypatch.setattr(stage, "CONFIG", replace(stage.CONFIG, steps=2, checkpoint_every=1))
        monkeypatch.setattr(stage, "BATCH", 2)
    brief = replace(teacher.UNET.polish.fit, steps=2, checkpoint_every=1)
    short = replace(
        teacher.UNET,
        curriculum=tuple(replace(p, fit=brief, batch=2) for p in teacher.UNET.curriculum),
        polish=replace(teacher.UNET.polish, fit=brief, batch=2),
    )
    for kind in ("IMAGE", "VIDEO"):
        monkeypatch.setattr(rewards, f"{kind}_CONFIG", brief)
        monkeypatch.setattr(rewards, f"{kind}_BATCH", 4)
    monkeypatch.setattr(reward_card, "HELD_OUT_SCENES", HELD_OUT_SCENES[:4])
    monkeypatch.setattr(student, "START_FIT", brief)
    for phase in ("FIT", "MATCHING_FIT"):
        fit = replace(getattr(student, phase), steps=2, checkpoint_every=1)
        monkeypatch.setattr(student, phase, fit)
    monkeypatch.setattr(student, "FAKE_WARMUP", 1)
    monkeypatch.setattr(student, "BATCH", 2)
    monkeypatch.setattr(recipe, "RUNS", 2)
    monkeypatch.setattr(recipe, "CLIP_COUNT", 4)
    monkeypatch.setattr(recipe, "ESTIMATE_COUNT", 4)
    return recipe.Folders(tmp_path / "runs", tmp_path / "weights", short)


def run_stages(folders: recipe.Folders) -> None:
    for name in STAGES:
        (recipe.STAGES | recipe.STUDIES)[name](folders)


@pytest.mark.slow
def test_the_recipe_makes_models_that_the_library_loads(folders: recipe.Folders):
    run_stages(folders)

    assert (folders.runs / "snapshots" / "turbo" / "1" / "lora.safetensors").exists()
    teacher_card = replace(find_card("shapes-teacher"), folder=folders.weights)
    student_card = replace(find_card("shapes-vcm"), folder=folders.weights, unet="teacher")
    adapters = [*student.STUDENTS, *(f"runs/2/{name}" for name in student.STUDENTS)]
    adapters += ["turbo-dmd", "runs/2/turbo-dmd"]
    first, second = (folders.weights / parent / "vcm/lora.safetensors" for parent in ("", "runs/2"))
    assert first.read_bytes() != second.read_bytes()
    for card in (teacher_card, *(replace(student_card, lora=lora) for lora in adapters)):
        video = VideoPipeline.load(card)("a red star moving left on a black background", steps=2)
        assert video.frames.shape == (16, 32, 32, 3)


def test_a_finished_stage_is_not_trained_again(folders: recipe.Folders):
    recipe.train_text(folders)
    before = (folders.weights / "text_encoder" / "model.safetensors").read_bytes()
    (checkpoint,) = (folders.runs / "text").iterdir()
    trained_at = checkpoint.stat().st_mtime_ns

    recipe.train_text(folders)

    assert (folders.weights / "text_encoder" / "model.safetensors").read_bytes() == before
    assert checkpoint.stat().st_mtime_ns == trained_at


def test_a_stage_of_the_unet_alone_refuses_another_network(monkeypatch, capsys):
    monkeypatch.setitem(recipe.STAGES, "vae", lambda folders: pytest.fail("ran"))
    monkeypatch.setattr("sys.argv", ["training.shapes", "vae", "--network", "flow"])

    with pytest.raises(SystemExit):
        recipe.main()


def test_all_runs_every_stage_in_the_order_of_the_help(monkeypatch, tmp_path: Path, capsys):
    ran = []
    for name in recipe.STAGES:
        monkeypatch.setitem(recipe.STAGES, name, lambda folders, name=name: ran.append(name))
    arguments = ["training.shapes", "all", "--runs", str(tmp_path)]
    monkeypatch.setattr("sys.argv", arguments)

    recipe.main()

    assert ran == [
        *("vae", "text", "teacher", "polish", "rewards", "students", "matching"),
        *("judge", "watch", "evaluate", "picture"),
    ]
