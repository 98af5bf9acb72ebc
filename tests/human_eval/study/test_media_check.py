"""Clips are files beside the database: whoever moves a study without them is told."""

import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from human_eval.cli.main import main
from human_eval.clips.media import Footage, write_footage
from human_eval.server.vote_api import create_app
from human_eval.study.media_check import find_lost_clips
from human_eval.study.store import open_study
from tests.support.studies import define

PROMPTS = 3
GOLD = """
[checks]
gold_share = 0.3
gold_pairs = 3
gold_recipes = ["shuffled", "degraded", "frozen"]
"""


def run(*arguments) -> None:
    main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Clips of three systems, and a study of them with spoiled clips."""
    folder = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(0)
    for system in ("ours", "theirs", "third"):
        (folder / "clips" / system).mkdir(parents=True)
        for index in range(PROMPTS):
            pixels = rng.integers(0, 255, (6, 32, 32, 3)).astype(np.uint8)
            path = folder / "clips" / system / f"{index:04d}.mp4"
            write_footage(Footage(pixels, Fraction(8)), path)
    (folder / "study.toml").write_text(define(extra=GOLD).source)
    (folder / "prompts.txt").write_text("".join(f"star {n}\n" for n in range(PROMPTS)))
    run("create", folder / "study", "--definition", folder / "study.toml",
        "--prompts", folder / "prompts.txt")  # fmt: skip
    run("ingest", folder / "study", folder / "clips")
    return folder


@pytest.fixture
def place(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


@pytest.fixture
def media(place) -> dict[str, Path]:
    """Return the stored file of each clip, by "SYSTEM 0000" and recipe."""
    return list_media(place / "study")


def list_media(study: Path) -> dict[str, Path]:
    store = open_study(study)
    with store.read() as connection:
        rows = connection.exec_driver_sql(
            "SELECT system, prompt_index, variant, stored_name FROM clip"
        ).all()
    store.close()
    return {f"{row[0]} {row[1]:04d} {row[2]}".strip(): store.media / row[3] for row in rows}


def lose(path: Path, damage: str) -> None:
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "a folder":
        path.unlink()
        path.mkdir()
    else:
        changed = bytes([content[-1] ^ 1])
        path.write_bytes(content[:-9] if damage == "cut short" else content[:-1] + changed)


@pytest.mark.parametrize("damage", ["gone", "cut short", "altered", "a folder"])
def test_status_names_the_clips_without_their_file(place, media, capsys, damage):
    run("status", place / "study")
    assert "Every clip has its file." in capsys.readouterr().out
    lose(media["theirs 0001"], damage)

    with pytest.raises(SystemExit) as exit:
        run("status", place / "study")

    shown = capsys.readouterr()
    assert exit.value.code == 2 and "The database is sound." in shown.out
    assert "1 clip is" in shown.err and "theirs 0001" in shown.err


def test_health_counts_lost_clips_without_naming_a_system(place, media, caplog):
    for name in ("ours 0000", "theirs 0000"):
        media[name].unlink()
    store = open_study(place / "study")

    with TestClient(create_app(store)) as client:
        sick = client.get("/healthz")
    store.close()

    assert sick.status_code == 503
    [problem] = sick.json()["problems"]
    assert problem.startswith("2 clips are missing") and "ours" not in problem.replace("yours", "")
    assert problem in caplog.text


def test_a_study_without_any_clip_is_not_served(place, capsys):
    shutil.rmtree(place / "study" / "media")

    with pytest.raises(SystemExit) as exit:
        run("serve", place / "study", "--port", "1")

    assert exit.value.code == 2
    assert "run `ingest`" in capsys.readouterr().err


def test_ingest_makes_lost_clips_again_from_equal_sources(place, media, capsys):
    before = {name: path.read_bytes() for name, path in media.items()}
    shutil.rmtree(place / "study" / "media")

    run("ingest", place / "study", place / "clips")

    assert capsys.readouterr().out.count("made again") == len(media)
    assert list_media(place / "study") == media
    for name, path in media.items():
        if len(name.split()) == 2:  # not spoiled, which is random
            assert path.read_bytes() == before[name], name
    run("status", place / "study")
    assert len(list((place / "study" / "media").iterdir())) == len(media)


def test_a_clip_whose_source_is_not_given_stays_lost_and_is_named(place, media, capsys):
    for name in ("ours 0000", "theirs 0000"):
        media[name].unlink()

    with pytest.raises(SystemExit):
        run("ingest", place / "study", f"ours={place / 'clips' / 'ours'}")

    shown = capsys.readouterr()
    assert "made again: ours 0000" in shown.out
    assert "1 clip is" in shown.err and "theirs 0000" in shown.err
    assert media["ours 0000"].is_file()


def test_a_changed_source_makes_no_lost_clip(place, media, capsys):
    media["ours 0000"].unlink()
    shutil.copy(place / "clips/ours/0001.mp4", place / "clips/ours/0000.mp4")

    with pytest.raises(SystemExit):
        run("ingest", place / "study", place / "clips")

    assert "has changed since it was ingested" in capsys.readouterr().err
    assert not media["ours 0000"].exists()


def test_a_spoiled_clip_is_spoiled_again(place, media):
    name = next(name for name in media if name.endswith("shuffled"))
    media[name].unlink()

    run("ingest", place / "study", place / "clips")

    store = open_study(place / "study")
    assert find_lost_clips(store, read=True) == []
    store.close()
