"""The paper's stacked bars as a table in HTML: readable at any width, in both themes, and aloud."""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from demo.widgets.html import escape
from human_eval.definition.definition import StudyDefinition
from human_eval.reporting.live_results import Results

MIN_LABEL = 0.1  # share of the bar that is wide enough for its number
PARTS = (("a", "wins"), ("tie", "ties"), ("both_bad", "both_bad"), ("b", "losses"))


def show_figure(results: Results, *, with_excluded: bool = False) -> str:
    """Return the bars of every comparison and question, or a sentence where there are no votes."""
    rates = results.rates_with_excluded if with_excluded else results.rates
    if rates.empty:
        return (
            '<p class="empty">No votes yet. As soon as the first pair is answered, it counts here.'
            "</p>"
        )
    facts = _join(results, rates)
    blocks = [
        _comparison(key, list(group.to_dict("records")), results.definition)
        for key, group in facts.groupby("comparison", sort=False)
    ]
    stamp = '<p class="stamp">Simulated votes: no person took part</p>' if results.simulated else ""
    return f'<div class="figure3">{stamp}{_legend(rates)}{"".join(blocks)}{_NOTE}</div>'


def _join(results: Results, rates: pd.DataFrame) -> pd.DataFrame:
    """Put what is decided and how raters agree beside the rates."""
    keys = ["comparison", "question"]
    decided = results.decisions[[*keys, "e", "threshold", "decided"]]
    agreement = results.agreement[[*keys, "raw", "alpha"]]
    return rates.merge(decided, how="left", on=keys).merge(agreement, how="left", on=keys)


def _legend(rates: pd.DataFrame) -> str:
    names = {"tie": "tie", "both_bad": "both bad"}
    shown = [
        f'<span><i class="{kind}"></i>{name}</span>'
        for kind, name in names.items()
        if rates["ties" if kind == "tie" else kind].sum()
    ]
    return f'<p class="legend">{"".join(shown)}</p>' if shown else ""


def _comparison(key: Any, rows: list[dict[str, Any]], definition: StudyDefinition) -> str:
    first, second = (definition.system(rows[0][name]).title for name in ("system_a", "system_b"))
    head = (
        '<thead><tr class="names"><td></td><th scope="col"><span class="a">'
        f'{escape(first)}</span><span class="b">{escape(second)}</span></th>'
        '<th scope="col" class="aloud">Numbers</th></tr></thead>'
    )
    body = "".join(_row(row, definition, first, second) for row in rows)
    caption = f'<caption class="aloud">{escape(str(key))}</caption>'
    return f"<table>{caption}{head}<tbody>{body}</tbody></table>"


def _row(row: dict[str, Any], definition: StudyDefinition, first: str, second: str) -> str:
    question = definition.question(row["question"])
    primary = ' class="primary"' if question.primary else ""
    return (
        f'<tr{primary}><th scope="row"><b>{escape(question.key)}</b> {escape(question.wording)}'
        f"</th><td>{_bar(row, first, second)}{_interval(row)}</td>"
        f'<td class="numbers">{_numbers(row)}</td></tr>'
    )


def _bar(row: dict[str, Any], first: str, second: str) -> str:
    parts = []
    for kind, column in PARTS:
        share = row[column] / row["votes"]
        if share:
            label = f"{100 * share:.0f} %" if share >= MIN_LABEL else ""
            parts.append(f'<i class="{kind}" style="width:{100 * share:.2f}%">{label}</i>')
    spoken = (
        f"{first} won {row['wins']} of {row['votes']} votes, {second} {row['losses']}, "
        f"neither {row['ties'] + row['both_bad']}"
    )
    return f'<span class="stack" role="img" aria-label="{escape(spoken)}">{"".join(parts)}</span>'


def _interval(row: dict[str, Any]) -> str:
    """Draw the rate among decisive votes with its interval on the scale of the bar."""
    if row["rate"] != row["rate"]:
        return ""
    low, high, rate = (100 * row[name] for name in ("low", "high", "rate"))
    return (
        '<span class="scale" aria-hidden="true"><i class="half"></i>'
        f'<i class="range" style="left:{low:.2f}%;width:{max(high - low, 0.4):.2f}%"></i>'
        f'<i class="dot" style="left:{rate:.2f}%"></i></span>'
    )


def _numbers(row: dict[str, Any]) -> str:
    if row["rate"] != row["rate"]:
        return f"<b>ties only</b> <p>n = {row['votes']:,}</p>"
    rate, low, high = (100 * row[name] for name in ("rate", "low", "high"))
    marks = []
    if row.get("decided") is True or row.get("decided") == 1:
        marks.append(
            '<em class="verdict decided" title="Further votes are not needed">decided</em>'
        )
    if row.get("claim"):
        marks.append(
            '<em class="verdict" title="At most 5 % false claims in the figure">claimed</em>'
        )
    alpha = row.get("alpha")
    agree = f"agreement α {alpha:.2f}" if alpha is not None and alpha == alpha else "agreement –"
    return (
        f"<b>{rate:.1f} %</b> <span>[{low:.1f}, {high:.1f}]</span> {''.join(marks)}"
        f"<p>n = {row['votes']:,}, {agree}</p>"
    )


_NOTE = (
    '<p class="quiet">Bars: shares of all votes. Line and brackets: the share of decisive votes '
    "that the first system won, with its 95 % interval, clustered by prompt and rater. "
    "<b>decided</b>: the evidence has reached its threshold, however often one has looked. "
    "<b>claimed</b>: at most 5 % false claims in the whole figure.</p>"
)


def show_table(table: pd.DataFrame, columns: dict[str, str], otherwise: str, name: str) -> str:
    """Return some columns of a table as HTML, numbers to three digits.

    Args:
        columns: names in the table to those on the page.
        otherwise: what stands in the place of an empty table.
        name: what the table is called, aloud.
    """
    if table.empty:
        return f'<p class="quiet">{escape(otherwise)}</p>'
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in columns.values())
    rows = "".join(_cells(row[column] for column in columns) for row in table.to_dict("records"))
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(name)}"><table '
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
