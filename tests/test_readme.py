"""The README's commands and programs are run as they stand there, in an empty folder.

Left to others: `make demo` and `make test` (this is a part of the latter) and the API program,
which runs against a served page below.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
SCRIPTS = [
    [line for line in block.splitlines() if not line.startswith("make ")]
    for kind, block in BLOCKS
    if kind == "bash"
]
PROGRAMS = [block for kind, block in BLOCKS if kind == "python"]


def run(command: list[str], folder: Path) -> str:
    settings = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **settings}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("script", [script for script in SCRIPTS if script], ids=lambda s: s[0])
def test_commands_run_one_after_the_other(script, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red star jumping in the desert\n")
    for command in script:
        assert command.startswith("python -m ")

        run(["bash", "-c", command.replace("python", f'"{sys.executable}"', 1)], tmp_path)

        for clip in re.findall(r"--out (\S+\.mp4)", command):
            assert (tmp_path / clip).stat().st_size > 0
    if any("human_eval report" in command for command in script):
        assert (tmp_path / "study/report-simulated/win_rates.png").stat().st_size > 0


def test_the_program_makes_its_clip(tmp_path):
    [program] = [program for program in PROGRAMS if "load_pipeline" in program]

    printed = run([sys.executable, "-c", program], tmp_path)

    assert "'seed': 0" in printed
    assert (tmp_path / "star.mp4").stat().st_size > 0


@pytest.mark.browser
def test_the_api_program_gets_its_clip(shapes_server, tmp_path):
    [program] = [program for program in PROGRAMS if "gradio_client" in program]

    printed = run(
        [sys.executable, "-c", program.replace("http://127.0.0.1:7860", shapes_server.url)],
        tmp_path,
    )

    assert ".mp4" in printed and "'seed': 3" in printed


def test_every_file_of_the_tree_exists():
    [tree] = re.findall(r"```\n(app\.py .*?)```", README, re.DOTALL)
    folder = ROOT
    for line in tree.splitlines():
        names = re.findall(r"\w+\.py|\w+/(?:\w+/)?", line[:36])
        if line.startswith(" "):
            assert names and all((folder / name).exists() for name in names), line
        else:
            folder = ROOT / names[0]
            assert folder.exists(), line


def test_nothing_is_left_to_fill_in():
    assert "<!-- LEAD" not in README


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
