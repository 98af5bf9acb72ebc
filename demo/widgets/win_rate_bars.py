"""The win-rate figure as HTML tables: for any width, both themes and screen readers.

`human_eval.reporting.charts` draws the same rows as SVG.
"""

from collections.abc import Iterable
from itertools import groupby
from typing import Any

import pandas as pd

from demo.widgets.html import escape
from human_eval.reporting.live_results import Results
from human_eval.reporting.win_rate_rows import WinRateRow, answers_in_legend, win_rate_rows

LEGEND = {"tie": "tie", "both_bad": "both bad"}  # the systems' names are above their bars


def show_win_rates(results: Results, *, with_excluded: bool = False) -> str:
    """Return the bars of every comparison and question, or a sentence if there are no votes."""
    rates = results.rates_with_excluded if with_excluded else results.rates
    if rates.empty:
        return '<p class="empty">There are no votes yet. They appear here as they arrive.</p>'
    rows = win_rate_rows(rates, results.definition)
    decided = _by_cell(results.decisions, "decided")
    agreement = _by_cell(results.agreement, "alpha")
    tables = "".join(
        _table(key, list(group), decided, agreement)
        for key, group in groupby(rows, lambda row: row.comparison)
    )
    return f'<div class="win-rates">{show_stamp(results)}{_legend(rows)}{tables}{_NOTE}</div>'


def show_stamp(results: Results) -> str:
    """Return the mark of simulated votes; empty for those of people."""
    return '<p class="stamp">Simulated votes: no person took part</p>' if results.simulated else ""


def _by_cell(table: pd.DataFrame, column: str) -> dict[tuple[str, str], Any]:
    """Return a column of a table by comparison and question."""
    return table.set_index(["comparison", "question"])[column].to_dict()


def _legend(rows: list[WinRateRow]) -> str:
    shown = "".join(
        f'<span><i class="{choice}"></i>{LEGEND[choice]}</span>'
        for choice in answers_in_legend(rows)
        if choice in LEGEND
    )
    return f'<p class="legend">{shown}</p>' if shown else ""


def _table(
    comparison: str,
    rows: list[WinRateRow],
    decided: dict[tuple[str, str], Any],
    agreement: dict[tuple[str, str], Any],
) -> str:
    head = (
        '<thead><tr class="names"><td></td><th scope="col"><span class="a">'
        f'{escape(rows[0].title_a)}</span><span class="b">{escape(rows[0].title_b)}</span></th>'
        '<th scope="col" class="visually-hidden">Numbers</th></tr></thead>'
    )
    body = ""
    for row in rows:
        question = row.question
        cell = (comparison, question.key)
        numbers = _numbers(row, decided.get(cell), agreement.get(cell))
        body += (
            f'<tr class="{"primary" if question.primary else ""}"><th scope="row">'
            f"<b>{escape(question.key)}</b> {escape(question.wording)}</th>"
            f'<td>{_bar(row)}{_interval(row)}</td><td class="numbers">{numbers}</td></tr>'
        )
    caption = f'<caption class="visually-hidden">{escape(comparison)}</caption>'
    return f"<table>{caption}{head}<tbody>{body}</tbody></table>"


def _bar(row: WinRateRow) -> str:
    parts = "".join(
        f'<i class="{part.choice}" style="width:{100 * part.share:.2f}%">{part.label}</i>'
        for part in row.segments
        if part.votes
    )
    votes = {part.choice: part.votes for part in row.segments}
    spoken = (
        f"{row.title_a} won {votes['a']} of {row.votes} votes, {row.title_b} {votes['b']}, "
        f"neither {votes['tie'] + votes['both_bad']}"
    )
    return f'<span class="stack" role="img" aria-label="{escape(spoken)}">{parts}</span>'


def _interval(row: WinRateRow) -> str:
    """Draw the win rate and its interval below the bar, on the same scale."""
    if not row.interval_label:
        return ""
    low, high, rate = 100 * row.low, 100 * row.high, 100 * row.rate
    return (
        '<span class="scale" aria-hidden="true"><i class="half"></i>'
        f'<i class="range" style="left:{low:.2f}%;width:{max(high - low, 0.4):.2f}%"></i>'
        f'<i class="dot" style="left:{rate:.2f}%"></i></span>'
    )


def _numbers(row: WinRateRow, decided: bool | None, alpha: float | None) -> str:
    if not row.interval_label:
        return f"<b>{row.rate_label}</b> <p>{row.votes_label}</p>"
    marks = ""
    if decided:
        marks += '<em class="verdict decided" title="No further votes are needed">decided</em>'
    if row.claim:
        marks += '<em class="verdict" title="At most 5 % false claims in the figure">claimed</em>'
    if row.mark:
        share = f"One rater gave {100 * row.busiest:.0f} % of the decisive votes"
        marks += f'<em class="busy-rater" title="{share}">{row.mark} {share}</em>'
    shown_alpha = "–" if alpha is None or pd.isna(alpha) else f"α {alpha:.2f}"
    return (
        f"<b>{row.rate_label} %</b> <span>{row.interval_label}</span> {marks}"
        f"<p>{row.votes_label}, agreement {shown_alpha}</p>"
    )


_NOTE = (
    '<p class="quiet">Bars: share of all votes in percent. Line and brackets: share of decisive '
    "votes that the left system won, with its 95 % interval, clustered by prompt and rater. "
    "<b>decided</b>: the e-value has reached its threshold, which is valid no matter how often it "
    "is checked. <b>claimed</b>: at most 5 % false claims in the whole figure.</p>"
)


def show_table(table: pd.DataFrame, columns: dict[str, str], *, if_empty: str, label: str) -> str:
    """Return columns of a table as HTML, with numbers to three digits.

    Args:
        columns: column names in the table and on the page.
        if_empty: text that replaces an empty table.
        label: name of the table for screen readers.
    """
    if table.empty:
        return f'<p class="quiet">{escape(if_empty)}</p>'
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in columns.values())
    rows = "".join(_cells(row[column] for column in columns) for row in table.to_dict("records"))
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(label)}"><table '
        f'class="plain"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _cells(values: Iterable[Any]) -> str:
    return f"<tr>{''.join(f'<td>{escape(_text(value))}</td>' for value in values)}</tr>"


def _text(value: Any) -> str:
    if value is None or value != value:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
