"""The flywheel: studies, a reward of their votes, a student, and a comparison of it."""

import json
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest

from human_eval.reporting.export import read_export
from tests.kills.programs import start_program, wait_for
from training import flywheel
from training.flywheel import main, rate_height
from training.shapes.world.scenes import FPS, FRAMES, Scene, draw_background, draw_clip
from turbo.video import Video

SIZES = ["--pairs", "8", "--steps", "1", "--unseen", "3", "--processes", "1"]


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
