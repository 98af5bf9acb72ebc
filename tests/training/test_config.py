"""Configurations: what is refused, and that the committed ones say what the papers say."""

from pathlib import Path

import pytest
import torch

from training.build import build_settings, count_reward_frames, needed_rewards
from training.config import load_config
from turbo.models.registry import MODELS
from turbo.rewards.published import REWARDS

CONFIGS = Path(__file__).parents[2] / "training" / "configs"
TINY = CONFIGS / "tiny_vc2.toml"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_a_committed_configuration_names_models_and_rewards_that_exist(path: Path):
    config = load_config(path)

    assert path.stem.startswith("tiny") or config.teacher.model in MODELS
    assert {reward.name for reward in config.rewards} <= {*REWARDS, "brightness", "mine"}
    assert 1000 % config.teacher.grid_steps == 0


def test_only_a_reward_of_votes_says_itself_how_many_frames_it_scores(tmp_path: Path):
    [table] = load_config(CONFIGS / "shapes_votes.toml").rewards

    with pytest.raises(ValueError, match="frames"):
        count_reward_frames(table.model_copy(update={"folder": str(tmp_path)}))
    assert count_reward_frames(table.model_copy(update={"frames": 4})) == 4


def test_a_process_loads_the_rewards_of_its_micro_batches_alone():
    split = load_config(CONFIGS / "vc2.toml", ["run.split_rewards=true"])

    assert [needed_rewards(split, 8, rank) for rank in range(3)] == [{0}, {1}, {0}]
    assert needed_rewards(split, 1, 0) == {0, 1}
    assert needed_rewards(load_config(CONFIGS / "vc2.toml"), 8, 0) == {0, 1}
    with pytest.raises(ValueError, match="choose a larger run.batch"):
        load_config(CONFIGS / "vc2.toml", ["run.split_rewards=true", "run.batch=1"])


def test_the_distance_of_student_and_target_is_that_of_the_file(schedule, tiny_unet):
    error = torch.tensor([0.0, 0.5])

    for changes, expected in (((), 0.499001), (("student.distance=l2",), 0.25)):
        settings = build_settings(load_config(CONFIGS / "vc2.toml", changes), schedule, tiny_unet)
        assert settings.distance(error).tolist() == pytest.approx([0, expected], abs=1e-6)


def test_every_run_has_a_folder_and_a_model_of_its_own():
    configs = [load_config(path) for path in CONFIGS.glob("*.toml")]

    assert len({config.run.out for config in configs}) == len(configs)
    assert len({config.name for config in configs}) == len(configs)


def test_the_papers_mixtures():
    def mixture(name: str) -> dict[str, tuple[float, int]]:
        rewards = load_config(CONFIGS / f"{name}.toml").rewards
        return {reward.name: (reward.weight, reward.frames) for reward in rewards}

    assert mixture("vc2") == {"hpsv2.1": (1.0, 6), "internvideo2-f8": (2.0, 8)}
    assert mixture("modelscope") == {"hpsv2.1": (2.0, 6), "viclip": (3.0, 8)}
    assert mixture("vcm_vc2") == mixture("vcm_ms") == {}
    assert mixture("v2") == {
        "hpsv2.1": (0.2, 2),
        "clip-h": (0.2, 2),
        "internvideo2-f4": (0.5, 4),
    }


def test_a_configuration_that_extends_another_changes_only_what_it_says():
    base, other = load_config(CONFIGS / "vc2.toml"), load_config(CONFIGS / "vcm_vc2.toml")

    assert other.student == base.student and other.data == base.data
    assert other.run.model_copy(update={"out": base.run.out}) == base.run


def test_the_command_line_changes_single_values():
    config = load_config(TINY, ["run.steps=7", "data.folder=my videos", "teacher.guidance=[1, 2]"])

    assert config.run.steps == 7
    assert config.data.folder == "my videos"
    assert config.teacher.guidance == (1.0, 2.0)


@pytest.mark.parametrize(
    "change, key",
    [
        ("run.step=7", "run.step"),
        ("run.steps=many", "run.steps"),
        ("run.steps=0", "run.steps"),
        ("run.micro_batch=3", "run"),
        ("data.resize=stretch", "data.resize"),
        ("student=1", "student"),
        ("motion.strength=0.05", "motion.percentage"),
        ("name=../up", "name"),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_key(change, key):
    with pytest.raises(ValueError, match=f"{TINY}: {key}: "):
        load_config(TINY, [change])


@pytest.mark.parametrize("change", ["run.steps", "=3", "name.first=x"])
def test_a_change_that_is_none_is_refused(change):
    with pytest.raises(ValueError, match="table.key=value|not a table"):
        load_config(TINY, [change])


def test_a_file_that_is_missing_or_not_toml_is_refused(tmp_path: Path):
    (tmp_path / "wrong.toml").write_text("name = ")

    for name, message in (("none.toml", "cannot be read"), ("wrong.toml", "is not TOML")):
        with pytest.raises(ValueError, match=message):
            load_config(tmp_path / name)


@pytest.mark.parametrize(
    "change, message",
    [
        ("data.folder=videos", "set one"),
        ("motion={strength=500.0, percentage=0.5}", "needs videos"),
        ("data.rewards_on=short", "short_text"),
        ("data.sample_steps=51", "grid_steps"),
    ],
)
def test_prompts_in_place_of_videos_refuse_what_needs_videos(change: str, message: str):
    with pytest.raises(ValueError, match=message):
        load_config(TINY, ["data.prompts=prompts.txt", "student.lora_rank=0", change])
