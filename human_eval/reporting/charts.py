"""The charts of a study: stacked shares of votes as in the paper, and e-values over time.

The same table always gives the same bytes.
"""

import textwrap
from collections.abc import Sequence
from io import BytesIO
from math import isnan
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from human_eval.definition.definition import StudyDefinition
from human_eval.errors import StudyError
from human_eval.reporting.win_rate_rows import WinRateRow, answers_in_legend, win_rate_rows
from human_eval.statistics.votes import BUSY

FORMATS = ("svg", "png", "pdf")
# Distinct in every kind of colour blindness, and by lightness when printed in grey.
COLOURS = {"a": "#1f5a96", "tie": "#c9c9c9", "both_bad": "#8d8d8d", "b": "#e59a3c"}
INK, GRID = "#1c1c1c", "#dddddd"
STYLE: Any = {
    "font.family": "DejaVu Sans",  # ships with matplotlib, so every machine draws alike
    "font.size": 9,
    "svg.hashsalt": "human_eval",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
    "text.parse_math": False,  # a dollar sign in a title is no formula
    "axes.edgecolor": GRID,
    "text.color": INK,
    "xtick.labelsize": 8,
    "xtick.color": INK,
    "ytick.color": INK,
}
NO_DATES: dict[str, dict[str, Any]] = {
    "svg": {"Date": None},
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
}
DPI = 200
ROW = 0.34  # inches, of a bar
MAX_COMPARISONS = 60  # in a chart; with three questions it is already 80 inches high
MAX_LEGEND = 30  # names of comparisons


def draw_win_rates(
    table: pd.DataFrame, definition: StudyDefinition, *, simulated: bool = False
) -> Figure:
    """Draw one bar for each comparison and question, with its interval and number of votes.

    Args:
        table: the table of `human_eval.statistics.win_rates.win_rates`.
        simulated: print "SIMULATED VOTES" across the chart.

    Raises:
        StudyError: the table is empty.

    Of more than 60 comparisons, those with the most votes are drawn, and a note says so.
    """
    if table.empty:
        raise StudyError("There are no votes to draw yet.")
    given = table.groupby("comparison", sort=False)["votes"].sum()
    drawn = given.sort_values(ascending=False, kind="stable").index[:MAX_COMPARISONS]
    left_out = len(given) - len(drawn)
    table = table[table["comparison"].isin(drawn)]
    rows = win_rate_rows(table, definition)
    with matplotlib.rc_context(STYLE):
        positions, headings = _place_rows(rows)
        height = (positions[-1] + 1.0) * ROW + 1.35
        figure = Figure(figsize=(10.5, height))
        grid = figure.add_gridspec(
            1, 3, width_ratios=[2.1, 3.7, 3.5], wspace=0.06,
            left=0.02, right=0.98, top=1 - 0.55 / height, bottom=0.8 / height,
        )  # fmt: skip
        questions, bars, rates = (figure.add_subplot(grid[0, column]) for column in range(3))
        for axes in (questions, bars, rates):
            axes.set_ylim(positions[-1] + 0.6, -0.4)
            axes.set_yticks([])
            for side in ("left", "right", "top"):
                axes.spines[side].set_visible(False)
        _draw_questions(questions, rows, positions)
        _draw_bars(bars, rows, positions)
        _draw_rates(rates, rows, positions)
        _draw_headings(bars, headings)
        _draw_title(figure, definition.title or definition.name, rows, height)
        _draw_note(figure, table, height, busy=any(row.mark for row in rows),
                   left_out=left_out)  # fmt: skip
        if simulated:
            _stamp(figure, height)
    return figure


def _place_rows(rows: list[WinRateRow]) -> tuple[np.ndarray, list[tuple[float, WinRateRow]]]:
    """Return the vertical position of each bar, and of the heading of each comparison."""
    positions: list[float] = []
    headings: list[tuple[float, WinRateRow]] = []
    place = 0.0
    for number, row in enumerate(rows):
        if number == 0 or row.comparison != rows[number - 1].comparison:
            place += 0.4 if headings else 0.0
            headings.append((place, row))
            place += 1.0
        positions.append(place)
        place += 1.0
    return np.array(positions), headings


def _draw_questions(axes: Axes, rows: list[WinRateRow], positions: np.ndarray) -> None:
    axes.set_xlim(0, 1)
    axes.axis("off")
    for place, row in zip(positions, rows, strict=True):
        wording = textwrap.shorten(row.question.wording, 76, placeholder=" ...")
        weight = "bold" if row.question.primary else "normal"
        axes.text(0, place, row.question.key, ha="left", va="center", fontsize=8, weight=weight)
        axes.text(
            1, place, textwrap.fill(wording, 32), ha="right", va="center", fontsize=7,
            weight=weight, linespacing=1.05,
        )  # fmt: skip


def _draw_headings(axes: Axes, headings: list[tuple[float, WinRateRow]]) -> None:
    """Print the names of both systems above the bars of their comparison."""
    for place, row in headings:
        titles = [
            textwrap.shorten(title, 36, placeholder="...") for title in (row.title_a, row.title_b)
        ]
        line = place + 0.1
        size = min(9.0, 400 / sum(map(len, titles)))  # points; both fit on one line
        axes.text(
            0, line, titles[0], ha="left", va="center", weight="bold", color=COLOURS["a"],
            fontsize=size,
        )  # fmt: skip
        axes.text(
            1, line, titles[1], ha="right", va="center", weight="bold", color="#9a5a08",
            fontsize=size,
        )  # fmt: skip


def _draw_bars(axes: Axes, rows: list[WinRateRow], positions: np.ndarray) -> None:
    axes.set_xlim(0, 1)
    axes.set_xticks(np.linspace(0, 1, 5), [f"{share:.0%}" for share in np.linspace(0, 1, 5)])
    start = np.zeros(len(rows))
    for segments in zip(*(row.segments for row in rows), strict=True):  # one answer, all rows
        choice = segments[0].choice
        shares = np.array([segment.share for segment in segments])
        axes.barh(positions, shares, left=start, height=0.72, color=COLOURS[choice], linewidth=0)
        for place, left, segment in zip(positions, start, segments, strict=True):
            if segment.label:
                axes.text(
                    left + segment.share / 2, place, segment.label, ha="center", va="center",
                    fontsize=8, color="white" if choice == "a" else INK,
                )  # fmt: skip
        start = start + shares
    axes.axvline(0.5, color="white", linewidth=1, linestyle=(0, (2, 2)))
    axes.set_xlabel("share of all votes", fontsize=8)


def _draw_rates(axes: Axes, rows: list[WinRateRow], positions: np.ndarray) -> None:
    """Draw the share of decisive votes with its interval, and print both."""
    decisive = [row for row in rows if not isnan(row.rate)]
    # Round outward to tenths, and always show 40 to 60 %, so that a small difference looks small.
    left = np.floor(10 * min([0.4, *(row.low for row in decisive)])) / 10 if decisive else 0.0
    right = np.ceil(10 * max([0.6, *(row.high for row in decisive)])) / 10 if decisive else 1.0
    end = left + 2.1 * (right - left)  # room for the numbers
    axes.set_xlim(left - 0.14 * (right - left), end)
    ticks = np.arange(round(10 * left), round(10 * right) + 1) / 10
    ticks = ticks if len(ticks) <= 6 else ticks[np.round(10 * ticks) % 5 == 0]
    axes.set_xticks(ticks, [f"{share:.0%}" for share in ticks])
    axes.set_xlabel("decisive votes won by the first system", loc="left", fontsize=8)
    axes.vlines(
        ticks, 0, 1, color=GRID, linewidth=0.5, zorder=0, transform=axes.get_xaxis_transform()
    )
    axes.axvline(0.5, color=INK, linewidth=0.8, linestyle=(0, (3, 3)), zorder=0)
    for place, row in zip(positions, rows, strict=True):
        numbers = f"{row.rate_label}   {row.votes_label}{row.mark}"
        if not isnan(row.rate):
            winner = COLOURS["a" if row.rate > 0.5 else "b"] if row.claim else INK
            axes.plot([row.low, row.high], [place, place], color=winner, linewidth=1.6)
            axes.plot(row.rate, place, "o", color=winner, markersize=4.5)
            star = "*" if row.claim else " "
            numbers = f"{row.rate_label}{star} {row.interval_label}   {row.votes_label}{row.mark}"
        weight = "bold" if row.question.primary else "normal"
        axes.text(end, place, numbers, ha="right", va="center", fontsize=7.5, weight=weight)


def _draw_title(figure: Figure, title: str, rows: list[WinRateRow], height: float) -> None:
    """Print the title of the study, and the legend of the bars."""
    line = 1 - 0.3 / height
    title = textwrap.shorten(title, 90, placeholder=" ...")
    figure.text(0.02, line, title, fontsize=12, weight="bold", va="center")
    names = {"a": "prefer first", "tie": "tie", "both_bad": "both bad", "b": "prefer second"}
    shown = answers_in_legend(rows)
    figure.legend(
        [Patch(color=COLOURS[choice]) for choice in shown],
        [names[choice] for choice in shown],
        loc="center right", bbox_to_anchor=(0.98, line), ncols=len(shown), frameon=False,
        fontsize=8,
    )  # fmt: skip


def _draw_note(
    figure: Figure, table: pd.DataFrame, height: float, *, busy: bool, left_out: int
) -> None:
    known = [kind for kind in ("prompt", "rater") if table[f"{kind}s"].max()]
    fewest, most = table["raters"].min(), table["raters"].max()
    number = f"{most:,}" if fewest == most else f"{fewest:,} to {most:,}"
    note = f"Lines and brackets: 95 % intervals, clustered by {' and '.join(known)}"
    if not known:
        note = (
            "Lines and brackets: 95 % intervals that take votes as independent, since prompts and "
            "raters are unknown; no difference can be claimed"
        )
    elif "rater" in known:
        note += f" ({number} raters a row)"
    else:
        note += " only, since raters are unknown"
    if known == ["rater"]:
        note += ", since prompts are unknown"
    note += "."
    if known:
        note += "  * and colour: claimed, at most 5 % false claims in the whole chart."
    note += "  Bold: primary question."
    if busy:
        note += f"  † One rater gave more than {100 * BUSY:.0f} % of the decisive votes."
    if left_out:
        note += f"  {left_out:,} comparisons with fewer votes are only in win_rates.csv."
    note = textwrap.fill(note, 190)
    figure.text(0.02, 0.2 / height, note, fontsize=7, va="center")


def _stamp(figure: Figure, height: float) -> None:
    size, slope = (44, 18) if height > 5 else (26, 5)
    figure.text(
        0.5, 0.5, "SIMULATED VOTES", fontsize=size, color="#b00020", alpha=0.22, ha="center",
        va="center", rotation=slope, weight="bold",
    )  # fmt: skip


def draw_e_values(
    paths: dict[str, pd.DataFrame], threshold: float, *, simulated: bool = False
) -> Figure:
    """Draw the e-value of each comparison against its number of decisive votes.

    Args:
        paths: by comparison, as `human_eval.statistics.e_values.e_value_path` returns them.
        threshold: the e-value at which a comparison is decided.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot()
        for key, path in paths.items():
            # At most 1,000 to 2,000 points: more than pixels would only make the file large.
            shown = path.iloc[:: max(1, len(path) // 1000)]
            exponent = np.log10(np.maximum(shown["e"], 1e-3))
            axes.plot(shown.index + 1, exponent, label=key, linewidth=1.2)
        axes.axhline(np.log10(threshold), color=INK, linestyle="--", linewidth=1)
        axes.text(
            1, np.log10(threshold), "decided above ", ha="right", va="bottom", fontsize=8,
            transform=axes.get_yaxis_transform(),
        )  # fmt: skip
        axes.set_xlabel("decisive votes on the primary question")
        axes.set_ylabel("evidence against an even match, log10 e")
        axes.set_title("SIMULATED VOTES" if simulated else "E-values after each vote")
        if len(paths) <= MAX_LEGEND:
            axes.legend(frameon=False, ncols=3)
    return figure


def save_chart(
    figure: Figure, folder: Path, name: str, *, formats: Sequence[str] = FORMATS
) -> list[Path]:
    """Write a chart in each format and return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{kind}" for kind in formats]
    for path, kind in zip(paths, formats, strict=True):
        path.write_bytes(render_chart(figure, kind))
    return paths


def render_chart(figure: Figure, kind: str) -> bytes:
    """Return a chart as "svg", "png" or "pdf". The same figure gives the same bytes."""
    content = BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(content, format=kind, dpi=DPI, metadata=NO_DATES[kind])
    return content.getvalue()
