import csv
import hashlib
import json
import shutil

import pandas as pd
import pytest

from human_eval.clips.ingest import Clip
from human_eval.definition.definition import VIDEO_ALIGN, load_definition, parse_definition
from human_eval.errors import StudyError
from human_eval.reporting.export import read_export, read_votes, sum_line, write_csv, write_export
from human_eval.reporting.preferences import video_align_questions
from human_eval.statistics.votes import COLUMNS, check_votes, counted_votes
from tests.support.crowd import define_pair, make_votes

FORMULAS = [
    "=1+1",
    "+1",
    "-1",
    "@x",
    "\tx",
    "'=1",
    "''@x",
    "'plain",
    'a "b", c\nd',
    "a\rb",
    "a\r\nb",
    "é 👾",
    "NA",
    "7",
]


def make_clips(definition, prompts: int) -> list[Clip]:
    return [
        Clip(
            system=system.key,
            prompt_index=index,
            prompt=f"prompt {index}",
            seed=3,
            source_sha256="s",
            stored_name=f"{system.key}{index}.mp4",
            sha256="h",
            width=32,
            height=32,
            fps=8.0,
            frames=16,
            bytes=1000,
        )
        for system in definition.systems
        for index in range(prompts)
    ]


def write_sums(folder) -> None:
    """Make the files that were changed those of the export."""
    lines = [sum_line(path) for path in folder.iterdir() if path.name != "SHA256SUMS"]
    (folder / "SHA256SUMS").write_text("\n".join(lines) + "\n")


@pytest.fixture
def definition():
    return define_pair()


@pytest.fixture
def votes(definition):
    votes = make_votes(definition, prompts=len(FORMULAS))
    texts = dict(enumerate(FORMULAS))
    return votes.assign(prompt=votes["prompt_index"].map(texts))


@pytest.fixture
def folder(votes, definition, tmp_path):
    write_export(votes, definition, tmp_path, clips=make_clips(definition, len(FORMULAS)))
    return tmp_path


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_votes_come_back_as_they_were(folder, votes, kind):
    read = read_votes(folder / f"votes.{kind}")

    pd.testing.assert_frame_equal(read, votes, check_dtype=False)


def test_no_cell_of_a_csv_runs_as_a_formula(folder):
    for path in folder.glob("*.csv"):
        with path.open(newline="", encoding="utf-8") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        begins = {cell[:1] for cell in cells if not cell.lstrip("-").replace(".", "").isdigit()}
        assert not begins & set("=+-@\t\r"), path.name


def test_numbers_stay_numbers(tmp_path):
    write_csv(pd.DataFrame({"net": [-0.25], "text": ["-0.25"]}), tmp_path / "t.csv")

    assert (tmp_path / "t.csv").read_text() == "net,text\n-0.25,'-0.25\n"


def test_the_same_votes_give_the_same_bytes_in_any_order(votes, definition, tmp_path):
    for name, frame in (("one", votes), ("two", votes.sample(frac=1, random_state=1))):
        write_export(frame, definition, tmp_path / name, clips=make_clips(definition, 3))

    assert (tmp_path / "one/SHA256SUMS").read_text() == (tmp_path / "two/SHA256SUMS").read_text()


def test_sums_are_those_of_the_files(folder):
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def test_export_is_read_back_with_its_definition(folder, votes, definition):
    read, its = read_export(folder)

    assert its == definition and its.hash == definition.hash
    assert len(read) == len(votes)


def test_votes_under_another_definition_are_refused(folder):
    (folder / "study.toml").write_text(define_pair("version = 2").source)
    write_sums(folder)

    with pytest.raises(StudyError, match="under another definition"):
        read_export(folder)


def test_votes_that_were_changed_since_the_export_are_refused(folder, votes):
    votes.assign(choice="a").to_parquet(folder / "votes.parquet", index=False)

    with pytest.raises(StudyError, match="votes.parquet in .* was changed since the export"):
        read_export(folder)


def test_preferences_hold_the_majority_of_raters_who_count(tmp_path):
    definition = define_pair().source.replace("primary", 'dimension = "visual_quality", primary')
    definition = parse_definition(definition)
    votes = make_votes(definition, prompts=3).sort_values("prompt_index", ignore_index=True)
    choices = ["a", "a", "b", "b", "b", "b", "a", "b", "tie"]
    votes = votes.assign(choice=choices)
    votes.loc[3:5, "excluded"] = True
    write_export(votes, definition, tmp_path, clips=make_clips(definition, 3))

    align = pd.read_csv(tmp_path / "preferences.videoalign.csv", keep_default_na=False)
    lines = (tmp_path / "preferences.dpo.jsonl").read_text().splitlines()
    pairs = [json.loads(line) for line in lines]

    assert list(align.columns) == [
        *["path_A", "path_B", "prompt", "VQ", "MQ", "TA"],
        *["fps_A", "num_frames_A", "fps_B", "num_frames_B", "simulated"],
    ]
    assert align["VQ"].to_list() == ["A", "same"]  # the excluded pair is gone
    assert set(align["MQ"]) == {""}
    assert align.loc[0, ["path_A", "path_B"]].to_list() == [
        "media/ours0.mp4",
        "media/theirs0.mp4",
    ]
    assert pairs == [
        {
            "prompt": "prompt 0",
            "chosen": "media/ours0.mp4",
            "rejected": "media/theirs0.mp4",
            "question": "Q1",
            "dimension": "visual_quality",
            "probability": pytest.approx(0.6),
            "votes": 3,
            "simulated": False,
        }
    ]


@pytest.mark.parametrize("simulated", [True, False])
def test_every_preference_says_whether_its_votes_are_simulated(
    votes, definition, tmp_path, simulated
):
    clips = make_clips(definition, len(FORMULAS))
    write_export(votes.assign(simulated=simulated), definition, tmp_path, clips=clips)

    align = pd.read_csv(tmp_path / "preferences.videoalign.csv")
    lines = (tmp_path / "preferences.dpo.jsonl").read_text().splitlines()

    assert set(align["simulated"]) == {simulated}
    assert {json.loads(line)["simulated"] for line in lines} == {simulated}


def test_a_question_without_a_dimension_fills_no_column_of_videoalign(folder):
    align = pd.read_csv(folder / "preferences.videoalign.csv", keep_default_na=False)

    assert len(align) and (align[["VQ", "MQ", "TA"]] == "").all(axis=None)
    assert "VQ empty, since no question measures it" in (folder / "README.md").read_text()


def test_the_questions_of_the_paper_measure_quality_and_alignment():
    questions = {"VQ": "Q1", "MQ": "", "TA": "Q2"}

    assert video_align_questions(load_definition("t2v-turbo")) == questions
    assert video_align_questions(load_definition("shapes-demo")) == questions


@pytest.mark.parametrize("short, long", list(VIDEO_ALIGN.items()))
def test_a_question_may_name_its_dimension_as_videoalign_does(short, long):
    source = define_pair().source.replace("primary", f'dimension = "{short}", primary')
    definition = parse_definition(source)

    assert definition.questions[0].dimension == long
    assert video_align_questions(definition)[short] == "Q1"
    twice = source.replace(
        "questions = [", f'questions = [{{key="Q0", wording="x", dimension="{long}"}}, '
    )
    with pytest.raises(StudyError, match="same dimension"):
        parse_definition(twice)


def test_a_preset_fills_every_column_of_videoalign():
    questions = video_align_questions(load_definition("video-align"))

    assert all(questions.values())


def test_every_path_of_an_export_with_clips_leads_to_a_file(votes, definition, tmp_path):
    clips = make_clips(definition, len(FORMULAS))
    media = tmp_path / "study-media"
    media.mkdir()
    folder = tmp_path / "export"
    with pytest.raises(StudyError, match="clips have no file"):
        write_export(votes, definition, folder, clips=clips, media=media)
    assert not folder.exists()
    for clip in clips:
        (media / clip.stored_name).write_bytes(clip.stored_name.encode())

    write_export(votes, definition, folder, clips=clips, media=media)

    align = pd.read_csv(folder / "preferences.videoalign.csv", keep_default_na=False)
    pairs = map(json.loads, (folder / "preferences.dpo.jsonl").read_text().splitlines())
    paths = [*align["path_A"], *align["path_B"], *(pair["chosen"] for pair in pairs)]
    assert paths and all((folder / path).is_file() for path in paths)
    assert "files are in this folder" in (folder / "README.md").read_text()
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    read_export(folder)


@pytest.fixture
def media(definition, tmp_path):
    """The folder of a study's clips."""
    folder = tmp_path / "study-media"
    folder.mkdir()
    for clip in make_clips(definition, len(FORMULAS)):
        (folder / clip.stored_name).write_bytes(clip.stored_name.encode())
    return folder


@pytest.mark.parametrize("former", [True, False])
def test_an_export_that_was_killed_is_refused(
    votes, definition, media, tmp_path, monkeypatch, former
):
    clips, folder = make_clips(definition, len(FORMULAS)), tmp_path / "export"
    if former:
        write_export(votes, definition, folder, clips=clips, media=media)

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copyfile", die)
    with pytest.raises(KeyboardInterrupt):
        write_export(votes, definition, folder, clips=clips, media=media)

    with pytest.raises(StudyError, match=r"[Ee]xport .*again"):
        read_export(folder)


@pytest.mark.parametrize("with_clips", [True, False])
def test_clips_of_a_former_export_are_deleted(votes, definition, media, tmp_path, with_clips):
    clips, folder = make_clips(definition, len(FORMULAS)), tmp_path / "export"
    write_export(votes, definition, folder, clips=clips, media=media)

    write_export(votes, definition, folder, clips=clips[1:], media=media if with_clips else None)

    left = {path.name for path in (folder / "media").iterdir()}
    assert left == {clip.stored_name for clip in clips[1:]}
    assert len([*media.iterdir()]) == len(clips)


def test_clips_that_no_export_wrote_are_not_deleted(votes, definition, media, tmp_path):
    own = tmp_path / "export" / "media" / "holiday.mp4"
    own.parent.mkdir(parents=True)
    own.touch()

    with pytest.raises(StudyError, match="holiday"):
        write_export(votes, definition, tmp_path / "export")

    assert [*(tmp_path / "export").rglob("*")] == [own.parent, own]


def test_no_clip_of_the_study_is_deleted_through_a_link(votes, definition, media, tmp_path):
    clips, folder = make_clips(definition, len(FORMULAS)), tmp_path / "export"
    folder.mkdir()
    (folder / "media").symlink_to(media)

    write_export(votes, definition, folder, clips=clips[1:])

    assert len([*media.iterdir()]) == len(clips)


def test_an_export_that_contains_its_report_is_written_again(folder, votes, definition):
    (folder / "report").mkdir()

    write_export(votes, definition, folder)

    (folder / "notes.txt").touch()
    with pytest.raises(StudyError, match="notes.txt"):
        write_export(votes, definition, folder)


def test_an_export_without_clips_says_where_they_are(folder):
    assert "`export --clips` includes them" in (folder / "README.md").read_text()


def test_checks_of_raters_are_no_preferences(votes, definition, tmp_path):
    gold = votes.assign(kind="gold", gold_answer="a")

    write_export(gold, definition, tmp_path, clips=make_clips(definition, 3))

    assert (tmp_path / "preferences.dpo.jsonl").read_text().strip() == ""


def test_card_describes_every_column_and_marks_simulation(votes, definition, tmp_path):
    write_export(votes.assign(simulated=True), definition, tmp_path)

    card = (tmp_path / "README.md").read_text()
    assert all(f"`{name}`" in card for name in COLUMNS)
    assert "Simulated votes: no person took part" in card
    assert definition.hash in card


def test_a_folder_with_other_things_is_left_alone(votes, definition, tmp_path):
    (tmp_path / "thesis.docx").write_text("years of work")

    with pytest.raises(StudyError, match=r"contains 'thesis.docx'"):
        write_export(votes, definition, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.docx"]


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda votes: votes.drop(columns="rater"), "no column rater"),
        (lambda votes: votes.assign(choice="neither"), "column choice contains 'neither'"),
        (lambda votes: votes.assign(side_a="top"), "column side_a contains 'top'"),
        (lambda votes: votes.assign(prompt_index="one"), "prompt_index must contain whole numbers"),
        (lambda votes: votes.assign(seconds=votes["seconds"].mask(votes.index > 3)), "no seconds"),
        (lambda votes: votes.assign(rater=votes["rater"].mask(votes.index > 3, "")), "no rater"),
    ],
)
def test_a_table_that_is_none_of_votes_is_refused(votes, spoil, message):
    with pytest.raises(StudyError, match=message):
        check_votes(spoil(votes))


@pytest.mark.parametrize("content", ["", "vote_id,choice\n1,a\n", "\x00\x01"])
def test_a_damaged_file_is_refused(tmp_path, content):
    (tmp_path / "votes.csv").write_text(content)

    with pytest.raises(StudyError, match=r"votes.csv cannot be read|has no column"):
        read_votes(tmp_path / "votes.csv")
    with pytest.raises(StudyError, match=r"study.toml"):
        read_export(tmp_path)


@pytest.mark.parametrize("moment", ["yesterday", "2026-13-01", "99999-01-01T00:00:00Z"])
def test_a_time_that_is_none_is_refused(folder, votes, moment):
    table = pd.read_csv(folder / "votes.csv", dtype=str, keep_default_na=False)
    table.loc[3, "answered_at"] = moment
    table.to_csv(folder / "votes.csv", index=False)
    spoilt = votes.assign(answered_at=table["answered_at"])
    spoilt.to_json(folder / "votes.jsonl", orient="records", lines=True)

    for kind in ("csv", "jsonl"):
        with pytest.raises(StudyError, match=f"votes.{kind} cannot be read as a table of votes"):
            read_votes(folder / f"votes.{kind}")


def test_people_and_simulation_are_never_mixed(votes, definition, tmp_path):
    mixed = votes.assign(simulated=votes.index % 2 == 0)

    with pytest.raises(StudyError, match="Analyse the two separately"):
        counted_votes(mixed)
    with pytest.raises(StudyError, match="Analyse the two separately"):
        write_export(mixed, definition, tmp_path)


def test_votes_that_count_leave_out_checks_and_the_excluded(votes):
    votes.loc[0, "kind"] = "mirror"
    votes.loc[1, "excluded"] = True

    assert len(counted_votes(votes)) == len(votes) - 2
    assert len(counted_votes(votes, with_excluded=True)) == len(votes) - 1
