"""The results of T2V-CompBench, in the layout that its scripts write."""

import pytest

from turbo.vbench.__main__ import main
from turbo.vbench.compbench import ENDINGS, SECOND, compute_total, find_scores

SCORES = dict(zip(ENDINGS, [0.6, 0.2, 0.5, 0.25, 0.45, 0.7, 0.3], strict=True))


@pytest.fixture
def results(tmp_path):
    for number, (category, score) in enumerate(SCORES.items()):
        folder = tmp_path / f"csv_{number}"
        folder.mkdir()
        table = f'name,prompt,Score\n0001,"a cat, a dog",1\n"score: ",0.9\n"score: ",{score}\n'
        (folder / f"mymodel{ENDINGS[category]}").write_text(table)
    (tmp_path / "csv_2" / "mymodel_2dvideo.csv").write_text("name,Score_1\n")
    return tmp_path


def test_the_total_is_the_mean_of_the_last_lines(results, capsys):
    found = compute_total(find_scores(results))

    assert found == pytest.approx({**SCORES, "total": 3.0 / 7})
    main(["total", str(results)])
    printed = capsys.readouterr().out
    assert "42.86" in printed and "numeracy" in printed


@pytest.mark.parametrize("last", ["", '"score: ",high\n', '"score: ",1.5\n', "0002,a dog,1\n"])
def test_an_unfinished_file_is_refused_with_its_name(results, last):
    (results / "csv_0" / "mymodel_consistent_attr_score.csv").write_text(f"name,Score\n{last}")

    with pytest.raises(ValueError, match="mymodel_consistent_attr_score.csv is not a score"):
        compute_total(find_scores(results))


def test_a_missing_and_a_second_category_are_refused(results):
    (results / "csv_3" / "mymodel_score.csv").unlink()
    with pytest.raises(ValueError, match="Missing: motion"):
        compute_total(find_scores(results))

    (results / "other_3dvideo.csv").write_text('"score: ",0.5\n')
    with pytest.raises(ValueError, match="both of the category spatial"):
        find_scores(results)


def test_the_second_version_has_other_names_for_two_categories(results):
    for category, former in (("spatial relationships", "2"), ("motion", "3")):
        path = results / f"csv_{former}" / f"mymodel{ENDINGS[category]}"
        text = path.read_text().replace(str(SCORES[category]), "0.9")
        (path.parent / f"mymodel{SECOND[category]}").write_text(text)
    (results / "csv_3" / "mymodel_score.csv").unlink()  # `_3dvideo.csv` stays: a step between

    found = compute_total(find_scores(results))

    assert found["spatial relationships"] == found["motion"] == 0.9
