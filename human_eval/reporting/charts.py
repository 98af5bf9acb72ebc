"""The charts of a study: stacked shares of votes as in the paper, and e-values over time.

`draw_win_rates` draws them for a screen, `draw_panels` at the width of a printed column. The same
table always gives the same bytes.
"""

import textwrap
from collections.abc import Sequence
from functools import cache
from io import BytesIO
from itertools import groupby
from math import ceil, isnan
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.patches import Patch, Rectangle
from matplotlib.textpath import text_to_path

from human_eval.definition.definition import StudyDefinition
from human_eval.errors import StudyError
from human_eval.reporting.win_rate_rows import (
    WinRateRow,
    answers_in_legend,
    count_of,
    win_rate_rows,
)
from human_eval.statistics.votes import BUSY

# Distinct in every kind of colour blindness, and by lightness when printed in grey.
COLOURS = {"a": "#1f5a96", "tie": "#c9c9c9", "both_bad": "#8d8d8d", "b": "#e59a3c"}
INK, GRID = "#1c1c1c", "#dddddd"
NAME_COLOURS = (COLOURS["a"], "#9a5a08")  # of the systems' names; the second is dark enough to read
# DejaVu Sans ships with matplotlib, so every machine draws its letters alike. It has no Chinese or
# Japanese ones; those are of the first of these fonts that is installed.
FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "PingFang SC"),
    *("Hiragino Sans", "Microsoft YaHei", "WenQuanYi Zen Hei", "Droid Sans Fallback"),
)
INSTALLED = set(fontManager.get_font_names())
STYLE: Any = {
    "font.family": ["DejaVu Sans", *(name for name in FONTS if name in INSTALLED)],
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
FORMATS: dict[str, dict[str, Any]] = {  # and their metadata, without dates and versions
    "svg": {"Date": None},
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
}
DPI = 200
ROW = 0.34  # inches, of a bar
MAX_COMPARISONS = 60  # in a chart; with three questions it is already 80 inches high
MAX_LEGEND = 30  # names of comparisons
POINTS = 72  # an inch
SMALLEST = 7.0  # points; smaller print is refused by most conferences
MIN_PANEL = 1.6  # inches, of a panel: narrower, an interval does not fit beside its win rate
MAX_WIDTH = 100.0  # inches
MARGIN, BETWEEN = 3.0, 14.0  # points, around and between panels
MIN_BAR = 40.0  # points
BESIDE = 200  # points; in wider panels the numbers are beside the bars, otherwise below
Sides = tuple[str, str]
SIDES: Sides = ("first", "second")
DASHES: Sequence[Any] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))


def _drawn(table: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Return the 60 comparisons with the most votes, and the number of those left out.

    Raises:
        StudyError: the table is empty.
    """
    if table.empty:
        raise StudyError("There are no votes to draw yet.")
    given = table.groupby("comparison", sort=False)["votes"].sum()
    drawn = given.sort_values(ascending=False, kind="stable").index[:MAX_COMPARISONS]
    return table[table["comparison"].isin(drawn)], len(given) - len(drawn)


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
    table, left_out = _drawn(table)
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
        note = textwrap.fill(_explain_marks(table, rows, left_out), 190)
        figure.text(0.02, 0.2 / height, note, fontsize=7, va="center")
        if simulated:
            _stamp(figure)
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
    room = _width_of(axes) - 8
    for place, row in headings:
        size, titles = 9.0, [row.title_a, row.title_b]
        if sum(text_width(title, size, "bold") for title in titles) > room:
            size = SMALLEST
            titles = [_shorten(title, room / 2, size) for title in titles]
        for x, alignment, title, colour in zip(
            (0, 1), ("left", "right"), titles, NAME_COLOURS, strict=True
        ):
            axes.text(
                x, place + 0.1, title, ha=alignment, va="center", weight="bold", color=colour,
                fontsize=size,
            )  # fmt: skip


def _width_of(axes: Axes) -> float:
    """Return the width of axes as printed, in points."""
    return float(axes.bbox.width) * POINTS / axes.figure.dpi


@cache
def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Return the printed width of a text in points: that of its widest line."""
    font = FontProperties(family=STYLE["font.family"], weight=weight, size=size)
    # The advance widths of the letters; their outlines would take 20 times as long.
    return max(
        float(text_to_path.get_text_width_height_descent(line, font, ismath=False)[0])
        for line in text.split("\n")
    )


def _shorten(title: str, points: float, size: float) -> str:
    """Return a bold title, cut to a width in points; dots mark the cut."""
    kept = title
    while kept and text_width(kept + ("" if kept == title else "..."), size, "bold") > points:
        kept = kept[:-1]
    return kept if kept == title else kept.rstrip() + "..."


def _wrap(text: str, points: float, size: float, weight: str = "normal") -> list[str]:
    """Return the lines of a text at a width in points; a longer word is broken."""
    lines = [""]
    for word in text.split():
        tried = f"{lines[-1]} {word}".strip()
        if text_width(tried, size, weight) <= points:
            lines[-1] = tried
            continue
        lines += [word] if lines[-1] else []
        lines[-1] = word
        while text_width(lines[-1], size, weight) > points and len(lines[-1]) > 1:
            whole = lines[-1]
            fits = max(
                (n for n in range(1, len(whole)) if text_width(whole[:n], size, weight) <= points),
                default=1,
            )
            lines[-1:] = [whole[:fits], whole[fits:]]
    return lines


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
    numbers = [_rate_numbers(row) for row in rows]
    room = 8 + max(text_width(text, 7.5, "bold") for text in numbers)  # points
    end = right + 1.14 * (right - left) * room / max(_width_of(axes) - room, 1.0)
    axes.set_xlim(left - 0.14 * (right - left), end)
    ticks = np.arange(round(10 * left), round(10 * right) + 1) / 10
    ticks = ticks if len(ticks) <= 6 else ticks[np.round(10 * ticks) % 5 == 0]
    axes.set_xticks(ticks, [f"{share:.0%}" for share in ticks])
    axes.set_xlabel(f"decisive votes won by {_noun(SIDES[0])}", loc="left", fontsize=8)
    axes.vlines(
        ticks, 0, 1, color=GRID, linewidth=0.5, zorder=0, transform=axes.get_xaxis_transform()
    )
    axes.axvline(0.5, color=INK, linewidth=0.8, linestyle=(0, (3, 3)), zorder=0)
    for place, row, text in zip(positions, rows, numbers, strict=True):
        if not isnan(row.rate):
            axes.plot([row.low, row.high], [place, place], color=_colour(row), linewidth=1.6)
            axes.plot(row.rate, place, "o", color=_colour(row), markersize=4.5)
        weight = "bold" if row.question.primary else "normal"
        axes.text(end, place, text, ha="right", va="center", fontsize=7.5, weight=weight)


def _rate_numbers(row: WinRateRow) -> str:
    star = "*" if row.claim else " "
    rate = row.rate_label if isnan(row.rate) else f"{row.rate_label}{star} {row.interval_label}"
    return f"{rate}   {row.votes_label}{row.mark}"


def _colour(row: WinRateRow) -> str:
    """Return the colour of an interval: that of the winner if it may be claimed."""
    return COLOURS["a" if row.rate > 0.5 else "b"] if row.claim else INK


def _noun(side: str) -> str:
    """Return "the first system" for "first", and the name of a system as it is."""
    return f"the {side} system" if side in SIDES else side


def choose_sides(words: Sequence[str], definition: StudyDefinition) -> Sides:
    """Return the words for the two sides; "systems" alone stands for the systems' names.

    Raises:
        StudyError: there are not two words, or several systems are on one side.
    """
    if list(words) != ["systems"]:
        if len(words) != 2:
            raise StudyError(f"Two words name the sides, such as ours baseline; got {len(words)}.")
        return words[0], words[1]
    for side in ("a", "b"):
        systems = {getattr(comparison, side) for comparison in definition.comparisons}
        if len(systems) > 1:
            raise StudyError(
                f"The comparisons have {len(systems)} systems on one side: "
                f"{', '.join(sorted(systems))}. Give two words for the sides instead."
            )
    pair = definition.comparisons[0]
    return definition.system(pair.a).title, definition.system(pair.b).title


def _answer_names(rows: list[WinRateRow], sides: Sides) -> dict[str, str]:
    """Return the words of the legend by answer."""
    names = {"a": f"prefer {sides[0]}", "b": f"prefer {sides[1]}"}
    names |= {"tie": "tie", "both_bad": "both bad"}
    return {choice: names[choice] for choice in answers_in_legend(rows)}


def _draw_title(figure: Figure, title: str, rows: list[WinRateRow], height: float) -> None:
    """Print the title of the study, and the legend of the bars."""
    line = 1 - 0.3 / height
    names = _answer_names(rows, SIDES)
    room = figure.get_figwidth() * POINTS * 0.94
    room -= sum(text_width(name, 8) + 32 for name in names.values())
    figure.text(
        0.02, line, _shorten(title, room, 12), fontsize=12, weight="bold", va="center"
    )  # fmt: skip
    figure.legend(
        [Patch(color=COLOURS[choice]) for choice in names],
        [*names.values()],
        loc="center right", bbox_to_anchor=(0.98, line), ncols=len(names), frameon=False,
        fontsize=8,
    )  # fmt: skip


def _explain_marks(table: pd.DataFrame, rows: list[WinRateRow], left_out: int) -> str:
    known = [kind for kind in ("prompt", "rater") if table[f"{kind}s"].max()]
    fewest, most = table["raters"].min(), table["raters"].max()
    number = count_of(most, "rater") if fewest == most else f"{fewest:,} to {most:,} raters"
    note = f"Lines and brackets: 95 % intervals, clustered by {' and '.join(known)}"
    if not known:
        note = (
            "Lines and brackets: 95 % intervals that take votes as independent, since prompts and "
            "raters are unknown; no difference can be claimed"
        )
    elif "rater" in known:
        note += f" ({number} a row)"
    else:
        note += " only, since raters are unknown"
    if known == ["rater"]:
        note += ", since prompts are unknown"
    note += "."
    if known:
        note += "  * and colour: claimed, at most 5 % false claims in the whole chart."
    note += "  Bold: primary question."
    if any(row.mark for row in rows):
        note += f"  † One rater gave more than {100 * BUSY:.0f} % of the decisive votes."
    if left_out:
        note += f"  {count_of(left_out, 'comparison')} with fewer votes: see win_rates.csv."
    return note


def _stamp(figure: Figure) -> None:
    width, height = figure.get_size_inches()
    size, slope = (4.2 * width, 18) if height > width / 2 else (2.5 * width, 5)
    figure.text(
        0.5, 0.5, "SIMULATED VOTES", fontsize=max(SMALLEST, size), color="#b00020", alpha=0.22,
        ha="center", va="center", rotation=slope, weight="bold",
    )  # fmt: skip


def divide_width(width: float, columns: int | None, panels: int) -> tuple[int, float]:
    """Return how many panels stand side by side, and the width of each in points.

    Args:
        width: of the figure, in inches.
        columns: see `draw_panels`.
        panels: how many there are.

    Raises:
        StudyError: the panels do not fit, or the figure is wider than 100 inches.
    """
    if columns is None:
        columns = min(3 if width >= 5 else 1, panels)
    room = width * POINTS - 2 * MARGIN + BETWEEN
    if not width <= MAX_WIDTH or not 1 <= columns <= room // (MIN_PANEL * POINTS + BETWEEN):
        raise StudyError(
            f"A figure {width:g} inches wide cannot have {columns} panels side by side: each needs "
            f"{MIN_PANEL} inches, and a figure has at most {MAX_WIDTH:g}. Choose another width, or "
            "other columns."
        )
    return columns, room / columns - BETWEEN


def draw_panels(
    table: pd.DataFrame,
    definition: StudyDefinition,
    *,
    width: float,
    columns: int | None = None,
    sides: Sides = SIDES,
    simulated: bool = False,
) -> Figure:
    """Draw the win rates for print: a panel for each comparison, no print below 7 points.

    Include the figure at its natural size: scaling it also scales the print.

    Args:
        table: the table of `human_eval.statistics.win_rates.win_rates`.
        width: of the figure, in inches; 3.25 and 6.75 are those of one and two columns.
        columns: panels side by side; None for one below 5 inches, and three from there.
        sides: words for the two systems of a comparison, in the legend.
        simulated: print "SIMULATED VOTES" across the chart.

    Raises:
        StudyError: the table is empty, or the panels do not fit.
    """
    table, _ = _drawn(table)
    rows = win_rate_rows(table, definition)
    panels = [list(panel) for _, panel in groupby(rows, lambda row: row.comparison)]
    columns, panel = divide_width(width, columns, len(panels))
    names = _answer_names(rows, sides)
    places = _flow([text_width(name, SMALLEST) + 22 for name in names.values()], width * POINTS)
    with matplotlib.rc_context(STYLE):
        layout = _PanelLayout(panel, panels)
        tops = [places[-1][1] + 9]
        for start in range(0, len(panels), columns):
            tops.append(tops[-1] + layout.height(panels[start : start + columns]))
        figure = Figure(figsize=(width, tops[-1] / POINTS))
        axes = figure.add_axes((0, 0, 1, 1))  # its units are points, from the top left
        axes.set(xlim=(0, width * POINTS), ylim=(tops[-1], 0))
        axes.axis("off")
        for (choice, name), (x, y) in zip(names.items(), places, strict=True):
            axes.add_patch(Rectangle((x, y - 3), 9, 6, color=COLOURS[choice], linewidth=0))
            axes.text(x + 12, y, name, fontsize=SMALLEST, va="center")
        for number, group in enumerate(panels):
            left = MARGIN + number % columns * (panel + BETWEEN)
            layout.draw(axes, group, left, tops[number // columns])
        if simulated:
            _stamp(figure)
    return figure


def _flow(widths: list[float], room: float) -> list[tuple[float, float]]:
    """Return the positions of the entries in points, wrapped like the words of a paragraph."""
    x, y = 3.0, 8.0
    places = []
    for width in widths:
        if x > 3 and x + width > room:
            x, y = 3.0, y + 11
        places.append((x, y))
        x += width
    return places


class _PanelLayout:
    """Places the parts of panels of one width; all lengths are in points."""

    LINE, BAR, INTERVAL, GAP = 9.0, 10.0, 7.0, 5.0

    def __init__(self, width: float, panels: list[list[WinRateRow]]) -> None:
        rows = [row for panel in panels for row in panel]
        self.width = width
        self.indent = max(text_width(row.question.key, SMALLEST, "bold") for row in rows) + 5
        numbers = zip(*(self.numbers(row) for row in rows), strict=True)
        widest = [max(text_width(text, SMALLEST, "bold") for text in texts) for texts in numbers]
        self.beside = width >= BESIDE
        self.bar = width - self.indent - (max(widest) + 6 if self.beside else 0)
        if self.bar < max(MIN_BAR, 0 if self.beside else max(widest)):
            raise StudyError(
                f"Panels {width / POINTS:.1f} inches wide are too narrow for the keys of the "
                "questions and the numbers. Choose fewer columns, or a wider figure."
            )
        self.lines = 2 if self.beside or sum(widest) + 6 > self.bar else 1  # of numbers
        text = self.LINE * self.lines
        bars = self.BAR + self.INTERVAL
        self.row = (max(bars, text) if self.beside else bars + text) + self.GAP
        self.one_line = all(
            sum(text_width(title, 7.5, "bold") for title in (row.title_a, row.title_b)) + 10
            <= width
            for row in rows
        )

    def numbers(self, row: WinRateRow) -> tuple[str, str]:
        """Return the win rate with its interval, and the number of votes."""
        star = "*" if row.claim else ""
        return f"{row.rate_label}{star} {row.interval_label}".strip(), row.votes_label + row.mark

    def titles(self, row: WinRateRow) -> list[list[str]]:
        """Return the lines of both names."""
        return [_wrap(title, self.width, 7.5, "bold") for title in (row.title_a, row.title_b)]

    def heading(self, panels: list[list[WinRateRow]]) -> float:
        """Return the height of the names above panels that are side by side."""
        most = 1 if self.one_line else max(sum(map(len, self.titles(rows[0]))) for rows in panels)
        return 9.5 * most + 2

    def height(self, panels: list[list[WinRateRow]]) -> float:
        """Return the height of panels that are side by side."""
        return self.heading(panels) + max(map(len, panels)) * self.row + 6

    def draw(self, axes: Axes, rows: list[WinRateRow], left: float, top: float) -> None:
        """Draw one panel: both names, then bar, interval and numbers of each question."""
        line = top + 5
        for side, lines in enumerate(self.titles(rows[0])):
            x, alignment = ((left, "left"), (left + self.width, "right"))[side]
            for text in lines:
                axes.text(
                    x, line, text, ha=alignment, va="center", weight="bold", fontsize=7.5,
                    color=NAME_COLOURS[side],
                )  # fmt: skip
                line += 0 if self.one_line else 9.5
        top = line + (9.5 if self.one_line else 0) - 3
        for number, row in enumerate(rows):
            self._draw_row(axes, row, left, top + number * self.row)

    def _draw_row(self, axes: Axes, row: WinRateRow, left: float, top: float) -> None:
        weight = "bold" if row.question.primary else "normal"
        middle, start = top + self.BAR / 2, left + self.indent
        axes.text(left, middle, row.question.key, va="center", weight=weight, fontsize=SMALLEST)
        x = start
        for part in row.segments:
            width = part.share * self.bar
            axes.add_patch(
                Rectangle((x, top), width, self.BAR, color=COLOURS[part.choice], linewidth=0)
            )
            label = f"{100 * part.share:.0f}"
            if text_width(label, SMALLEST) + 4 <= width:
                axes.text(
                    x + width / 2, middle, label, ha="center", va="center", fontsize=SMALLEST,
                    color="white" if part.choice == "a" else INK,
                )  # fmt: skip
            x += width
        half, below = start + self.bar / 2, top + self.BAR + self.INTERVAL / 2
        axes.plot(
            [half, half], [below - self.INTERVAL / 2, below + self.INTERVAL / 2], color=INK,
            linewidth=0.8, linestyle=(0, (1.5, 1)),
        )  # fmt: skip
        if not isnan(row.rate):
            ends = [start + self.bar * end for end in (row.low, row.high)]
            axes.plot(ends, [below, below], color=_colour(row), linewidth=1.4)
            axes.plot(start + self.bar * row.rate, below, "o", color=_colour(row), markersize=3)
        rate, votes = self.numbers(row)
        first = top + self.LINE / 2 + (0 if self.beside else self.BAR + self.INTERVAL)
        x = start + self.bar + 6 if self.beside else start
        axes.text(x, first, rate, va="center", weight=weight, fontsize=SMALLEST)
        if self.lines == 2:
            axes.text(x, first + self.LINE, votes, va="center", fontsize=SMALLEST)
        else:
            axes.text(
                start + self.bar, first, votes, ha="right", va="center", fontsize=SMALLEST
            )  # fmt: skip


def describe_win_rates(
    table: pd.DataFrame,
    definition: StudyDefinition,
    *,
    sides: Sides = SIDES,
    simulated: bool = False,
) -> str:
    """Return the caption of `draw_panels`: what bars, marks, comparisons and questions mean."""
    table, left_out = _drawn(table)
    rows = win_rate_rows(table, definition)
    pairs = "; ".join(
        dict.fromkeys(f"{row.comparison}, {row.title_a} against {row.title_b}" for row in rows)
    )
    asked = "; ".join(
        f'{question.key}, "{question.wording}"' + (" (primary)" if question.primary else "")
        for question in definition.questions
    )
    stamp = "SIMULATED VOTES: no person took part. " if simulated else ""
    marks = " ".join(_explain_marks(table, rows, left_out).split())
    return (
        f"{stamp}Shares of all votes, in percent (bars), and of decisive votes won by "
        f"{_noun(sides[0])} (dots and numbers; n is the number of decisive votes, on which the "
        f"interval rests). Dashed: an even match. {marks} "
        f"Comparisons: {pairs}. Questions: {asked}."
    )


def draw_e_values(
    paths: dict[str, pd.DataFrame],
    threshold: float,
    definition: StudyDefinition,
    *,
    width: float = 7.0,
    simulated: bool = False,
) -> Figure:
    """Draw the e-value of each comparison against its number of decisive votes.

    A line has the colour of the system that leads after the last vote. Of more than 60
    comparisons, those with the most votes are drawn, and the title says so.

    Args:
        paths: by comparison, as `human_eval.statistics.e_values.e_value_path` returns them.
        threshold: the e-value at which a comparison is decided.
        width: of the figure, in inches.
    """
    title = "SIMULATED VOTES" if simulated else "E-values after each vote"
    if len(paths) > MAX_COMPARISONS:
        title += f" ({MAX_COMPARISONS} of {len(paths)} comparisons)"
        most = sorted(paths, key=lambda key: len(paths[key]), reverse=True)[:MAX_COMPARISONS]
        paths = {key: path for key, path in paths.items() if key in most}
    with matplotlib.rc_context(STYLE):
        with_legend = 0 < len(paths) <= MAX_LEGEND
        labels = {}
        for key in paths if with_legend else ():
            pair = definition.comparison(key)
            name = " vs. ".join(definition.system(system).title for system in (pair.a, pair.b))
            labels[key] = "\n".join(_wrap(f"{key}: {name}", width * POINTS - 40, SMALLEST))
        widest = max((text_width(label, SMALLEST) for label in labels.values()), default=0.0)
        columns = max(1, int((width * POINTS - 10) // (widest + 45)))
        lines = sum(label.count("\n") + 1 for label in labels.values()) / columns
        height = 0.25 * width + 1.6 + (11 * ceil(lines) / POINTS if with_legend else 0)
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        for drawn, (key, path) in enumerate(paths.items()):
            # At most 1,000 to 2,000 points: more than pixels would only make the file large.
            shown = path.iloc[:: max(1, len(path) // 1000)]
            exponent = np.log10(np.maximum(shown["e"], 1e-3))
            colour = INK
            if len(path) and path["wins"].iloc[-1] != path["losses"].iloc[-1]:
                ahead = path["wins"].iloc[-1] > path["losses"].iloc[-1]
                colour = COLOURS["a" if ahead else "b"]
            pale = 0.45 * (drawn // len(DASHES) % 2)  # lines of one colour must differ
            axes.plot(
                shown.index + 1, exponent, label=labels.get(key), linewidth=1.2,
                color=[pale + (1 - pale) * channel for channel in to_rgb(colour)],
                linestyle=DASHES[drawn % len(DASHES)],
            )  # fmt: skip
        line = float(np.log10(threshold))
        axes.axhline(line, color=INK, linestyle="--", linewidth=0.8)
        bottom, top = axes.get_ylim()
        axes.set_ylim(bottom, max(top, line + 0.15 * (line - bottom)))  # room for the words
        axes.text(
            1, line, "decided above ", ha="right", va="bottom", fontsize=8,
            transform=axes.get_yaxis_transform(),
        )  # fmt: skip
        axes.set_xlabel("decisive votes on the primary question", fontsize=8)
        axes.set_ylabel("evidence, log10 e", fontsize=8)
        axes.set_title(title, fontsize=9)
        if with_legend:
            figure.legend(
                loc="outside lower left", frameon=False, ncols=columns, fontsize=SMALLEST,
                handlelength=2.5,
            )  # fmt: skip
    return figure


E_VALUES_CAPTION = """\
Evidence against an even match after each decisive vote on the primary question, as the base-10
logarithm of the e-value. A comparison is decided once it has reached the dashed line, however often
the results were looked at. A line has the colour of the system that leads after the last vote."""


def save_chart(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a chart in each format and return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind in FORMATS:
        (folder / f"{name}.{kind}").write_bytes(render_chart(figure, kind))
    return [folder / f"{name}.{kind}" for kind in FORMATS]


def render_chart(figure: Figure, kind: str) -> bytes:
    """Return a chart as "svg", "png" or "pdf". The same figure gives the same bytes."""
    content = BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(content, format=kind, dpi=DPI, metadata=FORMATS[kind])
    return content.getvalue()
