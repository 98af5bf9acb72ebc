"""The figure in HTML: it shows the counts, and no text becomes markup."""

import re

import pandas as pd
import pytest

from demo.widgets.win_rate_bars import show_table, show_win_rates
from human_eval.reporting.charts import draw_win_rates
from human_eval.reporting.live_results import Results
from human_eval.reporting.win_rate_rows import win_rate_rows
from tests.support.studies import define

RATE = {
    "comparison": "C1",
    "question": "Q1",
    "primary": False,
    "system_a": "ours",
    "system_b": "theirs",
    "votes": 100,
    "prompts": 50,
    "raters": 7,
    "wins": 60,
    "losses": 25,
    "ties": 10,
    "both_bad": 5,
    "rate": 60 / 85,
    "low": 0.6,
    "high": 0.8,
    "claim": "",
    "busiest": 0.05,
}


def results(rates, *, decided=False, alpha=0.31, simulated=False, definition=None):
    cells = pd.DataFrame(rates, columns=[*RATE])[["comparison", "question"]]
    return Results(
        title="",
        closed=True,
        simulated=simulated,
        named=True,
        definition=definition or define(),
        answers=100,
        raters=7,
        excluded=0,
        votes=pd.DataFrame(),
        rates=pd.DataFrame(rates, columns=[*RATE]),
        rates_with_excluded=pd.DataFrame(rates, columns=[*RATE]),
        decisions=cells.assign(e=30.0, threshold=20.0, decided=decided),
        agreement=cells.assign(raw=0.6, alpha=alpha),
        categories=pd.DataFrame(),
    )


def widths(shown):
    return {
        kind: float(width)
        for kind, width in re.findall(r'<i class="(\w+)" style="width:([\d.]+)%', shown)
    }


def test_bars_are_as_wide_as_their_share_of_all_votes():
    shown = show_win_rates(results([RATE]))

    assert widths(shown) == {"a": 60.0, "tie": 10.0, "both_bad": 5.0, "b": 25.0}
    assert "Ours won 60 of 100 votes, Theirs 25, neither 15" in shown


def test_html_and_svg_draw_the_same_rows():
    table = results([RATE, {**RATE, "question": "Q2", "wins": 4, "losses": 96, "ties": 0}])
    rows = win_rate_rows(table.rates, table.definition)
    figure = draw_win_rates(table.rates, table.definition)
    drawn = {text.get_text().split("\n")[0] for axes in figure.axes for text in axes.texts}

    shown = show_win_rates(table)

    labels = [part.label for row in rows for part in row.segments if part.label]
    assert re.findall(r'<i class="\w+" style="width:[\d.]+%">([\d.]+)</i>', shown) == labels
    assert set(labels) <= drawn
    for row in rows:
        assert row.rate_label in shown and any(row.rate_label in text for text in drawn)
        assert row.interval_label in shown and any(row.interval_label in text for text in drawn)


def test_the_interval_is_on_the_scale_of_the_bar():
    shown = show_win_rates(results([RATE]))

    assert 'class="range" style="left:60.00%;width:20.00%"' in shown
    assert 'class="dot" style="left:70.59%"' in shown
    assert "<b>70.6 %</b> <span>[60.0, 80.0]</span>" in shown
    assert "n = 85 of 100, agreement α 0.31" in shown


@pytest.mark.parametrize(
    "decided, claim, marks",
    [(False, "", []), (True, "", ["decided"]), (True, "ours", ["decided", "claimed"])],
)
def test_decided_and_claimed_rows_are_marked(decided, claim, marks):
    shown = show_win_rates(results([{**RATE, "claim": claim}], decided=decided))

    assert re.findall(r'<em class="verdict[^>]*>(\w+)</em>', shown) == marks


@pytest.mark.parametrize("busiest, marked", [(0.15, False), (0.4, True)])
def test_a_row_that_one_rater_carries_is_marked(busiest, marked):
    shown = show_win_rates(results([{**RATE, "busiest": busiest}]))

    assert ("busy-rater" in shown) == marked


def test_a_cell_with_ties_alone_has_no_rate():
    tied = {**RATE, "wins": 0, "losses": 0, "ties": 100, "both_bad": 0, "rate": float("nan")}

    shown = show_win_rates(results([tied], alpha=float("nan")))

    assert "ties only" in shown and 'class="dot"' not in shown


def test_simulated_votes_are_stamped():
    assert "no person took part" in show_win_rates(results([RATE], simulated=True))
    assert "no person took part" not in show_win_rates(results([RATE]))


def test_without_votes_there_is_a_sentence():
    assert "no votes yet" in show_win_rates(results([]))


def test_titles_of_systems_are_shown_literally():
    hostile = define()
    object.__setattr__(hostile.systems[0], "title", "<script>alert(1)</script>${x}{{y}}")

    shown = show_win_rates(results([RATE], definition=hostile))

    assert "<script" not in shown and "${" not in shown and "{{" not in shown


def test_tables_show_gaps_as_gaps():
    texts = {"if_empty": "none", "label": "Numbers"}
    table = pd.DataFrame([{"a": 0.12345, "b": None, "c": 12345, "d": "<b>"}])

    shown = show_table(table, {"a": "A", "b": "B", "c": "C", "d": "D"}, **texts)

    assert re.findall("<td>(.*?)</td>", shown) == ["0.123", "", "12,345", "&lt;b&gt;"]
    assert "none" in show_table(table.head(0), {"a": "A"}, **texts)
