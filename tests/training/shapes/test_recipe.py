"""The shapes recipe end to end, in a few steps: every stage runs, resumes, and feeds the next."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from training.shapes import __main__ as recipe
from training.shapes.models import reward_card, rewards, student, teacher, text, vae
from training.shapes.world.world import HELD_OUT_SCENES
from turbo.card import ModelCard
from turbo.models.registry import find_card
from turbo.pipeline import load_card


@pytest.fixture
def short_recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> recipe.Recipe:
    for stage in (vae, text, student):
        monkeypatch.setattr(stage, "CONFIG", replace(stage.CONFIG, steps=2, checkpoint_every=1))
        monkeypatch.setattr(stage, "BATCH", 2)
    brief = replace(teacher.CLIPS_CONFIG, steps=2, checkpoint_every=1)
    monkeypatch.setattr(teacher, "FRAMES_BATCH", 2)
    monkeypatch.setattr(teacher, "CLIPS_BATCH", 2)
    monkeypatch.setattr(teacher, "FRAMES_CONFIG", brief)
    half_rate = partial(teacher.train_clips, config=brief, stride=2)
    whole = partial(teacher.train_clips, config=brief)
    monkeypatch.setattr(
        teacher,
        "CURRICULUM",
        (
            ("frames", brief, teacher.train_frames),
            ("half_rate", brief, half_rate),
            ("teacher", brief, whole),
        ),
    )
    for kind in ("IMAGE", "VIDEO"):
        monkeypatch.setattr(rewards, f"{kind}_CONFIG", brief)
        monkeypatch.setattr(rewards, f"{kind}_BATCH", 4)
    monkeypatch.setattr(reward_card, "HELD_OUT_SCENES", HELD_OUT_SCENES[:4])
    monkeypatch.setattr(teacher, "POLISH_CONFIG", brief)
    monkeypatch.setattr(recipe, "CLIPS", 4)
    monkeypatch.setattr(student, "START_CONFIG", brief)
    monkeypatch.setattr(recipe, "JUMPS", 4)
    return recipe.Recipe(tmp_path / "runs", tmp_path / "weights")


def test_the_recipe_makes_models_that_the_library_loads(short_recipe: recipe.Recipe):
    for stage in (
        short_recipe.vae,
        short_recipe.text,
        short_recipe.teacher,
        short_recipe.polish,
        short_recipe.rewards,
        short_recipe.students,
    ):
        stage()

    assert (short_recipe.runs / "snapshots" / "turbo" / "1" / "lora.safetensors").exists()
    card = replace(find_card("shapes-vcm"), folder=short_recipe.weights, unet="teacher")
    for lora in (None, *student.STUDENTS):
        pipeline = load_card(replace(card, lora=lora) if lora else _teacher(short_recipe))
        video = pipeline("a red star moving left on a black background", steps=2)
        assert video.frames.shape == (16, 32, 32, 3)


def _teacher(short: recipe.Recipe) -> ModelCard:
    return replace(find_card("shapes-teacher"), folder=short.weights)


def test_a_finished_stage_is_not_trained_again(short_recipe: recipe.Recipe):
    short_recipe.text()
    before = (short_recipe.weights / "text_encoder" / "model.safetensors").read_bytes()
    log = (short_recipe.runs / "text.pt").stat().st_mtime_ns

    short_recipe.text()

    assert (short_recipe.weights / "text_encoder" / "model.safetensors").read_bytes() == before
    assert (short_recipe.runs / "text.pt").stat().st_mtime_ns == log
