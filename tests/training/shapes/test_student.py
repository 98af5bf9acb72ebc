"""Distilling the shapes students with rewards: resuming, and what a reward does."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from training.shapes import __main__ as recipe
from training.shapes.models import student
from turbo.models.registry import WEIGHTS

STEPS = 5


@pytest.fixture
def committed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> recipe.Recipe:
    """The recipe with the committed teacher and rewards, in a few small steps."""
    for config in ("START_CONFIG", "CONFIG"):
        brief = replace(getattr(student, config), steps=STEPS, checkpoint_every=1)
        monkeypatch.setattr(student, config, brief)
    monkeypatch.setattr(student, "BATCH", 2)
    monkeypatch.setattr(recipe, "CLIPS", 4)
    return recipe.Recipe(tmp_path, WEIGHTS / "shapes")


@pytest.mark.parametrize("killed_after", [1, 3])
def test_a_killed_distillation_goes_on_as_if_nothing_had_happened(
    committed: recipe.Recipe, killed_after: int
):
    variant = student.STUDENTS["turbo"]
    whole, reports = committed.start_student("whole", variant)
    losses = [report.loss for report in reports]
    _, reports = committed.start_student("killed", variant)
    before = [report.loss for report in islice(reports, killed_after)]

    resumed, reports = committed.start_student("killed", variant)
    after = [report.loss for report in reports]

    assert before + after == losses
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


def test_a_variant_without_rewards_is_plain_consistency_distillation(committed: recipe.Recipe):
    _, plain = committed.start_student("plain", student.STUDENTS["vcm"])
    _, mixed = committed.start_student("mixed", student.STUDENTS["turbo"])

    assert next(plain).loss > 0  # a distance
    assert next(mixed).loss < 0  # the rewards outweigh it


def test_students_have_their_beginning_in_common(committed: recipe.Recipe):
    plain, _ = committed.start_student("plain", student.STUDENTS["vcm"])
    mixed, _ = committed.start_student("mixed", student.STUDENTS["turbo"])

    untrained = student.build_student(committed._load_teacher())
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, mixed.state_dict()[name]), name
    assert any(
        not torch.equal(weight, untrained.state_dict()[name])
        for name, weight in plain.state_dict().items()
    )


def test_half_of_the_drawn_guidance_is_below_the_geometric_mean_of_its_range():
    drawn = student.draw_guidance(4000, torch.Generator().manual_seed(0))

    low, high = student.GUIDANCE_RANGE
    assert low <= drawn.min() and drawn.max() <= high
    assert (drawn < (low * high) ** 0.5).float().mean() == pytest.approx(0.5, abs=0.03)
