"""The command line: one clip, a folder of clips, and a folder finished after a kill."""

import csv
import gc
import io
import os
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import pytest

from turbo import generate, video
from turbo.manifest import COLUMNS, Manifest
from turbo.models import cli, placement
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
    monkeypatch.setitem(cli.MODELS, card.name, card)
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


def test_a_mark_that_does_not_fit_is_refused_before_weights_are_read(tiny_model, monkeypatch):
    monkeypatch.setattr(VideoPipeline, "_read", lambda *_: pytest.fail("read weights"))

    with pytest.raises(ValueError, match="visible mark"):
        VideoPipeline.load(replace(tiny_model, height=16, width=16, enlarge=2), visible_mark=True)


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


@pytest.mark.parametrize(
    "name, content",
    [
        ("p.csv", "id,caption\n1,a cat\n2,a dog\n"),
        ("p.jsonl", '{"prompt": "a cat"}\n{"text": "a dog"}\n'),
        ("p.json", '["a cat", "a dog"]'),
    ],
)
def test_batch_reads_the_usual_files_of_prompts(tiny_model, tmp_path, name, content):
    (tmp_path / name).write_text(content)

    _run(tiny_model, "--prompts", tmp_path / name, "--out", tmp_path / "clips")

    assert [row["prompt"] for row in _rows(tmp_path / "clips")] == ["a cat", "a dog"]


@pytest.mark.parametrize(
    "name, content",
    [
        ("p.csv", "prompt,seed\na dog,\na cat,7\n"),
        ("p.jsonl", '{"prompt": "a dog"}\n{"prompt": "a cat", "seed": 0}\n'),
    ],
)
def test_seeds_in_a_file_of_prompts_are_refused_instead_of_ignored(
    tiny_model, tmp_path, name, content, capsys
):
    (tmp_path / name).write_text(content)

    with pytest.raises(SystemExit) as end:
        _run(tiny_model, "--prompts", tmp_path / name, "--out", tmp_path / "clips")

    assert end.value.code == 2
    assert "--seed on" in capsys.readouterr().err
    assert not (tmp_path / "clips").exists()


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_model_is_loaded_once_for_its_systems_and_freed_before_the_next(
    more, tiny_model, prompts, tmp_path, monkeypatch
):
    load, loaded = generate.load_pipeline, []

    def load_alone(name: str, *options, **named):
        gc.collect()
        assert all(pipeline() is None for _, pipeline in loaded)
        pipeline = load(name, *options, **named)
        loaded.append((name, weakref.ref(pipeline)))
        return pipeline

    monkeypatch.setattr(generate, "load_pipeline", load_alone)
    monkeypatch.setitem(cli.MODELS, "other", replace(tiny_model, name="other"))
    name = tiny_model.name
    systems = f"{name}:1,{name}:2,other:1,{name}:3"

    generate.main(
        ["--prompts", str(prompts), "--systems", systems, "--out", str(tmp_path / "out"), *more]
    )

    assert [name for name, _ in loaded] == [name, "other", name]


@pytest.mark.parametrize("trouble", ["missing weights", "too little memory", "a mark too large"])
def test_a_later_system_that_cannot_be_loaded_is_refused_before_the_first_is(
    trouble, tiny_model, prompts, tmp_path, monkeypatch
):
    monkeypatch.setattr(generate, "load_pipeline", lambda *_, **__: pytest.fail("loaded"))
    changes, more = {"title": "Other"}, []
    if trouble == "missing weights":
        changes = {"unet": "absent"}
    elif trouble == "a mark too large":
        changes, more = {"enlarge": 2}, ["--visible-mark"]
        monkeypatch.setitem(cli.MODELS, tiny_model.name, replace(tiny_model, enlarge=32))
    else:
        need = placement.measure_footprint
        monkeypatch.setattr(
            placement,
            "measure_footprint",
            lambda card: replace(need(card), unet=10**15 if card.name == "other" else 0),
        )
    monkeypatch.setitem(cli.MODELS, "other", replace(tiny_model, name="other", **changes))
    command = ["--prompts", str(prompts), "--systems", f"{tiny_model.name}:1,other:1", *more]

    with pytest.raises(SystemExit) as end:
        generate.main([*command, "--out", str(tmp_path / "out")])

    assert end.value.code == 2
    assert not (tmp_path / "out").exists()


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
    tiny_model, prompts, tmp_path, monkeypatch, capsys
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
        with pytest.raises(SystemExit) as end:
            _run(tiny_model, "--prompts", prompts, "--out", folder)
    assert end.value.code == 130
    assert capsys.readouterr().err.endswith("\nStopped. Run the same command again to continue.\n")
    _run(tiny_model, "--prompts", prompts, "--out", folder)

    rows = _rows(folder)
    assert len(rows) == len({row["path"] for row in rows}) == 3
    assert not Manifest(folder).missing([row["path"] for row in rows])
    assert not list(folder.glob(".*.mp4"))


def test_folder_holds_runs_with_different_settings(tiny_model, prompts, tmp_path):
    folder = tmp_path / "clips"

    _run(tiny_model, "--prompts", prompts, "--out", folder)
    _run(tiny_model, "--prompts", prompts, "--guidance", 5, "--out", folder)

    assert len(_rows(folder)) == len(list(folder.glob("*.mp4"))) == 6


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "Give either a PROMPT or --prompts FILE."),
        (["a cat", "--prompts", "x"], "Give either a PROMPT or --prompts FILE."),
        (["a cat", "--model", "none"], "invalid choice: 'none' (choose from"),
        (["a cat", "--steps", "0"], "The number of steps must be a whole number from 1 to"),
        ([""], "The prompt is empty."),
        (["--prompts", "no such file"], "no such file cannot be read: No such file"),
        (["--prompts", "/"], "/ cannot be read: Is a directory"),
        (["a cat", "--device", "bogus"], "leave --device out"),
        (["a cat", "--out", "."], "--out . is a folder. Name a file"),
        (["a cat", "--out", "no-such-folder/"], "--out no-such-folder/ is a folder"),
        *[
            (["a cat", "--out", name], f"--out {name} does not end in .mp4")
            for name in ("a.gif", "a.webm", "a.png", "notes.txt", "a")
        ],
        (["a cat", "--out", "n" * 252 + ".mp4"], "is too long"),
        (["a cat", "--seed", "1.5"], "The seed must be a whole number from 0 to"),
        (["a cat", "--seed", "9" * 5000], "The seed must be a whole number from 0 to"),
        (["a cat", "--steps", "2.5"], "The number of steps must be a whole number"),
        (["a cat", "--guidance", "much"], "The guidance must be a number"),
        (["a cat", "--out", "/dev/null/x.mp4"], "/dev/null of --out cannot be created"),
    ],
)
def test_command_refuses_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        generate.main(arguments)

    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_a_manifest_of_others_is_refused_before_loading(prompts, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "load_pipeline", lambda *_, **__: pytest.fail("loaded"))
    (tmp_path / "manifest.csv").write_bytes(b"file,label\na.mp4,1")

    with pytest.raises(SystemExit) as end:
        generate.main(["--prompts", str(prompts), "--out", str(tmp_path)])

    assert end.value.code == 2
    assert (tmp_path / "manifest.csv").read_bytes() == b"file,label\na.mp4,1"


def test_a_relative_name_with_a_colon_and_one_of_full_length_are_written(
    tiny_model, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("2024-05-01T12:30:00.mp4", "12:30/a.mp4", "n" * 251 + ".mp4"):
        _run(tiny_model, "a cat", "--out", name)

        assert load_video(name).recipe["prompt"] == "a cat"


def test_leftovers_of_a_killed_run_are_removed_and_those_of_others_kept(
    tiny_model, tmp_path, monkeypatch
):
    killed, running = 2**22 + 1, os.getppid()
    prefix = video._own_prefix()
    names = [f"{prefix}{killed}-0a.mp4", f"{prefix}{running}-0b.mp4", ".unfinished-other-1-0c.mp4"]
    names.append(f"{prefix}notes.mp4")
    for name in names:
        (tmp_path / name).touch()

    _run(tiny_model, "a cat", "--out", tmp_path / "clip.mp4")

    assert {path.name for path in tmp_path.glob(".*.mp4")} == set(names[1:])


def test_words_beyond_the_text_encoder_are_told(tiny_model, tmp_path, capsys):
    end = " ".join(f"word{number}" for number in range(90))
    _run(tiny_model, f"a cat {end}", "--out", tmp_path / "clip.mp4")

    unread = load_video(tmp_path / "clip.mp4").recipe["unread"]
    assert unread
    assert end.endswith(unread)
    assert unread in capsys.readouterr().err


def test_a_name_that_the_terminal_cannot_show_is_no_failure(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))

    _run(tiny_model, "a cat", "--out", tmp_path / "été.mp4")

    assert (tmp_path / "été.mp4").exists()


def test_refusal_names_the_line_of_the_file(tiny_model, tmp_path, capsys):
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\na\x07b\n")

    with pytest.raises(SystemExit):
        _run(tiny_model, "--prompts", file)

    assert "prompts.txt, line 2: The prompt contains the control character U+0007" in (
        capsys.readouterr().err
    )


def test_batch_writes_the_composed_prompt_and_finds_it_again(tiny_model, tmp_path, capsys):
    file, folder = tmp_path / "prompts.txt", tmp_path / "clips"
    file.write_text("cafe\u0301  au\tlait \n", encoding="utf-8")
    _run(tiny_model, "--prompts", file, "--out", folder)
    file.write_text("café au lait\n", encoding="utf-8")

    _run(tiny_model, "--prompts", file, "--out", folder)

    [row] = _rows(folder)
    assert row["prompt"] == load_video(folder / row["path"]).recipe["prompt"] == "café au lait"
    assert "1 of 1 clips exist already." in capsys.readouterr().out


def test_prompts_that_are_no_text_are_refused_with_their_file(tmp_path, capsys):
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"a cat\n\xff")

    with pytest.raises(SystemExit):
        generate.main(["--prompts", str(file)])

    assert f"{file} is not UTF-8: line 2 contains the byte 0xff" in capsys.readouterr().err


def test_a_clip_does_not_replace_what_is_no_regular_file(tmp_path, capsys):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    with pytest.raises(SystemExit):
        generate.main(["a cat", "--out", str(pipe)])

    assert f"--out {pipe} is not a regular file. Name a file" in capsys.readouterr().err
    assert pipe.is_fifo()


def test_a_batch_is_not_made_in_a_file(prompts, capsys):
    with pytest.raises(SystemExit):
        generate.main(["--prompts", str(prompts), "--out", str(prompts)])

    assert f"The folder {prompts} of --out cannot be created" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"x" * 99, None], ids=["empty", "garbage", "cut"])
@pytest.mark.parametrize("file", ["vae/diffusion_pytorch_model.safetensors", "vae/config.json"])
def test_damaged_weights_are_refused_with_what_tells_more(
    file, content, tiny_model, tmp_path, capsys
):
    damaged = tiny_model.folder / file
    if content is None:
        content = damaged.read_bytes()[:-2]
    damaged.write_bytes(content)

    with pytest.raises(SystemExit):
        _run(tiny_model, "a cat", "--out", tmp_path / "clip.mp4")

    said = capsys.readouterr().err
    assert f"The weights of {tiny_model.name} in {tiny_model.folder} cannot be read" in said
    assert f"`python -m turbo.models verify {tiny_model.name}` to find the damaged file.\n" in said


def test_a_missing_configuration_is_refused(tiny_model, tmp_path, capsys):
    """transformers makes one up."""
    (tiny_model.folder / "text_encoder" / "config.json").unlink()

    with pytest.raises(SystemExit):
        _run(tiny_model, "a cat", "--out", tmp_path / "clip.mp4")

    assert f"verify {tiny_model.name}` to find the damaged file." in capsys.readouterr().err


def test_a_full_disk_is_told_in_a_line(tiny_model, tmp_path, capsys, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("turbo.video.Video.save", fail)

    with pytest.raises(SystemExit):
        _run(tiny_model, "a cat", "--out", tmp_path / "clip.mp4")

    assert "No space left on device. Check the path, its" in capsys.readouterr().err


def test_a_clip_that_is_not_finite_is_refused_and_not_written(tiny_model, tmp_path, monkeypatch):
    read = VideoPipeline._read

    def read_damaged(card, placement):
        pipeline = read(card, placement)
        pipeline.vae.decoder.conv_out.bias.fill_(float("nan"))
        return pipeline

    monkeypatch.setattr(VideoPipeline, "_read", read_damaged)

    with pytest.raises(SystemExit) as end:
        _run(tiny_model, "a cat", "--out", tmp_path / "clip.mp4")

    assert end.value.code == 2
    assert not (tmp_path / "clip.mp4").exists()


def test_missing_weights_are_refused_in_words(student_card):
    with pytest.raises(FileNotFoundError, match="The weights of tiny-student are incomplete"):
        VideoPipeline.load(student_card)


def test_a_manifest_that_cannot_be_written_is_refused_before_loading(tmp_path, monkeypatch):
    generate.check_out(str(tmp_path), batch=True)
    (tmp_path / "manifest.csv").write_text(",".join(COLUMNS) + "\n")
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != "manifest.csv")

    with pytest.raises(ValueError, match="manifest.csv"):
        generate.check_out(str(tmp_path), batch=True)
