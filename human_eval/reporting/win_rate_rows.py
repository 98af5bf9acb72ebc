"""The rows of the win-rate figure, and the same as a table for a paper.

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
    def decisive(self) -> int:
        """The number of decisive votes, on which the interval rests."""
        return sum(part.votes for part in self.segments if part.choice in {"a", "b"})

    @property
    def votes_label(self) -> str:
        """The number of decisive votes, and of all votes where it differs."""
        n = f"n = {self.decisive:,}"
        return n + (f" of {self.votes:,}" if self.decisive < self.votes else "")

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


def format_p(p: float) -> str:
    """Return a p-value to three digits, or "< 1e-4"."""
    return "< 1e-4" if p < 1e-4 else f"{p:.3g}"


def tabulate_for_paper(rates: pd.DataFrame, definition: StudyDefinition) -> pd.DataFrame:
    """Return the rows as text, rounded for print: shares in percent to a tenth.

    Args:
        rates: the table of `human_eval.statistics.win_rates.win_rates`.

    Returns:
        Columns comparison, first, second, question, won (of decisive votes, by the first system),
        interval, decisive, votes, p (adjusted), claim (title of the winner, or "").
    """
    rows = win_rate_rows(rates, definition)
    adjusted = [format_p(p) for p in rates["p_family"]]
    return pd.DataFrame(
        {
            "comparison": row.comparison,
            "first": row.title_a,
            "second": row.title_b,
            "question": row.question.key,
            "won": row.rate_label,
            "interval": row.interval_label,
            "decisive": str(row.decisive),
            "votes": str(row.votes),
            "p": p,
            "claim": definition.system(row.claim).title if row.claim else "",
        }
        for row, p in zip(rows, adjusted, strict=True)
    )


MAX_NAME = 28  # characters of a name that is set on one line of a LaTeX table
LATEX = str.maketrans(
    {character: f"\\{character}" for character in "#$%&_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": "$<$", ">": "$>$", "†": r"$\dagger$", '"': "''", "|": "$|$"}
    | {"[": "{[}", "*": "{*}"}  # after a line break LaTeX would read an option
)


def latex_table(table: pd.DataFrame, *, caption: str) -> str:
    """Return the table of `tabulate_for_paper` as LaTeX, as wide as the page.

    It needs the package booktabs. Claimed win rates are bold. Text that is not in a Latin script
    needs XeLaTeX or LuaLaTeX.
    """
    head = ["First system", "Second system", "Question", r"Won (\%)", r"95\,\% interval"]
    head += ["$n$", "Votes", "$p$"]
    longest = max(map(len, [*table["first"], *table["second"]]))
    names = "l" if longest <= MAX_NAME else r"p{0.22\textwidth}"  # of both columns of names
    lines = [
        "% in the preamble: \\usepackage{booktabs}",
        r"\begin{table*}[t]",
        r"\centering",
        rf"\caption{{{caption.translate(LATEX)}}}",
        r"\label{tab:win-rates}",
        r"\small\setlength{\tabcolsep}{4pt}",
        rf"\begin{{tabular}}{{{names}{names}lrlrrl}}",
        r"\toprule",
        " & ".join(head) + r" \\",
    ]
    former = ""
    for row in table.to_dict("records"):
        same = row["comparison"] == former
        lines += [] if same else [r"\midrule"]
        former = row["comparison"]
        cells = {name: str(row[name]).translate(LATEX) for name in table.columns}
        won = rf"\textbf{{{cells['won']}}}" if row["claim"] else cells["won"]
        systems = ["", ""] if same else [cells["first"], cells["second"]]
        p = "$<10^{-4}$" if row["p"].startswith("<") else cells["p"]
        rest = [cells[name] for name in ("interval", "decisive", "votes")]
        lines.append(" & ".join([*systems, cells["question"], won, *rest, p]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table*}", ""])


def answers_in_legend(rows: list[WinRateRow]) -> list[str]:
    """Return the answers that a legend explains: "a", "b", and the ties that were given."""
    given = {segment.choice for row in rows for segment in row.segments if segment.votes}
    return [choice for choice in COUNTS if choice in {"a", "b"} | given]
