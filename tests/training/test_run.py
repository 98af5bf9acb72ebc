"""Whole distillations of tiny random teachers: from videos on disk to a model that makes clips."""

import json
import os
import shutil
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file
from torch.testing import assert_close

from tests.kills.programs import kill_tree, start_program, wait_for
from training import distil as command
from training.checkpoints import find_newest, load_checkpoint, load_newest, saved_checkpoints
from training.config import load_config
from training.forecast import describe_run
from turbo.models.local import read_card
from turbo.pipeline import VideoPipeline

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "training" / "configs"
KILLS = int(os.environ.get("KILLS", "3"))  # 20 before a release


def changes(videos: Path, out: Path, *more: str) -> list[str]:
    return [f"data.folder={videos}", f"run.out={out}", *more]


def losses(out: Path) -> list[str]:
    """Return step and loss of every row of the log, with all digits."""
    return [",".join(row.split(",")[:2]) for row in (out / "log.csv").read_text().split()[1:]]


slow = pytest.mark.slow


@slow
def test_the_trained_student_is_what_the_exported_model_computes(videos, tmp_path):
    config = load_config(
        CONFIGS / "tiny_vc2.toml", changes(videos, tmp_path, "run.steps=2", "run.learning_rate=0.1")
    )
    folder = command.run(config)

    exported = VideoPipeline.load(read_card(folder)).unet

    trained = load_newest(tmp_path / "checkpoints")["average"]
    name = "time_embedding.cond_proj.weight"
    assert trained[name].abs().sum() > 0
    assert_close(exported.state_dict()[name], trained[name])
    up, down = (trained[f"conv_in.lora_{side}.default.weight"].flatten(1) for side in ("B", "A"))
    base = VideoPipeline.load(read_card(tmp_path / "models" / "tiny-vc2")).unet.conv_in.weight
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


MATCHING = (
    "student.method=matching",
    "student.target_ema=0",
    "data.folder=",
    "data.prompts={videos}/captions.csv",
    "matching.lora_rank=4",
    "matching.warmup=1",
)
CONTINUOUS = ("student.method=continuous", "student.target_ema=0", "student.tangent_warmup=3")


@slow
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("tiny_vc2", ()),
        ("tiny_wan", ("run.steps=4",)),
        ("tiny_wan", ("run.steps=4", *CONTINUOUS)),
        ("tiny_vc2", MATCHING),
        ("tiny_wan", ("run.steps=4", *MATCHING)),
    ],
)
def test_a_run_that_is_stopped_continues_to_the_bit(name, more, videos, tmp_path, monkeypatch):
    tiny, more = CONFIGS / f"{name}.toml", [change.format(videos=videos) for change in more]
    command.run(load_config(tiny, changes(videos, tmp_path / "whole", *more)))
    add = command.Log.add

    def add_and_stop(log, stats) -> None:
        add(log, stats)
        if stats.step == 1:  # so that it is noticed in the second step, which is not saved yet
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(command.Log, "add", add_and_stop)
    with pytest.raises(SystemExit) as stopped:
        command.run(load_config(tiny, changes(videos, tmp_path / "stopped", *more)))
    monkeypatch.undo()

    assert stopped.value.code == 143
    assert [path.stem for path in saved_checkpoints(tmp_path / "stopped/checkpoints")] == [
        "00000002"
    ]
    command.run(load_config(tiny, changes(videos, tmp_path / "stopped", *more)))
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


def test_a_dry_run_downloads_no_data_set(capsys, monkeypatch):
    monkeypatch.setattr("training.data.hub.read_hub", lambda *_: pytest.fail("read"))

    command.main([str(CONFIGS / "tiny_vc2.toml"), "data.hub=someone/clips", "--dry-run"])

    assert "downloads at its start" in capsys.readouterr().out


@slow
@pytest.mark.parametrize("name", ["vc2", "modelscope", "v2"])
def test_a_published_configuration_is_forecast_without_its_weights(name):
    config = load_config(CONFIGS / f"{name}.toml")

    shown = describe_run(config)

    assert {"vc2": "trained: 117,187,232 parameters"}.get(name, "trained: ") in shown
    assert "set data.folder=PATH" in shown


@pytest.mark.parametrize(
    "change, message",
    [
        ("data.folder=nowhere", "captions"),
        ("teacher.model=shapes-turbo", "is a student"),
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


def kill_launcher(run: BaseProcess) -> None:
    """Kill the launcher of a run, and check that its processes end."""
    processes = psutil.Process(run.pid).children(recursive=True)
    run.kill()
    run.join()
    ended, running = psutil.wait_procs(processes, timeout=20)
    assert len(ended) >= 2 and running == []


def test_a_second_run_in_the_same_folder_is_refused(videos, tmp_path):
    config = load_config(CONFIGS / "tiny_vc2.toml", changes(videos, tmp_path))

    with FileLock(tmp_path / ".lock"), pytest.raises(ValueError, match="Another process writes"):
        command.run(config)


def test_a_run_ends_with_its_launcher(videos, tmp_path, monkeypatch):
    """In its own test, since what is left of a killed run may also end by itself."""
    watched = []
    monkeypatch.setattr(command, "exit_with_launcher", watched.append)

    with FileLock(tmp_path / ".lock"), pytest.raises(ValueError):
        command.run(load_config(CONFIGS / "tiny_vc2.toml", changes(videos, tmp_path)))

    assert watched == [1]  # the number of processes


@slow
def test_two_processes_take_the_step_of_one(videos, tmp_path):
    """Whether they score a micro-batch by every reward or by one."""
    tiny, runs = str(CONFIGS / "tiny_vc2.toml"), []
    for split in ("false", "true"):
        more = ("run.steps=1", "run.clip_norm=1e9", f"run.split_rewards={split}")
        command.run(load_config(Path(tiny), changes(videos, tmp_path / f"{split}1", *more)))
        runs.append([tiny, *changes(videos, tmp_path / f"{split}2", *more)])
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    together = start_program("tests.training.distil_all", str(tmp_path / "runs.json"), processes=2)
    assert wait_for(together) == 0

    for split in ("false", "true"):
        one, two = (gradients_of(tmp_path / f"{split}{processes}") for processes in (1, 2))
        assert sum(gradient.norm() for gradient in one.values()) > 0.1
        for index, gradient in one.items():
            assert_close(two[index], gradient, rtol=0, atol=1e-5)


def gradients_of(out: Path) -> dict[int, torch.Tensor]:
    """Return the gradients of a run's first step, of which AdamW keeps a tenth."""
    state = load_checkpoint(out / "checkpoints", 1)["optimizer"]["state"]
    return {index: moments["exp_avg"] / 0.1 for index, moments in state.items()}


@slow
def test_weights_divided_over_processes_take_the_same_steps_and_resume(videos, tmp_path):
    """Whether two processes or one continue a checkpoint of two."""
    settings = ("run.steps=2", "run.checkpoint_every=1", "run.weight_ema=0.9", "run.clip_norm=1e9")
    more = (*settings, "motion.strength=0", "student.target_ema=0.9", "run.recompute=true")
    tiny, sharded = str(CONFIGS / "tiny_v2.toml"), (*more, "run.shard=true")
    runs = [
        [tiny, *changes(videos, tmp_path / "copied", *more)],
        [tiny, *changes(videos, tmp_path / "sharded", *sharded)],
    ]
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    together = start_program("tests.training.distil_all", str(tmp_path / "runs.json"), processes=2)
    assert wait_for(together) == 0
    for out in ("two", "one"):
        (tmp_path / out / "checkpoints").mkdir(parents=True)
        shutil.copy(tmp_path / "sharded/checkpoints/00000001.pt", tmp_path / out / "checkpoints")
    settings = [tiny, *changes(videos, tmp_path / "two", *sharded)]
    assert wait_for(start_program("training.distil", *settings, processes=2)) == 0
    command.run(load_config(Path(tiny), changes(videos, tmp_path / "one", *sharded)))

    copied, divided = (gradients_of(tmp_path / out) for out in ("copied", "sharded"))
    assert len(divided) > 400
    norm = torch.stack([gradient.norm() for gradient in copied.values()]).norm()
    for index, gradient in copied.items():
        assert_close(divided[index] / norm, gradient / norm, rtol=0, atol=1e-5)
    first, second = (
        [float(row.split(",")[1]) for row in losses(tmp_path / out)]
        for out in ("copied", "sharded")
    )
    assert second == pytest.approx(first, abs=1e-4)
    assert losses(tmp_path / "two") == losses(tmp_path / "sharded")[1:]
    whole, again = (load_newest(tmp_path / out / "checkpoints") for out in ("sharded", "two"))
    for kind in ("trained", "average", "companions"):
        assert len(whole[kind]) == len(divided)
        for name, tensor in whole[kind].items():
            assert torch.equal(tensor, again[kind][name]), name
    assert float(losses(tmp_path / "one")[0].split(",")[1]) == pytest.approx(second[1], abs=1e-4)
    card = read_card(tmp_path / "sharded/models/tiny-v2-turbo")
    exported = VideoPipeline.load(card).unet.state_dict()
    assert all(torch.equal(exported[name], tensor) for name, tensor in whole["average"].items())


@slow
def test_two_processes_killed_at_any_moment_continue_to_the_bit(videos, tmp_path):
    """Killed together; at the last time the launcher alone, whose processes end with it."""
    more = (f"run.steps={4 * KILLS + 4}", "run.batch=2", "run.checkpoint_every=2")
    rng, out = np.random.default_rng(), tmp_path / "killed"

    def start(folder: Path) -> BaseProcess:
        arguments = [str(CONFIGS / "tiny_vc2.toml"), *more, *changes(videos, folder)]
        return start_program("training.distil", *arguments, processes=2)

    assert wait_for(start(tmp_path / "whole")) == 0
    for end in [kill_tree] * (KILLS - 1) + [kill_launcher]:
        saved = find_newest(out / "checkpoints")
        run = start(out)
        while find_newest(out / "checkpoints") == saved:  # it would repeat the start otherwise
            assert run.is_alive()
            time.sleep(0.05)
        step_seconds = float((out / "log.csv").read_text().split(",")[-1])
        time.sleep(rng.uniform(0, 2 * step_seconds))  # from one checkpoint to the next
        assert run.is_alive()
        end(run)
    assert wait_for(start(out)) == 0

    assert losses(out) == losses(tmp_path / "whole")
