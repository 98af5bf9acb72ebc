"""The shapes students: their common start, their rewards, their guidance."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from training.shapes import __main__ as recipe
from training.shapes.models import student, teacher
from turbo.models.registry import WEIGHTS, find_card
from turbo.networks.lora import LORA_FILE


@pytest.fixture
def folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> recipe.Folders:
    """The committed teacher and rewards, a start of one step, and batches of one clip."""
    monkeypatch.setattr(student, "START_FIT", replace(student.START_FIT, steps=1))
    monkeypatch.setattr(student, "BATCH", 1)
    monkeypatch.setattr(recipe, "CLIP_COUNT", 2)
    return recipe.Folders(tmp_path, WEIGHTS / "shapes")


@pytest.mark.slow
def test_students_share_their_start_and_differ_in_their_rewards(folders: recipe.Folders):
    plain, plain_steps = recipe.start_student("plain", student.STUDENTS["vcm"], folders)
    mixed, mixed_steps = recipe.start_student("mixed", student.STUDENTS["turbo"], folders)

    untrained = student.build_student(recipe.load_teacher(folders), teacher.UNET.rank).state_dict()
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, mixed.state_dict()[name]), name
    assert any(not torch.equal(w, untrained[name]) for name, w in plain.state_dict().items())
    assert next(plain_steps).loss > 0  # a distance
    assert next(mixed_steps).loss < 0  # less the weighted rewards


@pytest.mark.slow
def test_distribution_matching_begins_with_turbo_and_trains_its_adapters_alone(
    folders: recipe.Folders, monkeypatch: pytest.MonkeyPatch
):
    adapters = load_file(folders.weights / "turbo" / LORA_FILE)
    for rate, moved in ((1e-12, False), (2e-4, True)):
        fit = replace(student.MATCHING_FIT, steps=2, learning_rate=rate, warmup=1, decay=0.0)
        monkeypatch.setattr(student, "MATCHING_FIT", fit)
        monkeypatch.setattr(student, "FAKE_WARMUP", 1)
        own = replace(folders, runs=folders.runs / str(rate))
        shutil.copytree(folders.weights / "turbo", own.runs / "turbo")
        recipe.match_student(own, own.runs)

        found = load_file(own.runs / "turbo-dmd" / LORA_FILE)
        assert found.keys() == adapters.keys()
        far = max((found[name].float() - adapters[name].float()).abs().max() for name in found)
        assert (far > 1e-5) == moved


def test_distribution_matching_has_the_guidance_of_its_card():
    schedule = teacher.UNET.schedule
    drawn = student.distillation_config(student.MATCHING_FIT, schedule, matching=True)
    card = find_card("shapes-turbo-dmd")

    scales = drawn.draw_guidance(3, torch.Generator())

    assert scales.tolist() == [card.min_guidance, card.default_guidance, card.max_guidance]


def test_half_of_the_drawn_guidance_is_below_the_geometric_mean_of_its_range():
    drawn = student.draw_guidance(4000, torch.Generator().manual_seed(0))

    low, high = student.GUIDANCE_RANGE
    assert low <= drawn.min() and drawn.max() <= high
    assert (drawn < (low * high) ** 0.5).float().mean() == pytest.approx(0.5, abs=0.03)
