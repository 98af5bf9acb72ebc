"""The training clips, encoded once."""

import os
from pathlib import Path

import pytest
import torch

from training.shapes.world.encoded_clips import encode_clips
from turbo.pipeline import load_pipeline


@pytest.fixture(scope="module")
def vae():
    return load_pipeline("shapes-teacher").vae


def test_clips_are_drawn_once_and_then_read(vae, tmp_path: Path):
    drawn = encode_clips(vae, 2, 0, tmp_path / "new" / "clips.safetensors")
    read = encode_clips(vae, 2, 1, tmp_path / "new" / "clips.safetensors")

    for name, tensor in vars(drawn).items():
        assert torch.equal(getattr(read, name), tensor)


def test_clips_whose_writing_is_killed_leave_no_file(vae, tmp_path: Path, monkeypatch):
    def kill(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", kill)
    with pytest.raises(KeyboardInterrupt):
        encode_clips(vae, 2, 0, tmp_path / "clips.safetensors")

    assert not (tmp_path / "clips.safetensors").exists()
