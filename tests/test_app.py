"""The flags of the app, and its messages when they cannot be used."""

import errno
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

import app
from demo.models import fetch_and_load, models_to_preload
from human_eval.hosting.listener import listen
from turbo.card import HubFile
from turbo.models import fetch
from turbo.models.registry import MODELS

ROOT = Path(__file__).parents[1]
FILE = HubFile(
    repository="owner/name", path="all.ckpt", size=1, gives=("teacher", "vae", "text_encoder")
)


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


EVERY_VARIABLE = [
    *("T2V_HOST", "T2V_PORT", "T2V_MODEL", "T2V_DATA_DIR", "T2V_STUDY", "T2V_DEVICE", "T2V_DTYPE"),
    *("T2V_MEMORY", "T2V_ROOT_PATH", "T2V_FRAME_ANCESTORS", "T2V_ALLOW_DOWNLOAD", "SPACE_ID"),
    *("GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT", "FORWARDED_ALLOW_IPS"),
]


@pytest.mark.parametrize("blank", ["", "  "])
def test_an_empty_variable_is_an_unset_one(blank, monkeypatch):
    monkeypatch.setattr("sys.argv", ["app.py"])
    for name in EVERY_VARIABLE:
        monkeypatch.delenv(name, raising=False)
    unset = app.read_flags()
    for name in EVERY_VARIABLE:
        monkeypatch.setenv(name, blank)

    assert app.read_flags() == unset
    assert (unset.study, unset.data_dir, unset.allow_download) == (None, Path("data"), False)


@pytest.mark.parametrize(
    "text, allowed",
    [("1", True), ("true", True), ("YES", True), ("On", True), ("0", False), ("False", False)],
)
def test_a_switch_of_the_environment_takes_the_usual_spellings(text, allowed, monkeypatch):
    monkeypatch.setattr("sys.argv", ["app.py"])
    monkeypatch.setenv("T2V_ALLOW_DOWNLOAD", text)
    monkeypatch.setenv("T2V_VISIBLE_MARK", text)

    flags = app.read_flags()
    assert flags.allow_download is flags.visible_mark is allowed


@pytest.mark.parametrize(
    "variable, text",
    [
        ("T2V_ALLOW_DOWNLOAD", "maybe"),
        ("T2V_PORT", "abc"),
        ("GRADIO_SERVER_PORT", "abc"),
        ("GRADIO_SERVER_PORT", "7860.0"),
        ("T2V_HOST", "nowhere.invalid"),
        ("GRADIO_SERVER_NAME", "http://0.0.0.0"),
        ("T2V_ROOT_PATH", "https://lab.example/t2v"),
        ("T2V_FRAME_ANCESTORS", "lab.example"),
        ("T2V_CONTACT", "ada"),
        ("T2V_IDLE_MINUTES", "soon"),
        ("T2V_IDLE_MINUTES", "nan"),
        ("T2V_PRELOAD", "nothing"),
        ("T2V_PRELOAD", "t2v-turbo-ms"),  # its projection must be chosen
    ],
)
def test_one_line_names_the_variable_that_cannot_be_used(variable, text, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["app.py"])
    monkeypatch.setenv(variable, text)

    with pytest.raises(SystemExit) as stopped:
        app.read_flags()

    [line] = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and line.startswith(f"app.py: {variable}") and text in line


def test_prompts_are_filtered_by_language_and_by_own_words(tmp_path, monkeypatch, capsys):
    pytest.importorskip("glin_profanity")
    words = tmp_path / "words.txt"
    words.write_text("zebra crossing\n", encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["app.py", "--prompt-filter", f"english,{words}"])

    refuses = app.read_flags().prompt_filter

    assert refuses("the SH1T hits") and refuses("a Zebra Crossing at night")
    assert not refuses("a zebra in Scunthorpe")
    for text in ("klingon", "none.txt"):
        monkeypatch.setenv("T2V_PROMPT_FILTER", text)
        monkeypatch.setattr("sys.argv", ["app.py"])
        with pytest.raises(SystemExit):
            app.read_flags()
        assert "T2V_PROMPT_FILTER" in capsys.readouterr().err


def test_mcp_without_its_package_is_refused_with_a_remedy(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["app.py", "--mcp"])
    monkeypatch.setattr(app, "find_spec", lambda name: None)

    with pytest.raises(SystemExit):
        app.read_flags()

    assert "pip install mcp" in capsys.readouterr().err


def test_a_flag_replaces_a_variable_that_cannot_be_used(monkeypatch):
    monkeypatch.setattr("sys.argv", ["app.py", "--port", "8001"])
    monkeypatch.setenv("T2V_PORT", "abc")

    assert app.read_flags().port == 8001


@pytest.mark.parametrize("flag", ["--host", "--port", "--study", "--data-dir", "--model"])
def test_an_empty_flag_is_refused(flag, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["app.py", flag, ""])

    with pytest.raises(SystemExit):
        app.read_flags()

    assert flag in capsys.readouterr().err


def test_a_missing_model_is_shown_first_if_it_is_preloaded(tmp_path, monkeypatch, capsys):
    missing = replace(MODELS["shapes-turbo"], folder=tmp_path, sources=(FILE,), lora=None)
    monkeypatch.setitem(MODELS, "shapes-turbo", missing)
    monkeypatch.setattr("sys.argv", ["app.py"])
    with pytest.raises(SystemExit):
        app.read_flags()
    assert "not on this machine" in capsys.readouterr().err

    monkeypatch.setenv("T2V_PRELOAD", "shapes-turbo, shapes-vcm")
    flags = app.read_flags()

    assert models_to_preload(flags.model, flags.preload)[:2] == ["shapes-turbo", "shapes-vcm"]
    fetched = []
    monkeypatch.setattr(fetch, "fetch_model", lambda card: iter([fetched.append(card.name)] and []))
    for name in flags.preload:
        assert fetch_and_load(str.upper, flags.preload, name) == name.upper()
    assert fetched == ["shapes-turbo"]


def test_a_space_is_open_to_the_network(monkeypatch):
    monkeypatch.setattr("sys.argv", ["app.py"])
    monkeypatch.setenv("SPACE_ID", "ada/t2v")

    assert app.read_flags().host == "0.0.0.0"


def test_a_taken_port_and_a_foreign_address_are_told_apart(tmp_path, monkeypatch):
    with listen("127.0.0.1", [0]) as taken:
        port = str(taken.getsockname()[1])
        flags = ["--data-dir", str(tmp_path), "--port", port]
        monkeypatch.setattr("sys.argv", ["app.py", *flags])
        with pytest.raises(SystemExit, match=f"Port {port} of 127.0.0.1 is not free"):
            app.main()

    monkeypatch.setattr("sys.argv", ["app.py", *flags, "--host", "192.0.2.1"])
    with pytest.raises(SystemExit, match="Cannot listen on port .* of 192.0.2.1"):
        app.main()


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


@pytest.mark.slow
def test_the_page_opens_without_waiting_for_torch():
    assert modules_after("import demo.composition") & {"torch", "diffusers"} == set()


def test_the_flags_are_read_without_gradio():
    assert modules_after("import app") & {"gradio", "torch", "matplotlib"} == set()


def modules_after(statement: str, **variables: str) -> set[str]:
    """Return what a new process has imported after a statement."""
    done = subprocess.run(
        [sys.executable, "-c", f"{statement}; import sys; print(*sys.modules)"],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.slow
def test_the_page_needs_no_proxy_and_leaves_the_variables_to_downloads():
    unusable = {
        "ALL_PROXY": "socks://127.0.0.1:9",
        "https_proxy": "socks5://127.0.0.1:9",
        "no_proxy": "[::1",
        "GRADIO_SERVER_PORT": "",
    }
    statement = (
        "import app, os; from human_eval.hosting.environment import hidden\n"
        "with hidden(app.HIDDEN_FROM_GRADIO): import demo.composition\n"
        "assert os.environ['ALL_PROXY'] == 'socks://127.0.0.1:9'; pass"
    )

    assert "gradio" in modules_after(statement, **unusable)


def test_temporary_files_go_below_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._get_default_tempdir", _no_temporary_folder)

    app.keep_temporary_files_in(tmp_path / "temporary")

    assert os.environ["GRADIO_TEMP_DIR"] == tempfile.gettempdir() == str(tmp_path / "temporary")
    with tempfile.TemporaryFile():
        pass


@pytest.mark.parametrize("place", ["a file", "read-only"])
def test_temporary_files_go_elsewhere_where_the_data_folder_cannot_be_written(
    tmp_path, monkeypatch, place
):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = Path("/proc") if place == "read-only" else tmp_path / "data"
    if place == "a file":
        folder.touch()

    app.keep_temporary_files_in(folder)

    own = Path(os.environ["GRADIO_TEMP_DIR"])
    assert own.parent == tmp_path and own.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("named", [False, True])
def test_copies_that_a_killed_process_left_are_deleted_unless_the_folder_was_named(
    tmp_path, monkeypatch, named
):
    folder = tmp_path / "temporary"
    (folder / "0123").mkdir(parents=True)
    (folder / "0123" / "clip.mp4").touch()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder) if named else "")

    app.keep_temporary_files_in(folder)

    assert os.environ["GRADIO_TEMP_DIR"] == str(folder)
    assert [path.name for path in folder.rglob("*.mp4")] == (["clip.mp4"] if named else [])


def test_a_temporary_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "/proc/none")

    with pytest.raises(SystemExit, match="GRADIO_TEMP_DIR"):
        app.keep_temporary_files_in(tmp_path)


def _no_temporary_folder():
    raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")
