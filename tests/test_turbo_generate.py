"""The command line: one clip, a folder of clips, and a folder finished after a kill."""

import csv
import os

import pytest

from turbo import generate, models
from turbo.manifest import COLUMNS, Manifest
from turbo.pipeline import VideoPipeline
from turbo.video import load_video


@pytest.fixture
def tiny_model(monkeypatch, tiny_pipeline):
    """Save the tiny student, put it in the table, and make it the default."""
    card = tiny_pipeline.card
    tiny_pipeline.unet.save_pretrained(card.folder / card.unet)
    tiny_pipeline.vae.save_pretrained(card.folder / "vae")
    tiny_pipeline.text_encoder.model.save_pretrained(card.folder / "text_encoder")
    tiny_pipeline.text_encoder.tokenizer.save_pretrained(card.folder / "tokenizer")
    monkeypatch.setitem(models.MODELS, card.name, card)
    return card


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\n\na dog, running\n“star” 🌟\n", encoding="utf-8")
    return file


def _run(card, *arguments):
    generate.main(["--model", card.name, "--steps", "2", *map(str, arguments)])


def _rows(folder):
    with (folder / "manifest.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_one_prompt_makes_one_clip_with_its_recipe(tiny_model, tmp_path, capsys):
    out = tmp_path / "new" / "clip.mp4"

    _run(tiny_model, "a cat", "--seed", 5, "--guidance", 6, "--out", out)

    video = load_video(out)
    assert video.frames.shape == (3, 32, 32, 3)
    assert video.recipe["prompt"] == "a cat"
    assert (video.recipe["seed"], video.recipe["steps"], video.recipe["guidance"]) == (5, 2, 6.0)
    assert video.recipe["weights_sha256"] == tiny_model.weights_sha256()
    assert "2 network calls" in capsys.readouterr().out


def test_loaded_pipeline_makes_the_frames_of_the_saved_one(tiny_model, tiny_pipeline):
    loaded = VideoPipeline.load(tiny_model)

    assert (loaded("a cat").frames == tiny_pipeline("a cat").frames).all()


def test_batch_lists_every_clip(tiny_model, prompts, tmp_path):
    folder = tmp_path / "clips"

    _run(tiny_model, "--prompts", prompts, "--seed", 10, "--out", folder)

    rows = _rows(folder)
    assert list(rows[0]) == COLUMNS
    assert [row["prompt"] for row in rows] == ["a cat", "a dog, running", "“star” 🌟"]
    assert [row["seed"] for row in rows] == ["10", "12", "13"]
    assert {row["path"] for row in rows} == {path.name for path in folder.glob("*.mp4")}
    for row in rows:
        recipe = load_video(folder / row["path"]).recipe
        assert recipe["prompt"] == row["prompt"]
        assert recipe["seed"] == int(row["seed"])


def test_batch_makes_only_what_is_missing(tiny_model, prompts, tmp_path, monkeypatch):
    folder = tmp_path / "clips"
    _run(tiny_model, "--prompts", prompts, "--out", folder)
    deleted, damaged, kept = (folder / row["path"] for row in _rows(folder))
    whole = damaged.read_bytes()
    deleted.unlink()
    damaged.write_bytes(whole[:-1])
    before = kept.stat().st_mtime_ns

    _run(tiny_model, "--prompts", prompts, "--out", folder)

    assert deleted.exists()
    assert damaged.read_bytes() == whole
    assert kept.stat().st_mtime_ns == before


def test_batch_killed_halfway_is_finished_by_running_again(
    tiny_model, prompts, tmp_path, monkeypatch
):
    folder = tmp_path / "clips"
    add, made = Manifest.add, []

    def add_then_die(manifest, row):
        made.append(row.path)
        if len(made) == 2:
            with manifest.path.open("ab") as file:
                file.write(b"clip-half-wri")  # the power goes while the row is written
            raise KeyboardInterrupt
        add(manifest, row)

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "add", add_then_die)
        with pytest.raises(KeyboardInterrupt):
            _run(tiny_model, "--prompts", prompts, "--out", folder)
    _run(tiny_model, "--prompts", prompts, "--out", folder)

    rows = _rows(folder)
    assert len(rows) == len({row["path"] for row in rows}) == 3
    assert not Manifest(folder).missing([row["path"] for row in rows])
    assert not [name for name in os.listdir(folder) if name.startswith(".")]


def test_folder_holds_runs_with_different_settings(tiny_model, prompts, tmp_path):
    folder = tmp_path / "clips"

    _run(tiny_model, "--prompts", prompts, "--out", folder)
    _run(tiny_model, "--prompts", prompts, "--guidance", 5, "--out", folder)

    assert len(_rows(folder)) == len(list(folder.glob("*.mp4"))) == 6


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "Expected a PROMPT or --prompts FILE, got both or neither."),
        (["a cat", "--prompts", "x"], "Expected a PROMPT or --prompts FILE, got both or neither."),
        (["a cat", "--model", "nobody"], "got 'nobody'. Cards are in turbo/cards.py."),
        (["a cat", "--steps", "0"], "Expected a whole number of steps between 1 and"),
        ([""], "Expected a prompt, got ''."),
        (["--prompts", "no such file"], "No such file"),
    ],
)
def test_command_refuses_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        generate.main(arguments)

    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_refusal_names_the_line_of_the_file(tiny_model, tmp_path, capsys):
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\na\x07b\n")

    with pytest.raises(SystemExit):
        _run(tiny_model, "--prompts", file)

    assert "prompts.txt, line 2: Expected a prompt without control characters" in (
        capsys.readouterr().err
    )


def test_missing_weights_are_refused_in_words(student_card):
    with pytest.raises(FileNotFoundError, match="Expected the weights of tiny-student in"):
        VideoPipeline.load(student_card)
