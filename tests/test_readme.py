"""Every command and program of every README runs, in order, in a clean copy of the repository."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
READMES = sorted(
    str(path.relative_to(ROOT)) for path in [ROOT / "README.md", *ROOT.glob("[!.]*/README.md")]
)
BLOCK = re.compile(r"^```(bash|python|text)\n(.*?)^```", re.DOTALL | re.MULTILINE)
SERVED = "http://127.0.0.1:7860"  # programs for a served page run in a test of their own


def copy_repository(folder: Path) -> None:
    """Copy what a clone would hold: tracked files, as they are in this checkout."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


def run(command: list[str], folder: Path) -> str:
    """Run a command as a user does who has activated the environment."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    settings = {"PATH": path, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **settings}, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("readme", READMES)
def test_commands_and_programs_run_in_order(readme, tmp_path):
    copy_repository(tmp_path)
    for kind, block in BLOCK.findall((ROOT / readme).read_text()):
        if kind == "bash" and not block.startswith("make "):
            run(["bash", "-euo", "pipefail", "-c", block], tmp_path)
        elif kind == "python" and SERVED not in block:
            run([sys.executable, "-c", block], tmp_path)
    if readme == "README.md":
        assert (tmp_path / "ghost.mp4").stat().st_size > 0
        assert (tmp_path / "study/report-simulated/win_rates.png").stat().st_size > 0


@pytest.mark.parametrize("target", ["demo", "test"])
def test_make_knows_its_targets(target):
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.browser
def test_programs_for_a_served_page_get_their_clip(shapes_server, tmp_path):
    programs = [
        block
        for readme in READMES
        for kind, block in BLOCK.findall((ROOT / readme).read_text())
        if kind == "python" and SERVED in block
    ]

    printed = [
        run([sys.executable, "-c", program.replace(SERVED, shapes_server.url)], tmp_path)
        for program in programs
    ]

    assert printed and all(".mp4" in text for text in printed)


@pytest.mark.parametrize("readme", READMES)
def test_every_file_that_is_named_exists(readme):
    text = re.sub(r"```text.*?```", "", (ROOT / readme).read_text(), flags=re.DOTALL)
    paths = re.findall(r"`((?:demo|turbo|human_eval|training|tests)/[\w./-]*)`", text)
    paths += [
        str((Path(readme).parent / link).as_posix())
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    ]

    assert not [path for path in paths if not (ROOT / path).exists()]


def test_every_part_of_the_map_exists():
    [tree] = re.findall(r"```\n(app\.py .*?)```", README, re.DOTALL)
    folder = ROOT
    for line in tree.splitlines():
        name = line[:18].strip()
        if not name:
            continue
        if line.startswith(" "):
            assert (folder / name).exists(), line
        else:
            folder = ROOT / name
            assert folder.exists(), line


def test_a_space_finds_what_it_needs_in_the_front_matter():
    front = README.split("---")[1]
    pinned = re.search(r"gradio==(\S+)", (ROOT / "requirements.txt").read_text())[1]

    assert f"sdk_version: {pinned}" in front
    for line in ("sdk: gradio", "app_file: app.py", "license: apache-2.0"):
        assert line in front


def test_the_table_of_results_is_that_of_the_committed_evaluation():
    report = json.loads((ROOT / "turbo/weights/shapes/evaluation.json").read_text())
    _, table = README.split("| system | network calls |")
    rows = [line.strip("| ").split(" | ") for line in table.split("\n\n")[0].splitlines()[2:]]

    assert len(rows) == len(report["systems"])
    for cells, (label, measured) in zip(rows, report["systems"].items(), strict=True):
        every = measured["all"]
        assert cells[2:6] == [
            f"{measured[name]['mean']:.1f}" for name in ("colour", "background", "shape", "motion")
        ]
        assert cells[6] == f"{every['mean']:.1f} [{every['low']:.1f}, {every['high']:.1f}]"
        assert cells[7:9] == [
            f"{measured[name]['mean']:.1f}" for name in ("watermark", "washed out")
        ]
        if not label.startswith(("teacher-50", "real")):
            votes = report["pairs"][f"{label} vs teacher-50"]["preference"]
            assert cells[9] == f"{votes['mean']:.0f} [{votes['low']:.0f}, {votes['high']:.0f}]"


def test_the_tests_that_the_training_guide_names_are_there():
    text = (ROOT / "training/README.md").read_text()
    named = re.findall(r"\| `([a-z/_]+)`(?:: ([\w ]+))? \|$", text, re.MULTILINE)
    assert len(named) > 10
    for file, words in named:
        sources = [path.read_text() for path in (ROOT / "tests").rglob(f"{Path(file).name}.py")]
        words = (words or "test").lower().replace(" ", "_")
        assert any(re.search(rf"def \w*{words}", source) for source in sources), (file, words)
