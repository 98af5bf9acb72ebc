"""Configurations: what is refused, and that the committed ones say what the papers say."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from training import distil as command
from training.build import (
    build_fake,
    build_model,
    build_reward,
    build_settings,
    build_student,
    count_reward_frames,
    draw_own_samples,
    is_temporal,
    load_start,
    load_teacher,
    needed_rewards,
    teacher_card,
)
from training.config import load_config
from training.data.source import told_rates
from training.distil import keep_settings, start_trackers
from training.export import export_student
from training.loop import FitConfig, Slot
from turbo.diffusion.consistency import embed_guidance_scale
from turbo.models.local import read_card, write_card
from turbo.models.registry import MODELS
from turbo.rewards.published import REWARDS
from turbo.rewards.vote_reward import CARD, VoteRewardCard
from turbo.types import Conditioning

CONFIGS = Path(__file__).parents[2] / "training" / "configs"
TINY = CONFIGS / "tiny_vc2.toml"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_a_committed_configuration_names_models_and_rewards_that_exist(path: Path):
    config = load_config(path)

    assert path.stem.startswith("tiny") or config.teacher.model in MODELS
    assert {reward.name for reward in config.rewards} <= {*REWARDS, "brightness", "mine"}
    assert 1000 % config.teacher.grid_steps == 0


def test_a_configuration_saved_on_windows_is_read_and_one_in_utf_16_refused(tmp_path: Path):
    path, content = tmp_path / "mine.toml", f'extends = "{TINY}"\n'
    path.write_text(content, encoding="utf-8-sig")
    assert load_config(path) == load_config(TINY)
    path.write_text(content, encoding="utf-16")

    with pytest.raises(ValueError, match="mine.toml"):
        load_config(path)


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


def test_a_step_has_the_settings_of_the_file(schedule, tiny_unet):
    run = {
        "steps": 7,
        "learning_rate": 0.5,
        "warmup": 3,
        "decay": 0.25,
        "weight_decay": 0.125,
        "betas": [0.5, 0.75],
        "clip_norm": 2.0,
        "weight_ema": 0.375,
        "max_spike": 9.0,
        "checkpoint_every": 11,
        "keep": 4,
        "seed": 13,
    }
    changes = [f"run.{name}={value}" for name, value in run.items()]
    changes += ["run.batch=6", "run.micro_batch=2", "run.split_rewards=true", "run.recompute=true"]
    changes += ["student.target_ema=0.625", "student.target_dropout=false"]
    changes += ["student.timestep_scaling=2.5", "run.optimizer=adamw8bit"]
    changes += ["student.temporal_rate=0.0625", "teacher.guidance=[2, 3]", "teacher.grid_steps=20"]

    settings = build_settings(load_config(TINY, changes), schedule, tiny_unet)

    ema, betas = run.pop("weight_ema"), tuple(run.pop("betas"))
    assert settings.fit == FitConfig(**run, ema=ema, betas=betas, slots=3, eight_bit=True)
    assert settings.timestep_scaling == 2.5
    assert (settings.split_rewards, settings.recompute) == (True, True)
    assert (settings.target_ema, settings.target_dropout) == (0.625, False)
    assert settings.grid.stride == 50
    drawn = settings.draw_guidance(1000, torch.Generator())
    assert 2 <= drawn.min() < 2.1 and 2.9 < drawn.max() < 3
    transformer = "up_blocks.1.temp_attentions.0.proj_in.weight"
    assert settings.rate_factor(transformer) == 0.0625 and settings.rate_factor("conv_in") == 1


def test_temporal_transformers_have_their_own_rate_and_temporal_convolutions_do_not():
    assert is_temporal("transformer_in.proj_in.weight")
    assert is_temporal("mid_block.temp_attentions.0.norm.weight")
    assert not is_temporal("mid_block.temp_convs.0.conv1.0.weight")
    assert not is_temporal("mid_block.attentions.0.norm.weight")


def test_the_energy_compares_the_layers_of_the_file(schedule, tiny_unet):
    layers = "motion.layers=['up_blocks.1.temp_attentions.0.transformer_blocks.0.attn1']"

    settings = build_settings(load_config(CONFIGS / "v2.toml", [layers]), schedule, tiny_unet)

    assert settings.motion.energy.layers == (layers.split("'")[1],)


def test_adapters_drop_out_and_leave_out_layers_as_the_file_says(tiny_unet):
    changes = ["student.lora_dropout=0.5", "student.lora_skip=['conv_in', 'conv_out']"]

    student = build_student(tiny_unet, load_config(TINY, changes))

    adapters = [name for name, _ in student.named_modules() if name.endswith("lora_B.default")]
    assert adapters and not any(name.startswith("conv_") for name in adapters)
    layer = student.get_submodule("time_embedding.linear_1.lora_B.default").train()
    torch.nn.init.ones_(layer.weight)
    dropped = layer(torch.ones(100, layer.in_features)) == 0
    assert 0.4 < dropped.float().mean() < 0.6


def export(tmp_path: Path, name: str, *changes: str) -> str:
    """Export an untrained student of a tiny teacher; return its folder as a setting of a run."""
    config, folder = (
        load_config(CONFIGS / f"{name}.toml", [f"run.out={tmp_path}", *changes]),
        (tmp_path / "start"),
    )
    card = teacher_card(config)
    teacher = load_teacher(card, config, torch.device("cpu")).unet
    export_student(
        SimpleNamespace(card=card, student=build_student(teacher, config)), config, folder, 1
    )
    return f"student.start={folder}"


def voted(tmp_path: Path, *, simulated: bool) -> str:
    """Write the card of a reward that was trained on votes; return the rewards of a run."""
    folder = tmp_path / "mine"
    folder.mkdir()
    card = VoteRewardCard(
        backbones={}, num_frames=2, questions=["Q1"], primary="Q1", title="", simulated=simulated
    )
    (folder / CARD).write_text(json.dumps(asdict(card)))
    return f'rewards=[{{ name = "mine", folder = "{folder}", weight = 1.0 }}]'


@pytest.mark.parametrize("simulated", [True, False])
def test_a_model_card_says_whether_the_votes_of_its_reward_were_simulated(tmp_path, simulated):
    export(tmp_path, "tiny_vc2", voted(tmp_path, simulated=simulated))

    assert ("SIMULATED" in (tmp_path / "start" / "README.md").read_text()) == simulated


def test_a_student_that_starts_from_one_of_simulated_votes_is_marked_too(tmp_path):
    start = export(tmp_path, "tiny_vc2", voted(tmp_path, simulated=True))

    folder = tmp_path / "next"
    folder.mkdir()
    export(folder, "tiny_vc2", start)

    assert read_card(folder / "start").simulated_votes
    assert "SIMULATED" in (folder / "start" / "README.md").read_text()


def test_a_reward_of_another_number_of_frames_is_refused_before_the_first_step():
    with pytest.raises(ValueError, match="shapes-video scores 8 frames"):
        build_model("shapes-video", None, 6, torch.device("cpu"), half=False)


def test_a_run_says_once_that_the_votes_of_a_reward_were_simulated(tmp_path, monkeypatch, capsys):
    def stop(config: object, accelerator: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(command, "build_parts", stop)
    config = load_config(TINY, [f"run.out={tmp_path}", voted(tmp_path, simulated=True)])

    with pytest.raises(InterruptedError):
        command.run(config)

    assert capsys.readouterr().out.count("SIMULATED") == 1


def start(tmp_path: Path, name: str, *changes: str) -> None:
    """Start a student of a tiny teacher from another one."""
    config = load_config(CONFIGS / f"{name}.toml", [f"run.out={tmp_path}", *changes])
    card = teacher_card(config)
    teacher = load_teacher(card, config, torch.device("cpu")).unet
    load_start(build_student(teacher, config), card, config)


@pytest.mark.parametrize("adapted", ["", "'conv_in', 'conv_out'"])
def test_a_start_with_adapters_of_other_layers_is_refused_with_the_layers_to_skip(
    tmp_path, adapted
):
    given = export(tmp_path, "tiny_vc2", "student.lora_skip=['conv_in']")

    with pytest.raises(ValueError, match=r"student.lora_skip to \['conv_in'\]"):
        start(tmp_path, "tiny_vc2", given, f"student.lora_skip=[{adapted}]")
    start(tmp_path, "tiny_vc2", given, "student.lora_skip=['conv_in']")


@pytest.mark.parametrize("rank", [2, 8])
def test_a_start_with_adapters_of_another_rank_is_refused_with_its_rank(tmp_path, rank):
    given = export(tmp_path, "tiny_vc2")

    with pytest.raises(ValueError, match="student.lora_rank to 4"):
        start(tmp_path, "tiny_vc2", given, f"student.lora_rank={rank}")
    start(tmp_path, "tiny_vc2", given, "student.lora_rank=0")


def test_a_start_without_adapters_is_continued_without_them_alone(tmp_path):
    given = export(tmp_path, "tiny_vc2", "student.lora_rank=0")

    with pytest.raises(ValueError, match="student.lora_rank to 0"):
        start(tmp_path, "tiny_vc2", given)
    start(tmp_path, "tiny_vc2", given, "student.lora_rank=0")


@pytest.mark.parametrize("rank", [0, 4])
def test_a_start_that_takes_no_guidance_scale_is_refused(tmp_path, rank):
    card = teacher_card(load_config(CONFIGS / "tiny_wan.toml", [f"run.out={tmp_path}"]))
    write_card(
        replace(card, name="plain", role="student", sampler="consistency"), tmp_path / "plain"
    )
    changes = f"student.start={tmp_path / 'plain'}", f"student.lora_rank={rank}"

    with pytest.raises(ValueError, match="condition_embedder.time_embedder.cond_proj.weight"):
        start(tmp_path, "tiny_wan", *changes)


@pytest.mark.parametrize("rank", [0, 4])
def test_a_start_that_takes_the_motion_strength_is_continued_with_it_alone(tmp_path, rank):
    given = export(tmp_path, "tiny_v2")

    with pytest.raises(ValueError, match="motion.strength"):
        start(tmp_path, "tiny_v2", given, "motion.strength=0", f"student.lora_rank={rank}")
    start(tmp_path, "tiny_v2", given)


def test_a_start_that_takes_no_motion_strength_is_continued_without_it_alone(tmp_path):
    given = export(tmp_path, "tiny_v2", "motion.strength=0")

    with pytest.raises(ValueError, match="motion.strength"):
        start(tmp_path, "tiny_v2", given)
    start(tmp_path, "tiny_v2", given, "motion.strength=0")


def test_rewards_select_the_frames_as_the_file_says():
    tables = load_config(TINY).rewards

    rewards = [
        build_reward(table, torch.device("cpu"), half=False, recompute=False, load=True)
        for table in tables
    ]

    assert [table.select for table in tables] == ["random", "stride"]
    apart = [
        {int(reward.select(16, 2, torch.Generator().manual_seed(s)).diff()) for s in range(9)}
        for reward in rewards
    ]
    assert len(apart[0]) > 1 and apart[1] == {8}


@pytest.mark.parametrize("told, rates", [("true", [12, 15]), ("nominal", [16, 16])])
def test_a_network_is_told_the_true_rates_or_the_nominal_one(told, rates):
    data = load_config(TINY, [f"data.conditioning_fps='{told}'", "data.fps=16"]).data
    clips = [SimpleNamespace(fps=12.0), SimpleNamespace(fps=14.99)]

    assert told_rates(clips, data, torch.device("cpu")).tolist() == rates


def test_prompts_come_once_an_epoch_each():
    prompts, seen = [f"prompt {number}" for number in range(6)], []
    encoder = SimpleNamespace(encode=lambda texts: torch.zeros(len(texts), 5, 16))
    unet = SimpleNamespace(takes_fps=True)
    pipeline = SimpleNamespace(text_encoder=encoder, unet=unet, latent_shape=(4, 3, 4, 4))
    config = load_config(TINY, ["data.prompts=prompts.txt", "run.micro_batch=2"])

    draw = draw_own_samples(prompts, pipeline, config, torch.device("cpu"))
    for step in range(6):
        batch = draw(Slot(step, 0, 1, True, torch.Generator()))
        seen += batch.reward_prompts
        assert batch.fps.tolist() == [8, 8]

    assert all(sorted(seen[first : first + 6]) == prompts for first in (0, 6))
    assert len({tuple(seen[first : first + 6]) for first in (0, 6)}) > 1


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


def test_configurations_that_extend_each_other_are_refused(tmp_path):
    (tmp_path / "first.toml").write_text('extends = "second.toml"')
    (tmp_path / "second.toml").write_text('extends = "first.toml"')

    with pytest.raises(ValueError, match="extends itself"):
        load_config(tmp_path / "first.toml")


@pytest.mark.parametrize(
    "line, key",
    [("student = false", "student"), ("motion = 1", "motion"), ("extends = 1", "extends")],
)
def test_a_file_with_a_value_in_place_of_a_table_or_name_is_refused_by_its_key(tmp_path, line, key):
    path, extends = tmp_path / "mine.toml", f'extends = "{CONFIGS / "tiny_v2.toml"}"\n'
    path.write_text(line if key == "extends" else extends + line)

    with pytest.raises(ValueError, match=f"mine.toml: {key}"):
        load_config(path)


@pytest.mark.parametrize(
    "path", sorted(CONFIGS.glob("ablation_*.toml")), ids=lambda path: path.stem
)
def test_an_ablation_changes_the_rewards_alone(path: Path):
    base = "vc2.toml" if "vc2" in path.stem else "modelscope.toml"
    ablation, whole = (
        config.model_dump(exclude={"name": True, "title": True, "rewards": True, "run": {"out"}})
        for config in (load_config(path), load_config(CONFIGS / base))
    )

    assert load_config(path).rewards != load_config(CONFIGS / base).rewards
    assert ablation == whole


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
        ("teacher.guidance=[15, 5]", "teacher.guidance"),
        ("teacher.guidance=[5, nan]", "teacher.guidance"),
        ("teacher.guidance=[[5], 15]", "teacher.guidance.0"),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_key(change, key):
    with pytest.raises(ValueError, match=f"{TINY}: {key}: "):
        load_config(TINY, [change])


@pytest.mark.parametrize(
    "changes, message",
    [
        ([], "lora_rank = 0"),
        (["student.lora_rank=0", "data.prompts=p.txt"], "needs videos"),
        (["student.lora_rank=0", "run.optimizer=adamw8bit"], "run.optimizer"),
    ],
)
def test_weights_that_cannot_be_divided_over_processes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        load_config(TINY, ["run.shard=true", *changes])


@pytest.mark.parametrize(
    "name, changes, key",
    [
        ("tiny_wan", [], "target_ema"),
        ("tiny_wan", ["student.target_ema=0", "student.target_dropout=false"], "target_dropout"),
        ("tiny_wan", ["student.target_ema=0", "data.record=recorded"], "data.record"),
        ("tiny_wan", ["student.target_ema=0", "student.distance=l2"], "distance"),
        ("tiny_wan", ["student.target_ema=0", "student.kappa=0.1"], "kappa"),
        ("tiny_wan", ["student.target_ema=0", "student.timestep_scaling=1.0"], "timestep_scaling"),
        ("tiny_v2", ["student.target_ema=0"], r"\[motion\]"),
        (
            "tiny_wan",
            ["student.target_ema=0", "student.lora_rank=0", "run.shard=true"],
            "run.shard",
        ),
    ],
)
def test_a_continuous_method_refuses_what_it_cannot_use(name, changes, key):
    with pytest.raises(ValueError, match=key):
        load_config(CONFIGS / f"{name}.toml", ["student.method=continuous", *changes])


MATCHING = ["student.method=matching", "student.target_ema=0", "data.prompts=prompts.txt"]

FAKE = ["matching.lora_rank=4", "matching.warmup=1"]


@pytest.mark.parametrize(
    "changes, key",
    [
        (["student.target_ema=0.9"], "target_ema"),
        (["student.distance=l2"], "distance"),
        (["data.prompts="], "data.prompts"),
        (["data.folder=videos", *FAKE], "data.prompts"),
        ([], "matching.lora_rank"),
        ([*FAKE, "matching.rate=0"], "matching.rate"),
        ([*FAKE, "matching.decay=0"], "lora_rank, rate"),
        ([*FAKE, "run.steps=1"], "matching.warmup"),
        ([*FAKE, "student.method=discrete"], "student.method"),
    ],
)
def test_matching_refuses_what_it_cannot_use(changes, key):
    with pytest.raises(ValueError, match=key):
        load_config(TINY, [*MATCHING, *changes])


def test_the_fake_has_the_weights_of_the_teacher_and_trains_its_adapters_or_all(tiny_unet):
    for rank in (0, 4):
        config = load_config(TINY, [*MATCHING, *FAKE, f"matching.lora_rank={rank}"])
        fake = build_fake(tiny_unet, config)

        inputs = torch.randn(1, 4, 3, 4, 4), torch.tensor([500]), torch.randn(1, 5, 16)
        guidance = Conditioning(guidance=embed_guidance_scale(torch.tensor([3.0])))
        assert_close(fake(*inputs, guidance), tiny_unet(*inputs))
        trained = [name for name, weight in fake.named_parameters() if weight.requires_grad]
        new = ("lora", "cond_proj")
        assert trained and (rank == 0 or all(any(n in name for n in new) for name in trained))
        assert not any(weight.requires_grad for weight in tiny_unet.parameters())
        shared = {weight.data_ptr() for weight in tiny_unet.parameters()}
        assert all((w.data_ptr() in shared) != w.requires_grad for w in fake.parameters())


def test_a_discrete_method_refuses_the_warmup_of_the_continuous_one():
    with pytest.raises(ValueError, match="tangent_warmup"):
        load_config(TINY, ["student.tangent_warmup=10"])


def test_a_continuous_method_needs_a_flow_matching_teacher(schedule, tiny_unet):
    config = load_config(TINY, ["student.method=continuous", "student.target_ema=0"])

    with pytest.raises(ValueError, match="flow-matching"):
        build_settings(config, schedule, tiny_unet)


def test_a_run_can_divide_what_is_trained(schedule, tiny_unet):
    config = load_config(CONFIGS / "tiny_v2.toml", ["run.shard=true"])

    assert build_settings(config, schedule, tiny_unet).shard


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


@pytest.mark.parametrize(
    "change, key",
    [
        ("rewards=[]", "rewards"),
        ("student.temporal_rate=9.0", "student.temporal_rate"),
        ("data.fps=4", "data.fps"),
        ("run.seed=5", "run.seed"),
        ("data.folder= data.prompts=x.txt", "data.folder"),
    ],
)
def test_a_run_of_other_settings_is_not_continued(tmp_path, change, key):
    changes = [f"run.out={tmp_path}", "data.folder=videos"]
    reward = 'rewards=[{name="brightness", weight=1.0}]'
    keep_settings(load_config(TINY, [*changes, reward]))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "00000001.pt").touch()

    keep_settings(load_config(TINY, [*changes, reward, "run.keep=9", "data.folder=moved"]))
    with pytest.raises(ValueError, match=key):
        keep_settings(load_config(TINY, [*changes, reward, *change.split()]))


def test_a_tracker_that_is_not_installed_is_refused(tmp_path, monkeypatch):
    config = load_config(TINY, [f"run.out={tmp_path}", 'run.trackers=["wandb"]'])
    monkeypatch.setattr("training.distil.get_available_trackers", list)

    with pytest.raises(ValueError, match="wandb"):
        start_trackers(config, SimpleNamespace())


def test_trackers_get_the_settings_as_numbers_and_texts(tmp_path, monkeypatch):
    config = load_config(TINY, [f"run.out={tmp_path}", 'run.trackers=["wandb"]'])
    available = [SimpleNamespace(value="wandb")]
    monkeypatch.setattr("training.distil.get_available_trackers", lambda: available)
    given = {}

    start_trackers(
        config, SimpleNamespace(init_trackers=lambda name, settings: given.update(settings))
    )

    assert given["run.steps"] == config.run.steps
    assert all(isinstance(value, int | float | str) for value in given.values())
