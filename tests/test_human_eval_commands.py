"""The command line: from folders of videos to a backup, and plain words where input is wrong."""

import hashlib
import random
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from human_eval.__main__ import build_parser, main
from human_eval.commands import COMMANDS
from human_eval.definition import load_definition
from human_eval.media import Footage, write_footage

PROMPTS = 4


def run(*arguments) -> None:
    main([str(argument) for argument in arguments])


def digest(folder) -> str:
    return hashlib.sha256((folder / "study.db").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two folders of tiny videos, a file of prompts, and a study of them."""
    folder = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(0)
    for system in ("student", "teacher"):
        (folder / "clips" / system).mkdir(parents=True)
        for index in range(PROMPTS):
            pixels = rng.integers(0, 255, (6, 32, 32, 3)).astype(np.uint8)
            clip = folder / "clips" / system / f"{index:04d}.mp4"
            write_footage(Footage(pixels, Fraction(8)), clip)
    lines = [f"a red star number {index}" for index in range(PROMPTS)]
    (folder / "prompts.txt").write_text("\n".join(lines) + "\n")
    run("create", folder / "study", "--prompts", folder / "prompts.txt")
    run("ingest", folder / "study", folder / "clips")
    return folder


@pytest.fixture
def place(made, tmp_path):
    """A copy, to be changed."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


@pytest.fixture
def clips(place):
    return place / "clips"


@pytest.fixture
def study(place):
    return place / "study"


def test_every_command_has_help(capsys):
    for name in COMMANDS:
        with pytest.raises(SystemExit) as exit:
            build_parser().parse_args([name, "--help"])
        assert exit.value.code == 0
        assert "STUDY" in capsys.readouterr().out


def test_two_folders_of_videos_become_a_simulated_study(study, capsys):
    run("simulate", study, "--raters", 5)
    run("status", study, "--simulated")
    run("backup", study)
    run("restore", study)
    run("screen", study, "--simulated")
    run("status", study)
    shown = capsys.readouterr().out

    assert f"{3 * PROMPTS} pairs answered by 5 simulated raters" in shown
    assert "SIMULATED" in shown and "The database is sound." in shown
    assert "0 raters; turns: none" in shown


def test_gold_is_made_of_the_studys_own_clips(place, clips, capsys):
    tmp_path = place
    text = load_definition("shapes-demo").source
    path = tmp_path / "gold.toml"
    path.write_text(text + "\n[checks]\ngold_share = 0.3\ngold_pairs = 4\n")
    run("create", tmp_path / "gold", "--definition", path, "--prompts", tmp_path / "prompts.txt")
    run("ingest", tmp_path / "gold", clips)
    run("ingest", tmp_path / "gold", clips)
    run("simulate", tmp_path / "gold", "--raters", "6")

    shown = capsys.readouterr().out
    assert shown.count("gold: 4 new pairs") == 1
    assert len(list((tmp_path / "gold" / "media").glob("*.mp4"))) == 2 * PROMPTS + 3


@pytest.mark.parametrize(
    "command, message",
    [
        ("create {study} --prompts {made}/prompts.txt", "Expected no study"),
        ("create {new} --definition nothing", "Expected a TOML file or a preset"),
        ("create {new} --prompts none.txt", "none.txt"),
        ("create {new} --set steps=4", "got 'steps'"),
        ("create {new} --set steps", "Expected NAME=VALUE"),
        ("ingest {new} clips", "Expected the folder of a study"),
        ("ingest {study} student=none", "Expected a folder of clips"),
        ("ingest {study} other={study}", "a system from"),
        ("ingest {study} {study}", "Expected folders named"),
        ("simulate {study} --win-rate 2", "win_rate between"),
        ("report {study}", "at least one answer"),
        ("report {study} --as-of noon", "Expected a time"),
        ("screen {study} --revoke 5 --reason x", "an exclusion in force"),
        ("screen {study} --revoke 5", "Expected a --reason"),
        ("restore {study}", "Expected a backup"),
        ("restore {study} none.db", "no file"),
        ("erase {study}", "Expected PROVIDER and RATER"),
        ("erase {study} prolific x", "the study knows"),
        ("close {study} --reopen", "got an open one"),
        ("import-votes {study} none.csv", "none.csv"),
    ],
)
def test_bad_input_is_answered_and_changes_nothing(made, capsys, command, message):
    study = made / "study"
    before = digest(study)
    words = command.format(study=study, made=made, new=made / "new").split()

    with pytest.raises(SystemExit) as exit:
        run(*words)

    assert exit.value.code == 2
    assert message in capsys.readouterr().err
    assert digest(study) == before
    assert not (made / "new").exists()


def test_half_a_video_is_refused_by_name_and_the_rest_goes_in(place, clips, capsys):
    broken = clips / "student" / "0001.mp4"
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    run("create", place / "new", "--prompts", place / "prompts.txt")

    with pytest.raises(SystemExit):
        run("ingest", place / "new", clips)

    shown = capsys.readouterr()
    assert "student 0001" in shown.err
    assert "0 pairs" in shown.out  # not complete, and --partial was not said


def test_a_closed_study_takes_no_clips(study, clips, capsys):
    run("close", study)
    with pytest.raises(SystemExit):
        run("ingest", study, clips)
    assert "Expected an open study" in capsys.readouterr().err
    run("close", study, "--reopen")
    run("ingest", study, clips)


def test_an_invitation_is_signed(study, capsys):
    capsys.readouterr()
    run("invite", study, "prolific", f"rater {random.Random(0).random()}")
    assert len(capsys.readouterr().out.strip()) > 40
