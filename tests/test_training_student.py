"""Distilling the shapes students with rewards: resuming, and what a reward does."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from training.shapes import __main__ as recipe
from training.shapes import student
from turbo.models import WEIGHTS

STEPS = 5


@pytest.fixture
def committed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> recipe.Recipe:
    """The recipe with the committed teacher and rewards, in a few small steps."""
    brief = replace(student.CONFIG, steps=STEPS, checkpoint_every=1)
    monkeypatch.setattr(student, "CONFIG", brief)
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
