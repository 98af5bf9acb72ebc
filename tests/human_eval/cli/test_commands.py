"""The command line: from folders of videos to a backup, and plain words where input is wrong."""

import contextlib
import hashlib
import random
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from human_eval.cli.main import build_parser, main
from human_eval.clips.media import Footage, write_footage
from human_eval.definition.definition import load_definition
from human_eval.reporting.export import sum_line, write_export
from human_eval.statistics import screening
from human_eval.storage.events import exclusions
from human_eval.storage.study_state import is_closed
from human_eval.study.queries import read_votes
from human_eval.study.store import open_study
from tests.support.crowd import define_pair, make_votes
from tests.support.studies import enter_rater, exclude, set_paused

PROMPTS = 4
[COMMANDS] = [
    list(action.choices) for action in build_parser()._actions if action.dest == "command"
]


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
    (folder / "table.csv").write_text("sentence\na red star\n")
    (folder / "results.csv").write_text("HITId,WorkerId\nH1,W1\n")
    (folder / "export").mkdir()
    (folder / "export" / "votes.csv").write_text("vote_id,choice\n1,a\n")
    source = load_definition("shapes-demo").source
    (folder / "export" / "study.toml").write_text(source)
    lines = [sum_line(path) for path in (folder / "export").iterdir()]
    (folder / "export" / "SHA256SUMS").write_text("\n".join(lines) + "\n")
    (folder / "unknown.toml").write_text(source.replace('b = "teacher"', 'b = "nobody"'))
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
        assert ("STUDY" in capsys.readouterr().out) == (name != "host")


@pytest.mark.parametrize("pairs, warned", [(2 * PROMPTS, True), (PROMPTS, False)])
def test_a_session_longer_than_the_study_is_warned_of(place, tmp_path, capsys, pairs, warned):
    text = (place / "study" / "study.toml").read_text()
    paid = f'\n[quotas]\nper_study = {pairs}\n\n[[providers]]\nkey = "prolific"\n'
    (tmp_path / "paid.toml").write_text(text + paid)

    prompts = ("--prompts", place / "prompts.txt")
    run("create", tmp_path / "paid", "--definition", tmp_path / "paid.toml", *prompts)

    assert ("Warning" in capsys.readouterr().out) == warned


def test_create_and_status_tell_the_default_quota_that_the_folder_holds(tmp_path, capsys):
    (tmp_path / "study.toml").write_text(define_pair("raters_per_pair = 3\n").source)
    (tmp_path / "prompts.txt").write_text("".join(f"star {number}\n" for number in range(100)))
    definition = ("--definition", tmp_path / "study.toml")
    prompts = ("--prompts", tmp_path / "prompts.txt")

    run("create", tmp_path / "study", *definition, *prompts)
    run("status", tmp_path / "study")

    assert capsys.readouterr().out.count("at most 45 pairs of a comparison") == 2
    assert load_definition(tmp_path / "study" / "study.toml").quotas.per_comparison == 45


def test_ingest_tells_what_every_system_weighs(study, clips, capsys):
    run("ingest", study, clips)

    shown = capsys.readouterr().out
    assert "mean_bytes" in shown
    assert all(any(line.split()[:2] == [system, "4"] for line in shown.splitlines())
               for system in ("student", "teacher"))  # fmt: skip


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
    assert "0 raters; assignments: none" in shown


def test_gold_is_made_of_the_studys_own_clips(place, clips, capsys):
    tmp_path = place
    text = load_definition("shapes-demo").source
    path = tmp_path / "gold.toml"
    path.write_text(text + "\n[checks]\ngold_share = 0.3\ngold_pairs = 4\n")
    run("create", tmp_path / "gold", "--definition", path, "--prompts", tmp_path / "prompts.txt")
    run("ingest", tmp_path / "gold", clips, "--no-gold")
    assert "new pairs" not in capsys.readouterr().out
    run("ingest", tmp_path / "gold", clips)
    run("ingest", tmp_path / "gold", clips)
    run("simulate", tmp_path / "gold", "--raters", "6")

    shown = capsys.readouterr().out
    assert shown.count("gold: 4 new pairs") == 1
    assert len(list((tmp_path / "gold" / "media").glob("*.mp4"))) == 2 * PROMPTS + 3


@pytest.mark.parametrize(
    "command, message",
    [
        ("create {study} --prompts {made}/prompts.txt", "already holds a study"),
        ("create {new} --definition nothing", "no definition 'nothing'"),
        ("create {new} --prompts none.txt", "none.txt"),
        ("create {new} --definition {made}/unknown.toml", "no system"),
        ("create {new} --prompts {made}/table.csv", "prompt"),
        ("create {new} --prompts {made}/table.csv --column words", "words"),
        ("create {new} --set steps=4", "no parameter 'steps'"),
        ("create {new} --set steps", "not of the form NAME=VALUE"),
        ("ingest {new} clips", "There is no study at"),
        ("ingest {study} student=none", "does not exist"),
        ("ingest {study} other={study}", "no system"),
        ("ingest {study} {study}", "no folder named"),
        ("ingest {study} student=a student=b", "names 'student' twice"),
        ("create {new} --set steps=4 --set steps=8", "names 'steps' twice"),
        ("simulate {study} --win-rate 2", "win_rate must be between"),
        ("simulate {study} --win-rates C1=2", "win_rate of C1 must be between"),
        ("simulate {study} --win-rates C1=half", "is not a number"),
        ("simulate {study} --win-rates C9=0.5", "no comparison 'C9'"),
        ("simulate {study} --judge {made}/table.csv", "named 'comparison'"),
        ("simulate {study} --judge scores.csv --win-rates C1=0.5", "Leave --win-rate and"),
        ("simulate {study} --judge scores.csv --win-rate 0.5", "Leave --win-rate and"),
        ("simulate {study} --raters 0", "raters must be between"),
        ("simulate {study} --max-pairs 0", "at least 1, not 0"),
        ("report {made}/export", "no column"),
        ("report {study} --simulated", "No simulated rater has answered"),
        ("export {study}", "no votes yet"),
        ("import-votes {study} {made}/results.csv", "column"),
        ("import-votes {study} {made}/results.csv --answer Q9=x", "no question"),
        ("import-votes {study} {made}/results.csv --answer Q1=x --answer Q1=y", "names 'Q1' twice"),
        ("report {study}", "no votes yet"),
        ("report {study} --as-of noon", "takes a time such as"),
        ("screen {study} --revoke 5 --reason x", "an exclusion in force"),
        ("screen {study} --revoke 5", "Give the --reason"),
        ("restore {study}", "There is no backup"),
        ("restore {study} none.db", "no file"),
        ("erase {study}", "Give PROVIDER and RATER"),
        ("erase {study} prolific", "Give PROVIDER and RATER"),
        ("erase {study} prolific --simulated", "Give PROVIDER and RATER"),
        ("erase {study} prolific x", "The study has no rater"),
        ("erase {study} prolific x --simulated", "or --simulated"),
        ("close {study} --reopen", "already open"),
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


@pytest.mark.parametrize("command", sorted({*COMMANDS} - {"host"}))
def test_a_command_on_no_study_says_so_and_makes_none(tmp_path, capsys, command):
    more = {"ingest": ["clips"], "import-votes": ["x.csv"], "erase": ["lab", "x"]}
    more |= {
        "collect": ["--data-set", "ada/votes"],
        "invite": ["lab", "x"],
        "links": ["https://x"],
        "staff": ["x"],
    }
    words = [command, tmp_path / "none", *more.get(command, [])]
    if command == "create":
        words += ["--prompts", tmp_path / "none.txt"]

    with pytest.raises(SystemExit) as exit:
        run(*words)

    assert exit.value.code == 2
    assert ("no study at" if command != "create" else "none.txt") in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "command", ["ingest {study} {clips}", "simulate {study}", "import-votes {study} {file}"]
)
def test_a_closed_study_takes_nothing_in(place, study, capsys, command):
    run("close", study)
    before = digest(study)

    with pytest.raises(SystemExit) as exit:
        run(*command.format(study=study, clips=place / "clips", file=place / "results.csv").split())

    assert exit.value.code == 2
    assert "The study is closed" in capsys.readouterr().err
    assert digest(study) == before
    run("close", study, "--reopen")
    run("ingest", study, place / "clips")


@pytest.mark.parametrize("reply, stays", [("", True), ("no", True), ("y", False)])
def test_closing_in_a_terminal_asks_first(study, monkeypatch, capsys, reply, stays):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: reply)

    with pytest.raises(SystemExit) if stays else contextlib.nullcontext():
        run("close", study)

    with contextlib.closing(open_study(study)) as store, store.read() as connection:
        assert is_closed(connection) != stays


@pytest.mark.parametrize("damage", ["gone", "empty", "torn", "other"])
def test_a_backup_takes_the_place_of_a_database_that_is_lost(study, capsys, damage):
    run("simulate", study, "--raters", 4)
    run("backup", study)
    path = study / "study.db"
    whole = path.read_bytes()
    for ending in ("-wal", "-shm"):
        path.with_name(f"study.db{ending}").unlink(missing_ok=True)
    path.write_bytes({"empty": b"", "torn": whole[: len(whole) // 2]}.get(damage, b"x" * 9000))
    if damage == "gone":
        path.unlink()

    with pytest.raises(SystemExit) as exit:
        run("status", study, "--simulated")
    refusal = capsys.readouterr().err
    with contextlib.suppress(SystemExit):  # of clips, none is missing
        run("restore", study)
    run("status", study, "--simulated")

    assert exit.value.code == 2 and "backup" in refusal
    shown = capsys.readouterr().out
    assert "The database is sound." in shown
    assert f"{3 * PROMPTS} submitted" in shown
    kept = {
        path.name.removesuffix("-wal").removesuffix("-shm") for path in study.glob("*.damaged-*")
    }
    assert len(kept) == (damage != "gone")


@pytest.mark.parametrize(
    "option, message",
    [
        ("--as-of 2026-11-20", "--as-of needs a study"),
        ("--platform list.csv", "--platform needs a study"),
        ("--columns 3", "Add --paper"),
        ("--paper 3.25 --columns 3", "cannot have 3 panels"),
        ("--paper 3.25 --columns 0", "cannot have 0 panels"),
        ("--paper nan", "cannot have"),
        ("--paper 1000", "at most 100"),
        ("--paper 3.25 --sides ours", "Two words"),
        ("--simulated", "human votes"),
    ],
)
def test_what_an_export_cannot_give_is_refused(tmp_path, monkeypatch, capsys, option, message):
    write_export(make_votes(define_pair()), define_pair(), tmp_path / "export")
    monkeypatch.chdir(tmp_path)

    with pytest.raises(SystemExit) as exit:
        run("report", "export", *option.split())

    assert exit.value.code == 2
    assert message in capsys.readouterr().err
    assert not [*tmp_path.rglob("report")]


def test_what_somebody_revoked_is_not_excluded_again(study, monkeypatch, capsys):
    run("simulate", study, "--raters", 4)
    with contextlib.closing(open_study(study)) as store:
        rater = read_votes(store, simulated=True)["rater"].iloc[0]
        found = pd.DataFrame([{"rater": rater, "rule": "too_fast", "evidence": {"fast": 9}}])
        monkeypatch.setattr(screening, "screen", lambda votes, definition: found)
        run("screen", study, "--simulated", "--apply")
        with store.read() as connection:
            [excluded] = exclusions(connection)
        shown = capsys.readouterr().out
        assert f"event {excluded.event_id}, " in shown and "1 proposed, 1 newly excluded" in shown
        run("screen", study, "--simulated", "--apply")
        assert "1 proposed, 0 newly excluded" in capsys.readouterr().out
        run("screen", study, "--revoke", excluded.event_id, "--reason", "a slow clock")

        run("screen", study, "--simulated", "--apply")

        with store.read() as connection:
            assert exclusions(connection) == []
    assert "revoked before" in capsys.readouterr().out


def test_an_erasure_names_what_may_still_know_the_rater(study, capsys):
    with contextlib.closing(open_study(study)) as store:
        enter_rater(store, "prolific", "jane")
    (study / "export").mkdir()
    (study / "report").mkdir()
    (study / "study.db.damaged-1").touch()

    run("erase", study, "prolific", "jane")

    shown = capsys.readouterr().out
    assert all(str(study / name) in shown for name in ("export", "report", "study.db.damaged-1"))


def test_status_tells_a_pause_and_whose_exclusions_are_in_force(study, capsys):
    run("simulate", study, "--raters", 4)
    with contextlib.closing(open_study(study)) as store:
        exclude(store, "rater:1", rule="too_fast", evidence={}, author="ada")
        exclude(store, "assignment:1", rule="broken", evidence={}, author="ada")
        set_paused(store, True, author="ada")
    capsys.readouterr()

    run("status", study)
    people = capsys.readouterr().out
    run("status", study, "--simulated")
    simulated = capsys.readouterr().out

    assert ", paused, definition" in people
    assert "0 exclusions in force" in people
    assert "2 exclusions in force" in simulated


def test_a_path_that_cannot_be_written_is_told_plainly(study, place, capsys):
    run("simulate", study, "--raters", 4)

    with pytest.raises(SystemExit) as exit:
        run("export", study, "--simulated", "--out", place / "prompts.txt")

    assert exit.value.code == 2
    assert "Check the path" in capsys.readouterr().err


def test_an_invitation_is_signed(study, capsys):
    capsys.readouterr()
    run("invite", study, "prolific", f"rater {random.Random(0).random()}")
    assert len(capsys.readouterr().out.strip()) > 40
