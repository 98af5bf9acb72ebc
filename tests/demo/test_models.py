"""The seam between page and library: requests, availability, loading, downloads."""

import shutil
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
import transformers

from demo.models import (
    RequestError,
    availability,
    describe_models,
    download_model,
    generate_clip,
    load_model,
    models_to_preload,
    read_request,
)
from demo.session import EngineError
from tests.support.fake_engine import MODELS
from turbo.disk_space import check_space
from turbo.models import placement
from turbo.models.registry import MODELS as CARDS
from turbo.pipeline import load_pipeline
from turbo.request import MAX_SEED

NOT_NUMBERS = ["4", [4], {"a": 1}, True, float("nan"), float("inf"), -float("inf"), 2**70]
PLACEMENT = {"device": "cpu", "dtype": "auto", "memory": None}


def test_loading_a_model_leaves_no_progress_bar_in_the_log(capfd):
    transformers.utils.logging.enable_progress_bar()

    load_model("shapes-turbo")

    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("prompt", ["", " \n\t ", "\u200b", "x" * 10_000, "a\x00b", None, ["a"], 7])
def test_a_prompt_that_cannot_be_used_is_refused(prompt):
    with pytest.raises(RequestError, match="prompt"):
        read_request(MODELS, "fake-student", prompt)


@pytest.mark.parametrize(
    "field, values, match",
    [
        ("steps", [0, 9, -1, 3.5, *NOT_NUMBERS], "steps .* from 1 to 8"),
        ("guidance", [0.9, 15.1, *NOT_NUMBERS], "guidance .* from 1 to 15"),
        ("seed", [-1, 2**32, 0.5, *NOT_NUMBERS], "seed .* from 0 to"),
    ],
)
def test_a_number_outside_the_range_is_refused(field, values, match):
    for value in values:
        with pytest.raises(RequestError, match=match):
            read_request(MODELS, "fake-student", "a star", **{field: value})


@pytest.mark.parametrize("model", ["nothing", "", None, 3, ["fake-student"], "x" * 10_000])
def test_an_unknown_model_is_refused_with_the_known_ones(model):
    with pytest.raises(RequestError, match="fake-student") as refusal:
        read_request(MODELS, model, "a star")
    assert len(str(refusal.value)) < 200


def test_none_takes_the_defaults_of_the_model_and_draws_a_seed():
    request = read_request(MODELS, "fake-teacher", "a star")

    assert (request.steps, request.guidance) == (50, 3.0)
    assert 0 <= request.seed <= MAX_SEED
    assert request.seed != read_request(MODELS, "fake-teacher", "a star").seed


def test_page_and_library_make_the_same_recipe_of_the_same_prompt(tmp_path):
    pipeline = load_pipeline("shapes-turbo", "cpu")
    models = describe_models()
    for prompt in ("cafe\u0301  corgi\n surfing", " a\tred  star ", "\u1112\u1161\u11ab 🦊"):
        request = read_request(models, "shapes-turbo", prompt, seed=4.0, steps=1.0, guidance=1)
        *_, last = generate_clip(pipeline, request, tmp_path / "clip.mp4")

        video = pipeline(prompt, seed=4, steps=1, guidance=1.0)

        assert last.clip.recipe == video.recipe
        assert video.recipe["prompt"] == " ".join(unicodedata.normalize("NFC", prompt).split())


def test_availability_measures_the_memory_of_the_device_of_the_flags(monkeypatch):
    rooms = {"cpu": 10**12, "cuda": 1000}
    monkeypatch.setattr(placement, "available_devices", lambda: list(rooms))
    monkeypatch.setattr(placement, "free_memory", lambda device: rooms[device.type])

    def state(**flags):
        return availability("shapes-turbo", PLACEMENT | {"device": "cuda"} | flags)

    assert state(device="cpu") == "ready"
    assert state().startswith("needs ") and state().endswith(" GB memory")
    assert state(memory="offload") == "ready"  # the operator insists, so loading does not check it


def test_a_model_that_only_training_can_make_is_not_offered(monkeypatch, tmp_path):
    monkeypatch.setitem(CARDS, "untrained", replace(CARDS["shapes-turbo"], folder=tmp_path))

    assert "untrained" not in describe_models()
    assert {"shapes-turbo", "vcm-vc2"} <= set(describe_models())


@pytest.mark.parametrize("damage", [b"", b"\x05\0\0\0\0\0\0\0[1,2]"])
def test_a_damaged_model_is_marked_and_no_other(damage, monkeypatch, tmp_path, caplog):
    card = CARDS["shapes-turbo"]
    copy = replace(card, folder=shutil.copytree(card.folder, tmp_path / "shapes"))
    [file] = (copy.folder / "vae").glob("*.safetensors")
    file.write_bytes(damage)
    monkeypatch.setitem(CARDS, "shapes-turbo", copy)

    assert availability("shapes-turbo", PLACEMENT) == "cannot be loaded, see the log"
    assert availability("shapes-teacher", PLACEMENT) == "ready"
    assert "turbo.models verify shapes-turbo" in caplog.text


def test_the_default_model_is_loaded_first_then_the_small_ones():
    assert models_to_preload("shapes-vcm")[0] == "shapes-vcm"
    assert set(models_to_preload("shapes-vcm")) == {
        name for name, card in CARDS.items() if not card.sources and card.is_ready()
    }


def test_a_full_disk_is_reported_with_a_remedy_and_without_paths(monkeypatch):
    def fill(card):
        check_space(Path("/secret"), 10**18)
        yield

    monkeypatch.setattr("turbo.models.fetch.fetch_model", fill)

    with pytest.raises(EngineError, match="disk of this machine is full. Ask its op") as refusal:
        list(download_model("t2v-turbo-v2"))

    assert "secret" not in str(refusal.value)


def test_a_model_that_needs_a_choice_is_not_loaded_and_the_command_is_shown(monkeypatch, tmp_path):
    card = replace(CARDS["t2v-turbo-ms"], folder=tmp_path / "modelscope")
    monkeypatch.setitem(CARDS, card.name, card)

    assert not availability(card.name).endswith("download")
    with pytest.raises(EngineError, match="fetch t2v-turbo-ms --projection zeros"):
        load_model(card.name)
