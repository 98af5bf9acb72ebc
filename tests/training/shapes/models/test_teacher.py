"""The shapes teachers: what each phase of their training changes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from training.shapes.models.teacher import RECIPES, is_temporal, train_phase
from training.shapes.world.encoded_clips import EncodedClips


@pytest.mark.parametrize("network", RECIPES)
def test_a_phase_trains_all_layers_but_single_frames_no_temporal_ones(network, tmp_path: Path):
    recipe, generator = RECIPES[network], torch.Generator().manual_seed(0)
    clips = EncodedClips(
        torch.randn(3, 8, 16, 8, 8, generator=generator).half(),
        torch.zeros(3, 16, 8, 8, dtype=torch.bool),
        torch.tensor([0, 1, 1]),
    )
    captions = torch.randn(3, 16, 96, generator=generator)
    torch.manual_seed(0)
    teacher = recipe.build()

    for phase in (recipe.curriculum[0], recipe.curriculum[1]):
        before = {name: weight.clone() for name, weight in teacher.named_parameters()}
        brief = replace(phase, fit=replace(phase.fit, steps=2, warmup=1), batch=2)
        steps = [
            *train_phase(teacher, recipe.schedule, brief, clips, captions, tmp_path / phase.name)
        ]

        assert all(step.loss > 0 for step in steps)
        still = {n for n, w in teacher.named_parameters() if torch.equal(w, before[n])}
        frozen = {n for n in before if is_temporal(n)} if phase.stride is None else set()
        assert frozen <= still
        assert all(is_temporal(name) for name in still)
