import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy.stats import t

from human_eval.errors import StudyError
from human_eval.reporting.judge_scores import read_scores
from human_eval.reporting.report import WITH_JUDGE, write_report
from human_eval.statistics import prediction_powered
from human_eval.statistics.e_values import e_value_path
from human_eval.statistics.prediction_powered import effective_votes, prediction_powered_rates
from tests.benchmarks.judge_coverage import measure_judge
from tests.support.crowd import define_pair, make_votes

PAIR = define_pair("raters_per_pair = 1\n")


def study(*, seen=40, prompts=100):
    """Return votes of one rater a prompt, each rater with one vote, and scores of all prompts."""
    votes = make_votes(PAIR, prompts=seen, raters=40, seed=3)
    votes = votes.assign(rater=[f"r{number}" for number in range(len(votes))])
    rng = np.random.default_rng(0)
    score = rng.random(prompts)
    score[votes["prompt_index"]] = 0.3 + 0.4 * votes["choice"].eq("a") + 0.2 * rng.random(seen)
    scores = pd.DataFrame({"comparison": "C1", "prompt_index": range(prompts), "score": score})
    return votes, scores


@pytest.mark.parametrize("weight", [0.0, 0.6])
def test_independent_votes_have_the_published_estimate_and_error(weight, monkeypatch):
    # Angelopoulos, Duchi and Zrnic (2023): mean of y - w f over votes, plus w times the mean of
    # the other scores; the variances of both parts add up. A weight of 0 is the classical mean.
    votes, scores = study()
    monkeypatch.setattr(
        prediction_powered, "_fit_weights", lambda y, *rest: np.full(len(y), weight)
    )

    row = prediction_powered_rates(votes, scores, PAIR).iloc[0]

    y = votes["choice"].eq("a").to_numpy(float)
    given = scores["score"].to_numpy()[votes["prompt_index"]]
    people = sm.OLS(y - weight * given, np.ones(40)).fit()
    others = sm.OLS(weight * scores["score"].to_numpy()[40:], np.ones(60)).fit()
    assert row["rate"] == pytest.approx(people.params[0] + others.params[0])
    first, second = people.bse[0] ** 2, others.bse[0] ** 2
    # Prompts and raters each have 39 degrees of freedom; crossed, their variances are added.
    df = (first + second) ** 2 / (first**2 / 19.5 + second**2 / 59)
    half = t.ppf(0.975, df) * np.sqrt(first + second)
    assert [row["low"], row["high"]] == pytest.approx([row["rate"] - half, row["rate"] + half])


def test_a_judge_who_lies_changes_nothing():
    votes, scores = study()
    scores["score"] = 1 - scores["score"]

    row = prediction_powered_rates(votes, scores, PAIR).iloc[0]

    assert row["weight"] == 0 and row["rate"] == row["people"] and row["saved"] == 0
    assert row["e"] == pytest.approx(e_value_path(votes)["e"].iloc[-1])


def test_a_good_judge_helps_at_every_look_and_a_vote_changes_no_earlier_one():
    votes, scores = study()
    score = scores.set_index("prompt_index")["score"]
    other = votes.assign(choice=votes["choice"].where(votes.index != 25, "tie"))

    wins, losses = effective_votes(votes, score)
    changed, _ = effective_votes(other, score)

    alone = effective_votes(votes, 0 * score)
    assert wins[-1] + losses[-1] > 1.4 * (alone[0][-1] + alone[1][-1])
    assert (wins[:25] == changed[:25]).all() and wins[25] != changed[25]


def test_ties_only_are_no_certainty():
    votes, scores = study()
    votes["choice"] = votes["choice"].where(votes.index >= 20, "tie")

    wins, losses = effective_votes(votes, scores.set_index("prompt_index")["score"])

    assert 0 < wins[19] == losses[19] < 10  # of 20 raters, fewer for Student's t
    assert np.isfinite(wins).all()


def test_the_weight_of_a_vote_depends_on_no_vote_on_its_prompt():
    rng = np.random.default_rng(0)
    answers, given = rng.random((2, 60))
    given += answers
    prompts = pd.Series(np.arange(60) % 20)
    other = np.where(prompts == 7, 1 - answers, answers)

    first, second = (prediction_powered._earlier_weights(y, given, prompts)
                     for y in (answers, other))  # fmt: skip

    assert first[prompts == 7] == pytest.approx(second[prompts == 7])
    assert first[59] != second[59] and first[59] > 0.3


def test_votes_without_times_have_no_e_value():
    votes, scores = study()

    row = prediction_powered_rates(votes.assign(answered_at=pd.NaT), scores, PAIR).iloc[0]

    assert row[["e", "anytime_low"]].isna().all() and row["low"] > 0 and pd.isna(row["decided"])


def test_too_few_pairs_without_a_vote_are_no_help_and_say_so():
    votes, scores = study(prompts=45)

    row = prediction_powered_rates(votes, scores, PAIR).iloc[0]

    assert np.isnan(row["rate"]) and row["note"]


@pytest.mark.slow
def test_a_report_has_the_table_only_if_asked(tmp_path):
    votes, scores = study()
    scores.to_csv(tmp_path / "scores.csv", index=False)

    write_report(votes, PAIR, tmp_path / "with", judge=tmp_path / "scores.csv")
    write_report(votes, PAIR, tmp_path / "without")

    table = pd.read_csv(tmp_path / "with" / f"{WITH_JUDGE}.csv")
    assert table["saved"].item() > 0.3
    assert not (tmp_path / "without" / f"{WITH_JUDGE}.csv").exists()


@pytest.mark.parametrize(
    "row", ["C9,1,0.5", "C1,x,0.5", "C1,1,1.5", "C1,1,nan", "C1,1,", "C1,0,0.5"]
)
def test_a_wrong_score_is_refused_by_its_line(tmp_path, row):
    path = tmp_path / "scores.csv"
    path.write_text(f"comparison,prompt_index,score\nC1,0,0.5\n{row}\n")

    with pytest.raises(StudyError, match="Line 3"):
        read_scores(path, PAIR, [("C1", 0)])


def test_a_pair_with_a_vote_needs_a_score(tmp_path):
    _, scores = study()
    scores[1:].to_csv(tmp_path / "scores.csv", index=False)

    with pytest.raises(StudyError, match="prompt_index 0"):
        read_scores(tmp_path / "scores.csv", PAIR, [("C1", 1), ("C1", 0)])


def test_a_judge_scores_the_pairs_of_the_study_and_no_others(tmp_path):
    votes, scores = study()
    pairs = scores[["comparison", "prompt_index"]].assign(raters=3)
    for name, table in {"more": scores, "fewer": scores[:-1]}.items():
        table.to_csv(tmp_path / f"{name}.csv", index=False)

    with pytest.raises(StudyError):
        write_report(votes, PAIR, tmp_path, pairs=pairs[:-1], judge=tmp_path / "more.csv")
    with pytest.raises(StudyError):
        write_report(votes, PAIR, tmp_path, pairs=pairs, judge=tmp_path / "fewer.csv")

    assert len(read_scores(tmp_path / "more.csv", PAIR, [("C1", 0)], others=True)) == len(scores)


@pytest.mark.slow
@pytest.mark.parametrize("judge, change", [("good", -0.3), ("random", 0.03), ("lying", 0.03)])
def test_intervals_cover_with_any_judge(judge, change):
    found = measure_judge(judge, 0.5, 0.0, 60)
    decided = measure_judge(judge, 0.684, 1.2, 40)

    assert min(found.covered, found.ever_covered) >= 52 / 60
    assert decided.ever_covered >= 34 / 40 and max(found.fewer, decided.sooner) <= change
