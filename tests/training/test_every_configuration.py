"""The committed configurations, on tiny networks and two processes: from videos to a clip."""

import json
from pathlib import Path

import pytest

from tests.kills.programs import start_program, wait_for
from training.config import Config, load_config
from training.export import student_card
from turbo.manifest import Manifest
from turbo.models.local import read_card
from turbo.video import load_video

ROOT = Path(__file__).parents[2]
ABLATIONS = {"ablation_ms_image", "ablation_vc2_video"}  # others differ from these in rewards alone
CONFIGS = sorted(
    path
    for path in (ROOT / "training" / "configs").glob("*.toml")
    if path.stem != "shapes_votes"  # of an embedded model: test_readme runs it
    and (not path.stem.startswith("ablation") or path.stem in ABLATIONS)
)
TINY = {"videocrafter2": "tiny-vc2", "modelscope": "tiny-ms", "wan2.1-1.3b": "tiny-wan"}
FRAMES = {"tiny-vc2": 4, "tiny-ms": 4, "tiny-wan": 9}
SYSTEMS = "systems"  # folder of links to the exported models, as in T2V_MODELS_DIR

pytestmark = pytest.mark.slow


def in_miniature(config: Config) -> list[str]:
    """Return the changes that replace the networks of a configuration by tiny random ones."""
    model = TINY.get(config.teacher.model, config.teacher.model)
    changes = [f"teacher.model={model}", "data.workers=1"]
    changes += ["run.steps=1", "run.batch=2", "run.micro_batch=1"]
    terms = []
    for reward in config.rewards:
        frames = min(reward.frames, FRAMES[model])
        window = f", window = {min(reward.window, FRAMES[model])}" if reward.window else ""
        terms.append(
            f'{{name = "brightness", weight = {reward.weight}, frames = {frames}, '
            f'select = "{reward.select}", window_at = "{reward.window_at}"{window}}}'
        )
    changes.append(f"rewards=[{', '.join(terms)}]")
    if config.takes_motion:
        layer = "up_blocks.1.temp_attentions.0.transformer_blocks.0.attn1"
        changes.append(f'motion.layers=["{layer}"]')
    return changes


@pytest.fixture(scope="module")
def runs(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the run of every configuration, and a clip of every student."""
    folder = tmp_path_factory.mktemp("runs")
    commands = [
        [str(path), f"data.folder={videos}", f"run.out={folder / path.stem}"]
        + in_miniature(load_config(path))
        for path in CONFIGS
    ]
    (folder / "runs.json").write_text(json.dumps(commands))
    (folder / SYSTEMS).mkdir()
    (folder / "prompts.txt").write_text("a cat\n")
    distil = start_program("tests.training.distil_all", str(folder / "runs.json"), processes=2)
    assert wait_for(distil, seconds=1200) == 0
    names = []
    for path in CONFIGS:
        name = load_config(path).name
        model = folder / path.stem / "models" / name
        if (model / "card.json").is_file():
            (folder / SYSTEMS / name).symlink_to(model)
            names.append(f"{name}:4")
    options = ["--prompts", str(folder / "prompts.txt"), "--systems", ",".join(names)]
    options += ["--out", str(folder / "clips")]
    models = {"T2V_MODELS_DIR": str(folder / SYSTEMS)}
    generate = start_program("turbo.generate", *options, variables=models)
    assert wait_for(generate, seconds=1200) == 0
    return folder


def test_every_configuration_ends_in_a_model_that_makes_a_clip(runs: Path, videos: Path):
    for path in CONFIGS:  # one test, since each process of pytest would repeat the runs
        check_run(path, runs, videos)


def check_run(path: Path, runs: Path, videos: Path) -> None:
    """Check the model, the clip and the log of a configuration."""
    config = load_config(path)
    folder = runs / path.stem

    card = read_card(folder / "models" / config.name)
    rows = Manifest(runs / "clips").rows()
    [clip] = [runs / "clips" / name for name, row in rows.items() if row["model"] == config.name]

    model = TINY.get(config.teacher.model, config.teacher.model)
    teacher = read_card(folder / "models" / model)
    expected = student_card(teacher, config, folder / "models" / config.name)
    assert (card.licence, card.origin_steps) == (config.licence, config.teacher.grid_steps)
    assert card.role == "student"
    assert (card.lora is None) == (config.student.lora_rank == 0)
    assert card.motion_strength == expected.motion_strength
    assert str(videos) not in (folder / "models" / config.name / "README.md").read_text()
    video = load_video(clip)
    enlarged = card.height * card.enlarge, card.width * card.enlarge, 3
    assert video.frames.shape == (card.num_frames, *enlarged)
    assert video.recipe["steps"] == 4
    assert video.recipe["model"] == config.name
    assert len((folder / "log.csv").read_text().split()) == 2  # one step, under the names
