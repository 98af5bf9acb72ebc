import pandas as pd
import pytest

from human_eval.cli.main import main
from human_eval.errors import StudyError
from human_eval.reporting.export import read_export
from human_eval.reporting.foreign_study import write_foreign_study
from human_eval.reporting.foreign_votes import load_mapping, read_foreign_votes


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
    study, report = tmp_path / "study", tmp_path / "report"

    main(["import-votes", str(tmp_path / "b.csv"), "--mapping", "arena", "--out", str(study)])
    main(["report", str(study), "--out", str(report)])
    main(["audit", str(study)])

    rates = pd.read_csv(report / "win_rates.csv", keep_default_na=False)
    assert rates["rate"].tolist() == [0.8, 0.0] and set(rates["claim"]) == {""}
    assert not (report / "sides.csv").exists() and not (report / "influence.csv").exists()
    assert len(read_export(study)[0]) == 130
    assert not (report / "evidence.svg").exists()
