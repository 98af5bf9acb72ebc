"""Every command and program of every README runs, in order, in a clean copy of the repository."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.forked_python import forked_python

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
READMES = sorted(
    str(path.relative_to(ROOT)) for path in [ROOT / "README.md", *ROOT.glob("[!.]*/README.md")]
)
BLOCK = re.compile(r"^```(bash|python|text)\n(.*?)^```", re.DOTALL | re.MULTILINE)
SERVED = "http://127.0.0.1:7860"  # programs for a served page run in a test of their own
LIBRARIES = (  # most of the time that a command takes to start
    "accelerate",
    "alembic.command",
    "av",
    "diffusers.models",
    "fastapi",
    "matplotlib.figure",
    "pandas",
    "peft",
    "scipy.stats",
    "sqlalchemy.orm",
    "statsmodels.api",
    "torch._dynamo",
    "transformers.modeling_utils",
)


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """Return that of a user who has activated the environment of the project."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    settings = {"PATH": path, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    own = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    return {**own, **settings}


@pytest.fixture(scope="module")
def forking(environment, tmp_path_factory) -> Iterator[dict[str, str]]:
    """Return such an environment whose `python` starts faster."""
    with forked_python(tmp_path_factory.mktemp("python"), LIBRARIES, environment) as changed:
        yield changed


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


def run(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("readme", READMES)
def test_commands_and_programs_run_in_order(readme, forking, tmp_path):
    copy_repository(tmp_path)
    for kind, block in BLOCK.findall((ROOT / readme).read_text()):
        if kind == "bash" and not block.startswith("make "):
            run(["bash", "-euo", "pipefail", "-c", block], tmp_path, forking)
        elif kind == "python" and SERVED not in block:
            run(["python", "-c", block], tmp_path, forking)
    if readme == "README.md":
        assert (tmp_path / "ghost.mp4").stat().st_size > 0
        assert (tmp_path / "study/report-simulated/win_rates.png").stat().st_size > 0


@pytest.mark.parametrize(
    "command",
    [
        """python -c 'import sys; print(sys.argv, sys.path[0]); sys.exit(3)' some "two words" """,
        "echo 'import sys; print(sys.argv)' | python - some",
        "echo '{}' > some.json && python -m json.tool some.json",
        "echo 'import sys; print(sys.argv, sys.path[0])' > some.py && python some.py --flag",
        "T2V_SOME=1 python -c 'import os; print(os.environ[\"T2V_SOME\"], os.getcwd())'",
        "python -c 'import os; os.kill(os.getpid(), 9)'",
        "python -c 'print(1); 1 / 0'",
        "python -c 'print(1)' | python -c 'print(input())'",
        "python -c 'import sys; print(sys.stdout.reconfigure(errors=\"replace\"))' > a; cat a",
        "python -c 'import sys; print(sys.stdout.seekable(), sys.stdin.isatty())'",
    ],
)
def test_a_forked_python_does_what_python_does(command, environment, tmp_path):
    with forked_python(tmp_path, ("json",), environment) as forking:
        answers = []
        for variables in (environment, forking):
            done = subprocess.run(
                ["bash", "-c", command], cwd=tmp_path, env=variables, capture_output=True
            )
            answers.append((done.stdout, done.returncode, bool(done.stderr)))

    assert answers[0] == answers[1]


@pytest.mark.parametrize("command", ["OTHER=1 python -c 1", "python -O -c 1"])
def test_a_forked_python_refuses_what_it_cannot_do(command, environment, tmp_path):
    with forked_python(tmp_path, (), environment) as forking:
        assert subprocess.run(["bash", "-c", command], env=forking).returncode == 1


@pytest.mark.parametrize("target", ["demo", "test"])
def test_make_knows_its_targets(target):
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.browser
def test_programs_for_a_served_page_get_their_clip(shapes_server, environment, tmp_path):
    programs = [
        block
        for readme in READMES
        for kind, block in BLOCK.findall((ROOT / readme).read_text())
        if kind == "python" and SERVED in block
    ]

    printed = [
        run(["python", "-c", program.replace(SERVED, shapes_server.url)], tmp_path, environment)
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
