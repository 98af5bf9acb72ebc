"""The student estimates that the image reward is trained on."""

import os
from pathlib import Path

import pytest
import torch

from training.shapes.evaluation.probes import read_clip
from training.shapes.models.rewards import SCENES
from training.shapes.models.student_estimates import StudentEstimates, draw_student_estimates
from turbo.pipeline import load_pipeline

COUNT = 16


def _draw(path: Path, count: int = COUNT) -> StudentEstimates:
    vcm = load_pipeline("shapes-vcm")
    return draw_student_estimates(vcm.unet, vcm.vae, vcm.text_encoder, SCENES, count, 5, path)


@pytest.fixture(scope="module")
def estimates(tmp_path_factory: pytest.TempPathFactory) -> StudentEstimates:
    return _draw(tmp_path_factory.mktemp("estimates") / "estimates.safetensors")


@pytest.mark.slow
def test_estimates_from_low_noise_show_their_scene_more_often(estimates: StudentEstimates):
    scenes = [SCENES[index] for index in estimates.scene.tolist()]
    right = {
        side: sum(
            all(read_clip(clip.numpy()).matches(scene).values())
            for clip, scene in zip(getattr(estimates, side), scenes, strict=True)
        )
        for side in ("low_noise", "high_noise")
    }

    assert right["low_noise"] >= 0.8 * COUNT
    assert right["high_noise"] < right["low_noise"]


@pytest.mark.slow
def test_estimates_are_drawn_once_and_then_read(estimates: StudentEstimates, tmp_path: Path):
    first = _draw(tmp_path / "estimates.safetensors")
    before = (tmp_path / "estimates.safetensors").stat().st_mtime_ns

    again = _draw(tmp_path / "estimates.safetensors")

    assert torch.equal(first.high_noise, estimates.high_noise)  # same seed
    assert torch.equal(again.high_noise, first.high_noise)
    assert (tmp_path / "estimates.safetensors").stat().st_mtime_ns == before


def test_estimates_whose_writing_is_killed_leave_no_file(tmp_path: Path, monkeypatch):
    def kill(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", kill)
    with pytest.raises(KeyboardInterrupt):
        _draw(tmp_path / "estimates.safetensors", 1)

    assert not (tmp_path / "estimates.safetensors").exists()
