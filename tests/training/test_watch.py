"""The watch on a run: its rule, its clips and scores, and the stop at the best step."""

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from tests.training.test_run import CONFIGS, MATCHING, changes, losses
from training import distil as command
from training import watch as watching
from training.build import TRIALS
from training.config import Config, load_config
from training.watch import Evaluation, find_hacking, read_held_out
from turbo.models.local import read_card
from turbo.pipeline import VideoPipeline
from turbo.video import load_video

PROMPTS = ["a cat", "a dog", "a boat"]
TRIAL = ("run.checkpoint_every=1", "run.learning_rate=0.02", "run.steps=3", "run.batch=2")


def evaluations(*rows: tuple[float, float]) -> list[Evaluation]:
    """Evaluations with a mean reward and a mean of the judge; the prompts differ by up to 1."""
    return [
        Evaluation(
            100 * number,
            PROMPTS,
            [reward] * 3,
            {"judge": [judge - 1, judge + 0.01 * number, judge]},
        )
        for number, (reward, judge) in enumerate(rows, 1)
    ]


@pytest.mark.parametrize(
    "rows, best",
    [
        (((1, 5), (2, 6), (3, 4), (4, 3)), 200),
        (((1, 5), (2, 6), (3, 5.995), (3, 4), (4, 3)), 200),  # the last two evaluations count
        (((1, 5), (2, 6), (3, 4)), None),  # once is not enough
        (((1, 5), (2, 6), (3, 4), (4, 6)), None),  # it recovered
        (((1, 5), (2, 6), (3, 7), (4, 8)), None),
        (((1, 5), (4, 6), (3, 4), (2, 3)), None),  # both fall: no exploit
        (((1, 5), (2, 6), (3, 5.995), (4, 5.99)), None),  # within the error over the prompts
        ((), None),
    ],
)
def test_rewards_that_rise_while_a_judge_falls_are_found(rows, best):
    found = find_hacking(evaluations(*rows), patience=2)

    assert (found and found.step) == best


def test_any_judge_can_show_it():
    both = [
        Evaluation(entry.step, entry.prompts, entry.reward, {"calm": [1.0] * 3, **entry.judges})
        for entry in evaluations((1, 5), (2, 4))
    ]

    assert find_hacking(both, patience=1) == both[0]


def test_prompts_of_the_training_videos_are_no_held_out_prompts(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(PROMPTS))

    assert read_held_out(file, ["another"]) == PROMPTS
    with pytest.raises(ValueError, match="'a dog' is a caption"):
        read_held_out(file, ["a dog"])
    file.write_text("a cat")
    with pytest.raises(ValueError, match="at least 2 prompts"):
        read_held_out(file, [])


def test_blank_lines_are_no_held_out_prompts(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\n\n  \na dog\n")

    assert read_held_out(file, [""]) == ["a cat", "a dog"]
    file.write_text("a cat\n\n  \n")
    with pytest.raises(ValueError, match="at least 2 prompts"):
        read_held_out(file, [])


@pytest.mark.parametrize(
    "change, message",
    [
        ("watch.every=3", "multiple"),
        ("watch.judges=[{name='brightness', frames=1}]", "choose another judge"),
        ("watch.judges=[{name='viclip', frames=8}, {name='viclip', frames=8}]", "same name"),
        ("watch.stop=true", "needs a judge"),
        ("watch.judges=[{name='viclip', frames=8, weight=1}]", "Its keys are name, folder, frames"),
    ],
)
def test_a_watch_that_cannot_work_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        load_config(CONFIGS / "tiny_vc2.toml", ["watch.every=2", "watch.prompts=p.txt", change])


@pytest.fixture
def configure(videos: Path, tmp_path: Path):
    """Return a function that configures a tiny run with a watch of three prompts."""
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    watch = (
        *TRIAL,
        "watch.every=1",
        f"watch.prompts={tmp_path / 'prompts.txt'}",
        "watch.judges=[{name='contrast', frames=4}]",
        "watch.seed=7",
        "watch.patience=1",
    )

    def configure(name: str, *more: str):
        out = changes(videos, tmp_path / name)
        return load_config(CONFIGS / "tiny_vc2.toml", [*out, *watch, *more])

    return configure


def watch_of(config: Config) -> watching.Watch:
    """Return the watch of a run that takes no steps, on a teacher of clips of 4 frames."""
    rewards = [SimpleNamespace(**r.model_dump(), model=TRIALS[r.name]) for r in config.rewards]
    parts = SimpleNamespace(captions=[], rewards=rewards, card=SimpleNamespace(num_frames=4))
    return watching.Watch(parts, config, SimpleNamespace(device=torch.device("cpu")))


@pytest.mark.parametrize(
    "change, name",
    [
        ("watch.judges=[{name='contrast', frames=5}]", "contrast"),
        ("rewards=[{name='brightness', weight=1.0, frames=5}]", "brightness"),
    ],
)
def test_a_judge_or_reward_of_more_frames_than_a_clip_has_is_refused(change, name, configure):
    assert watch_of(configure("run")).judges["contrast"].frames == 4
    with pytest.raises(ValueError, match=name):
        watch_of(configure("run", change))


def test_scores_by_another_seed_or_another_judge_are_not_continued(configure, tmp_path):
    file, config = tmp_path / "run" / "watch.jsonl", configure("run")
    file.parent.mkdir()
    entry = Evaluation(1, PROMPTS, [1.0] * 3, {"contrast": [1.0] * 3}, watch_of(config).settings)
    file.write_text(json.dumps(asdict(entry)))

    assert watch_of(config)._read() == [entry]
    for change in (
        "watch.seed=8",
        "watch.judges=[{name='contrast', frames=2}]",
        "watch.judges=[{name='contrast', frames=4, folder='other'}]",
    ):
        with pytest.raises(ValueError, match="watch.jsonl"):
            watch_of(configure("run", change))


def test_scores_of_a_former_version_are_continued(configure, tmp_path):
    file = tmp_path / "run" / "watch.jsonl"
    file.parent.mkdir()
    row = {"step": 1, "prompts": PROMPTS, "reward": [1.0] * 3, "judges": {"contrast": [1.0] * 3}}
    file.write_text(json.dumps(row))

    assert watch_of(configure("run"))._read() == [Evaluation(**row)]


@pytest.mark.slow
@pytest.mark.parametrize("method", [(), MATCHING], ids=["discrete", "matching"])
def test_clips_have_true_labels_and_change_no_step(method, configure, videos, tmp_path):
    method = [change.format(videos=videos) for change in method]
    folder = command.run(configure("watched", *method))
    out = tmp_path / "watched"
    plain = changes(videos, tmp_path / "plain", *TRIAL, *method)
    command.run(load_config(CONFIGS / "tiny_vc2.toml", plain))

    assert losses(out) == losses(tmp_path / "plain")
    files = sorted((out / "samples").rglob("*.mp4"))
    assert [str(file.relative_to(out / "samples")) for file in files] == [
        f"{step:08d}/{index:03d}.mp4" for step in range(1, 4) for index in range(3)
    ]
    for file in files:
        recipe, index = load_video(file).recipe, int(file.stem)
        assert recipe["training_step"] == int(file.parent.name)
        assert recipe["prompt"] == PROMPTS[index]
        assert recipe["seed"] == 7 + index
    exported = VideoPipeline.load(read_card(folder))
    last = exported(PROMPTS[2], seed=9)  # the exported model makes the clip
    last.save(tmp_path / "last.mp4", enlarge=4)
    assert (load_video(tmp_path / "last.mp4").frames == load_video(files[-1]).frames).all()
    rows = [json.loads(line) for line in (out / "watch.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(len(row["reward"]) == len(row["judges"]["contrast"]) == 3 for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("method", [(), MATCHING], ids=["discrete", "matching"])
def test_a_run_stops_at_its_best_step_and_stays_stopped(
    method, configure, videos, tmp_path, monkeypatch
):
    more = ["run.steps=4", "watch.stop=true", *(c.format(videos=videos) for c in method)]
    scores = iter([[1, 3], [2, 5], [3, 4]])  # reward and judge of each evaluation
    current: list[list[float]] = []

    def score(self, video, prompt):
        if prompt == PROMPTS[0]:
            current[:] = [next(scores)]
        return current[0]

    monkeypatch.setattr(watching.Watch, "_score", score)
    folder, out = (
        command.run(configure("stopped", *more)),
        tmp_path / "stopped",
    )

    assert len(losses(out)) == 3  # of 4 steps
    assert [file.stem for file in (out / "best").iterdir()] == ["00000002"]
    best = load_file(out / "best" / "00000002.safetensors")
    assert "distilled in 2 steps of" in (folder / "README.md").read_text()
    exported = load_file(folder / "adapters" / "lora.safetensors")
    assert exported.keys() == best.keys()
    for name, weight in best.items():
        assert_close(exported[name], weight, rtol=0, atol=0)
    command.run(configure("stopped", *more))
    assert len(losses(out)) == 3
    assert "distilled in 2 steps of" in (folder / "README.md").read_text()


def test_scores_of_a_prompt_with_a_line_separator_are_read_again(tmp_path):
    watch = watching.Watch.__new__(watching.Watch)
    watch.out, watch.prompts, watch.judges = tmp_path, ["a cat\u2028runs", "a dog"], {}
    entry = Evaluation(100, watch.prompts, [1.0, 2.0], {})
    line = json.dumps(asdict(entry), ensure_ascii=False)
    (tmp_path / "watch.jsonl").write_text(f"{line}\n", encoding="utf-8")

    assert watch._read() == [entry]


@pytest.mark.slow
def test_an_evaluation_that_a_kill_prevented_is_made_up_for(configure, tmp_path):
    command.run(configure("run"))
    file = tmp_path / "run" / "watch.jsonl"
    whole = file.read_text()
    file.write_text("".join(whole.splitlines(keepends=True)[:-1]))

    command.run(configure("run"))

    assert file.read_text() == whole
    (tmp_path / "prompts.txt").write_text("a house\na tree")
    with pytest.raises(ValueError, match="other prompts"):  # their scores cannot be compared
        command.run(configure("run"))
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    with pytest.raises(ValueError, match="watch.jsonl"):
        command.run(configure("run", "watch.seed=8"))
