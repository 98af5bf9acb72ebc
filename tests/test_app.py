"""The app: what its flags mean for the models."""

import shutil
from dataclasses import replace

import pytest

import app
from turbo.models import placement
from turbo.models.registry import MODELS


def test_the_page_tells_what_a_model_wants_of_the_device_of_the_flags(monkeypatch):
    rooms = {"cpu": 10**12, "cuda": 1000}
    monkeypatch.setattr(placement, "available_devices", lambda: list(rooms))
    monkeypatch.setattr(placement, "free_memory", lambda device: rooms[device.type])

    def state(**flags):
        return app.state_of(
            "shapes-turbo", {"device": "cuda", "dtype": "auto", "memory": None} | flags
        )

    assert state(device="cpu") == "ready"
    assert state().startswith("needs ") and state().endswith(" GB memory")
    assert state(memory="offload") == "ready"  # insisted on, so loading does not check it


@pytest.mark.parametrize("damage", [b"", b"\x05\0\0\0\0\0\0\0[1,2]"])
def test_a_damaged_model_is_marked_and_no_other(damage, monkeypatch, tmp_path, caplog):
    card = MODELS["shapes-turbo"]
    copy = replace(card, folder=shutil.copytree(card.folder, tmp_path / "shapes"))
    [file] = (copy.folder / "vae").glob("*.safetensors")
    file.write_bytes(damage)
    monkeypatch.setitem(MODELS, "shapes-turbo", copy)
    placing = {"device": "cpu", "dtype": "auto", "memory": None}

    assert app.state_of("shapes-turbo", placing) == "cannot be loaded, see the log"
    assert app.state_of("shapes-teacher", placing) == "ready"
    assert "turbo.models verify shapes-turbo" in caplog.text


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

    assert f"Expected {variable} from" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["99999", "-1"])
def test_the_app_refuses_a_port_that_no_machine_has(port, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["app.py", "--port", port])

    with pytest.raises(SystemExit):
        app.read_flags()

    assert f"up to 65535, got {port}. Leave it out" in capsys.readouterr().err


def test_the_app_refuses_a_data_folder_that_cannot_be_made(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setattr("sys.argv", ["app.py", "--data-dir", str(file / "data")])

    with pytest.raises(SystemExit, match="a --data-dir .T2V_DATA_DIR. to write to, got .*/file/da"):
        app.main()
