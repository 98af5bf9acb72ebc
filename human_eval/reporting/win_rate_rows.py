"""The rows of the win-rate figure.

`human_eval.reporting.charts` draws them as SVG, PNG and PDF, `demo.widgets.win_rate_bars` as HTML.
Both take order, shares and labels from here, so that a report and the Results page agree.
"""

from dataclasses import dataclass
from math import isnan, nan

import pandas as pd

from human_eval.definition.definition import Question, StudyDefinition
from human_eval.statistics.votes import BUSY

COUNTS = {"a": "wins", "tie": "ties", "both_bad": "both_bad", "b": "losses"}  # from left to right
MIN_LABEL = 0.06  # share of the bar that is wide enough for its number


def count_of(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is one: "1 vote", "2,000 votes"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One part of a stacked bar: the votes with one answer."""

    choice: str  # "a", "tie", "both_bad" or "b"
    votes: int
    share: float  # of all votes of the row, in [0, 1]

    @property
    def label(self) -> str:
        """The share in percent; empty where the segment is too narrow for a number."""
        return f"{100 * self.share:.1f}" if self.share >= MIN_LABEL else ""


@dataclass(frozen=True, kw_only=True)
class WinRateRow:
    """One bar: the votes of one comparison on one question."""

    comparison: str  # its key
    question: Question
    title_a: str
    title_b: str
    votes: int
    segments: tuple[Segment, ...]  # one for each answer, in the order of COUNTS
    rate: float  # share of decisive votes that system_a won, in [0, 1]; NaN if all votes are ties
    low: float  # 95 % interval of `rate`
    high: float
    claim: str  # key of the system that may be called the winner, or ""
    busiest: float  # largest share of the decisive votes by one rater

    @property
    def rate_label(self) -> str:
        """The win rate in percent, or "ties only"."""
        return "ties only" if isnan(self.rate) else f"{100 * self.rate:.1f}"

    @property
    def interval_label(self) -> str:
        """The interval in percent, in brackets; empty if all votes are ties."""
        return "" if isnan(self.rate) else f"[{100 * self.low:.1f}, {100 * self.high:.1f}]"

    @property
    def votes_label(self) -> str:
        """The number of decisive votes, on which the interval rests, and of all votes."""
        decisive = sum(part.votes for part in self.segments if part.choice in {"a", "b"})
        return f"n = {decisive:,}" + (f" of {self.votes:,}" if decisive < self.votes else "")

    @property
    def mark(self) -> str:
        """A dagger where one rater gave more than 15 % of the decisive votes, otherwise ""."""
        return "†" if self.busiest > BUSY else ""


def win_rate_rows(rates: pd.DataFrame, definition: StudyDefinition) -> list[WinRateRow]:
    """Return one row for each comparison and question, in the order of `rates`.

    Args:
        rates: the table of `human_eval.statistics.win_rates.win_rates`.
    """
    return [
        WinRateRow(
            comparison=row["comparison"],
            question=definition.question(row["question"]),
            title_a=definition.system(row["system_a"]).title,
            title_b=definition.system(row["system_b"]).title,
            votes=row["votes"],
            segments=tuple(
                Segment(choice=choice, votes=row[column], share=row[column] / row["votes"])
                for choice, column in COUNTS.items()
            ),
            rate=row["rate"] if row["wins"] + row["losses"] else nan,
            low=row["low"],
            high=row["high"],
            claim=row["claim"],
            busiest=row["busiest"],
        )
        for row in rates.to_dict("records")
    ]


def answers_in_legend(rows: list[WinRateRow]) -> list[str]:
    """Return the answers that a legend explains: "a", "b", and the ties that were given."""
    given = {segment.choice for row in rows for segment in row.segments if segment.votes}
    return [choice for choice in COUNTS if choice in {"a", "b"} | given]
