"""A run of VBench from plan to total, and what `verify` finds between two runs."""

import csv
import hashlib
import json
import shutil
import sys

import av
import pytest

from turbo.models import cli
from turbo.vbench import __main__ as command
from turbo.vbench import plan
from turbo.vbench.plan import Plan
from turbo.vbench.scores import DIMENSIONS
from turbo.video import Video, load_video

ENTRIES = [
    {"prompt_en": "In a still frame, a stop sign", "dimension": ["temporal_flickering"]},
    {"prompt_en": "a cat, façade-2", "dimension": ["subject_consistency", "motion_smoothness"]},
    {"prompt_en": "a cat, façade-2", "dimension": ["subject_consistency", "motion_smoothness"]},
    {"prompt_en": "a dog", "dimension": [name for name in DIMENSIONS]},
]


@pytest.fixture
def info(tmp_path):
    path = tmp_path / "info.json"
    path.write_text(json.dumps(ENTRIES), encoding="utf-8")
    return path


@pytest.fixture
def model(monkeypatch, tiny_pipeline):
    monkeypatch.setitem(cli.MODELS, tiny_pipeline.card.name, tiny_pipeline.card)
    monkeypatch.setattr(command, "load_pipeline", lambda *_, **__: tiny_pipeline)
    return tiny_pipeline


def _plan(folder, info, model, *more):
    arguments = ["plan", folder, "--model", model.card.name, "--info", info, *more]
    command.main(list(map(str, arguments)))
    return Plan.read(folder)


@pytest.fixture
def run(tmp_path, info, model):
    """A finished run: planned, made, and scored by made-up numbers."""
    folder = tmp_path / "run"
    planned = _plan(folder, info, model, "--samples", 2, "--flicker-samples", 3, "--steps", 2)
    command.main(["make", str(folder)])
    _score(folder, planned)
    command.main(["total", str(folder)])
    return folder


def _score(folder, planned, leave_out=""):
    results = {
        name: [
            0.5,
            [
                {"video_path": f"/x/{clip.name}", "video_results": 0.5}
                for clip in planned.clips
                if name in clip.dimensions and clip.name != leave_out
            ],
        ]
        for name in DIMENSIONS
    }
    (folder / "x_eval_results.json").write_text(json.dumps(results))


def test_a_plan_lists_the_clips_under_the_public_names(tmp_path, info, model):
    planned = _plan(tmp_path / "run", info, model, "--seed", 7, "--flicker-samples", 6)

    names = [clip.name for clip in planned.clips]
    assert names[:6] == [f"In a still frame, a stop sign-{n}.mp4" for n in range(6)]
    assert names[6:11] == [f"a cat, façade-2-{n}.mp4" for n in range(5)]
    assert len(names) == len(set(names)) == 6 + 5 + 6
    assert [clip.seed for clip in planned.clips[6:11]] == [7, 8, 9, 10, 11]
    assert planned.protocol.prompt_file == hashlib.sha256(info.read_bytes()).hexdigest()


def test_a_prompt_that_occurs_twice_has_the_dimensions_of_both(tmp_path, info, model):
    twice = [{"prompt_en": "a cat", "dimension": [name]} for name in ("color", "scene")]
    info.write_text(json.dumps(twice))

    planned = _plan(tmp_path / "run", info, model)

    assert [clip.dimensions for clip in planned.clips] == [["color", "scene"]] * 5


def test_a_byte_order_mark_is_no_part_of_a_longer_prompt(tmp_path, info, model):
    longer = tmp_path / "long.txt"
    longer.write_text("a red sign\na fat cat\na fat cat\na wet dog\n", encoding="utf-8-sig")

    planned = _plan(tmp_path / "run", info, model, "--augmented", longer)

    assert planned.clips[0].prompt == "a red sign"


def test_longer_prompts_are_made_under_the_original_names(tmp_path, info, model):
    (tmp_path / "long.txt").write_text("a red stop sign\na fat cat\na fat cat\na wet dog\n")

    planned = _plan(tmp_path / "run", info, model, "--augmented", tmp_path / "long.txt")

    assert {(c.name.rpartition("-")[0], c.prompt) for c in planned.clips} == {
        ("In a still frame, a stop sign", "a red stop sign"),
        ("a cat, façade-2", "a fat cat"),
        ("a dog", "a wet dog"),
    }


def test_a_run_is_made_scored_and_totalled(run, model, capsys):
    rows = _rows(run)
    video = load_video(run / rows[0]["path"])
    assert len(rows) == 3 + 2 + 3
    assert video.recipe["seed"] == 0 and video.recipe["steps"] == 2

    (run / "x_eval_results.json").unlink()
    command.main(["score", str(run)])

    own = json.loads((run / "own_eval_results.json").read_text())["temporal_flickering"]
    assert len(own[1]) == 6
    assert 0 < own[0] < 1
    _score(run, Plan.read(run))  # the public package has scored it, too
    (run / "own_eval_results.json").unlink()
    capsys.readouterr()
    command.main(["score", str(run)])
    assert f"{own[0]:.6f} here, 0.500000 there" in capsys.readouterr().out
    assert not (run / "own_eval_results.json").exists()
    content = json.loads((run / "total.json").read_text())
    assert content["percent"].keys() == {"total", "quality", "semantic"}
    assert content["interval"]["total"][0] <= content["percent"]["total"]


@pytest.fixture
def public(info, monkeypatch, tmp_path):
    """Return the options of a stand-in with the interface of the public package, version 0.1.5."""
    (tmp_path / "vbench.py").write_text(
        "import json, os\n"
        "class VBench:\n"
        "    def __init__(self, device, info, out):\n"
        "        self.device, self.out = device, out\n"
        "        assert os.path.exists(info)\n"
        "    def evaluate(self, videos_path, name, dimension_list):\n"
        "        files = sorted(os.listdir(videos_path))\n"
        "        row = [0.5, [{'video_path': file, 'video_results': 0.5} for file in files]]\n"
        "        with open(f'{self.out}/{name}_eval_results.json', 'w') as file:\n"
        "            json.dump({d: row for d in dimension_list}, file)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return ["--python", sys.executable, "--info", str(info), "--device", "cpu"]


def test_the_public_package_scores_in_its_own_environment(run, public, tmp_path):
    (run / "x_eval_results.json").unlink()

    command.main(["score", str(run), *public, "--dimension", "color", "scene"])

    [file] = run.glob("*_eval_results.json")
    assert set(json.loads(file.read_text())) == {"color", "scene"}
    former = json.loads(file.read_text()) | {"color": [0.25, []]}
    file.write_text(json.dumps(former))
    command.main(["score", str(run), *public, "--dimension", "scene", "human_action"])

    assert list(run.glob("*_eval_results.json")) == [file]
    merged = json.loads(file.read_text())
    assert set(merged) == {"color", "scene", "human_action"}
    assert merged["color"] == [0.25, []]
    assert not list(run.glob(".*score*"))
    (tmp_path / "vbench.py").write_text("raise SystemExit(3)")
    with pytest.raises(SystemExit) as end:
        command.main(["score", str(run), *public])
    assert end.value.code == 2


def test_the_dimensions_of_the_plan_are_scored_and_others_refused(info, model, public, tmp_path):
    run, planned = tmp_path / "run", ["subject_consistency", "motion_smoothness"]
    info.write_text(json.dumps(ENTRIES[:3] + [{"prompt_en": "a dog", "dimension": ["color"]}]))
    _plan(run, info, model, "--dimension", *planned, "--samples", 1, "--steps", 1)
    command.main(["make", str(run)])

    command.main(["score", str(run), *public])

    [file] = run.glob("*_eval_results.json")
    before = file.read_bytes()
    assert set(json.loads(before)) == set(planned)
    with pytest.raises(SystemExit) as end:
        command.main(["score", str(run), *public, "--dimension", "color"])
    assert end.value.code == 2
    info.write_text(json.dumps(ENTRIES))
    with pytest.raises(SystemExit) as end:
        command.main(["score", str(run), *public])
    assert end.value.code == 2
    assert file.read_bytes() == before


def test_a_dimension_with_a_part_of_its_prompts_is_not_scored(info, model, tmp_path):
    planned = _plan(tmp_path / "run", info, model, "--dimension", "temporal_flickering")

    assert planned.dimensions(plan.read_info(info)) == [  # those of "a dog" alone, and its own
        name for name in DIMENSIONS if name not in ("subject_consistency", "motion_smoothness")
    ]


def _differences(capsys, run, other):
    try:
        command.main(["verify", str(run), str(other)])
    except SystemExit as end:
        assert end.code == 1
    return capsys.readouterr().err


def _replan(**changes):
    def change(folder):
        content = json.loads((folder / "plan.json").read_text())
        content["protocol"].update(changes)
        (folder / "plan.json").write_text(json.dumps(content))

    return change


def _remake(**changes):
    """Write the clips anew: at another rate, another size, or with fewer frames."""

    def change(folder):
        for file in (folder / "clips").glob("*.mp4"):
            video = load_video(file)
            frames = video.frames[: changes.get("frames")]
            Video(frames, changes.get("fps", video.fps)).save(
                file, enlarge=changes.get("enlarge", 1)
            )

    return change


def _fewer_samples(folder):
    for name in ("a dog-2.mp4", "In a still frame, a stop sign-2.mp4"):
        (folder / "clips" / name).unlink()


def _dropped_clip(folder):
    (folder / "clips" / "a dog-1.mp4").unlink()


def _dropped_score(folder):
    _score(folder, Plan.read(folder), leave_out="a dog-1.mp4")


def _rows(folder):
    with (folder / "manifest.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _edit_manifest(column, value):
    def change(folder):
        path = folder / "manifest.csv"
        rows = _rows(folder)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows([{**row, column: value} for row in rows])

    return change


def _other_codec(folder):
    for path in (folder / "clips").glob("*.mp4"):
        video = load_video(path)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=int(video.fps))
            _, stream.height, stream.width, _ = video.frames.shape
            for frame in video.frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())


def _other_table(folder):
    table = {name: [0, 1, 1] for name in DIMENSIONS}
    (folder / "table.json").write_text(json.dumps(table))
    command.main(["total", str(folder), "--table", str(folder / "table.json")])


PLANTED = {
    "prompt file": _replan(prompt_file="0" * 64),
    "prompt augmentation": _replan(augmented="0" * 64),
    "samples a prompt of temporal flickering": _fewer_samples,
    "first seed": _replan(first_seed=42),
    "fps": _remake(fps=16),
    "width": _remake(enlarge=2),
    "frames": _remake(frames=2),
    "sampling steps": _edit_manifest("num_steps", 50),
    "sampler": _replan(sampler="ddim, eta 1"),
    "guidance": _edit_manifest("guidance", 12.0),
    "codec": _other_codec,
    "clips left out": _dropped_clip,
    "clips left out ": _dropped_score,
    "normalisation table": _other_table,
}


def test_each_planted_difference_is_named_first_and_none_where_none_is(run, tmp_path, capsys):
    assert _differences(capsys, run, shutil.copytree(run, tmp_path / "equal")) == ""

    told = {}
    for choice, plant in PLANTED.items():
        other = shutil.copytree(run, tmp_path / choice)
        plant(other)
        capsys.readouterr()
        told[choice] = _differences(capsys, run, other).split(": ")[1]

    assert told == {choice: choice.strip() for choice in PLANTED}


def test_fewer_samples_of_every_prompt_are_told_from_lost_clips(tmp_path, info, model, capsys):
    runs = tmp_path / "a", tmp_path / "b"
    for folder, samples in zip(runs, ("2", "1"), strict=True):
        _plan(folder, info, model, "--samples", samples, "--flicker-samples", 1, "--steps", 2)
        command.main(["make", str(folder)])
    capsys.readouterr()

    told = _differences(capsys, *runs)

    assert told.startswith("The first choice that differs: samples a prompt: ")
    assert "Then" not in told


def test_bad_input_is_refused_and_nothing_written(tmp_path, info, model, capsys):
    (tmp_path / "short.txt").write_text("one line\n")
    (tmp_path / "slash.json").write_text(json.dumps([{"prompt_en": "a/b", "dimension": ["x"]}]))
    cases = [
        (["--augmented", "short.txt"], "has 1 lines, but there are 4 prompts"),
        (["--info", "slash.json"], "makes no name of a file"),
        (["--steps", "99"], "The number of steps"),
        (["--seed", str(2**32 - 1)], "The seed must be"),
        (["--samples", "0"], "not a positive whole number"),
    ]
    for more, message in cases:
        more = [str(tmp_path / part) if "." in part else part for part in more]
        with pytest.raises(SystemExit):
            _plan(tmp_path / "run", info, model, *more)
        assert message in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


def test_a_second_plan_and_other_weights_are_refused(run, info, model, capsys):
    with pytest.raises(SystemExit):
        _plan(run, info, model, "--steps", 3)
    assert "is another plan" in capsys.readouterr().err

    model.weights_sha256 = "0" * 16
    with pytest.raises(SystemExit):
        command.main(["make", str(run)])
    assert "has clips of other weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    "more", [["--seed", 5], ["--steps", 3], ["--guidance", 5], ["--samples", 1], ["--augmented"]]
)
def test_clips_of_another_plan_are_neither_counted_nor_scored(more, run, info, model, tmp_path):
    if more == ["--augmented"]:
        (tmp_path / "long.txt").write_text("a red stop sign\na fat cat\na fat cat\na wet dog\n")
        more = ["--augmented", tmp_path / "long.txt"]
    (run / "plan.json").unlink()
    settings = {"--samples": 2, "--flicker-samples": 3, "--steps": 2} | {more[0]: more[1]}
    _plan(run, info, model, *(part for pair in settings.items() for part in pair))
    before = {path.name: path.read_bytes() for path in run.rglob("*.*")}

    for name in ("make", "score"):
        with pytest.raises(SystemExit) as end:
            command.main([name, str(run)])
        assert end.value.code == 2
    assert {path.name: path.read_bytes() for path in run.rglob("*.*")} == before

    shutil.rmtree(run / "clips")
    command.main(["make", str(run)])  # as a new run
    command.main(["score", str(run)])


def test_missing_clips_are_not_left_out_of_a_score(run, capsys):
    (run / "clips" / "a dog-0.mp4").unlink()

    with pytest.raises(SystemExit):
        command.main(["score", str(run)])

    assert "1 clips are missing or damaged" in capsys.readouterr().err


def test_a_download_has_its_pinned_hash_or_is_refused(tmp_path, monkeypatch):
    class Answer:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def read(self, _):
            return b"[]"

    monkeypatch.setattr(plan.urllib.request, "urlopen", lambda *_, **__: Answer())

    with pytest.raises(ValueError, match="--info"):
        plan.fetch_info(tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(plan, "SHA256", hashlib.sha256(b"[]").hexdigest())
    assert plan.fetch_info(tmp_path).read_bytes() == b"[]"
