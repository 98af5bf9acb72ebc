import dataclasses
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

import human_eval
from human_eval.definition.definition import parse_definition
from human_eval.errors import StudyError
from human_eval.reporting.export import write_export
from human_eval.reporting.methods_text import methods_paragraph
from human_eval.reporting.report import (
    TABLES,
    WITH_JUDGE,
    PaperFigure,
    format_e,
    report_from_export,
    write_report,
)
from human_eval.reporting.win_rate_rows import format_p, win_rate_rows
from human_eval.statistics.win_rates import win_rates
from tests.support.crowd import define_pair, make_votes

MINIATURE = Path(human_eval.__file__).parent / "simulated_miniature"
PAGE = r"""
\documentclass[twocolumn]{article}
\usepackage[T1]{fontenc}
\usepackage{booktabs,graphicx}
\usepackage[textwidth=6.875in,textheight=9in]{geometry}
\setlength{\columnsep}{0.25in}
\begin{document}
\input{win_rates}
\begin{figure}\noindent\includegraphics{win_rates}\end{figure}
\begin{figure}\noindent\includegraphics{evidence}\end{figure}
\end{document}
"""
DEFINITION = """
name = "test"
systems = [
    {key = "ours", title = "Ours"},
    {key = "theirs", title = "Theirs"},
    {key = "third", title = "Third"},
]
comparisons = [{key = "C1", a = "ours", b = "theirs"}, {key = "C2", a = "third", b = "theirs"}]
questions = [
    {key = "Q1", wording = "Which one looks better?"},
    {key = "Q2", wording = "Which one do you prefer?", primary = true},
]
"""


@pytest.fixture(scope="module")
def definition():
    return parse_definition(DEFINITION)


@pytest.fixture(scope="module")
def votes(definition):
    votes = make_votes(definition, prompts=10, rates={("C1", "Q2"): 0.97})
    spammer = votes["rater"] == "r3"
    rule = pd.Series("too fast", index=votes.index).where(spammer, None)
    return votes.assign(excluded=spammer, exclusion_rule=rule)


@pytest.fixture(scope="module")
def folder(votes, definition, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write_report(votes, definition, folder)
    return folder


@pytest.fixture
def undrawn(monkeypatch):
    """Leave out the figures, which take most of the time, where a test reads the text."""

    def make_folder(_, folder, __):
        folder.mkdir(parents=True, exist_ok=True)
        return []

    monkeypatch.setattr("human_eval.reporting.report.save_chart", make_folder)


def test_report_holds_charts_tables_and_text(folder):
    names = {path.name for path in folder.iterdir()}

    charts = {
        f"{name}.{kind}" for name in ("win_rates", "evidence") for kind in ("svg", "png", "pdf")
    }
    tables = {f"{table.name}.csv" for table in TABLES if table.name != WITH_JUDGE}
    assert names == charts | tables | {"report.md", "methods.md"}
    assert all(path.stat().st_size for path in folder.iterdir())


def test_report_names_the_winner_and_what_was_left_out(folder, definition):
    text = (folder / "report.md").read_text()

    assert "**Ours is preferred to Theirs**" in text
    assert "no difference between Third and Theirs can be claimed" in text
    assert "| too fast" in text
    assert "SIMULATED" not in text


def test_results_stand_with_and_without_the_excluded(folder, votes):
    kept = pd.read_csv(folder / "win_rates.csv")
    everything = pd.read_csv(folder / "win_rates_with_excluded.csv")

    assert everything["votes"].sum() == len(votes)
    assert kept["votes"].sum() == (~votes["excluded"]).sum()


@pytest.mark.usefixtures("undrawn")
def test_a_report_counts_the_answers_to_each_kind_of_check(folder, votes, definition, tmp_path):
    mixed = votes.assign(kind=votes["kind"].where(votes.index >= 7, "gold"))
    mixed.loc[7:9, "kind"] = "mirror"
    write_report(mixed, definition, tmp_path)

    none, some = ((path / "report.md").read_text() for path in (folder, tmp_path))
    assert "not analysed: none." in none
    assert "not analysed: 7 gold, 3 mirror." in some


@pytest.mark.usefixtures("undrawn")
def test_the_table_of_exclusions_counts_no_answers_to_checks(votes, definition, tmp_path):
    mixed = votes.assign(kind=votes["kind"].where(votes.index % 3 > 0, "mirror"))
    excluded = mixed[mixed["excluded"]]
    real = int(excluded["kind"].eq("real").sum())
    assert 0 < real < len(excluded)

    write_report(mixed, definition, tmp_path)

    [row] = pd.read_csv(tmp_path / "exclusions.csv").to_dict("records")
    assert (row["raters"], row["answers"]) == (1, real)
    assert f"{real} answers were excluded" in (tmp_path / "methods.md").read_text()


def test_methods_tell_numbers_rules_and_the_definition(folder, votes, definition):
    methods = (folder / "methods.md").read_text()

    assert f"{(~votes['excluded']).sum():,} answers of 19 raters" in methods
    assert "(rules: too fast)" in methods
    assert definition.hash in methods
    for question in definition.questions:
        assert question.wording in methods


def test_methods_promise_nothing_of_answers_from_elsewhere(votes, definition):
    elsewhere = votes.assign(provider=votes["provider"].where(votes["vote_id"] > 50, "mturk"))

    assert "mturk" not in methods_paragraph(votes, definition)
    assert "the 50 answers from mturk, which were" in methods_paragraph(elsewhere, definition)


def test_report_of_an_export_alone_is_the_same_byte_for_byte(folder, votes, definition, tmp_path):
    write_export(votes, definition, tmp_path / "export")

    report_from_export(tmp_path / "export", tmp_path / "again")

    for path in folder.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.slow
def test_the_committed_miniature_is_the_report_of_its_votes(tmp_path):
    """Up to the rounding of another processor, and to statistics that were added since."""
    report_from_export(MINIATURE, tmp_path, simulated=True)

    committed = sorted((MINIATURE / "report").iterdir())
    assert {path.name for path in committed} >= {"report.md", "win_rates.svg", "win_rates.csv"}
    for path in committed:
        both = [folder / path.name for folder in (tmp_path, path.parent)]
        if path.suffix == ".csv":
            pd.testing.assert_frame_equal(*map(pd.read_csv, both), rtol=1e-6)
        elif path.suffix == ".svg":
            again, before = (re.findall("<!-- (.+) -->", file.read_text()) for file in both)
            assert again == before, path.name
        else:
            again, before = (re.sub(r"[\d.,]+", "0", file.read_text()) for file in both)
            assert {*before.splitlines()} <= {*again.splitlines()}, path.name


@pytest.mark.usefixtures("undrawn")
def test_simulated_votes_say_so_on_the_first_lines(tmp_path):
    votes = make_votes(define_pair(), prompts=10)
    write_report(votes.assign(simulated=True), define_pair(), tmp_path)

    head = (tmp_path / "report.md").read_text()[:200]
    assert "SIMULATED VOTES: no person took part" in head
    assert (tmp_path / "methods.md").read_text().startswith("The votes below are simulated")


@pytest.mark.parametrize("kind", ["gold", "mirror", "identical"])
def test_checks_alone_make_no_report(votes, definition, tmp_path, kind):
    with pytest.raises(StudyError, match="votes counts"):
        write_report(votes.assign(kind=kind), definition, tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_people_and_simulation_make_no_report(votes, definition, tmp_path):
    mixed = votes.assign(simulated=votes.index % 2 == 0)

    with pytest.raises(StudyError, match="Analyse the two separately"):
        write_report(mixed, definition, tmp_path / "report")


@pytest.mark.usefixtures("undrawn")
def test_text_of_others_cannot_break_a_table(tmp_path):
    votes = make_votes(define_pair(), prompts=10)
    spammer = votes["rater"] == "r3"
    rule = pd.Series("fast | and <b>loose</b>", index=votes.index).where(spammer, None)

    write_report(votes.assign(excluded=spammer, exclusion_rule=rule), define_pair(), tmp_path)

    assert "fast \\| and" in (tmp_path / "report.md").read_text()


@pytest.mark.usefixtures("undrawn")
def test_a_report_before_the_end_warns_of_its_claims(folder, tmp_path):
    assert "Interim" not in (folder / "report.md").read_text()
    votes = make_votes(define_pair(), prompts=20)

    write_report(votes[votes["vote_id"] % 3 > 0], define_pair(), tmp_path)

    text = (tmp_path / "report.md").read_text()
    assert "**Interim:** 40 of 60 planned answers" in text


@pytest.mark.usefixtures("undrawn")
def test_pairs_that_nobody_answered_yet_are_planned_too(tmp_path):
    definition = define_pair("raters_per_pair = 1")
    votes = make_votes(definition, prompts=6)
    pairs = pd.DataFrame({"comparison": "C1", "prompt_index": range(20), "raters": 1})
    write_export(votes, definition, tmp_path / "export", pairs=pairs)

    report_from_export(tmp_path / "export", tmp_path / "again")
    write_report(votes, definition, tmp_path / "report", pairs=pairs)
    write_report(votes, definition, tmp_path / "end", pairs=pairs[:6])

    for folder in ("again", "report"):
        text = (tmp_path / folder / "report.md").read_text()
        assert "**Interim:** 6 of 20 planned answers to the 20 pairs of the study" in text
    assert "Interim" not in (tmp_path / "end" / "report.md").read_text()


@pytest.mark.usefixtures("undrawn")
def test_one_busy_rater_is_marked_in_row_sentence_and_chart(tmp_path):
    votes = make_votes(define_pair(), prompts=40, raters=60)
    votes["rater"] = votes["rater"].mask(votes["vote_id"] % 4 == 0, "busy")

    write_report(votes, define_pair(), tmp_path)

    assert pd.read_csv(tmp_path / "win_rates.csv")["busiest"].item() == pytest.approx(0.25)
    head, rest = (tmp_path / "report.md").read_text().split("| comparison", 1)
    assert "one rater gave 25 %" in head and "one rater gave 25 %" in rest
    [row] = win_rate_rows(win_rates(votes, define_pair()), define_pair())
    assert row.mark
    spread = make_votes(define_pair(), prompts=40, raters=60)
    assert not win_rate_rows(win_rates(spread, define_pair()), define_pair())[0].mark


@pytest.mark.usefixtures("undrawn")
def test_a_clear_interval_without_a_claim_is_explained(tmp_path):
    votes = make_votes(define_pair(), prompts=60, raters=60, rates={("C1", "Q1"): 0.9})

    write_report(votes.assign(prompt="one"), define_pair(), tmp_path)

    [line] = [x for x in (tmp_path / "report.md").read_text().split("\n") if x.startswith("- C1")]
    assert "between Ours and Theirs can be claimed" in line and "one prompt only" in line


@pytest.mark.usefixtures("undrawn")
def test_a_decision_that_fell_since_is_reconciled(tmp_path):
    votes = make_votes(define_pair(), prompts=200, raters=200)
    votes["choice"] = ["a"] * 100 + ["a", "b", "b"] * 166 + ["b"] * 2

    write_report(votes, define_pair(), tmp_path)

    table = pd.read_csv(tmp_path / "decisions.csv").iloc[0]
    assert table["decided"] and table["e"] < table["threshold"]
    assert f"after {table['decided_after']} decisive votes" in (tmp_path / "report.md").read_text()


def write_paper(votes, definition, folder):
    """Write a report with what a paper needs, where a title has all that LaTeX reserves."""
    odd = dataclasses.replace(
        definition.systems[0],
        title=r"Ours_2 \& 50% of {$x^2$} #1 ~ <b> [x], too long to be set on one line",
    )
    named = dataclasses.replace(definition, systems=(odd, *definition.systems[1:]))
    write_report(votes, named, folder, paper=PaperFigure(width=3.25, sides=("ours", "theirs")))
    return folder / "paper"


@pytest.fixture(scope="module")
def paper(votes, definition, tmp_path_factory):
    return write_paper(votes, definition, tmp_path_factory.mktemp("paper"))


@pytest.mark.slow
def test_a_paper_gets_figures_captions_and_tables(paper):
    names = {path.name for path in paper.iterdir()}
    charts = {
        f"{name}.{kind}" for name in ("win_rates", "evidence") for kind in ("svg", "png", "pdf")
    }
    captions = {"win_rates.caption.txt", "evidence.caption.txt"}

    assert names == charts | captions | {"win_rates.tex", "win_rates.csv"}
    assert "won by ours (" in (paper / "win_rates.caption.txt").read_text()
    box = re.search(rb"/MediaBox \[ 0 0 ([\d.]+)", (paper / "win_rates.pdf").read_bytes())
    assert float(box[1]) == pytest.approx(3.25 * 72)


@pytest.mark.usefixtures("undrawn")
def test_the_table_for_a_paper_has_the_rounded_numbers_of_the_report(votes, definition, tmp_path):
    paper = write_paper(votes, definition, tmp_path)
    rounded = pd.read_csv(paper / "win_rates.csv", dtype=str)
    exact = pd.read_csv(paper.parent / "win_rates.csv")

    assert list(rounded["won"]) == [f"{100 * rate:.1f}" for rate in exact["rate"]]
    assert list(rounded["decisive"].astype(int)) == list(exact["wins"] + exact["losses"])
    assert list(rounded["claim"].notna()) == list(exact["claim"].notna())
    assert list(rounded["p"]) == [format_p(p) for p in exact["p_family"]]
    latex = (paper / "win_rates.tex").read_text()
    assert latex.count(r"\textbf") == exact["claim"].notna().sum() > 0
    assert rounded["interval"][0].replace("[", "{[}") in latex


@pytest.mark.slow
def test_latex_sets_the_table_and_the_figure_at_its_size(paper, tmp_path):
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed, so the LaTeX table is not compiled.")
    for name in ("win_rates.tex", "win_rates.pdf", "evidence.pdf"):
        shutil.copy(paper / name, tmp_path)
    (tmp_path / "page.tex").write_text(PAGE)

    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"],
        cwd=tmp_path, capture_output=True, text=True, errors="replace",
    )  # fmt: skip

    assert done.returncode == 0, done.stdout[-3000:]
    assert "Overfull" not in done.stdout
    assert "Missing character" not in done.stdout


def test_methods_have_time_pay_countries_and_what_is_detectable(votes, definition, folder):
    paid = dataclasses.replace(definition, pay=dataclasses.replace(definition.pay, per_pair=0.1))
    kept = votes[~votes["excluded"] & (votes["question"] == "Q2")]
    median = kept["seconds"].median()

    methods = methods_paragraph(votes, paid, countries={"Kenya": 12, "Peru": 7})

    assert f"{median:.1f} seconds" in methods
    assert f"12.00 USD an hour at the planned 30 seconds a pair and {360 / median:.2f}" in methods
    assert "Kenya (12), Peru (7)" in methods
    assert "[Fill in: the committee" in methods
    unknown = (folder / "methods.md").read_text()
    assert "[Fill in: what raters were paid" in unknown and "[Fill in: the countries" in unknown
    assert re.search(r"a true win rate of \d\d\.\d % or more with a probability of 80 %", unknown)
    assert "Fill in" not in methods_paragraph(votes.assign(simulated=True), paid)


def test_one_is_singular():
    votes = make_votes(define_pair(), prompts=1).iloc[:1]

    methods = methods_paragraph(votes, define_pair())

    assert "analysed 1 answer of 1 rater (1 from panel) to 1 pair." in methods
    assert "1 prompt (1 different text)" in methods


@pytest.mark.usefixtures("undrawn")
@pytest.mark.slow
def test_an_estimate_without_errors_stands_beside_a_diluted_rate(tmp_path):
    votes = make_votes(define_pair(), prompts=120, raters=40, rates={("C1", "Q1"): 0.8})
    pressing = votes["rater"].isin([f"r{number}" for number in range(12)])
    on_the_left = votes["side_a"].map({"left": "a", "right": "b"})

    write_report(votes, define_pair(), tmp_path / "careful")
    diluted = votes.assign(choice=votes["choice"].mask(pressing, on_the_left))
    write_report(diluted, define_pair(), tmp_path / "diluted")

    careful, text = (
        (tmp_path / name / "report.md").read_text().split("| comparison")[0]
        for name in ("careful", "diluted")
    )
    assert "an estimate without them is" in text and "(not a claim)" in text
    assert "estimate" not in careful


def test_numbers_beyond_reading_are_bounded():
    assert (format_p(1e-34), format_e(2.3e26)) == ("< 1e-4", "> 1e6")
    assert (format_p(0.0213), format_e(21.3)) == ("0.0213", "21.3")


@pytest.mark.parametrize(
    "change",
    [
        {"rater": "me", "prompt": "one", "prompt_index": 0},
        {"choice": "a"},
        {"choice": "tie"},
    ],
)
def test_a_poor_study_gets_a_report_that_claims_nothing(tmp_path, change):
    definition = define_pair()
    poor = make_votes(definition, prompts=2).assign(**change)

    write_report(poor, definition, tmp_path)

    text = (tmp_path / "report.md").read_text()
    assert "is preferred to" not in text
    assert "nan" not in text
