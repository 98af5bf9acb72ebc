"""The chart of a study, as in the paper: stacked shares of votes; beside them, how sure they are.

The same table gives the same bytes, on any day.
"""

import textwrap
from collections.abc import Sequence
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

FORMATS = ("svg", "png", "pdf")
# Told apart in every kind of colour blindness, and in print by their lightness.
COLOURS = {"a": "#1f5a96", "tie": "#c9c9c9", "both_bad": "#8d8d8d", "b": "#e59a3c"}
INK, GRID = "#1c1c1c", "#dddddd"
STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with the library, so that every machine draws alike
    "font.size": 9,
    "svg.hashsalt": "human_eval",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
    "text.parse_math": False,  # a dollar in a title is a dollar
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
MIN_LABEL = 0.06  # share of the bar that is wide enough for its number


def draw_win_rates(
    table: pd.DataFrame, definition: StudyDefinition, *, simulated: bool = False
) -> Figure:
    """Draw a bar for each comparison and question, with the number of votes and the interval.

    Args:
        table: as `human_eval.statistics.win_rates.win_rates` makes it.
        simulated: write across the chart that no person has voted.

    Raises:
        StudyError: there is nothing to draw.
    """
    if table.empty:
        raise StudyError("Expected votes to draw, got none. Collect some, or check the filters.")
    with matplotlib.rc_context(STYLE):
        positions, heads = _places(table)
        height = (positions[-1] + 1.0) * ROW + 1.35
        figure = Figure(figsize=(10.5, height))
        grid = figure.add_gridspec(
            1, 3, width_ratios=[2.1, 3.7, 3.5], wspace=0.06,
            left=0.02, right=0.98, top=1 - 0.55 / height, bottom=0.8 / height,
        )  # fmt: skip
        words, bars, rates = (figure.add_subplot(grid[0, column]) for column in range(3))
        for axes in (words, bars, rates):
            axes.set_ylim(positions[-1] + 0.6, -0.4)
            axes.set_yticks([])
            for side in ("left", "right", "top"):
                axes.spines[side].set_visible(False)
        _write_questions(words, table, positions, definition)
        _stack_bars(bars, table, positions)
        _mark_rates(rates, table, positions)
        _write_comparisons(bars, table, heads, definition)
        _write_around(figure, table, definition, height, simulated=simulated)
    return figure


def _places(table: pd.DataFrame) -> tuple[np.ndarray, dict[str, float]]:
    """Return the vertical place of each bar, and of the line above each comparison."""
    positions: list[float] = []
    heads: dict[str, float] = {}
    place = 0.0
    for comparison in table["comparison"]:
        if comparison not in heads:
            place += 0.4 if heads else 0.0
            heads[comparison] = place
            place += 1.0
        positions.append(place)
        place += 1.0
    return np.array(positions), heads


def _write_questions(
    axes: Axes, table: pd.DataFrame, positions: np.ndarray, definition: StudyDefinition
) -> None:
    axes.set_xlim(0, 1)
    axes.axis("off")
    for place, key in zip(positions, table["question"], strict=True):
        question = definition.question(key)
        wording = textwrap.shorten(question.wording, 76, placeholder=" ...")
        weight = "bold" if question.primary else "normal"
        axes.text(0, place, key, ha="left", va="center", fontsize=8, weight=weight)
        axes.text(
            1, place, textwrap.fill(wording, 32), ha="right", va="center", fontsize=7,
            weight=weight, linespacing=1.05,
        )  # fmt: skip


def _write_comparisons(
    axes: Axes, table: pd.DataFrame, heads: dict[str, float], definition: StudyDefinition
) -> None:
    first = table.drop_duplicates("comparison").set_index("comparison")
    for key, place in heads.items():
        titles = [
            textwrap.shorten(definition.system(system).title, 36, placeholder="...")
            for system in first.loc[key, ["system_a", "system_b"]]
        ]
        line = place + 0.1
        size = min(9.0, 400 / sum(map(len, titles)))  # points; both stand on one line
        axes.text(
            0, line, titles[0], ha="left", va="center", weight="bold", color=COLOURS["a"],
            fontsize=size,
        )  # fmt: skip
        axes.text(
            1, line, titles[1], ha="right", va="center", weight="bold", color="#9a5a08",
            fontsize=size,
        )  # fmt: skip


def _stack_bars(axes: Axes, table: pd.DataFrame, positions: np.ndarray) -> None:
    axes.set_xlim(0, 1)
    axes.set_xticks(np.linspace(0, 1, 5), [f"{share:.0%}" for share in np.linspace(0, 1, 5)])
    columns = {"a": "wins", "tie": "ties", "both_bad": "both_bad", "b": "losses"}
    start = np.zeros(len(table))
    for choice, column in columns.items():
        shares = (table[column] / table["votes"]).to_numpy()
        axes.barh(positions, shares, left=start, height=0.72, color=COLOURS[choice], linewidth=0)
        for place, left, share in zip(positions, start, shares, strict=True):
            if share >= MIN_LABEL:
                axes.text(
                    left + share / 2, place, f"{100 * share:.1f}", ha="center", va="center",
                    fontsize=8, color="white" if choice == "a" else INK,
                )  # fmt: skip
        start = start + shares
    axes.axvline(0.5, color="white", linewidth=1, linestyle=(0, (2, 2)))
    axes.set_xlabel("share of all votes", fontsize=8)


def _mark_rates(axes: Axes, table: pd.DataFrame, positions: np.ndarray) -> None:
    shown = table[table["wins"] + table["losses"] > 0]
    # To tenths, and never so near that a hair's breadth looks like a landslide.
    left = np.floor(10 * min(shown["low"].min(), 0.4)) / 10 if len(shown) else 0.0
    right = np.ceil(10 * max(shown["high"].max(), 0.6)) / 10 if len(shown) else 1.0
    end = left + 2.1 * (right - left)  # room for the numbers
    axes.set_xlim(left - 0.14 * (right - left), end)
    ticks = np.arange(round(10 * left), round(10 * right) + 1) / 10
    ticks = ticks if len(ticks) <= 6 else ticks[np.round(10 * ticks) % 5 == 0]
    axes.set_xticks(ticks, [f"{share:.0%}" for share in ticks])
    axes.set_xlabel("decisive votes won by the left system", loc="left", fontsize=8)
    axes.vlines(
        ticks, 0, 1, color=GRID, linewidth=0.5, zorder=0, transform=axes.get_xaxis_transform()
    )
    axes.axvline(0.5, color=INK, linewidth=0.8, linestyle=(0, (3, 3)), zorder=0)
    for place, row in zip(positions, table.to_dict("records"), strict=True):
        if row["wins"] + row["losses"]:
            winner = COLOURS["a" if row["rate"] > 0.5 else "b"] if row["claim"] else INK
            axes.plot([row["low"], row["high"]], [place, place], color=winner, linewidth=1.6)
            axes.plot(row["rate"], place, "o", color=winner, markersize=4.5)
        weight = "bold" if row["primary"] else "normal"
        axes.text(end, place, _numbers(row), ha="right", va="center", fontsize=7.5, weight=weight)


def _numbers(row: dict[str, Any]) -> str:
    if not row["wins"] + row["losses"]:
        return f"ties only   n = {row['votes']:,}"
    star = "*" if row["claim"] else " "
    bounds = f"[{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
    return f"{100 * row['rate']:.1f}{star} {bounds}   n = {row['votes']:,}"


def _write_around(
    figure: Figure,
    table: pd.DataFrame,
    definition: StudyDefinition,
    height: float,
    *,
    simulated: bool,
) -> None:
    title = textwrap.shorten(definition.title or definition.name, 90, placeholder=" ...")
    figure.text(0.02, 1 - 0.3 / height, title, fontsize=12, weight="bold", va="center")
    words = {"a": "prefer left", "tie": "tie", "both_bad": "both bad", "b": "prefer right"}
    columns = {"a": "wins", "tie": "ties", "both_bad": "both_bad", "b": "losses"}
    shown = [choice for choice in words if choice in "ab" or table[columns[choice]].any()]
    figure.legend(
        [Patch(color=COLOURS[choice]) for choice in shown],
        [words[choice] for choice in shown],
        loc="center right", bbox_to_anchor=(0.98, 1 - 0.3 / height), ncols=len(shown),
        frameon=False, fontsize=8,
    )  # fmt: skip
    fewest, most = table["raters"].min(), table["raters"].max()
    raters = f"{most:,}" if fewest == most else f"{fewest:,} to {most:,}"
    note = (
        "Lines and brackets: 95 % intervals, clustered by prompt and rater "
        f"({raters} raters a row).  * and colour: claimed, at most 5 % false claims in the whole "
        "chart.  Bold: primary question."
    )
    figure.text(0.02, 0.2 / height, note, fontsize=7, va="center")
    if simulated:
        size, slope = (44, 18) if height > 5 else (26, 5)
        figure.text(
            0.5, 0.5, "SIMULATED VOTES", fontsize=size, color="#b00020", alpha=0.22, ha="center",
            va="center", rotation=slope, weight="bold",
        )  # fmt: skip


def draw_evidence(
    paths: dict[str, pd.DataFrame], threshold: float, *, simulated: bool = False
) -> Figure:
    """Draw how the evidence of each comparison grew with its decisive votes.

    Args:
        paths: by comparison, as `human_eval.statistics.e_values.evidence_path` makes them.
        threshold: from which on a comparison is decided.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot()
        for key, path in paths.items():
            # More points than pixels would only make the file large.
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
        axes.set_title("SIMULATED VOTES" if simulated else "Evidence from vote to vote")
        axes.legend(frameon=False, ncols=3)
    return figure


def save_chart(
    figure: Figure, folder: Path, name: str, *, formats: Sequence[str] = FORMATS
) -> list[Path]:
    """Write a chart in each format, byte for byte the same for the same figure."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with matplotlib.rc_context(STYLE):
        for kind in formats:
            path = folder / f"{name}.{kind}"
            figure.savefig(path, format=kind, dpi=DPI, metadata=NO_DATES[kind])
            paths.append(path)
    return paths
