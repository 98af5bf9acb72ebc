"""The flags of the app, and its messages when they cannot be used."""

import subprocess
import sys
from pathlib import Path

import pytest

import app

ROOT = Path(__file__).parents[1]


def test_the_app_has_the_flags_that_messages_name(monkeypatch):
    flags = ["--device", "cpu", "--dtype", "bfloat16", "--memory", "sliced"]
    monkeypatch.setattr("sys.argv", ["app.py", *flags])

    args = app.read_flags()

    assert (args.device, args.dtype, args.memory) == ("cpu", "bfloat16", "sliced")


@pytest.mark.parametrize("variable", ["T2V_DTYPE", "T2V_MEMORY"])
def test_the_app_refuses_an_unknown_choice_of_the_environment(variable, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["app.py"])
    monkeypatch.setenv(variable, "plenty")

    with pytest.raises(SystemExit):
        app.read_flags()

    assert "'plenty' is not one of" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["99999", "-1"])
def test_the_app_refuses_a_port_that_no_machine_has(port, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["app.py", f"--port={port}"])

    with pytest.raises(SystemExit):
        app.read_flags()

    assert f"{port} is not a port" in capsys.readouterr().err


def test_the_app_refuses_a_data_folder_that_cannot_be_made(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setattr("sys.argv", ["app.py", "--data-dir", str(file / "data")])

    with pytest.raises(SystemExit, match="create the data folder .*/file/data: .*--data-dir"):
        app.main()


@pytest.mark.parametrize(
    "model, match", [("gpt", "no model 'gpt'"), ("vcm-vc2", "not on this machine")]
)
def test_the_app_refuses_a_model_that_cannot_be_loaded(model, match, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["app.py"])
    monkeypatch.setenv("T2V_MODEL", model)

    with pytest.raises(SystemExit):
        app.read_flags()

    assert match in " ".join(capsys.readouterr().err.split())


def test_flags_come_before_the_environment(monkeypatch):
    monkeypatch.setattr("sys.argv", ["app.py", "--port", "8001"])
    monkeypatch.setenv("T2V_PORT", "8000")
    monkeypatch.setenv("T2V_HOST", "0.0.0.0")

    flags = app.read_flags()

    assert (flags.port, flags.host) == (8001, "0.0.0.0")


def test_the_page_opens_without_waiting_for_torch():
    program = "import sys, app; print({'torch', 'diffusers'} & set(sys.modules) or 'none')"

    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)

    assert done.stdout.strip() == "none", done.stderr
