"""The evaluation: same prompts for every system, cached clips, tables and figures."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.special import expit

from tests.support.tiny_models import make_unet
from training.shapes.__main__ import Folders, evaluate_systems
from training.shapes.evaluation import measurements, systems
from training.shapes.evaluation.evaluate import SHEET_ROWS, evaluate
from training.shapes.evaluation.figures import draw_contact_sheet, plot_runs, plot_systems
from training.shapes.evaluation.judge import JUDGE_SCENES, Judge
from training.shapes.evaluation.measurements import measure_systems
from training.shapes.evaluation.report import (
    build_report,
    check_claims,
    check_runs,
    compare_systems,
    find_deviations,
    format_report,
)
from training.shapes.evaluation.reward_hacking import find_snapshots, measure_runs
from training.shapes.evaluation.systems import (
    CHUNK,
    REAL,
    RealClips,
    Samples,
    System,
    held_out_prompts,
    load_system,
    tuning_prompts,
    with_further_runs,
)
from training.shapes.world.flaws import PIXEL_FLAWS
from training.shapes.world.scenes import HELD_OUT_SCENES, TEMPLATES
from turbo.models.registry import WEIGHTS, find_card
from turbo.networks.lora import LORA_FILE, add_lora, save_lora

SHAPES = WEIGHTS / "shapes"


@dataclass(frozen=True)
class CorruptedClips:
    """A system without a network: real clips with one flaw."""

    label: str
    flaw: str
    run: int = 1

    def make(self, prompts, weights, cache) -> Samples:
        real = RealClips(self.label, salt=5).make(prompts, weights, cache)
        rng = np.random.default_rng(0)
        clips = [
            PIXEL_FLAWS[self.flaw](clip, prompt.scene, rng)
            for clip, prompt in zip(real.clips, prompts, strict=True)
        ]
        ones = np.ones(len(clips))
        return replace(real, clips=np.stack(clips), seconds=ones, unet_calls=4 * ones)


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> measurements.Measurements:
    """Two thirds of a round of prompts; nothing is sampled."""
    sources = (
        CorruptedClips("teacher-50", "vanishing"),
        CorruptedClips("teacher-50 ODE", "vanishing"),
        CorruptedClips("VCM-4", "watermark"),
        *(RealClips("Turbo-4", salt=6 + 10 * run, run=run) for run in (1, 2, 3)),
        RealClips("Turbo-8", salt=7),
        REAL,
    )
    prompts = held_out_prompts(48)[::2]
    folder = tmp_path_factory.mktemp("none")
    bright = {"bright": lambda frames, captions: frames.mean(dim=(1, 2, 3, 4))}
    return measure_systems(sources, prompts, folder, folder, rewards=bright, workers=1)


@pytest.fixture(scope="module")
def report(measured):
    return build_report(measured)


def test_prompts_are_held_out_and_change_their_wording_each_round():
    prompts = held_out_prompts(2 * len(HELD_OUT_SCENES))

    assert {prompt.scene for prompt in prompts} == set(HELD_OUT_SCENES)
    assert [prompt.seed for prompt in prompts] == list(range(len(prompts)))
    first, second = prompts[0], prompts[len(HELD_OUT_SCENES)]
    assert first.caption == first.scene.caption(TEMPLATES[0])
    assert second.caption == first.scene.caption(TEMPLATES[1])


def test_settings_are_chosen_on_prompts_that_the_evaluation_and_the_judge_never_saw():
    tuning = tuning_prompts(48)

    assert len({prompt.scene for prompt in tuning}) == 48
    assert not {prompt.scene for prompt in tuning} & {*HELD_OUT_SCENES, *JUDGE_SCENES}
    assert not {p.seed for p in tuning} & {p.seed for p in held_out_prompts(600)}


def test_a_system_loads_the_weights_of_the_given_folder(tmp_path: Path):
    system = System("VCM-4", "shapes-vcm", 4)

    assert system.card(tmp_path).folder == tmp_path
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        system.make(held_out_prompts(1), tmp_path, tmp_path / "cache")


def test_other_adapters_replace_those_of_the_card():
    system = System("VCM+R_img-4", "shapes-vcm", 4, lora="vcm-image")

    assert system.card(SHAPES).lora == "vcm-image"
    assert replace(system, lora=None).card(SHAPES).lora != "vcm-image"


def test_clips_are_kept_by_all_that_made_them(monkeypatch, tmp_path: Path):
    made = []
    monkeypatch.setattr(systems, "load_system", lambda *_: None)

    def sample(system, prompts, pipeline) -> Samples:
        made.append(system)
        return RealClips("").make(prompts, SHAPES, tmp_path)

    monkeypatch.setattr(System, "_sample", sample)
    prompts, one_step = held_out_prompts(2), System("teacher", "shapes-teacher", 1)

    first = one_step.make(prompts, SHAPES, tmp_path)
    again = replace(one_step, label="of another name").make(prompts, SHAPES, tmp_path)
    np.testing.assert_array_equal(first.clips, again.clips)
    assert len(made) == 1

    replace(one_step, steps=2).make(prompts, SHAPES, tmp_path)
    replace(one_step, guidance=5.0).make(prompts, SHAPES, tmp_path)
    one_step.make(prompts[:1], SHAPES, tmp_path)
    other = tmp_path / "weights"
    (other / "teacher").mkdir(parents=True)
    (other / "teacher" / "new.safetensors").write_bytes(b"new")
    one_step.make(prompts, other, tmp_path)
    assert len(made) == 5


@pytest.mark.slow
def test_a_clip_sampled_in_a_batch_is_the_pipelines_own(tmp_path: Path):
    system, prompts = System("teacher", "shapes-teacher", 2), held_out_prompts(2)

    samples = system.make(prompts, SHAPES, tmp_path)

    alone = load_system(system, SHAPES)(prompts[1].caption, seed=prompts[1].seed, steps=2)
    # A batch rounds otherwise: one level of 256 at most.
    np.testing.assert_allclose(samples.clips[1].astype(int), alone.frames.astype(int), atol=1)
    assert list(samples.unet_calls) == [4, 4]


@pytest.mark.slow
def test_two_processes_measure_as_one_does(measured, tmp_path: Path):
    prompts = held_out_prompts(2 * CHUNK)
    alone, shared = (
        measure_systems((REAL,), prompts, tmp_path, tmp_path, workers=workers) for workers in (1, 2)
    )

    pd.testing.assert_frame_equal(alone.rows, shared.rows)
    np.testing.assert_array_equal(alone.features["real"], shared.features["real"])


@pytest.mark.slow
def test_every_system_is_measured_on_the_same_prompts(measured):
    by_system = measured.rows.groupby("system")

    assert by_system.size().to_dict() == {label: 24 for label in by_system.groups} | {"Turbo-4": 72}
    assert measured.rows.groupby(["system", "run"])["prompt"].apply(tuple).nunique() == 1
    assert measured.rows["reward_bright"].between(0, 1).all()
    assert len(measured.features["real"]) == 24
    assert len(measured.real_features) == 4 * 24


def test_real_clips_show_all_and_have_no_flaw(report):
    real = report["systems"]["real"]

    assert real["all"]["mean"] == 100
    assert real["all"]["low"] < 100  # 24 clips prove no more
    assert real["watermark"]["mean"] == 0
    assert real["motion, % of real"]["mean"] == pytest.approx(100)
    assert "seconds" not in real


def test_flaws_are_found_and_cost_votes(report):
    found, pairs = report["systems"], report["pairs"]

    assert found["VCM-4"]["watermark"]["mean"] > 90
    assert found["VCM-4"]["network calls"] == 4
    assert found["teacher-50"]["motion"]["mean"] < 50
    assert found["VCM-4"]["frechet"] > found["real"]["frechet"]
    vote = pairs["Turbo-4 vs VCM-4"]["preference"]
    assert vote["low"] > 50 and vote["p"] < 0.05
    missing = pairs["Turbo-4 vs VCM-4"]["watermark"]
    assert missing["high"] < 0 and missing["mcnemar_p"] < 0.001


def test_a_single_run_is_compared_with_each_run_of_the_other(measured):
    tables = dict(tuple(measured.rows.assign(clean=True).groupby("system")))
    three, one = tables["Turbo-4"], tables["VCM-4"]
    scores = three.pivot(index="seed", columns="run", values="judge")
    theirs = one.set_index("seed")["judge"]

    votes = compare_systems(three, one)["preference"]
    reversed_votes = compare_systems(one, three)["preference"]

    assert votes["clips"] == 72
    assert votes["mean"] == pytest.approx(100 * expit(scores.sub(theirs, axis=0)).values.mean())
    assert reversed_votes["mean"] == pytest.approx(100 - votes["mean"])
    assert reversed_votes["high"] == pytest.approx(100 - votes["low"])


def test_systems_of_other_prompts_or_runs_are_not_compared(measured):
    tables = dict(tuple(measured.rows.assign(clean=True).groupby("system")))
    two = tables["Turbo-4"].query("run < 3")

    with pytest.raises(ValueError, match="same prompts"):
        compare_systems(two, tables["Turbo-4"])
    with pytest.raises(ValueError, match="same prompts"):
        compare_systems(tables["VCM-4"].iloc[1:], tables["Turbo-8"])


def test_further_runs_are_compared_once_their_adapters_are_there(tmp_path: Path):
    assert with_further_runs(systems.SYSTEMS, tmp_path) == systems.SYSTEMS

    (tmp_path / "runs/3/vcm-image").mkdir(parents=True)
    (tmp_path / "runs/3/vcm-image" / LORA_FILE).touch()

    (added,) = set(with_further_runs(systems.SYSTEMS, tmp_path)) - set(systems.SYSTEMS)
    assert (added.label, added.run) == ("VCM+R_img-4", 3)
    assert added.card(tmp_path).lora == "runs/3/vcm-image"


def add_runs(weights: Path, *students: str) -> None:
    for student in students:
        (weights / "runs" / student).mkdir(parents=True)
        (weights / "runs" / student / LORA_FILE).touch()


@pytest.mark.parametrize(
    "students",
    [
        (),
        ("2/turbo", "3/turbo"),
        ("2/turbo", "3/turbo", "2/vcm", "3/vcm"),
        ("2/vcm-image", "3/vcm-image", "2/vcm-video"),  # not compared with each other
    ],
)
def test_systems_of_one_run_or_of_the_same_runs_are_compared(tmp_path: Path, students):
    add_runs(tmp_path, *students)

    check_runs(with_further_runs(systems.SYSTEMS, tmp_path))


@pytest.mark.parametrize(
    "students",
    [
        ("2/turbo", "2/vcm", "3/vcm"),  # stopped in the third run
        ("2/turbo", "3/turbo", "2/vcm"),  # stopped in the second run, beside those shipped
        ("2/turbo", "3/vcm"),
    ],
)
def test_systems_of_different_runs_are_refused_before_clips_are_made(tmp_path: Path, students):
    add_runs(tmp_path, *students)

    with pytest.raises(SystemExit, match="stage runs"):
        evaluate_systems(Folders(tmp_path / "runs of training", tmp_path))


def test_claims_are_met_by_better_clips_and_not_by_worse_ones(report):
    met = {(claim["claim"], claim["bar"]): claim["met"] for claim in report["claims"]}
    assert met[("Turbo-4 beats VCM-4", "judge: interval above 50 %")]
    assert met[("Turbo: 8 steps are no worse than 4", "judge: 50 % or more within the interval")]
    about_teachers = [name for name in met if "50 steps" in name[0]]
    assert len(about_teachers) == 8  # 4 and 8 steps, two samplers, two bars
    assert all(met[name] for name in about_teachers)

    turned = json.loads(json.dumps(report))
    for sampler in ("teacher-50", "teacher-50 ODE"):
        for estimate in turned["pairs"][f"Turbo-4 vs {sampler}"].values():
            estimate["low"] = estimate["high"] = estimate["mean"] = -10
    turned["systems"]["Turbo-4"]["motion, % of real"]["mean"] = 40
    failed = [c["claim"] for c in check_claims(turned) if not c["met"]]
    assert len(failed) == 5


def test_the_two_teachers_differ_in_the_noise_of_their_sampler_alone():
    fresh, ode = (find_card(name) for name in ("shapes-teacher", "shapes-teacher-ode"))

    assert (fresh.eta, ode.eta) == (1.0, 0.0)
    assert replace(ode, name=fresh.name, title=fresh.title, eta=fresh.eta) == fresh


def test_a_report_is_json_and_every_table_is_in_the_markdown(report):
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    text = format_report(report)

    for word in (
        "## Claims",
        "Turbo-4 vs teacher-50",
        "reward bright",
        "McNemar",
        "## Reproduction",
    ):
        assert word in text
    for label in report["systems"]:
        assert f"\n| {label}" in text


def test_a_report_reproduces_itself_and_names_what_it_does_not(report):
    fresh = json.loads(json.dumps(report))
    assert find_deviations(report, fresh) == []

    fresh["systems"]["VCM-4"]["all"]["mean"] += 1.5
    fresh["systems"]["VCM-4"]["judge"]["mean"] *= 1.01
    assert [line.split(":")[0] for line in find_deviations(report, fresh)] == ["VCM-4, all"]

    fresh["settings"]["prompts"] = 8
    with pytest.raises(ValueError, match="prompts"):
        find_deviations(report, fresh)


@pytest.mark.slow
def test_the_figure_has_the_same_bytes_each_time(report, tmp_path: Path):
    for name in ("first", "second"):
        plot_systems(report, tmp_path / name)

    for ending in ("svg", "png"):
        first, second = (tmp_path / f"{name}.{ending}" for name in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()


def test_the_sheet_shows_pixels_unsmoothed_and_is_small(tmp_path: Path):
    path = tmp_path / "sheet.png"
    draw_contact_sheet(
        (REAL, CorruptedClips("noisy", "noise")), held_out_prompts(32), (0, 17), SHAPES, path, path
    )

    sheet = np.asarray(Image.open(path).convert("RGB"))
    strip = sheet[28 : 28 + 64, : 4 * 64]  # first row, first column: below two lines of text
    np.testing.assert_array_equal(strip[::2, ::2], strip[1::2, 1::2])
    assert len(np.unique(strip.reshape(-1, 3), axis=0)) > 2
    assert path.stat().st_size < 300_000
    assert max(SHEET_ROWS) < len(HELD_OUT_SCENES)


@pytest.mark.slow
def test_an_evaluation_writes_all_and_checks_itself_against_the_last(tmp_path: Path):
    settings = {"prefix": "new-", "count": 8, "workers": 1}
    paths = (tmp_path / "weights", tmp_path / "cache", tmp_path / "media")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "vae").symlink_to(SHAPES / "vae")
    for part in ("text_encoder", "tokenizer", "teacher"):
        (tmp_path / "weights" / part).symlink_to(SHAPES / part)

    compared = (CorruptedClips("teacher-50", "noise"),)
    assert "deviates" not in evaluate(*paths, compared, **settings)
    assert evaluate(*paths, compared, **settings)["deviates"] == []
    written = {path.name for folder in (paths[0], paths[2]) for path in folder.glob("*evaluation*")}
    assert written == {
        *("new-evaluation.json", "new-evaluation.md"),
        *("new-evaluation.svg", "new-evaluation.png", "new-evaluation_sheet.png"),
    }


@pytest.mark.slow
def test_reward_hacking_is_measured_for_every_snapshot(monkeypatch, tmp_path: Path):
    for run, steps in {"small": (50, 100), "large": (50,)}.items():
        for step in steps:
            unet = add_lora(make_unet(), 2)
            save_lora(unet, tmp_path / run / str(step) / LORA_FILE)
    made = []

    def make(system, prompts, weights, cache) -> Samples:
        made.append(system)
        return RealClips("").make(prompts, weights, cache)

    monkeypatch.setattr(System, "make", make)
    monkeypatch.setattr(System, "settings", lambda *_: {})
    runs = {"small": tmp_path / "small", "large": tmp_path / "large"}
    frame = measure_runs(runs, SHAPES, tmp_path, model="shapes-teacher", count=8, workers=1)

    assert list(zip(frame["run"], frame["step"], strict=True)) == [
        *(("small", 50), ("small", 100)),
        ("large", 50),
    ]
    assert [Path(system.lora).parent.name for system in made] == ["small", "small", "large"]
    assert (frame["all correct, %"] == 100).all()
    assert ((frame["low"] < frame["judge score"]) & (frame["judge score"] < frame["high"])).all()
    plot_runs(frame, tmp_path / "watch")
    assert (tmp_path / "watch.png").exists()


def test_a_run_without_snapshots_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="Train the student first"):
        find_snapshots(tmp_path)


COMMITTED = json.loads((SHAPES / "evaluation.json").read_text())


@pytest.mark.slow
@pytest.mark.skipif("sample" not in COMMITTED, reason="the committed report keeps no sample")
@pytest.mark.parametrize("label", ["VCM-4", "Turbo-4"])
def test_the_committed_weights_still_make_the_committed_numbers(label, tmp_path: Path):
    system = next(s for s in systems.SYSTEMS if s.label == label)
    expected = COMMITTED["settings"]["systems"][label]
    assert system.settings(SHAPES) == expected, "evaluate again: python -m training.shapes evaluate"

    prompts = held_out_prompts(4)
    rows = measure_systems((system,), prompts, SHAPES, tmp_path, workers=1).rows

    for (*words, score), (_, row) in zip(COMMITTED["sample"][label], rows.iterrows(), strict=False):
        seen = [row[f"read_{name}"] for name in ("colour", "shape", "motion", "background")]
        assert [word if isinstance(word, str) else None for word in seen] == words
        assert row["judge"] == pytest.approx(score, abs=0.1)


def test_scores_are_of_whole_clips_at_once():
    torch.manual_seed(0)
    judge = Judge().eval()
    prompts = held_out_prompts(3)
    clips = REAL.make(prompts, SHAPES, SHAPES).clips

    together, _ = measurements.score_clips(clips, prompts, judge, {})
    alone = [
        measurements.score_clips(clips[i : i + 1], [prompts[i]], judge, {})[0][0] for i in range(3)
    ]

    for ours, theirs in zip(together, alone, strict=True):
        assert ours["judge"] == pytest.approx(theirs["judge"], abs=1e-4)
        assert ours["judge"] == pytest.approx(ours["judge_quality"] + ours["judge_fit"], abs=1e-5)
