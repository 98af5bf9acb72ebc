"""The shapes teachers: what each phase of their training changes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from training.shapes.models.export import export_module
from training.shapes.models.teacher import RECIPES, is_temporal, train_phase
from training.shapes.world.encoded_clips import EncodedClips
from turbo.models.footprint import measure_footprint
from turbo.models.registry import WEIGHTS, find_card
from turbo.pipeline import VideoPipeline


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
        frozen = {n for n in before if is_temporal(n)} if phase.frames == 1 else set()
        assert frozen <= still
        assert all(is_temporal(name) for name in still)


def test_a_flow_teacher_makes_clips_with_the_parts_of_the_shapes(tmp_path: Path):
    for part in ("vae", "text_encoder", "tokenizer"):
        (tmp_path / part).symlink_to(WEIGHTS / "shapes" / part)
    export_module(RECIPES["flow"].build(), tmp_path / "flow-teacher")
    card = replace(find_card("shapes-flow-teacher"), folder=tmp_path)

    video = VideoPipeline.load(card)("a red star moving left on a black background", steps=2)

    assert video.frames.shape == (16, 32, 32, 3)
    assert measure_footprint(card).peak("full", 2) / 1e9 < card.memory_gb
