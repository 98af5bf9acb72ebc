"""The flywheel: studies, a reward of their votes, a student, and a comparison of it."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from human_eval.reporting.export import read_export
from tests.kills.programs import start_program, wait_for
from training import flywheel
from training.flywheel import main, rate_height
from training.shapes.world.scenes import FPS, FRAMES, Scene, draw_background, draw_clip
from turbo.video import Video

RIGHT = ("right, student", "right, turbo", "right, difference")
SIZES = ["--pairs", "8", "--steps", "1", "--unseen", "3", "--processes", "1"]


@pytest.fixture
def instant(monkeypatch):
    """Let every stage take no time; a test sees which studies were held."""

    def hold_study(study: Path, *rest: object) -> Path:
        study.mkdir(parents=True, exist_ok=True)
        return study

    share = {"mean": 0.5, "low": 0.25, "high": 0.75}
    stages = {
        "generate": lambda *arguments, **settings: None,
        "hold_study": hold_study,
        "train_reward": lambda arguments: None,
        "distil": lambda name, start, folder, *rest: str(folder / "run" / "models" / name),
        "measure_wins": lambda export: share,
        "measure_right": lambda *arguments: dict.fromkeys(RIGHT, share),
    }
    for name, stage in stages.items():
        monkeypatch.setattr(flywheel, name, stage)


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
    with pytest.raises(SystemExit, match="unseen, got 195"):
        main(["--out", str(tmp_path), "--unseen", "195"])

    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "name, value",
    [
        ("BASELINE", "shapes-vcm"),
        ("CHANGES", ()),
        ("CROWD", replace(flywheel.CROWD, raters=41)),
        ("FAKE_WARMUP", 61),
        ("LIKING", 0.4),
        ("OTHER_SEEDS", 1),
        ("SHIPPED_REWARDS", ""),
        ("STUDENT_CONFIG", Path(__file__)),
        ("STUDY", f"{flywheel.STUDY}\n"),
        ("VOTE_WEIGHT", 2.0),
    ],
)
def test_a_folder_that_was_made_with_other_settings_is_refused(
    tmp_path, monkeypatch, instant, name, value
):
    out = str(tmp_path / "flywheel")
    main(["--out", out, *SIZES])
    main(["--out", out, *SIZES])

    monkeypatch.setattr(flywheel, name, value)
    with pytest.raises(SystemExit, match="Name another folder"):
        main(["--out", out, *SIZES])


def test_a_folder_that_does_not_say_its_settings_is_refused(tmp_path, instant):
    (tmp_path / "sizes.json").write_text("{}")

    with pytest.raises(SystemExit, match="Name another folder"):
        main(["--out", str(tmp_path), *SIZES])


@pytest.mark.slow
def test_a_turn_ends_with_marked_results_and_is_not_taken_again(tmp_path, monkeypatch):
    def run(command: list[str], env: dict[str, str], check: bool) -> None:
        assert wait_for(start_program(*command[2:], variables=env)) == 0

    forked = SimpleNamespace(run=run, CalledProcessError=subprocess.CalledProcessError)
    monkeypatch.setattr(flywheel, "subprocess", forked)
    out = tmp_path / "flywheel"
    main(["--out", str(out), *SIZES])

    [turn] = json.loads((out / "results.json").read_text())
    assert {"planted taste", "opposite taste", "right, difference"} <= set(turn)
    assert turn["planted taste"]["votes"] == 12
    for study in ("votes", "planted", "opposite"):
        votes, _ = read_export(out / "turn-1" / study / "export")
        assert votes["simulated"].all()
    assert json.loads((out / "turn-1" / "mine" / "reward.json").read_text())["simulated"]

    kept = {file: file.stat().st_mtime for file in out.rglob("*.mp4")}
    main(["--out", str(out), *SIZES])
    assert {file: file.stat().st_mtime for file in out.rglob("*.mp4")} == kept
    with pytest.raises(SystemExit, match="Name another folder"):
        main(["--out", str(out), *SIZES, "--pairs", "9"])
