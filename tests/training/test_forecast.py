"""The forecast of memory, against what a training step allocates."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from training.build import build_fake, build_settings, build_student, teacher_card
from training.config import load_config
from training.distil import distil
from training.forecast import forecast
from training.loop import Slot
from training.settings import EncodedBatch, PromptBatch
from turbo.diffusion.consistency import few_step_timesteps
from turbo.diffusion.schedule import NoiseSchedule
from turbo.networks.families import VideoVAE
from turbo.networks.unet import VideoUNet

TINY = Path(__file__).parents[2] / "training" / "configs" / "tiny_vc2.toml"
DOWN, UP = "CrossAttnDownBlock3D", "CrossAttnUpBlock3D"
SIZES = {
    "tiny": {
        "block_out_channels": (32, 32),
        "down_block_types": (DOWN, "DownBlock3D"),
        "up_block_types": ("UpBlock3D", UP),
        "layers_per_block": 1,
    },
    "medium": {
        "block_out_channels": (64, 128, 128),
        "down_block_types": (DOWN, DOWN, "DownBlock3D"),
        "up_block_types": ("UpBlock3D", UP, UP),
    },
}


MATCHING = (
    "student.method=matching",
    "student.target_ema=0",
    "data.prompts=prompts.txt",
    "matching.lora_rank=4",
    "matching.warmup=1",
)


def forecast_and_peak(size: str, folder: Path, vae: VideoVAE, *changes: str) -> tuple[int, int]:
    """Return the bytes that a run was said to need, and the most that it had at once."""
    more = [f"run.out={folder}", "run.steps=2", "run.batch=1", "rewards=[]", *changes]
    config = load_config(TINY, more)
    card = replace(teacher_card(config), height=32, width=32, num_frames=16)
    shape = {**SIZES[size], "attention_head_dim": 8, "cross_attention_dim": 96}

    def draw(slot: Slot) -> EncodedBatch | PromptBatch:
        drawn: dict[str, Any] = {
            "reward_prompts": ["a cat"],
            "prompt_embeds": torch.randn(1, 77, 96, generator=slot.generator),
            "uncond_embeds": torch.zeros(1, 77, 96),
            "fps": torch.tensor([8]),
        }
        if config.data.prompts:
            return PromptBatch((4, 16, 16, 16), few_step_timesteps(4, 50), **drawn)
        latents = torch.randn(1, 4, 16, 16, 16, generator=slot.generator)
        return EncodedBatch(latents, **drawn)

    with profile(profile_memory=True, activities=[ProfilerActivity.CPU]) as profiled:
        teacher = VideoUNet(**shape, fps_conditioning=True).requires_grad_(False)
        student, fake = build_student(teacher, config), build_fake(teacher, config)
        settings = build_settings(config, NoiseSchedule.scaled_linear(), teacher)
        own = {"rewards": (), "vae": vae, "fake": fake}
        list(distil(teacher, student, draw, folder / "run", settings, **own))
    profiled.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    held = [e["args"]["Total Allocated"] for e in events if e.get("name") == "[memory]"]
    teacher.save_config(card.folder / card.unet)
    return forecast(config, card).memory, max(held) - held[0]


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_memory_is_what_was_forecast_and_falls_where_activations_are_recomputed(
    size, tmp_path, tiny_vae
):
    peaks = []
    for number, recompute in enumerate(("false", "true")):
        said, peak = forecast_and_peak(
            size, tmp_path / str(number), tiny_vae, f"run.recompute={recompute}"
        )
        assert said == pytest.approx(peak, rel=0.1)
        peaks.append(peak)

    assert peaks[1] < 0.6 * peaks[0]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 4])
def test_memory_of_distribution_matching_is_what_was_forecast(rank, tmp_path, tiny_vae):
    said, peak = forecast_and_peak(
        "medium", tmp_path, tiny_vae, *MATCHING, f"matching.lora_rank={rank}"
    )

    assert said == pytest.approx(peak, rel=0.1)


def test_the_work_of_own_samples_and_of_the_fake_is_counted(tmp_path):
    def work(*changes: str) -> int:
        config = load_config(TINY, [f"run.out={tmp_path}", *changes])
        return forecast(config, teacher_card(config)).step_flops

    one = work() / 6  # student 3, teacher 2, target 1
    assert work("data.prompts=prompts.txt") == pytest.approx(7.5 * one)  # 1.5 calls to a timestep
    assert work("data.prompts=prompts.txt", "data.sample_steps=1") == pytest.approx(6 * one)
    assert work(*MATCHING) == pytest.approx(9.5 * one)
    recompute = "run.recompute=true"
    assert work(*MATCHING, recompute) == pytest.approx(11.5 * one)


@pytest.mark.parametrize("part", ["teacher", "vae"])
def test_an_unknown_family_needs_the_configuration_of_each_part(part, tmp_path):
    config = load_config(TINY, [f"run.out={tmp_path}"])
    card = teacher_card(config)
    (card.folder / part / "config.json").unlink()

    with pytest.raises(ValueError, match=part):
        forecast(config, card)


def test_a_target_without_dropout_is_a_copy_of_what_is_trained(tmp_path):
    def optimiser(*changes: str) -> int:
        config = load_config(TINY, [f"run.out={tmp_path}", *changes])
        return forecast(config, teacher_card(config)).optimiser

    own, same = "student.target_ema=0.9", "student.target_ema=0"
    assert optimiser(same, "student.target_dropout=false") == optimiser(own) > optimiser(same)
