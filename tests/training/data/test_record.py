"""Recorded teacher outputs: those of the teacher, for the clip alone, and as a run expects them."""

import hashlib
import shutil
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch.testing import assert_close

from tests.kills.programs import kill_tree, start_program, wait_for
from training import build, distil
from training.build import load_teacher, teacher_card
from training.config import Config, load_config
from training.data.record import record
from training.data.shards import SETTINGS
from training.data.source import RECORDED, PreparedClips, open_data, stack_records
from training.settings import RecordedBatch
from turbo.diffusion.distillation import DistillationBatch, teacher_step
from turbo.diffusion.schedule import NoiseSchedule
from turbo.diffusion.teacher_cache import step_from_record
from turbo.networks.unet import VideoUNet
from turbo.types import EnergyScore

ROOT = Path(__file__).parents[3]
TINY = ROOT / "training/configs/tiny_v2.toml"
FAST = "teacher.grid_steps=4"


def config_of(out: Path, *changes: str) -> Config:
    return load_config(TINY, [f"run.out={out}", FAST, *changes])


def record_tiny(videos: Path, out: Path, *changes: str, passes: int = 1) -> None:
    config = config_of(out, f"data.folder={videos}", *changes)
    record(config, out, Accelerator(cpu=True), passes=passes, clips_per_shard=4)


@pytest.fixture(scope="module")
def recorded(videos, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recorded")
    record_tiny(videos, folder, passes=2)
    return folder


def open_record(folder: Path, out: Path, *changes: str) -> PreparedClips:
    config = config_of(out, f"data.record={folder}", *changes)
    clips = open_data(config, teacher_card(config))
    assert isinstance(clips, PreparedClips)
    return clips


def read(folder: Path, out: Path, *changes: str) -> RecordedBatch:
    """Return all videos in both passes."""
    clips = open_record(folder, out, *changes)
    passes = range(clips.shards.settings.passes)
    items = [clips.read(epoch, row) for epoch in passes for row in range(len(clips))]
    config = config_of(out)
    return stack_records(items, config.data, torch.device("cpu"), takes_fps=True)


@torch.no_grad()
def step_of(
    teacher: VideoUNet, schedule: NoiseSchedule, empty: torch.Tensor, drawn: RecordedBatch
) -> torch.Tensor:
    """Take the teacher's step, called anew, from where the record starts."""
    found = drawn.record
    batch = DistillationBatch(
        clean=found.noisy,
        noise=found.noisy,
        start=found.start,
        end=found.end,
        guidance_scale=torch.full_like(found.start, 7.5, dtype=torch.float32),
        prompt_embeds=found.prompt_embeds,
        uncond_embeds=empty.expand_as(found.prompt_embeds),
        fps=found.fps,
    )
    return teacher_step(teacher, schedule, found.noisy, batch)


def test_a_recorded_step_is_the_teachers(recorded, tmp_path):
    config, drawn = config_of(tmp_path), read(recorded, tmp_path)
    pipeline = load_teacher(teacher_card(config), config, torch.device("cpu"))
    empty = pipeline.text_encoder.encode([""])

    found = step_from_record(drawn.record, torch.full((12,), 7.5), pipeline.schedule)

    expected = step_of(pipeline.unet.eval(), pipeline.schedule, empty, drawn)
    assert_close(found.stepped, expected, rtol=1e-4, atol=1e-4)
    texts = [f"the video number {row}" for row in range(6)]
    embeds = pipeline.text_encoder.encode(texts).repeat(2, 1, 1)
    assert_close(drawn.record.prompt_embeds, embeds, rtol=1e-4, atol=1e-5)
    assert drawn.reward_prompts == [None, "video"] * 6


def test_the_noisiest_videos_have_the_gradient_of_the_energy(recorded, tmp_path):
    found = read(recorded, tmp_path).record

    noisy = found.start >= 500
    assert 0 < noisy.sum() < 12
    assert torch.equal(found.score.flatten(1).any(dim=1), noisy)


def test_every_video_and_pass_has_its_own_noise_and_timestep(recorded, tmp_path):
    found = read(recorded, tmp_path).record

    assert len(found.start.unique()) == 4
    assert torch.equal(found.end, (found.start - 250).clamp(min=0))  # 4 steps in the grid
    for one in range(12):
        for other in range(one):
            assert not torch.allclose(found.noisy[one], found.noisy[other], atol=0.1)


@pytest.mark.slow
def test_a_record_does_not_depend_on_the_videos_computed_beside_it(videos, recorded, tmp_path):
    record_tiny(videos, tmp_path, "run.micro_batch=2")

    ours, theirs = read(tmp_path, tmp_path).record, read(recorded, tmp_path).record

    assert torch.equal(ours.start, theirs.start[:6])
    for name in ("noisy", "cond", "uncond"):
        assert_close(getattr(ours, name), getattr(theirs, name)[:6], rtol=1e-3, atol=1e-3)
    assert (ours.score - theirs.score[:6]).norm() < 1e-2 * ours.score.norm()


@pytest.mark.parametrize(
    "change, message",
    [
        ("teacher.grid_steps=20", "grid_steps = 4"),
        ("motion.percentage=0.4", "percentage = 0.5"),
        ("motion.energy=other", "energy = 'motion'"),
        ("data.fps=4", "fps = 8"),
        ("data.conditioning_fps=nominal", "conditioning_fps = 'true'"),
    ],
)
def test_a_record_of_other_settings_is_refused(recorded, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        open_record(recorded, tmp_path, change)


def test_a_record_that_was_made_under_the_former_name_of_a_setting_is_read(recorded, tmp_path):
    former = shutil.copytree(recorded, tmp_path / "former")
    settings = former / SETTINGS
    settings.write_text(settings.read_text().replace("conditioning_fps", "told_fps"))

    assert len(open_record(former, tmp_path, "motion.strength=0", "student.lora_rank=2")) == 6


def test_a_run_without_motion_guidance_reads_the_same_record(recorded, tmp_path):
    assert len(open_record(recorded, tmp_path, "motion.strength=0", "student.lora_rank=2")) == 6


def test_an_energy_is_chosen_by_name_and_guides_the_videos_that_the_table_names(
    videos, tmp_path, monkeypatch
):
    class Brighter:
        """Where the teacher's guess is dark."""

        def __init__(self, teacher, schedule, timesteps, layers) -> None:
            self.teacher = teacher

        def __call__(self, noisy, clean, timesteps, prompt_embeds, fps) -> EnergyScore:
            return EnergyScore(0 * clean + 3, noisy[:, 0, 0, 0, 0], noisy)

    monkeypatch.setitem(build.ENERGIES, "brighter", Brighter)

    lines = (videos / "captions.csv").read_text().splitlines()
    flags = ["use_motion_guide", *["true", "false"] * 3]  # of every second video
    table = videos / "flags.csv"
    table.write_text("\n".join(f"{line},{flag}" for line, flag in zip(lines, flags, strict=True)))
    changes = ("motion.energy=brighter", "motion.percentage=1.0", "data.captions=flags.csv")

    record_tiny(videos, tmp_path, *changes)

    drawn = read(tmp_path, tmp_path, *changes)
    assert drawn.guided.tolist() == [True, False] * 3
    found = drawn.record
    assert (found.score[::2] == 3).all() and not found.score[1::2].any()
    assert torch.equal(found.cond[::2], found.noisy[::2])


def test_an_energy_that_is_not_there_is_refused(videos, tmp_path):
    with pytest.raises(ValueError, match="no energy 'none'. Choose from: motion"):
        record_tiny(videos, tmp_path, "motion.energy=none")


def test_outputs_that_are_not_finite_are_not_recorded(videos, tmp_path, monkeypatch):
    class Broken:
        def __init__(self, *inputs) -> None:
            pass

        def __call__(self, noisy, *inputs) -> EnergyScore:
            return EnergyScore(noisy / 0, noisy[:, 0, 0, 0, 0], noisy)

    monkeypatch.setitem(build.ENERGIES, "motion", Broken)

    with pytest.raises(FloatingPointError, match="score"):
        record_tiny(videos, tmp_path, "motion.percentage=1.0")
    assert not (tmp_path / "shards").exists()


@pytest.mark.slow
def test_half_precision_is_kept_as_published(videos, tmp_path):
    record_tiny(videos, tmp_path, "run.precision=bf16")

    tensors = open_record(tmp_path, tmp_path).read(0, 0).tensors

    assert {tensors[name].dtype for name in RECORDED} == {torch.float16}


@pytest.mark.slow
def test_a_student_is_trained_on_a_record(recorded, tmp_path):
    config = config_of(tmp_path, f"data.record={recorded}", "run.steps=2")

    folder = distil.run(config)

    assert (folder / "card.json").exists()


@pytest.mark.slow
def test_processes_that_were_killed_leave_the_record_of_one(videos, tmp_path):
    shared, alone = tmp_path / "shared", tmp_path / "alone"

    def start(out: Path, processes: int) -> BaseProcess:
        inputs = ["--clips-per-shard=1", f"data.folder={videos}", FAST]
        job = ["record", str(TINY), str(out), *inputs]
        return start_program("training.data", *job, processes=processes)

    jobs = start(shared, 2)
    while jobs.is_alive() and len([*shared.glob("shards/*.json")]) < 2:
        time.sleep(0.005)
    kill_tree(jobs)
    assert 2 <= len([*shared.glob("shards/*.json")]) < 6
    assert wait_for(start(shared, 2)) == 0
    assert wait_for(start(alone, 1)) == 0

    digests = [
        {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in (out / "shards").glob("*.*s*")}
        for out in (shared, alone)
    ]
    assert len(digests[0]) >= 12
    assert digests[1].items() <= digests[0].items()
