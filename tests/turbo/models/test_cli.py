"""The registry of models, and the command that shows it."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from turbo import generate
from turbo.card import describe_state
from turbo.models import cli, fetch, registry
from turbo.models.cli import main
from turbo.models.fetch import check_proxies
from turbo.models.local import CARD, find_local, read_card, write_card
from turbo.models.registry import (
    CARDS,
    DEFAULT_MODEL,
    MODELS,
    check_home,
    find_card,
    published_folder,
)
from turbo.request import check_request
from turbo.vbench import __main__ as vbench


def test_table_is_keyed_by_name_and_holds_the_default():
    assert all(name == card.name for name, card in MODELS.items())
    assert DEFAULT_MODEL in MODELS


def test_a_card_that_could_not_be_written_is_absent(tmp_path, monkeypatch):
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError):
        write_card(find_card(DEFAULT_MODEL), tmp_path)

    assert not (tmp_path / CARD).exists()


def test_local_models_are_found_by_name(tmp_path):
    for name in ("b", "a"):
        write_card(replace(find_card(DEFAULT_MODEL), name=name), tmp_path / name)

    assert [card.name for card in find_local(tmp_path, CARDS)] == ["a", "b"]


@pytest.mark.parametrize("other", ["mine", DEFAULT_MODEL])
def test_two_models_of_one_name_are_refused_with_the_places_of_both(tmp_path, other):
    for folder, name in [("run-a", "mine"), ("run-b", other)]:
        write_card(replace(find_card(DEFAULT_MODEL), name=name), tmp_path / folder)

    with pytest.raises(ValueError, match=str(tmp_path / "run-b")) as refusal:
        find_local(tmp_path, CARDS)
    place = "registry.py" if other == DEFAULT_MODEL else str(tmp_path / "run-a")
    assert place in str(refusal.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"max_steps": 51, "origin_steps": 50},
        {"default_steps": 9, "max_steps": 8},
        {"min_steps": 0},
        {"default_guidance": 0.0},
        {"flow_shift": 0.0},
        {"flow_shift": 3.0, "eta": 1.0},
    ],
    ids=str,
)
def test_a_card_that_contradicts_itself_or_its_sampler_is_refused_by_its_field(tmp_path, changes):
    write_card(replace(find_card(DEFAULT_MODEL), **changes), tmp_path)

    with pytest.raises(ValueError, match=next(iter(changes))):
        read_card(tmp_path)


@pytest.mark.parametrize("trouble", ["no folder", "a damaged card"])
def test_a_folder_of_models_that_cannot_be_used_is_told_in_a_sentence(tmp_path, trouble):
    folder = tmp_path / "models"
    if trouble == "a damaged card":
        (folder / "mine").mkdir(parents=True)
        (folder / "mine" / CARD).write_text("{")
    command = [sys.executable, "-m", "turbo.models", "list"]

    ended = subprocess.run(
        command, env=os.environ | {"T2V_MODELS_DIR": str(folder)}, capture_output=True, text=True
    )

    assert ended.returncode == 1
    assert ended.stdout == ""
    [line] = ended.stderr.splitlines()
    assert line.startswith("python -m turbo.models: ") and str(folder) in line


@pytest.mark.parametrize("main", [generate.main, vbench.main])
def test_every_command_refuses_a_folder_of_models_that_cannot_be_used(main, monkeypatch, capsys):
    monkeypatch.setattr(registry, "_LOCAL_REFUSAL", "It is damaged.")

    with pytest.raises(SystemExit) as end:
        main(["--model", "mine"])
    with pytest.raises(ValueError, match="It is damaged"):
        find_card("mine")

    assert end.value.code == 2
    assert "It is damaged." in capsys.readouterr().err
    assert find_card(DEFAULT_MODEL).name == DEFAULT_MODEL


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_card_serves_its_own_defaults(card):
    request = check_request(card, "a cat")

    assert (request.steps, request.guidance) == (card.default_steps, card.default_guidance)
    assert (card.role == "teacher") == (card.sampler == "ddim")
    assert card.max_steps <= card.origin_steps or card.sampler == "ddim"
    assert card.height * card.enlarge % 2 == 0  # what an mp4 can hold


def test_unknown_model_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="no model 'nobody'. Choose one of shapes-teacher, "):
        find_card("nobody")


def test_the_registry_fetch_and_footprint_do_not_import_torch():
    """The demo's page opens before torch is loaded."""
    script = (
        "import sys, turbo.models.cli, turbo.models.fetch, turbo.models.footprint, turbo.request;"
        "sys.exit('torch' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_every_system_of_the_papers_has_a_card():
    systems = {"videocrafter2", "modelscope", "t2v-turbo-vc2", "t2v-turbo-ms"}
    systems |= {"t2v-turbo-v2", "t2v-turbo-v2-no-mg", "vcm-vc2", "vcm-ms"}

    assert systems <= {card.name for card in CARDS}


@pytest.mark.parametrize(
    "name, sampler, steps, grid, guidance, network_fps, motion",
    [
        ("videocrafter2", "ddim", 50, None, 12.0, 28, None),
        ("videocrafter2-16fps", "ddim", 50, None, 12.0, 16, None),
        ("modelscope", "ddim", 50, None, 9.0, 8, None),
        ("t2v-turbo-vc2", "consistency", 4, 50, 7.5, 16, None),
        ("t2v-turbo-ms", "consistency", 4, 50, 7.5, 8, None),
        ("vcm-vc2", "consistency", 4, 50, 7.5, 16, None),
        ("t2v-turbo-v2", "consistency", 16, 200, 7.5, 8, 0.05),
        ("t2v-turbo-v2-no-mg", "consistency", 16, 200, 7.5, 8, None),
    ],
)
def test_cards_sample_as_the_papers_do(name, sampler, steps, grid, guidance, network_fps, motion):
    card = next(card for card in CARDS if card.name == name)

    assert (card.sampler, card.default_steps, card.default_guidance) == (sampler, steps, guidance)
    assert grid is None or card.origin_steps == card.max_steps == grid
    assert (card.network_fps, card.motion_strength) == (network_fps, motion)
    assert card.motion_share == 0.5
    assert card.clean_rescale == name.startswith("videocrafter2")


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_published_files_give_all_that_is_not_to_be_trained(card, tmp_path):
    card = replace(card, folder=tmp_path)

    lacking = {"vcm"} if card.name.startswith("vcm") else set()
    expected = set(card.parts) if card.family == "shapes" else lacking
    assert set(card.unpublished) == expected
    assert all(re.fullmatch(r"[0-9a-f]{64}", file.sha256) for file in card.sources if file.sha256)


def test_only_what_is_missing_is_to_be_fetched(tmp_path):
    card = next(card for card in CARDS if card.name == "t2v-turbo-v2")
    card = replace(card, folder=tmp_path)
    assert describe_state(card) == "needs a 13.1 GB download"

    for part in ("vae", "text_encoder", "tokenizer"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "model.safetensors").touch()

    assert describe_state(card) == "needs a 5.7 GB download"
    assert [file.path for file in card.needed] == ["unet_mg.pt"]


def test_the_command_lists_and_shows_models(capsys):
    main(["list"])
    main(["show", "shapes-turbo"])

    printed = capsys.readouterr().out
    assert all(name in printed for name in MODELS)
    assert "4 steps of consistency on a grid of 20" in printed


def test_the_command_refuses_an_unknown_model():
    with pytest.raises(SystemExit, match="no model 'nobody'"):
        main(["show", "nobody"])


def test_published_weights_go_where_the_environment_says(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")

    assert published_folder({"T2V_WEIGHTS_DIR": "~/x"}) == Path("/home/ada/x")
    assert published_folder({"T2V_WEIGHTS_DIR": "/x"}) == Path("/x")
    assert published_folder({"XDG_CACHE_HOME": "/y"}) == Path("/y/t2v-turbo")
    assert published_folder({}) == Path("/home/ada/.cache/t2v-turbo")


def test_a_user_without_a_home_has_the_embedded_models_and_no_place_for_others(monkeypatch):
    def no_such_user(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", no_such_user)

    folder = published_folder({})

    with pytest.raises(ValueError, match="T2V_WEIGHTS_DIR"):
        check_home(folder / "modelscope")
    check_home(published_folder({"T2V_WEIGHTS_DIR": "/x"}))
    card = replace(find_card("t2v-turbo-ms"), folder=folder / "modelscope")
    with pytest.raises(ValueError, match="T2V_WEIGHTS_DIR"):
        fetch.check_request(card)


@pytest.mark.parametrize(
    "variable, value",
    [
        ("ALL_PROXY", "socks://me:secret@127.0.0.1:9"),
        ("all_proxy", "socks5://me:secret@127.0.0.1:9"),
        ("HTTPS_PROXY", "ftp://me:secret@proxy.example"),
        ("http_proxy", "http://[::1"),
        ("no_proxy", "[::1"),
    ],
)
def test_a_proxy_that_downloads_cannot_use_is_named_without_its_password(
    variable, value, monkeypatch
):
    for name in ("all_proxy", "http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setitem(sys.modules, "socksio", None)
    check_proxies()
    monkeypatch.setenv(variable, value)

    with pytest.raises(ValueError, match=variable) as refusal:
        check_proxies()

    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize("within", [".", "deeper/still"])
def test_a_file_in_the_place_of_the_weights_is_refused(within, tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setattr(cli, "PUBLISHED", file / within)

    with pytest.raises(SystemExit, match="T2V_WEIGHTS_DIR is .*file is a file. Set it"):
        main(["list"])


def test_a_projection_is_refused_where_no_adapters_are_fetched(tmp_path, monkeypatch):
    for name in ("t2v-turbo-v2", "t2v-turbo-ms"):
        monkeypatch.setitem(MODELS, name, replace(find_card(name), folder=tmp_path))

    with pytest.raises(SystemExit, match="--projection 'zeros' does not apply to t2v-turbo-v2"):
        main(["fetch", "t2v-turbo-v2", "--projection", "zeros"])
    with pytest.raises(SystemExit, match="Confirm it with --yes"):
        main(["fetch", "t2v-turbo-ms", "--projection", "zeros"])


@pytest.mark.parametrize("card", [c for c in CARDS if c.sources], ids=lambda card: card.name)
def test_the_readme_tells_the_memory_of_the_card(card):
    readme = (Path(__file__).parents[3] / "turbo" / "README.md").read_text()

    rows = [
        line
        for line in readme.splitlines()
        if line.startswith(f"| {card.title}") and " GB |" in line
    ]
    assert rows and all(f"| {card.memory_gb:g} GB |" in row for row in rows)


def test_each_stage_has_one_bar_which_an_error_closes(monkeypatch):
    bars = []

    class Bar:
        def __init__(self, desc, total, **_):
            self.n, self.arguments, self.closed = 0, [desc, total], False
            bars.append(self)

        def update(self, step):
            self.n += step

        def close(self):
            self.closed = True

    def steps():
        yield from (("check", done, 3) for done in (1, 2, 3))
        yield from (("check", 9, 9), ("convert", 4, 9))
        raise ValueError("Damaged.")

    monkeypatch.setattr("tqdm.tqdm", Bar)

    with pytest.raises(ValueError, match="Damaged"):
        cli.show_progress(steps())

    assert [bar.arguments for bar in bars] == [["check", 3], ["check", 9], ["convert", 9]]
    assert [bar.n for bar in bars] == [3, 9, 4]
    assert all(bar.closed for bar in bars)


def test_the_end_of_the_input_is_no_consent_to_a_download(monkeypatch, tmp_path):
    def end(_):
        raise EOFError

    card = replace(find_card("modelscope"), folder=tmp_path)
    monkeypatch.setitem(MODELS, card.name, card)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", end)
    monkeypatch.setattr(fetch, "fetch_model", lambda *_, **__: pytest.fail("fetched"))
    monkeypatch.setattr(fetch, "find_cached", lambda _: None)

    with pytest.raises(SystemExit, match="Nothing was downloaded"):
        main(["fetch", card.name])
