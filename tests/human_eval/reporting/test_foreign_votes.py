import pandas as pd
import pytest

from human_eval.cli.main import main
from human_eval.errors import StudyError
from human_eval.reporting.export import read_export, write_export
from human_eval.reporting.foreign_study import write_foreign_study
from human_eval.reporting.foreign_votes import MAPPINGS, load_mapping, read_foreign_votes
from tests.support.crowd import define_pair, make_votes


def _write(path, rows):
    path.write_text("model_a,model_b,winner\n" + "\n".join(rows) + "\n")
    return path


def test_battles_keep_their_ties_and_what_is_unknown_stays_empty(tmp_path):
    rows = ["x,y,model_a", "y,x,model_b", "x,y,tie", "x,y,tie (bothbad)"]

    votes = read_foreign_votes(_write(tmp_path / "b.csv", rows), load_mapping("arena"))

    assert [row["choice"] for row in votes.rows.values()] == ["a", "b", "tie", "both_bad"]
    assert {row[name] for row in votes.rows.values() for name in ("rater", "side_a")} == {""}
    assert votes.bad == {}


def test_a_few_bad_rows_are_listed_with_their_line(tmp_path):
    rows = ["x,y,model_a"] * 100 + ["x,y,perhaps"]

    votes = read_foreign_votes(_write(tmp_path / "b.csv", rows), load_mapping("arena"))

    assert list(votes.bad) == [102] and len(votes.rows) == 100


@pytest.mark.parametrize("bad", ["x,y,perhaps", "x,y,", ",y,tie", "x,x,tie"])
def test_more_bad_rows_than_the_limit_are_an_error(tmp_path, bad):
    path = _write(tmp_path / "b.csv", ["x,y,model_a"] * 98 + [bad] * 2)

    with pytest.raises(StudyError, match="line 100"):
        read_foreign_votes(path, load_mapping("arena"))


def test_more_bad_rows_than_a_message_lists_are_counted(tmp_path):
    path = _write(tmp_path / "b.csv", ["x,y,perhaps"] * 25)

    with pytest.raises(StudyError, match="and 5 more"):
        read_foreign_votes(path, load_mapping("arena"))


def test_a_table_without_rows_is_not_blamed_on_its_columns(tmp_path):
    with pytest.raises(StudyError) as refusal:
        read_foreign_votes(_write(tmp_path / "b.csv", []), load_mapping("arena"))

    assert "model_a" not in str(refusal.value)


def test_lines_that_are_not_json_are_listed(tmp_path):
    (tmp_path / "r.jsonl").write_text("{\n{\n")

    with pytest.raises(StudyError, match="line 1: .*\n  line 2: "):
        read_foreign_votes(tmp_path / "r.jsonl", load_mapping("potato"))


def test_a_mapping_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text((MAPPINGS / "arena.toml").read_text(), encoding="utf-8-sig")

    assert load_mapping(str(path)) == load_mapping("arena")


def test_a_mapping_with_an_unknown_word_is_refused(tmp_path):
    path = tmp_path / "m.toml"
    path.write_text('[columns]\nsystem_a="a"\nsystem_b="b"\nchoice="c"\n[choices]\nx="first"\n')

    with pytest.raises(StudyError, match="first"):
        load_mapping(str(path))


def _study(tmp_path, head, rows):
    (tmp_path / "b.csv").write_text("\n".join([head, *rows]) + "\n")
    votes = read_foreign_votes(tmp_path / "b.csv", load_mapping("arena"))
    return write_foreign_study(votes, tmp_path / "study", title="battles")[0]


def test_a_vote_is_turned_where_the_table_names_the_systems_the_other_way_round(tmp_path):
    votes = _study(tmp_path, "model_a,model_b,winner", ["x,y,model_a", "y,x,model_a"])

    assert set(votes["system_a"]) == {"x"} and votes["choice"].tolist() == ["a", "b"]


def test_a_cell_that_is_empty_in_some_rows_only_is_a_bad_row(tmp_path):
    rows = ["x,y,model_a,r1"] * 200 + ["x,y,model_a,"]
    (tmp_path / "b.csv").write_text("\n".join(["model_a,model_b,winner,judge", *rows]))

    assert list(read_foreign_votes(tmp_path / "b.csv", load_mapping("arena")).bad) == [202]


def test_nothing_is_made_of_a_table_that_is_refused(tmp_path):
    (tmp_path / "b.csv").write_text("model_a,model_b,winner\nx,y,perhaps\n")

    with pytest.raises(SystemExit):
        main(["import-votes", str(tmp_path / "b.csv"), "--mapping", "arena",
              "--out", str(tmp_path / "study")])  # fmt: skip

    assert [path.name for path in tmp_path.iterdir()] == ["b.csv"]


def test_votes_without_raters_and_prompts_give_a_report_without_claims(tmp_path, capsys):
    rows = ["x,y,model_a"] * 80 + ["x,y,model_b"] * 20 + ["y,z,model_b"] * 30
    (tmp_path / "b.csv").write_text("\n".join(["model_a,model_b,winner", *rows]) + "\n")
    study, report = tmp_path / "study", tmp_path / "study" / "report"

    main(["import-votes", str(tmp_path / "b.csv"), "--mapping", "arena", "--out", str(study)])
    main(["report", str(study)])
    main(["audit", str(study)])

    rates = pd.read_csv(report / "win_rates.csv", keep_default_na=False)
    assert rates["rate"].tolist() == [0.8, 0.0] and set(rates["claim"]) == {""}
    assert not (report / "sides.csv").exists() and not (report / "influence.csv").exists()
    audit = pd.read_csv(report / "audit.csv", index_col="probe", keep_default_na=False)
    assert audit.index[audit["fired"]].tolist() == ["coverage imbalance"]
    assert audit["unknown"]["side effect"] == "sides"
    assert len(read_export(study)[0]) == 130
    assert not (report / "evidence.svg").exists()
    with pytest.raises(SystemExit):
        main(["export", str(study)])
    assert "is an export" in capsys.readouterr().err


FILES = {  # one vote for ours, one for theirs, as each source writes them
    "crowd words.csv": (
        "crowd",
        "Input.system_left,Input.system_right,Input.prompt,WorkerId,SubmitTime,Answer.choice\n"
        "ours,theirs,a cat,W1,Tue Mar 05 10:33:21 EDT 2019,A\n"
        "theirs,ours,a dog,W2,Tue Mar 05 10:33:21 PST 2019,left\n",
    ),
    "crowd buttons.csv": (
        "crowd",
        "Input.system_left,Input.system_right,Answer.choice.left,Answer.choice.right\n"
        "ours,theirs,true,false\ntheirs,ours,true,false\n",
    ),
    "rapidata.json": (
        "rapidata",
        '{"info": {}, "results": [{"context": "a cat", "aggregatedResults": {"ours_1.mp4": 1, '
        '"theirs_1.mp4": 1}, "detailedResults": [{"votedFor": "ours_1.mp4", "userDetails": {}}, '
        '{"votedFor": "theirs_1.mp4", "userDetails": {}}]}]}',
    ),
    "label studio.json": (
        "label_studio",
        '[{"data": {"system_left": "ours", "system_right": "theirs", "prompt": "a cat"}, '
        '"created_at": "never", "annotations": [{"completed_by": 7, "created_at": '
        '"2026-01-02T03:04:05Z", "result": [{"value": {"selected": "left"}}]}, '
        '{"completed_by": 8, "created_at": "2026-01-02T03:04:05Z", "result": '
        '[{"value": {"selected": "right"}}]}]}]',
    ),
    "potato.jsonl": (
        "potato",
        '{"instance_id": "ours__theirs__a-cat", "user_id": "u", "preference": {"selection": "A"}}\n'
        '{"instance_id": "ours__theirs__a-dog", "user_id": "u", "preference": {"selection": "B"}}',
    ),
    "potato.csv": (
        "potato",
        "instance_id,user_id,preference\n"
        'ours__theirs__a-cat,u,"{""selection"": ""A""}"\n'
        'ours__theirs__a-dog,u,"{""selection"": ""B""}"\n',
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_ready_mappings_read_the_files_of_their_sources(tmp_path, name):
    mapping, content = FILES[name]
    (tmp_path / name).write_text(content)

    votes = read_foreign_votes(tmp_path / name, load_mapping(mapping))
    frame, _ = write_foreign_study(votes, tmp_path / "study", title="votes")

    assert votes.bad == {}
    winners = frame["system_a"].where(frame["choice"] == "a", frame["system_b"])
    assert winners.tolist() == ["ours", "theirs"]
    assert frame["prompt"].eq("").all() == ("buttons" in name)


def test_a_crowds_sides_raters_and_zones_are_kept(tmp_path):
    mapping, content = FILES["crowd words.csv"]
    (tmp_path / "results.csv").write_text(content)

    votes = read_foreign_votes(tmp_path / "results.csv", load_mapping(mapping))
    frame, _ = write_foreign_study(votes, tmp_path / "study", title="votes")

    assert frame["side_a"].tolist() == ["left", "right"]  # the second is turned: ours is a
    assert frame["rater"].tolist() == ["W1", "W2"]
    assert frame["answered_at"].dt.hour.tolist() == [14, 18]


@pytest.mark.parametrize("a, b", [("A", "B"), ("left", "tie")])
def test_a_choice_that_is_an_option_and_the_other_system_is_a_bad_row(tmp_path, a, b):
    head = "Input.system_left,Input.system_right,Answer.choice"
    rows = [f"{a},{b},{a}", f"{b},{a},{a}", f"x,{a},x"]
    (tmp_path / "c.csv").write_text("\n".join([head, *rows]) + "\n")

    votes = read_foreign_votes(tmp_path / "c.csv", load_mapping("crowd"), max_bad=0.5)

    assert list(votes.bad) == [3] and repr(a) in votes.bad[3]
    assert {line: row["choice"] for line, row in votes.rows.items()} == {2: "a", 4: "a"}


def test_videoalign_answers_three_questions_a_row(tmp_path):
    (tmp_path / "train.csv").write_text(
        "path_A,path_B,prompt,VQ,MQ,TA\n"
        "v/ours/1.mp4,v/theirs/1.mp4,a cat,A,same,B\n"
        + "v/ours/2.mp4,v/theirs/2.mp4,a dog,A,A,A\n" * 99
        + "v/ours/3.mp4,v/theirs/3.mp4,a cow,A,A,perhaps\n"
    )

    votes = read_foreign_votes(tmp_path / "train.csv", load_mapping("videoalign"))
    frame, definition = write_foreign_study(votes, tmp_path / "s", title="v", primary="TA")

    assert frame["choice"].tolist()[:3] == ["a", "tie", "b"]
    assert frame["question"].tolist()[:3] == ["VQ", "MQ", "TA"] and len(frame) == 300
    assert list(votes.bad) == [102] and "TA" in votes.bad[102]
    assert definition.primary.key == "TA"


def test_json_in_a_cell_is_reached_by_its_path(tmp_path):
    (tmp_path / "r.csv").write_text(
        "left,right,Answer.taskAnswers\n"
        'ours,theirs,"[{""Q1"": {""left"": true, ""right"": false}}]"\n'
    )
    (tmp_path / "m.toml").write_text(
        '[columns]\nsystem_a = "left"\nsystem_b = "right"\n'
        'choice = "Answer.taskAnswers.0.Q1"\n[choices]\nleft = "a"\nright = "b"\n'
    )

    votes = read_foreign_votes(tmp_path / "r.csv", load_mapping(str(tmp_path / "m.toml")))

    assert votes.rows[2]["choice"] == "a"


@pytest.mark.parametrize(
    "name, content, mapping",
    [
        ("r.json", "[1]", "label_studio"),
        ("r.json", '[{"data": {}}]', "label_studio"),
        ("r.json", '{"results": 3}', "rapidata"),
        ("r.json", "{", "rapidata"),
        ("r.jsonl", "[]\n{", "potato"),
        ("r.csv", "path_A,path_B,prompt,VQ,MQ\nx/y,z/y,p,A,A\n", "videoalign"),
        ("r.csv", "path_A,path_B,prompt,VQ,MQ,TA\ny,z,p,A,A,A\n", "videoalign"),
    ],
)
def test_files_without_what_the_mapping_names_are_refused(tmp_path, name, content, mapping):
    (tmp_path / name).write_text(content)

    with pytest.raises(StudyError):
        read_foreign_votes(tmp_path / name, load_mapping(mapping))


@pytest.mark.parametrize(
    "line", ['[patterns]\nsystem_a = "("', '[patterns]\nsystem_a = "x"', 'each = "x"', "only = 3"]
)
def test_a_mapping_that_cannot_be_used_is_refused(tmp_path, line):
    text = '[columns]\nsystem_a="a"\nsystem_b="b"\nchoice="c"\n'
    (tmp_path / "m.toml").write_text(line + "\n" + text if "=" in line[:6] else text + line)

    with pytest.raises(StudyError):
        load_mapping(str(tmp_path / "m.toml"))


def test_this_projects_export_can_be_imported_without_checks_and_excluded_raters(tmp_path):
    definition = define_pair()
    votes = make_votes(definition, prompts=4)
    votes.loc[0, "excluded"] = True
    write_export(votes, definition, tmp_path / "export")

    read = read_foreign_votes(tmp_path / "export" / "votes.csv", load_mapping("export"))

    counted = votes[~votes["excluded"] & (votes["kind"] == "real")]
    assert len(read.rows) == len(counted) and read.others == len(votes) - len(counted)
    assert [row["choice"] for row in read.rows.values()] == counted["choice"].tolist()
