"""Simulated raters who vote as the judge does."""

import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from human_eval.cli.main import main as human_eval
from human_eval.definition.definition import load_definition
from human_eval.study.queries import read_votes
from human_eval.study.store import open_study
from tests.support.crowd import define_pair
from training.shapes.evaluation import judge_study
from training.shapes.evaluation.probes import read_shapes
from training.shapes.world.scenes import FPS, HELD_OUT_SCENES, draw_clip
from turbo.generate import main as generate
from turbo.video import Video

MINIATURE = Path(judge_study.__file__).parents[3] / "human_eval" / "simulated_miniature"


def test_clips_of_another_size_are_refused(tmp_path):
    other = Video(np.zeros((2, 64, 96, 3), np.uint8), FPS).save(tmp_path / "other.mp4")

    with pytest.raises(ValueError, match="96 x 64"):
        read_shapes(other)


@pytest.mark.slow
def test_the_scores_of_the_miniature_are_those_of_its_clips(tmp_path):
    """Up to the last bits of another processor, which a clear preference does not show."""
    [head, first, *_] = (MINIATURE / "prompts.csv").read_text().splitlines(keepends=True)
    (tmp_path / "prompts.csv").write_text(head + first)
    files = ["--definition", MINIATURE / "study.toml", "--prompts", tmp_path / "prompts.csv"]
    human_eval(list(map(str, ["create", tmp_path / "study", *files])))
    systems = load_definition(MINIATURE / "study.toml").systems
    names = ",".join(":".join(system.key.rsplit("-", 1)) for system in systems)
    generate(
        ["--prompts", str(tmp_path / "prompts.csv"), "--systems", names]
        + ["--out", str(tmp_path / "clips")]
    )
    human_eval(["ingest", str(tmp_path / "study"), str(tmp_path / "clips")])

    with closing(open_study(tmp_path / "study")) as store:
        again = judge_study.score_pairs(store)

    committed = pd.read_csv(MINIATURE / "scores.csv").query("prompt_index == 0")
    assert again["score"].to_numpy() == pytest.approx(committed["score"].to_numpy(), abs=0.03)


def test_simulated_raters_choose_the_clips_that_the_judge_prefers(tmp_path, monkeypatch):
    """The first system shows the prompts, the second one the next prompts."""
    scenes, rng = HELD_OUT_SCENES[:3], np.random.default_rng(0)
    for shift, system in enumerate(("ours", "theirs")):
        for number in range(3):
            clip = draw_clip(scenes[(number + shift) % 3], rng)
            Video(clip, FPS).save(tmp_path / "clips" / system / f"{number:04d}.mp4", enlarge=8)
    (tmp_path / "study.toml").write_text(define_pair("raters_per_pair = 3\n").source)
    (tmp_path / "prompts.txt").write_text("".join(f"{scene.caption()}\n" for scene in scenes))
    study, scores = tmp_path / "study", tmp_path / "scores.csv"
    files = ["--definition", tmp_path / "study.toml", "--prompts", tmp_path / "prompts.txt"]
    human_eval(list(map(str, ["create", study, *files])))
    human_eval(["ingest", str(study), str(tmp_path / "clips")])

    monkeypatch.setattr(sys, "argv", ["judge_study", str(study), "--out", str(scores)])
    judge_study.main()
    human_eval(["simulate", str(study), "--judge", str(scores), "--spread", "0"])

    assert pd.read_csv(scores)["score"].gt(0.95).all()
    store = open_study(study)
    assert read_votes(store, simulated=True)["choice"].eq("a").mean() > 0.8
    store.close()
