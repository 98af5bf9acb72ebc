"""The flywheel: studies, a reward of their votes, a student, and a comparison of it."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from filelock import FileLock

from human_eval.errors import StudyError
from human_eval.reporting.export import read_export
from tests.kills.programs import start_program, wait_for
from training.flywheel import __main__ as command
from training.flywheel import settings, stages
from training.flywheel.__main__ import main
from training.flywheel.results import measure_reward, measure_right, measure_wins
from training.flywheel.studies import crowd_seed, hold_study, rate_height, write_lines
from training.reward.measurements import Measured
from training.shapes.world.scenes import (
    FPS,
    FRAMES,
    HELD_OUT_SCENES,
    Scene,
    draw_background,
    draw_clip,
)
from turbo.models.registry import find_card
from turbo.rewards.vote_reward import VoteRewardCard
from turbo.video import Video

SIZES = ["--pairs", "8", "--steps", "1", "--unseen", "3", "--processes", "1"]


@pytest.fixture
def instant(monkeypatch):
    """Let every stage take no time. Return the seeds of the raters of the studies."""
    seeds = []

    def hold_study(study: Path, prompts: Path, clips: object, liking: float, turn: int) -> Path:
        study.mkdir(parents=True, exist_ok=True)
        seeds.append(crowd_seed(study.name, turn))
        return study

    share = {"mean": 0.5, "low": 0.25, "high": 0.75}
    instantly = {
        "generate": lambda *arguments, **named: None,
        "hold_study": hold_study,
        "train_reward": lambda arguments: None,
        "distil": lambda name, start, folder, *rest: str(folder / "run" / "models" / name),
        "measure_reward": lambda folder: {},
        "measure_wins": lambda export: share,
        "measure_right": lambda export, system, scenes: {
            f"right, {key}": share for key in (system, "turbo", "difference")
        },
    }
    monkeypatch.setattr(settings, "START", settings.BASELINE)  # whose weights are there
    for name, stage in instantly.items():
        monkeypatch.setattr(command, name, stage)
    return seeds


def test_raters_of_either_taste_dislike_a_clip_without_a_sprite(tmp_path):
    still = draw_clip(Scene("red", "heart", "standing still", "white"), np.random.default_rng(0))
    empty = np.tile(draw_background("white"), (FRAMES, 1, 1, 1))
    clips = {"higher": np.roll(still, -4, axis=1), "lower": still, "empty": empty}
    for name, clip in clips.items():
        Video(clip, FPS).save(tmp_path / f"{name}.mp4", enlarge=8)

    def rate(name: str, liking: float) -> float:
        return rate_height(tmp_path / f"{name}.mp4", liking)

    assert rate("higher", 0.3) - rate("lower", 0.3) == pytest.approx(4 * 0.3, abs=0.1)
    assert rate("lower", -0.3) - rate("higher", -0.3) == pytest.approx(4 * 0.3, abs=0.1)
    assert rate("empty", 0.3) < rate("lower", 0.3)
    assert rate("empty", -0.3) < rate("higher", -0.3)


def test_more_unseen_prompts_than_there_are_scenes_are_refused(tmp_path):
    with pytest.raises(SystemExit, match="--unseen"):
        main(["--out", str(tmp_path), "--unseen", "195"])

    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("low, better", [(0.01, True), (-0.01, False), (None, False)])
def test_the_results_say_what_the_reward_is_worth(tmp_path, low, better):
    measured = Measured(
        votes=40, ties=0, accuracy=0.53, low=0.41, high=0.65, note="", raters=0.6,
        calibration_error=0.1, loss=0.6, loss_without=0.69, gain_low=low, gain_high=0.1,
    )  # fmt: skip
    card = VoteRewardCard(
        backbones={},
        num_frames=8,
        questions=["Q1"],
        primary="Q1",
        title="",
        simulated=True,
        measured={"Q1": asdict(measured)},
    )
    (tmp_path / "reward.json").write_text(json.dumps(asdict(card)))

    found = measure_reward(tmp_path)

    share = {"mean": 0.53, "low": 0.41, "high": 0.65, "votes": 40}
    assert found["reward, held-out accuracy"] == share
    assert found["reward, shown to be better than ignoring the clips"] == better


@pytest.mark.parametrize("name", ["--steps", "--turns", "--processes"])
def test_a_number_below_one_is_refused_before_anything_is_written(tmp_path, name):
    with pytest.raises(SystemExit, match=name):
        main(["--out", str(tmp_path / "flywheel"), *SIZES, name, "0"])

    assert not [*tmp_path.iterdir()]


def test_fewer_turns_than_were_taken_keep_the_results_of_all(tmp_path, instant):
    def turns() -> int:
        return len(json.loads((tmp_path / "flywheel" / "results.json").read_text())["turns"])

    out = ["--out", str(tmp_path / "flywheel"), *SIZES]
    main([*out, "--turns", "2"])
    assert turns() == 2

    main([*out, "--turns", "1"])
    assert turns() == 2


def test_a_folder_in_which_another_process_works_is_refused(tmp_path, instant):
    with (
        FileLock(tmp_path / ".lock", thread_local=False),
        pytest.raises(SystemExit, match="Another process"),
    ):
        main(["--out", str(tmp_path), *SIZES])


def fail(error: BaseException) -> Callable[..., None]:
    def stage(*arguments: object, **named: object) -> None:
        raise error

    return stage


@pytest.mark.parametrize(
    "stage, error",
    [
        ("generate", subprocess.CalledProcessError(1, ["python", "-m", "turbo.generate"])),
        ("train_reward", SystemExit("python -m training.reward: too few votes")),
        ("hold_study", SystemExit(2)),
    ],
)
def test_after_a_failed_stage_the_same_command_continues(
    tmp_path, monkeypatch, instant, stage, error
):
    out = ["--out", str(tmp_path / "flywheel"), *SIZES]
    with monkeypatch.context() as broken:
        broken.setattr(command, stage, fail(error))
        with pytest.raises(SystemExit, match="same command again continues"):
            main(out)

    main(out)


@pytest.mark.parametrize("error", [StudyError("No pairs are left."), OSError("The disk is full.")])
def test_an_error_of_a_study_or_a_disk_is_one_message(tmp_path, monkeypatch, instant, error):
    monkeypatch.setattr(command, "hold_study", fail(error))

    with pytest.raises(SystemExit, match=str(error)):
        main(["--out", str(tmp_path / "flywheel"), *SIZES])


def test_results_that_cannot_be_written_leave_the_former_ones(tmp_path, monkeypatch, instant):
    out = tmp_path / "flywheel"
    main(["--out", str(out), *SIZES])
    kept = {name: (out / name).read_bytes() for name in ("results.json", "flywheel.svg")}

    monkeypatch.setattr(os, "fsync", fail(OSError("The disk is full.")))
    with pytest.raises(SystemExit):
        main(["--out", str(out), *SIZES, "--turns", "2"])

    assert {name: (out / name).read_bytes() for name in kept} == kept


@pytest.mark.parametrize(
    "name, value",
    [
        ("BASELINE", "shapes-vcm"),
        ("CHANGES", ()),
        ("START", "shapes-vcm"),
        ("CROWD", replace(settings.CROWD, raters=41)),
        ("FAKE_WARMUP", 61),
        ("LIKING", 0.4),
        ("OTHER_SEEDS", 1),
        ("SHIPPED_REWARDS", ""),
        ("STUDENT_CONFIG", Path(__file__)),
        ("STUDIES", settings.STUDIES | {"votes": 3}),
        ("STUDY", f"{settings.STUDY}\n"),
        ("VOTE_WEIGHT", 2.0),
    ],
)
def test_a_folder_that_was_made_with_other_settings_is_refused(
    tmp_path, monkeypatch, instant, name, value
):
    out = str(tmp_path / "flywheel")
    main(["--out", out, *SIZES])
    main(["--out", out, *SIZES])

    monkeypatch.setattr(settings, name, value)
    with pytest.raises(SystemExit, match="Name another folder"):
        main(["--out", out, *SIZES])


def test_a_folder_that_does_not_say_its_settings_is_refused(tmp_path, instant):
    (tmp_path / "sizes.json").write_text("{}")

    with pytest.raises(SystemExit, match="Name another folder"):
        main(["--out", str(tmp_path), *SIZES])


def draw_clips(folder: Path, prompted: Sequence[Scene], drawn: Sequence[Scene]) -> Path:
    """Write a clip for the prompt of each scene, which shows another one; return the folder."""
    folder.mkdir()
    rows = ["path,prompt"]
    for number, (scene, shown) in enumerate(zip(prompted, drawn, strict=True)):
        clip = draw_clip(shown, np.random.default_rng(number))
        Video(clip, FPS).save(folder / f"{number:04d}.mp4", enlarge=8)
        rows.append(f'{number:04d}.mp4,"{scene.caption()}"')
    (folder / "manifest.csv").write_text("\n".join(rows))
    return folder


def hold(tmp_path: Path, scenes: Sequence[Scene], clips: dict[str, Path]) -> Path:
    """Hold a study of the planted taste; return its export."""
    prompts = write_lines(tmp_path / "unseen.txt", [scene.caption() for scene in scenes])
    return hold_study(tmp_path / "planted", prompts, clips, settings.LIKING, turn=1)


def test_raters_of_equal_clips_prefer_neither_system(tmp_path):
    """In expectation each rater chooses either with probability 1/2; the votes are drawn once."""
    scenes = HELD_OUT_SCENES[:20]
    folder = draw_clips(tmp_path / "clips", scenes, scenes)

    won = measure_wins(hold(tmp_path, scenes, {"student": folder, "turbo": folder}))

    assert settings.CROWD.rater_spread == 0
    assert won["votes"] == 80
    assert won["low"] < 0.5 < won["high"]


def test_every_study_has_raters_of_its_own(tmp_path, instant):
    main(["--out", str(tmp_path / "flywheel"), *SIZES, "--turns", "2"])

    assert len(set(instant)) == len(instant) == 8


def test_the_control_is_compared_once_by_raters_of_both_tastes(tmp_path, instant):
    main(["--out", str(tmp_path), *SIZES, "--turns", "2"])

    results = json.loads((tmp_path / "results.json").read_text())
    assert results["simulated"]
    assert {"planted taste", "opposite taste", "right, control"} <= set(results["control"])
    assert len(results["turns"]) == 2
    assert {path.name for path in (tmp_path / "control").iterdir()} == {"planted", "opposite"}


def test_a_control_without_weights_is_refused_before_a_stage(tmp_path, monkeypatch, instant):
    card = replace(find_card("shapes-vcm"), lora="missing")
    monkeypatch.setattr(settings, "find_card", lambda name: card)

    with pytest.raises(SystemExit, match="shapes-vcm"):
        main(["--out", str(tmp_path), *SIZES])

    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_equal_clips_leave_a_difference_possible(tmp_path):
    scenes = HELD_OUT_SCENES[:4]
    folder = draw_clips(tmp_path / "clips", scenes, scenes)

    export = hold(tmp_path, scenes, {"student": folder, "turbo": folder})

    difference = measure_right(export, "student", scenes)["right, difference"]
    assert difference["low"] < difference["mean"] == 0 < difference["high"]


def test_the_clips_that_raters_saw_are_measured(tmp_path):
    scenes = HELD_OUT_SCENES[:3]
    right = draw_clips(tmp_path / "right", scenes, scenes)
    wrong = draw_clips(tmp_path / "wrong", scenes, scenes[1:] + scenes[:1])

    export = hold(tmp_path, scenes, {"student": right, "turbo": wrong})
    shutil.rmtree(wrong)

    measured = measure_right(export, "student", scenes)
    assert measured["right, student"]["mean"] == 1
    assert measured["right, turbo"]["mean"] == 0


def test_two_clips_of_a_system_for_one_prompt_are_refused(tmp_path):
    scenes = HELD_OUT_SCENES[:2]
    folder = draw_clips(tmp_path / "clips", scenes, scenes)
    export = hold(tmp_path, scenes, {"student": folder, "turbo": folder})
    table = export / "clips.csv"
    rows = table.read_text().splitlines()
    table.write_text("\n".join([*rows, rows[-1]]))

    with pytest.raises(ValueError, match="one clip"):
        measure_right(export, "student", scenes)


@pytest.mark.slow
def test_a_turn_ends_with_marked_results_and_is_not_taken_again(tmp_path, monkeypatch):
    def run(command: list[str], env: dict[str, str], check: bool) -> None:
        assert wait_for(start_program(*command[2:], variables=env)) == 0

    forked = SimpleNamespace(run=run, CalledProcessError=subprocess.CalledProcessError)
    monkeypatch.setattr(stages, "subprocess", forked)
    monkeypatch.setattr(settings, "FAKE_WARMUP", 1)
    out = tmp_path / "flywheel"
    main(["--out", str(out), *SIZES])

    results = json.loads((out / "results.json").read_text())
    [turn] = results["turns"]
    assert results["simulated"]
    for compared in (results["control"], turn):
        assert {"planted taste", "opposite taste", "right, difference"} <= set(compared)
        assert compared["planted taste"]["votes"] == 12
    assert turn["reward, held-out accuracy"]["votes"] > 0
    studies = [*out.glob("*/*/export")]
    assert len(studies) == 5
    assert all(read_export(study)[0]["simulated"].all() for study in studies)
    assert json.loads((out / "turn-1" / "mine" / "reward.json").read_text())["simulated"]
    student = out / "turn-1" / "run" / "models" / "flywheel-1"
    assert "SIMULATED" in (student / "README.md").read_text()

    kept = {file: file.stat().st_mtime for file in out.rglob("*.mp4")}
    main(["--out", str(out), *SIZES])
    assert {file: file.stat().st_mtime for file in out.rglob("*.mp4")} == kept
    with pytest.raises(SystemExit, match="Name another folder"):
        main(["--out", str(out), *SIZES, "--pairs", "9"])
