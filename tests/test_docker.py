"""The Dockerfile: a server that starts from the files it copies, as an ordinary user."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from gradio_client import Client

from human_eval.hosting.listener import listen

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
LINES = [line.split(maxsplit=1) for line in TEXT.splitlines() if line and line[0] != "#"]
VARIABLES = dict(
    setting.split("=", 1) for word, rest in LINES if word == "ENV" for setting in rest.split()
)


def instruction(word: str) -> str:
    """Return what follows an instruction that occurs once."""
    [rest] = [rest for name, rest in LINES if name == word]
    return rest


def test_the_image_runs_as_an_ordinary_user_who_owns_the_volume():
    words = [word for word, _ in LINES]

    assert f"--uid 1000 {instruction('USER')} " in LINES[1][1]
    assert f"--owner {instruction('USER')} {instruction('VOLUME')}" in LINES[1][1]
    assert words.index("RUN") < words.index("USER") < words.index("VOLUME")
    kept = [VARIABLES[name] for name in ("T2V_DATA_DIR", "T2V_WEIGHTS_DIR", "HF_HOME")]
    assert all(Path(folder).is_relative_to(instruction("VOLUME")) for folder in kept)


def test_one_port_is_served_exposed_and_checked():
    port = VARIABLES["T2V_PORT"]

    assert instruction("EXPOSE") == port
    assert "environ['T2V_PORT'] + '/healthz'" in instruction("HEALTHCHECK")


def test_the_image_has_the_packages_of_the_switches_that_the_environment_can_set():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]

    [installed] = [rest for word, rest in LINES if word == "RUN" and "requirements.txt" in rest]
    assert {*extras["filter"], *extras["mcp"]} <= set(installed.split())


def test_what_is_copied_is_what_is_sent_to_the_builder():
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"}

    assert {rest.split()[0] for word, rest in LINES if word == "COPY"} == sent


@pytest.mark.slow
def test_the_server_starts_from_the_files_of_the_image_and_makes_a_clip(tmp_path):
    place, volume = tmp_path / "app", tmp_path / "data"
    place.mkdir()
    volume.mkdir()
    ignored = shutil.ignore_patterns("__pycache__", "simulated_miniature")
    for source, target in (rest.split() for word, rest in LINES if word == "COPY"):
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, place / target, ignore=ignored)
        else:
            shutil.copy(ROOT / source, place / target)
    with listen("127.0.0.1", [0]) as free:
        port = str(free.getsockname()[1])
    home = {name: value.replace("/data", str(volume)) for name, value in VARIABLES.items()}
    command = json.loads(instruction("CMD"))
    check = json.loads(re.search(r"CMD (\[.*\])", instruction("HEALTHCHECK"))[1])
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("T2V_")}
    variables = {**kept, **home, "PATH": path, "T2V_PORT": port, "HF_HUB_OFFLINE": "1"}
    before = sorted(place.rglob("[!_]*.*"))

    with subprocess.Popen(command, cwd=place, env=variables) as server:
        try:
            deadline = time.monotonic() + 120
            while subprocess.run(check, env=variables, capture_output=True).returncode:
                assert server.poll() is None and time.monotonic() < deadline
                time.sleep(1)
            client = Client(f"http://127.0.0.1:{port}", verbose=False)
            made = client.predict("a red star jumping in the desert", steps=2, api_name="/generate")
        finally:
            server.terminate()

    assert made["recipe"] and list((volume / "clips").glob("*.mp4"))
    assert [path for path in sorted(place.rglob("[!_]*.*")) if path.suffix != ".pyc"] == before
