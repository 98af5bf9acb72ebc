"""The report of a study: charts, tables as CSV files, and report.md, which explains them.

`TABLES` lists the tables in the order of report.md. To add a statistic, write its function in
`human_eval.statistics` and add one `ReportTable` here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from human_eval.definition.definition import StudyDefinition
from human_eval.errors import StudyError
from human_eval.reporting.audit import audit_votes
from human_eval.reporting.charts import (
    E_VALUES_CAPTION,
    SIDES,
    choose_sides,
    describe_win_rates,
    divide_width,
    draw_e_values,
    draw_panels,
    draw_win_rates,
    save_chart,
)
from human_eval.reporting.export import read_export, read_exported_pairs, write_csv
from human_eval.reporting.judge_scores import read_scores
from human_eval.reporting.methods_text import describe_unknown, is_foreign, methods_paragraph
from human_eval.reporting.win_rate_rows import count_of, format_p, latex_table, tabulate_for_paper
from human_eval.statistics.agreement import tabulate_agreement, tabulate_majorities
from human_eval.statistics.contrasts import tabulate_contrasts
from human_eval.statistics.e_values import LEVEL, NEEDS, Paths, tabulate_decisions, trace_e_values
from human_eval.statistics.leave_one_out import tabulate_leave_one_out
from human_eval.statistics.power import forecast_decisions
from human_eval.statistics.prediction_powered import prediction_powered_rates
from human_eval.statistics.ranking import rank_systems, tabulate_differences
from human_eval.statistics.screening import consistency
from human_eval.statistics.side_bias import (
    tabulate_side_adjusted,
    tabulate_side_bias,
    tabulate_undiluted,
)
from human_eval.statistics.votes import (
    BUSY,
    COLUMNS,
    check_origin,
    check_votes,
    counted_votes,
    find_unknown,
    require_counted,
)
from human_eval.statistics.win_rates import category_rates, tabulate_strengths, win_rates

WITH_JUDGE = "win_rates_with_judge"  # the table that needs one
REPORT, METHODS = "report.md", "methods.md"
CHART, E_VALUES = "win_rates", "evidence"  # names of the chart files
DILUTING = 0.05  # share of errors above which an estimate without them is also given
PAPER = "paper"  # the folder of the files for a paper


@dataclass(frozen=True, kw_only=True)
class PaperFigure:
    """How the figures for a paper are drawn; see `draw_panels`."""

    width: float  # inches
    columns: int | None = None  # panels side by side
    sides: Sequence[str] = SIDES  # two words, or "systems"; see `choose_sides`


@dataclass(frozen=True, kw_only=True)
class ReportVotes:
    """The votes of a report, as its tables need them."""

    definition: StudyDefinition
    all: pd.DataFrame  # attention checks and excluded raters included
    counted: pd.DataFrame  # on real pairs, by raters who are not excluded
    with_excluded: pd.DataFrame  # on real pairs
    paths: Paths  # e-values of the counted votes
    rates: pd.DataFrame  # win rates of the counted votes
    scores: pd.DataFrame  # of a judge, as `read_scores` returns them; empty without one
    pairs: pd.DataFrame | None  # of the plan, as `read_planned_pairs` returns them


@dataclass(frozen=True, kw_only=True)
class ReportTable:
    """One table of the report."""

    name: str  # of its CSV file, which holds all columns
    columns: list[str]  # that report.md shows
    make: Callable[[ReportVotes], pd.DataFrame]
    text: str = ""  # Markdown above it: headings and explanations
    empty: str = "Nothing yet."  # shown instead of an empty table
    shown: Callable[[ReportVotes], bool] = lambda votes: True  # in report.md
    same_as: str = ""  # an earlier table that this one equals where it is not shown
    shown_rows: Callable[[pd.DataFrame], pd.Series] | None = None  # in report.md; None for all
    needs: Sequence[str] = ()  # see `find_unknown`; the table is left out if the votes lack one


def _count_exclusions(votes: ReportVotes) -> pd.DataFrame:
    dropped = votes.with_excluded[votes.with_excluded["excluded"]]
    counted = dropped.groupby("exclusion_rule")["rater"].agg(["nunique", "size"])
    return counted.rename(columns={"nunique": "raters", "size": "answers"}).reset_index()


RATES = [
    *["comparison", "question", "votes", "wins", "losses", "ties", "both_bad", "rate", "low"],
    *["high", "wilson_low", "wilson_high", "sign_p", "p_family", "claim", "note"],
]
TABLES = [
    ReportTable(name="win_rates", columns=RATES, make=lambda votes: votes.rates),
    ReportTable(
        name="win_rates_with_excluded",
        columns=RATES,
        make=lambda votes: win_rates(votes.with_excluded, votes.definition),
        same_as="win_rates",
        text="The same with the votes of excluded raters:",
        shown=lambda votes: len(votes.with_excluded) > len(votes.counted),
    ),
    ReportTable(
        name=WITH_JUDGE,
        columns=["comparison", "votes", "judged", "people", "weight", "rate", "low", "high"]
        + ["saved", "e", "anytime_low", "anytime_high", "decided", "note"],
        needs=("rater", "prompt"),
        make=lambda votes: prediction_powered_rates(votes.counted, votes.scores, votes.definition),
        text="""\
Shares of votes on the primary question, a tie as half a win, from people (`people`) and with the
scores of a judge for pairs without a vote (`rate`). They are valid only if chance chose the pairs
that people saw; a bad judge gets a `weight` near 0. `low` to `high` is for one look, without
adjustment for several comparisons, and `saved` is the share of votes that the judge saves there.
`e`, `decided` and `anytime_low` to `anytime_high` hold however often one looks:""",
    ),
    ReportTable(
        name="strengths",
        columns=["comparison", "question", "votes", "a_much", "a_slightly", "tie", "b_slightly"]
        + ["b_much", "mean", "low", "high", "note"],
        make=lambda votes: tabulate_strengths(votes.counted, votes.definition),
        text="""\
Answers on scales, where `mean` lies between -2 (the second system is much better) and 2. Win rates
count slight and strong preferences alike:""",
        empty="No question has a scale.",
    ),
    ReportTable(
        name="exclusions",
        columns=["exclusion_rule", "raters", "answers"],
        make=_count_exclusions,
        empty="No answer is excluded.",
    ),
    ReportTable(
        name="decisions",
        columns=["comparison", "question", "e", "threshold", "decided", "design_effect"],
        needs=NEEDS,
        make=lambda votes: tabulate_decisions(votes.counted, votes.definition, paths=votes.paths),
        text=f"""\
## Is it decided?

A comparison is decided once its e-value on the primary question reaches the threshold, however
often the results were looked at before. `more` is the median number of further votes until then.

![E-values after each vote]({E_VALUES}.svg)""",
    ),
    ReportTable(
        name="forecast",
        columns=["comparison", "votes", "decided", "more_low", "more", "more_high", "cost"],
        needs=NEEDS,
        make=lambda votes: forecast_decisions(votes.counted, votes.definition, paths=votes.paths),
    ),
    ReportTable(
        name="audit",
        columns=["probe", "fired", "unknown", "found"],
        make=lambda votes: audit_votes(votes.counted, votes.definition, rates=votes.rates),
        text="""\
## Can the votes be trusted?

Probes of what a reviewer would ask; `unknown` is what the votes lack:""",
    ),
    ReportTable(
        name="sides",
        columns=["question", "votes", "left_share", "low", "high", "p"],
        needs=("side_a",),
        make=lambda votes: tabulate_side_bias(votes.counted),
        text="""\
The share of decisive votes that the left clip won, one half if there is no side bias:""",
    ),
    ReportTable(
        name="sides_adjusted",
        columns=["comparison", "votes", "rate", "low", "high", "side", "side_error"]
        + ["correlation", "note"],
        needs=("side_a", "prompt"),
        make=lambda votes: tabulate_side_adjusted(votes.counted, votes.definition),
        text="""\
Win rates on the primary question, adjusted for side bias by a model whose intervals allow for
prompts but not for raters; `side` is how much a clip's log-odds gain on the left:""",
    ),
    ReportTable(
        name="undiluted",
        columns=["comparison", "votes", "rate", "gold", "gold_wrong", "left_share", "error"]
        + ["undiluted", "low", "high", "note"],
        needs=("side_a", "rater", "prompt"),
        make=lambda votes: tabulate_undiluted(votes.all[~votes.all["excluded"]], votes.definition),
        text="""\
Raters who press one side or answer carelessly move a win rate towards one half. `undiluted` is an
estimate of the rate without their errors, not a result to claim: `error` is the share of wrong
answers to gold pairs, or follows from the side bias, and is taken as known:""",
    ),
    ReportTable(
        name="agreement",
        columns=["comparison", "question", "pairs", "raw", "alpha", "alpha_low", "alpha_high"]
        + ["kappa", "ac1", "note"],
        needs=("rater", "prompt"),
        make=lambda votes: tabulate_agreement(votes.counted, votes.definition),
        text="""\
How far raters agree with each other (preferences are opinions: do not expect the agreement of
factual labels), and with themselves:""",
    ),
    ReportTable(
        name="consistency",
        columns=["check", "question", "pairs", "same", "same_side"],
        needs=("rater", "prompt", "side_a"),
        make=lambda votes: consistency(votes.all[~votes.all["excluded"]]),
        empty="No pair was shown twice.",
    ),
    ReportTable(
        name="influence",
        columns=["comparison", "raters", "busiest", "rate", "lowest", "highest", "turns"],
        needs=("rater",),
        make=lambda votes: tabulate_leave_one_out(votes.counted, votes.definition),
        text="""\
How far each comparison depends on a single rater: the largest share of votes by one rater, the
lowest and highest win rate with one rater left out, and the number of raters without each of whom
the winner would not have won:""",
    ),
    ReportTable(
        name="majorities",
        columns=["comparison", "pairs", "majority_a", "majority_b", "majority_none"],
        needs=("rater", "prompt"),
        make=lambda votes: tabulate_majorities(votes.counted, votes.definition),
        text="How many pairs each system won on the primary question, by the majority of raters:",
    ),
    ReportTable(
        name="categories",
        columns=["comparison", "category", "votes", "rate", "low", "high", "p_discovery"],
        make=lambda votes: category_rates(votes.counted, votes.definition, rates=votes.rates),
        text="## By prompt category",
        shown=lambda votes: votes.counted["category"].nunique() > 1,
    ),
    ReportTable(
        name="ranking",
        columns=["question", "group", "system", "strength", "low", "high", "model", "prior"]
        + ["note"],
        make=lambda votes: rank_systems(votes.counted),
        text="""\
## One scale

A strength is the log-odds of decisive votes: a system wins 1 / (1 + exp(-d)) of them against one
that is weaker by d. Arena scores, for which a tie is half a win, are nearer to each other: do not
compare the two. Groups of systems that no comparison links have no common scale. Intervals are
clustered like those of the win rates.""",
    ),
    ReportTable(
        name="strength_differences",
        columns=["question", "first", "second", "difference", "low", "high", "wins", "p_family"]
        + ["separated"],
        needs=("rater|prompt",),
        make=lambda votes: tabulate_differences(votes.counted),
        shown_rows=lambda table: table["neighbours"],
        text="""\
Neighbours in the ranking. `wins` is the share of decisive votes that the first would win; they are
`separated` where the p-value, adjusted over all pairs of systems, is at most 0.05:""",
    ),
    ReportTable(
        name="contrasts",
        columns=["first", "second", "opponent", "votes", "rate_first", "rate_second", "difference"]
        + ["low", "high", "p_family", "note"],
        needs=("rater|prompt",),
        make=lambda votes: tabulate_contrasts(votes.counted, votes.definition),
        text="Two comparisons with the same opponent: who won more decisive votes against it?",
        empty="No two comparisons have the same opponent.",
    ),
]


def write_report(
    votes: pd.DataFrame,
    definition: StudyDefinition,
    folder: Path,
    *,
    pairs: pd.DataFrame | None = None,
    judge: Path | None = None,
    paper: PaperFigure | None = None,
    countries: Mapping[str, int] | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> list[Path]:
    """Write charts, tables and text. The same votes give the same bytes.

    Args:
        votes: all human votes, or all simulated ones; checks and excluded raters included.
        pairs: those of the plan, as `read_planned_pairs` returns them; None if it is unknown.
        judge: a table of scores, see `read_scores`; None makes no table of them.
        paper: also write the files for a paper.
        countries: number of raters by country, for the methods paragraph; None if unknown.
        progress: called with the name of each step before it begins.

    Returns:
        The files written.

    Raises:
        StudyError: there are no votes on real pairs, or people's and simulated ones are mixed.
    """
    if paper is not None:  # refuse it before minutes of computing
        choose_sides(paper.sides, definition)
        divide_width(paper.width, paper.columns, len(definition.comparisons))
    check_votes(votes)
    simulated = check_origin(votes)
    votes = votes.sort_values(["answered_at", "vote_id"], ignore_index=True)
    words = [name for name, kind in COLUMNS.items() if kind == "text"]
    votes[words] = votes[words].astype("category")  # much faster to group by
    counted = require_counted(votes)
    scores = pd.DataFrame()
    if judge:
        asked = counted[counted["question"] == definition.primary.key]
        scored = asked if pairs is None else pd.concat([asked, pairs])
        needed = zip(scored["comparison"], scored["prompt_index"], strict=True)
        scores = read_scores(judge, definition, needed, others=pairs is None)
    folder.mkdir(parents=True, exist_ok=True)
    progress("e-values")
    paths = trace_e_values(counted, definition)
    progress("win rates")
    rates = win_rates(counted, definition)
    inputs = ReportVotes(
        definition=definition,
        all=votes,
        counted=counted,
        with_excluded=counted_votes(votes, with_excluded=True),
        paths=paths,
        rates=rates,
        scores=scores,
        pairs=pairs,
    )
    entries = TABLES if judge else [entry for entry in TABLES if entry.name != WITH_JUDGE]
    unknown = {entry.name: find_unknown(counted, entry.needs) for entry in entries}
    tables: dict[str, pd.DataFrame] = {}
    written = []
    for entry in entries:
        progress(entry.name.replace("_", " "))
        if unknown[entry.name]:
            tables[entry.name] = pd.DataFrame()
            continue
        known = entry.same_as and not entry.shown(inputs)
        tables[entry.name] = tables[entry.same_as] if known else entry.make(inputs)
        written.append(folder / f"{entry.name}.csv")
        write_csv(tables[entry.name], written[-1])
    progress("charts")
    written += save_chart(draw_win_rates(rates, definition, simulated=simulated), folder, CHART)
    shown = {key: path for (key, asked), path in paths.items() if asked == definition.primary.key}
    threshold = len(definition.comparisons) / LEVEL
    if not unknown["decisions"]:
        chart = draw_e_values(shown, threshold, definition, simulated=simulated)
        written += save_chart(chart, folder, E_VALUES)
    if paper is not None:
        written += _write_paper(
            rates,
            None if unknown["decisions"] else shown,
            threshold,
            definition,
            folder / PAPER,
            paper,
            simulated=simulated,
        )
    methods = methods_paragraph(
        votes, definition, decisions=tables["decisions"], countries=countries
    )
    sections = [
        _write_head(rates, tables, inputs, simulated=simulated),
        *(
            part
            for entry in entries
            if entry.shown(inputs)
            for part in (
                _left_out(entry, unknown[entry.name])
                if unknown[entry.name]
                else (entry.text, _markdown(entry, tables[entry.name]))
            )
        ),
        f"## Methods\n\n{methods}",
    ]
    (folder / METHODS).write_text(methods + "\n", encoding="utf-8")
    text = "\n\n".join(section for section in sections if section) + "\n"
    (folder / REPORT).write_text(text, encoding="utf-8")
    return [*written, folder / METHODS, folder / REPORT]


def report_from_export(
    export: Path,
    folder: Path,
    *,
    simulated: bool = False,
    judge: Path | None = None,
    paper: PaperFigure | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> list[Path]:
    """Write the report of an export. It needs no other file than those of the export.

    Args:
        simulated: refuse human votes.
        judge, paper: see `write_report`.

    Raises:
        StudyError: `simulated` is set and the votes are people's, or as `read_export` and
            `write_report` raise it.
    """
    votes, definition = read_export(export)
    if simulated and not votes["simulated"].all():
        raise StudyError(
            f"{export} contains human votes. Leave out --simulated, or export the simulated "
            "votes with it."
        )
    return write_report(
        votes,
        definition,
        folder,
        pairs=read_exported_pairs(export),
        judge=judge,
        paper=paper,
        progress=progress,
    )


def _write_paper(
    rates: pd.DataFrame,
    paths: dict[str, pd.DataFrame] | None,
    threshold: float,
    definition: StudyDefinition,
    folder: Path,
    paper: PaperFigure,
    *,
    simulated: bool,
) -> list[Path]:
    """Write both figures at their printed size, their captions, and the table as LaTeX and CSV."""
    sides = choose_sides(paper.sides, definition)
    panels = draw_panels(
        rates, definition, width=paper.width, columns=paper.columns, sides=sides,
        simulated=simulated,
    )  # fmt: skip
    written = save_chart(panels, folder, CHART)
    caption = describe_win_rates(rates, definition, sides=sides, simulated=simulated)
    stamp = "SIMULATED VOTES: no person took part. " if simulated else ""
    table = tabulate_for_paper(rates, definition)
    clustered = bool(rates["prompts"].max() and rates["raters"].max())
    heading = (
        f"{stamp}Share of decisive votes won by the first system, in percent, with its 95 % "
        f"interval{', clustered by prompt and rater' if clustered else ''}; n is the number of "
        "decisive votes, p is adjusted over all comparisons and questions. Bold: a difference may "
        "be claimed."
    )
    texts = {
        f"{CHART}.caption.txt": caption + "\n",
        f"{CHART}.tex": latex_table(table, caption=heading),
    }
    if paths is not None:
        chart = draw_e_values(paths, threshold, definition, width=paper.width, simulated=simulated)
        written += save_chart(chart, folder, E_VALUES)
        texts[f"{E_VALUES}.caption.txt"] = stamp + " ".join(E_VALUES_CAPTION.split()) + "\n"
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    write_csv(table, folder / f"{CHART}.csv")
    return [*written, *(folder / name for name in texts), folder / f"{CHART}.csv"]


def _write_head(
    rates: pd.DataFrame, tables: dict[str, pd.DataFrame], votes: ReportVotes, *, simulated: bool
) -> str:
    """Return the title, the chart and the sentences that name the winners."""
    definition = votes.definition
    parts = [
        f"# {definition.title or definition.name}",
        "**SIMULATED VOTES: no person took part.**" if simulated else "",
        f"![Shares of votes by comparison and question]({CHART}.svg)",
        "## Who wins",
        describe_unknown(votes.counted) if is_foreign(votes.counted) else _interim_warning(votes),
        "\n".join(
            _sentence(row, definition)
            + _reconcile(row, decided)
            + _undiluted(row["comparison"], tables["undiluted"])
            for row, decided in _with_decisions(rates, tables["decisions"])
        ),
    ]
    return "\n\n".join(part for part in parts if part)


def _interim_warning(votes: ReportVotes) -> str:
    """Return a warning while votes are missing: a p-value is valid for one look, at the end.

    Where the plan is unknown, it is that of the pairs answered so far.
    """
    keys = ["comparison", "prompt_index"]
    everything = votes.with_excluded
    answers = everything.loc[everything["question"] == votes.definition.primary.key, keys]
    answers = answers.astype({"comparison": str})
    plan, whose = votes.pairs, "of the study"
    if plan is None:
        plan = answers.drop_duplicates().assign(raters=votes.definition.raters_per_pair)
        whose = "answered so far"
    given, planned = len(answers.merge(plan, on=keys)), plan["raters"].sum()
    if given >= planned:
        return ""
    return (
        f"**Interim:** {given:,} of {count_of(planned, 'planned answer')} to the "
        f"{count_of(len(plan), 'pair')} {whose}. The claims below are valid for one look, "
        'at the end; until then, use "Is it decided?".'
    )


def _left_out(entry: ReportTable, unknown: str) -> list[str]:
    """Return the headings of a table that cannot be made, and why."""
    headings = [line for line in entry.text.splitlines() if line.startswith("#")]
    name = entry.name.replace("_", " ")
    return [*headings, f"Left out ({name}): the votes lack {unknown}."]


def _sentence(row: dict[str, Any], definition: StudyDefinition) -> str:
    """Return what may be claimed on the primary question of one comparison."""
    decisive = row["wins"] + row["losses"]
    if not decisive:
        return f"- {row['comparison']}: {count_of(row['votes'], 'vote')}, none decisive."
    first, second = (definition.system(row[name]).title for name in ("system_a", "system_b"))
    winner, loser = (first, second) if row["rate"] > 0.5 else (second, first)
    claim = f"no difference between {first} and {second} can be claimed"
    if row["claim"]:
        claim = f"**{winner} is preferred to {loser}**"
    share = f"{100 * row['rate']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
    number = count_of(decisive, "decisive vote")
    return f"- {row['comparison']}: {claim}; {first} won {share} of {number}."


def _with_decisions(
    rates: pd.DataFrame, decisions: pd.DataFrame
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return, for each comparison, the row of its primary question in both tables."""
    primary = rates[rates["primary"]]
    if decisions.empty:
        return [(row, {"decided": False}) for row in primary.to_dict("records")]
    found = primary[["comparison", "question"]].merge(decisions, how="left")
    return list(zip(primary.to_dict("records"), found.to_dict("records"), strict=True))


def _reconcile(row: dict[str, Any], decided: dict[str, Any]) -> str:
    """Return why the numbers of a comparison seem to contradict each other, or ""."""
    clear = not row["low"] <= 0.5 <= row["high"]
    parts = []
    known = bool(row["prompts"] or row["raters"])
    if clear and not row["claim"] and known:
        parts.append(
            "The interval is for this row alone; adjusted for all comparisons and questions, "
            f"p is {format_p(row['p_family'])}"
        )
    doubtful = row["busiest"] > BUSY or not (row["prompts"] and row["raters"])
    if row["note"] and (doubtful or (not row["claim"] and row["rate"] != 0.5)):
        parts.append(f"Note: {row['note']}")
    if decided["decided"] and decided["e"] < decided["threshold"]:
        parts.append(
            f"Its e-value decided it after {count_of(decided['decided_after'], 'decisive vote')}, "
            f"and has fallen to {format_e(decided['e'])} since: a decision stands, but look at "
            "later votes"
        )
    return "".join(f" {part}." for part in parts)


def _undiluted(comparison: str, table: pd.DataFrame) -> str:
    """Return the estimate without raters' errors where these are more than 5 %, or ""."""
    for row in table.to_dict("records"):
        if row["comparison"] == comparison and DILUTING < row["error"] < 0.5:
            return (
                f" Gold pairs or the side bias suggest that {100 * row['error']:.0f} % of the "
                "answers are errors, which dilute this share; an estimate without them is "
                f"{100 * row['undiluted']:.1f} % [{100 * row['low']:.1f}, "
                f"{100 * row['high']:.1f}] (not a claim)."
            )
    return ""


def format_e(e: float) -> str:
    """Return an e-value to three digits, or "> 1e6"."""
    return "> 1e6" if e > 1e6 else f"{e:.3g}"


def _markdown(entry: ReportTable, table: pd.DataFrame) -> str:
    """Return the shown columns as a Markdown table, numbers to three digits."""
    if table.empty:
        return entry.empty
    rows = table if entry.shown_rows is None else table[entry.shown_rows(table)]
    shown = rows[entry.columns].astype(object)
    shown = shown.apply(lambda column: column.map(partial(_cell, str(column.name))))
    return str(shown.to_markdown(index=False, disable_numparse=True))


def _cell(name: str, value: object) -> str:
    """Return a value as the text of a cell, which it cannot end; missing ones become empty."""
    if value is None or value != value:
        return ""
    if isinstance(value, float):
        if name in {"p", "sign_p", "robust_p", "p_family", "p_discovery"}:
            return format_p(value)
        if name == "e":
            return format_e(value)
        if np.isinf(value):
            return "no end in sight"
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value).replace("|", "\\|")  # rules and categories are free text
