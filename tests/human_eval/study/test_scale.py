"""A question with a scale of five points, from the rater's answer to the report and the export."""

import itertools

import pandas as pd
import pytest
from sqlalchemy.exc import IntegrityError

from human_eval.collection.submission import Answer
from human_eval.definition.definition import Choice, parse_definition
from human_eval.errors import NotAcceptable, StudyError, TooLate
from human_eval.mturk.batches import write_batches
from human_eval.reporting.export import read_export, read_votes, sum_line, write_export
from human_eval.reporting.report import report_from_export, write_report
from human_eval.statistics.win_rates import tabulate_strengths, win_rates
from human_eval.study import queries
from human_eval.study.simulation import Crowd, simulate
from tests.human_eval.collection.test_assignment import enter
from tests.support.crowd import PAIR, make_votes
from tests.support.studies import DEFINITION, answer, claim_pair, submit_answers

SCALE = '[[questions]]\nkey = "Q3"\nwording = "How much better?"\nkind = "scale"\n'
POINTS = [("left", 2), ("left", 1), ("tie", 0), ("right", 1), ("right", 2)]


@pytest.fixture
def store(make_store):
    return make_store(k=1, num_prompts=5, extra=SCALE, loops=0)


def rate(store, rater, shown, strength, **changes):
    """Answer the rater's next pair, or the one given, on the scale."""
    claimed = changes.pop("claimed", None) or claim_pair(store, rater)
    answers = {key: Answer("left", 1.0) for key in ("Q1", "Q2")}
    answers["Q3"] = Answer(shown, 1.0, strength)
    submit_answers(store, answer(store, claimed, answers=answers, **changes))
    return claimed


def read_scale(store):
    votes = queries.read_votes(store)
    return votes[votes["question"] == "Q3"]


def test_every_point_is_stored_with_its_strength(store):
    [rater] = enter(store, 1)
    for shown, strength in POINTS:
        rate(store, rater, shown, strength)

    votes = read_scale(store)
    sides = [
        choice if choice == "tie" else "left" if (choice == "a") == (side == "left") else "right"
        for choice, side in zip(votes["choice"], votes["side_a"], strict=True)
    ]
    assert list(zip(sides, votes["strength"], strict=True)) == POINTS
    others = queries.read_votes(store).query("question != 'Q3'")
    assert set(others["strength"]) == {0}


@pytest.mark.parametrize("shown, strength", [("left", 0), ("tie", 1), ("both_bad", 0), ("left", 3)])
def test_a_point_that_the_scale_lacks_is_refused(store, shown, strength):
    [rater] = enter(store, 1)

    with pytest.raises(NotAcceptable):
        rate(store, rater, shown, strength)

    assert queries.read_votes(store).empty


def test_a_strength_is_refused_where_no_scale_asks_for_it(store):
    [rater] = enter(store, 1)
    claimed = claim_pair(store, rater)
    answers = {key: Answer("left", 1.0, 1) for key in ("Q1", "Q2", "Q3")}

    with pytest.raises(NotAcceptable):
        submit_answers(store, answer(store, claimed, answers=answers))


def test_another_strength_is_another_answer(store):
    [rater] = enter(store, 1)
    claimed = rate(store, rater, "left", 1)
    rate(store, rater, "left", 1, claimed=claimed)  # the same again

    with pytest.raises(TooLate):
        rate(store, rater, "left", 2, claimed=claimed)
    rate(store, rater, "left", 2, claimed=claimed, revision=1)

    assert list(read_scale(store)["strength"]) == [2]


def test_the_database_refuses_other_strengths(store):
    [rater] = enter(store, 1)
    rate(store, rater, "left", 1)

    with pytest.raises(IntegrityError), store.write() as connection:
        connection.exec_driver_sql(
            "INSERT INTO vote (assignment_id, question, revision, choice, answered_at, seconds, "
            "loops, definition_hash, strength) SELECT assignment_id, question, 1, choice, "
            "answered_at, seconds, loops, definition_hash, 3 FROM vote"
        )


def test_the_mean_of_a_scale_is_that_of_its_points():
    definition = parse_definition(
        PAIR.replace('wording = "Which one?"', 'wording = "?", kind = "scale"')
    )
    points = [2, 2, 1, 0, -1, -2, 2, 1]
    votes = make_votes(definition, prompts=len(points), raters=8).iloc[: len(points)]
    votes = votes.assign(
        choice=["a" if point > 0 else "b" if point < 0 else "tie" for point in points],
        strength=[abs(point) for point in points],
    )

    row = tabulate_strengths(votes, definition).iloc[0]
    rates = win_rates(votes, definition).iloc[0]

    assert list(row[["a_much", "a_slightly", "tie", "b_slightly", "b_much"]]) == [3, 2, 1, 1, 1]
    assert row["mean"] == pytest.approx(5 / 8)
    assert row["low"] < row["mean"] < row["high"] <= 2
    assert (rates["wins"], rates["ties"], rates["losses"]) == (5, 1, 2)  # whatever the strength


def test_the_mean_of_a_scale_is_unlimited_by_one_raters_votes_on_one_prompt():
    definition = parse_definition(
        PAIR.replace('wording = "Which one?"', 'wording = "?", kind = "scale"')
    )
    votes = make_votes(definition, prompts=3, raters=8).iloc[:3]
    votes = votes.assign(prompt="the same", rater="one", choice="a", strength=[2, 1, 2])

    row = tabulate_strengths(votes, definition).iloc[0]

    assert row["mean"] == pytest.approx(5 / 3)
    assert (row["low"], row["high"]) == (-2, 2) and row["note"]


def test_simulated_raters_use_the_whole_scale(store, tmp_path):
    simulate(store, Crowd(raters=5, win_rate=0.8, tie_share=0.3, seed=1))

    votes = queries.read_votes(store, simulated=True).query("question == 'Q3'")
    assert set(zip(votes["choice"], votes["strength"], strict=True)) >= {
        ("a", 1),
        ("a", 2),
        ("tie", 0),
    }


@pytest.mark.slow
def test_report_and_export_keep_the_strength(store, tmp_path):
    simulate(store, Crowd(raters=5, win_rate=0.7, tie_share=0.2, seed=1))
    votes = queries.read_votes(store, simulated=True)

    write_export(votes, store.definition, tmp_path / "export")
    write_report(votes, store.definition, tmp_path / "report")
    for kind in ("csv", "parquet", "jsonl"):
        again = read_votes(tmp_path / "export" / f"votes.{kind}")
        assert list(again["strength"]) == list(votes["strength"]), kind

    report_from_export(tmp_path / "export", tmp_path / "again")
    table = (tmp_path / "report" / "strengths.csv").read_bytes()
    assert b"Q3" in table
    assert (tmp_path / "again" / "strengths.csv").read_bytes() == table


def test_an_export_from_before_there_were_scales_is_still_read(store, tmp_path):
    simulate(store, Crowd(raters=5, seed=1))
    votes = queries.read_votes(store, simulated=True).query("question != 'Q3'")
    folder = tmp_path / "export"
    write_export(votes, store.definition, folder)
    for path in [folder / "votes.parquet", folder / "votes.jsonl"]:
        path.unlink()
    table = pd.read_csv(folder / "votes.csv").drop(columns="strength")
    table.to_csv(folder / "votes.csv", index=False)
    lines = [sum_line(folder / name) for name in ("study.toml", "votes.csv")]
    (folder / "SHA256SUMS").write_text("\n".join(lines) + "\n")
    (folder / "earlier-definitions.jsonl").unlink()

    assert set(read_export(folder)[0]["strength"]) == {0}


def test_an_unknown_strength_in_a_table_is_refused(store, tmp_path):
    simulate(store, Crowd(raters=5, seed=1))
    votes = queries.read_votes(store, simulated=True)

    with pytest.raises(StudyError):
        write_export(votes.assign(strength=3), store.definition, tmp_path)


def test_files_of_mechanical_turk_hold_no_scale(store, tmp_path):
    with pytest.raises(StudyError):
        write_batches(store, "https://clips.example", tmp_path / "batch.csv")


def test_a_scale_offers_five_choices_in_order_and_no_setting_of_ties():
    text = DEFINITION.format(k=1, loops=0) + SCALE
    question = parse_definition(text).question("Q3")

    assert list(question.offered) == list(itertools.starmap(Choice, POINTS))
    assert question.choices == ("a", "tie", "b") and not question.forced
    for setting in ('ties = "tie"', 'labels = ["1", "2", "3"]'):
        with pytest.raises(StudyError):
            parse_definition(text + setting)
    assert parse_definition(text + 'labels = ["--", "-", "0", "+", "++"]').question("Q3").labels
