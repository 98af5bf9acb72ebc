"""Whole distillations of tiny random teachers: from videos on disk to a model that makes clips."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file
from torch.testing import assert_close

from training import distil as command
from training.build import teacher_card
from training.checkpoints import load_newest, saved_checkpoints
from training.config import load_config
from training.forecast import describe_run, forecast
from turbo.models.local import read_card
from turbo.pipeline import load_card
from turbo.video import load_video

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "training" / "configs"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def changes(videos: Path, out: Path, *more: str) -> list[str]:
    return [f"data.folder={videos}", f"run.out={out}", *more]


def losses(out: Path) -> list[str]:
    """Return step and loss of every row of the log, with all digits."""
    return [",".join(row.split(",")[:2]) for row in (out / "log.csv").read_text().split()[1:]]


slow = pytest.mark.slow


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny_vc2", "tiny_ms", "tiny_v2", "tiny_wan"])
def test_a_configuration_runs_from_videos_to_a_model_that_makes_clips(name, videos, tmp_path):
    config = load_config(CONFIGS / f"{name}.toml", changes(videos, tmp_path, "run.steps=2"))

    folder = command.run(config)

    card = read_card(folder)
    video = load_card(card)("a cat", seed=1)
    assert video.frames.shape == (card.num_frames, card.height, card.width, 3)
    assert (card.role, card.origin_steps) == ("student", config.teacher.grid_steps)
    assert len(losses(tmp_path)) == 2
    assert str(videos) not in (folder / "README.md").read_text()


@slow
def test_the_trained_student_is_what_the_exported_model_computes(videos, tmp_path):
    config = load_config(
        CONFIGS / "tiny_vc2.toml", changes(videos, tmp_path, "run.steps=2", "run.learning_rate=0.1")
    )
    folder = command.run(config)

    exported = load_card(read_card(folder)).unet

    trained = load_newest(tmp_path / "checkpoints")["average"]
    name = "time_embedding.cond_proj.weight"
    assert trained[name].abs().sum() > 0
    assert_close(exported.state_dict()[name], trained[name])
    up, down = (trained[f"conv_in.lora_{side}.default.weight"].flatten(1) for side in ("B", "A"))
    base = load_card(read_card(tmp_path / "models" / "tiny-vc2")).unet.conv_in.weight
    assert_close(exported.conv_in.weight - base, (up @ down).view_as(base), atol=1e-6, rtol=1e-4)


@slow
def test_a_student_goes_on_from_another_by_its_own_samples(videos, tmp_path):
    tiny = CONFIGS / "tiny_vc2.toml"
    first = command.run(load_config(tiny, changes(videos, tmp_path / "first", "run.steps=2")))
    prompts = f"data.prompts={videos / 'captions.csv'}"
    more = [f"student.start={first}", "run.learning_rate=1e-12", f"run.out={tmp_path / 'more'}"]

    folder = command.run(load_config(tiny, [prompts, "data.sample_steps=2", "run.steps=2", *more]))

    started, ended = (load_file(at / "adapters/lora.safetensors") for at in (first, folder))
    assert any(tensor.abs().sum() > 0 for name, tensor in started.items() if "lora_B" in name)
    assert_close(ended, started, atol=1e-6, rtol=0)
    assert read_card(folder).default_steps == 2
    with pytest.raises(ValueError, match="rank of its adapters"):
        command.run(load_config(tiny, [prompts, "student.lora_rank=2", *more[:2], more[2] + "2"]))


@slow
def test_a_run_that_is_stopped_continues_to_the_bit(videos, tmp_path, monkeypatch):
    tiny = CONFIGS / "tiny_vc2.toml"
    command.run(load_config(tiny, changes(videos, tmp_path / "whole")))
    add = command.Log.add

    def add_and_stop(log, stats) -> None:
        add(log, stats)
        if stats.step == 1:  # so that it is noticed in the second step, which is not saved yet
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(command.Log, "add", add_and_stop)
    with pytest.raises(SystemExit) as stopped:
        command.run(load_config(tiny, changes(videos, tmp_path / "stopped")))
    monkeypatch.undo()

    assert stopped.value.code == 143
    assert [path.stem for path in saved_checkpoints(tmp_path / "stopped/checkpoints")] == [
        "00000002"
    ]
    command.run(load_config(tiny, changes(videos, tmp_path / "stopped")))
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    whole, again = (load_newest(tmp_path / n / "checkpoints") for n in ("whole", "stopped"))
    for kind in ("trained", "companions"):
        for name, tensor in whole[kind].items():
            assert torch.equal(tensor, again[kind][name]), name


@slow
def test_half_precision_keeps_what_is_trained_in_float32(videos, tmp_path):
    more = ("run.steps=1", "run.precision=bf16", "run.recompute=true")
    command.run(load_config(CONFIGS / "tiny_vc2.toml", changes(videos, tmp_path, *more)))

    trained = load_newest(tmp_path / "checkpoints")["trained"]

    assert {tensor.dtype for tensor in trained.values()} == {torch.float32}
    assert any(tensor.abs().sum() > 0 for name, tensor in trained.items() if "lora_B" in name)


def test_a_dry_run_says_what_a_run_would_need_and_trains_nothing(videos, tmp_path, capsys):
    arguments = [str(CONFIGS / "tiny_vc2.toml"), *changes(videos, tmp_path), "--dry-run"]

    command.main(arguments)

    shown = capsys.readouterr().out
    assert "6 videos, 0 of them missing" in shown
    assert not (tmp_path / "checkpoints").exists()


@slow
@pytest.mark.parametrize("name", ["vc2", "modelscope", "v2"])
def test_a_published_configuration_is_forecast_without_its_weights(name):
    config = load_config(CONFIGS / f"{name}.toml")

    found = forecast(config, teacher_card(config))

    assert {"vc2": 117_187_232}.get(name, found.trained) == found.trained
    assert "set data.folder=PATH" in describe_run(config)


@pytest.mark.parametrize(
    "change, message",
    [
        ("data.folder=nowhere", "captions"),
        ("teacher.model=shapes-turbo", "Expected a teacher"),
        ("teacher.model=none", "There is no model 'none'"),
        ("rewards=[{name='viclip', weight=1.0, frames=8, select='stride'}]", "ViCLIP"),
    ],
)
def test_a_run_that_cannot_start_is_refused_in_one_sentence(
    videos, tmp_path, change, message, capsys
):
    arguments = [str(CONFIGS / "tiny_vc2.toml"), *changes(videos, tmp_path), change]

    with pytest.raises(SystemExit):
        command.main(arguments)

    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def launch(processes: int, arguments: list[str]) -> subprocess.Popen[bytes]:
    """Start a run; `accelerate launch` starts several processes on accelerators alone."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.Popen(
        [sys.executable, *torchrun, "-m", "training.distil", *arguments],
        env=ENVIRONMENT,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def kill_tree(run: subprocess.Popen[bytes]) -> None:
    """Kill a run and its processes, which torchrun starts in sessions of their own."""
    tree = [*psutil.Process(run.pid).children(recursive=True), psutil.Process(run.pid)]
    for process in tree:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(tree)
    run.wait()


@slow
def test_the_processes_of_a_launcher_that_is_killed_end(videos, tmp_path):
    more = ("run.steps=10000", "run.checkpoint_every=5000")
    run = launch(2, [str(CONFIGS / "tiny_vc2.toml"), *more, *changes(videos, tmp_path)])
    try:
        for _ in range(600):
            if (tmp_path / "log.csv").exists():
                break
            time.sleep(0.2)
        processes = psutil.Process(run.pid).children(recursive=True)
        run.kill()
        ended, running = psutil.wait_procs(processes, timeout=20)
        assert len(ended) >= 2 and running == []
    finally:
        run.kill()
        run.wait()


def test_a_second_run_in_the_same_folder_is_refused(videos, tmp_path):
    config = load_config(CONFIGS / "tiny_vc2.toml", changes(videos, tmp_path))

    with FileLock(tmp_path / ".lock"), pytest.raises(ValueError, match="Another process writes"):
        command.run(config)


@slow
@pytest.mark.parametrize("split", ["false", "true"])
def test_two_processes_take_the_step_of_one(split, videos, tmp_path):
    more = ("run.steps=1", "run.clip_norm=1e9", f"run.split_rewards={split}")
    arguments = [str(CONFIGS / "tiny_vc2.toml"), *more]
    gradients = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        assert launch(processes, [*arguments, *changes(videos, out)]).wait(300) == 0
        state = load_newest(out / "checkpoints")["optimizer"]["state"]
        gradients.append({index: s["exp_avg"] / 0.1 for index, s in state.items()})

    one, two = gradients
    assert sum(gradient.norm() for gradient in one.values()) > 0.1
    for index, gradient in one.items():
        assert_close(two[index], gradient, rtol=0, atol=1e-5)


@slow
def test_two_processes_killed_at_any_moment_continue_to_the_bit(videos, tmp_path):
    more = ("run.steps=40", "run.batch=2", "run.checkpoint_every=3")
    arguments = [str(CONFIGS / "tiny_vc2.toml"), *more]
    assert launch(2, [*arguments, *changes(videos, tmp_path / "whole")]).wait(600) == 0
    rng, out, kills = np.random.default_rng(), tmp_path / "killed", 0

    for _ in range(20):
        run = launch(2, [*arguments, *changes(videos, out)])
        try:
            run.wait(rng.uniform(12, 22))
            break
        except subprocess.TimeoutExpired:
            kill_tree(run)
            kills += 1
    else:
        assert launch(2, [*arguments, *changes(videos, out)]).wait(600) == 0

    assert kills > 0
    assert losses(out) == losses(tmp_path / "whole")


@slow
def test_the_exported_model_is_one_of_the_commands_models(videos, tmp_path):
    config = load_config(CONFIGS / "tiny_vc2.toml", changes(videos, tmp_path, "run.steps=1"))
    folder = command.run(config)

    subprocess.run(
        [sys.executable, "-m", "turbo.generate", "a cat", "--model", config.name]
        + ["--out", str(tmp_path / "cat.mp4")],
        env=ENVIRONMENT | {"T2V_MODELS_DIR": str(folder.parent)},
        check=True,
    )

    assert load_video(tmp_path / "cat.mp4").recipe["model"] == config.name
