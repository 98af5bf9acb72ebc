import pytest

from human_eval.errors import StudyError
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
