"""The half-made clips that the reward models are trained on."""

from pathlib import Path

import pytest
import torch

from training.shapes.evaluation.probes import read_clip
from training.shapes.models.jumps import Jumps, draw_jumps
from training.shapes.models.rewards import SCENES
from turbo.pipeline import load_pipeline

COUNT = 24


def _draw(path: Path) -> Jumps:
    vcm = load_pipeline("shapes-vcm")
    return draw_jumps(vcm.unet, vcm.vae, vcm.text_encoder, SCENES, COUNT, 5, path)


@pytest.fixture(scope="module")
def jumps(tmp_path_factory: pytest.TempPathFactory) -> Jumps:
    return _draw(tmp_path_factory.mktemp("jumps") / "jumps.safetensors")


def test_a_jump_from_little_noise_shows_its_scene_more_often_than_one_from_much(jumps: Jumps):
    scenes = [SCENES[index] for index in jumps.scene.tolist()]
    right = {
        side: sum(
            all(read_clip(clip.numpy()).matches(scene).values())
            for clip, scene in zip(getattr(jumps, side), scenes, strict=True)
        )
        for side in ("near", "far")
    }

    assert right["near"] >= 0.8 * COUNT
    assert right["far"] < right["near"]


def test_jumps_are_drawn_once_and_then_read(jumps: Jumps, tmp_path: Path):
    first = _draw(tmp_path / "jumps.safetensors")
    before = (tmp_path / "jumps.safetensors").stat().st_mtime_ns

    again = _draw(tmp_path / "jumps.safetensors")

    assert torch.equal(first.far, jumps.far)  # of the seed alone
    assert torch.equal(again.far, first.far)
    assert (tmp_path / "jumps.safetensors").stat().st_mtime_ns == before
