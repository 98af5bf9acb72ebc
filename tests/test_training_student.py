"""Distilling the shapes students with rewards: resuming, and what a reward does."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from training.loop import StepReport
from training.shapes import __main__ as recipe
from training.shapes import student
from turbo.models import WEIGHTS
from turbo.unet import VideoUNet

STEPS = 5


@pytest.fixture
def committed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> recipe.Recipe:
    """The recipe with the committed teacher and rewards, in a few small steps."""
    brief = replace(student.CONFIG, steps=STEPS, checkpoint_every=1)
    monkeypatch.setattr(student, "CONFIG", brief)
    monkeypatch.setattr(student, "BATCH", 2)
    monkeypatch.setattr(recipe, "CLIPS", 4)
    return recipe.Recipe(tmp_path, WEIGHTS / "shapes")


def distil(
    committed: recipe.Recipe, variant: student.Variant, checkpoint: Path
) -> tuple[VideoUNet, Iterator[StepReport]]:
    guide = committed._load_teacher()
    network = student.build_student(guide)
    image, video = committed._load_rewards()
    reports = student.train_student(
        guide,
        network,
        committed.clips,
        committed.captions,
        checkpoint,
        feedback=variant.feedback(image, video),
        vae=committed._load_vae().eval().requires_grad_(False),
    )
    return network, reports


@pytest.mark.parametrize("killed_after", [1, 3])
def test_a_killed_distillation_goes_on_as_if_nothing_had_happened(
    committed: recipe.Recipe, tmp_path: Path, killed_after: int
):
    variant = student.STUDENTS["turbo"]
    whole, reports = distil(committed, variant, tmp_path / "whole.pt")
    losses = [report.loss for report in reports]
    _, reports = distil(committed, variant, tmp_path / "killed.pt")
    before = [report.loss for report in islice(reports, killed_after)]

    resumed, reports = distil(committed, variant, tmp_path / "killed.pt")
    after = [report.loss for report in reports]

    assert before + after == losses
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


def test_a_variant_without_rewards_is_plain_consistency_distillation(
    committed: recipe.Recipe, tmp_path: Path
):
    _, plain = distil(committed, student.STUDENTS["vcm"], tmp_path / "plain.pt")
    _, mixed = distil(committed, student.STUDENTS["turbo"], tmp_path / "mixed.pt")

    assert next(plain).loss > 0  # a distance
    assert next(mixed).loss < 0  # the rewards outweigh it
