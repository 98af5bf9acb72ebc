"""All that a study says, in one folder: charts, tables, and a text that explains them."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from human_eval.agreement import tabulate_agreement
from human_eval.charts import draw_evidence, draw_win_rates, save_chart
from human_eval.contrasts import tabulate_contrasts
from human_eval.definition import StudyDefinition
from human_eval.errors import StudyError
from human_eval.evidence import LEVEL, decisions, evidence_path
from human_eval.export import read_export, write_csv
from human_eval.forecast import forecast_decisions
from human_eval.quality import consistency
from human_eval.ranking import rank_systems
from human_eval.votes import check_origin, check_votes, evidence
from human_eval.winrates import category_rates, side_effects, win_rates
from human_eval.writing import methods_paragraph

REPORT, METHODS = "report.md", "methods.md"
CHART, EVIDENCE = "win_rates", "evidence"

RATES = [
    *["comparison", "question", "votes", "wins", "losses", "ties", "both_bad", "rate", "low"],
    *["high", "wilson_low", "wilson_high", "sign_p", "p_family", "claim", "note"],
]
SHOWN = {  # columns of each table that the text shows; the CSV files hold all
    "win_rates": RATES,
    "win_rates_with_excluded": RATES,
    "exclusions": ["exclusion_rule", "raters", "answers"],
    "decisions": ["comparison", "question", "e", "threshold", "decided", "design_effect"],
    "forecast": ["comparison", "votes", "decided", "more_low", "more", "more_high", "cost"],
    "sides": ["question", "votes", "left_share", "low", "high", "p"],
    "agreement": ["comparison", "question", "pairs", "raw", "alpha", "alpha_low", "alpha_high"]
    + ["kappa", "note"],
    "consistency": ["check", "question", "pairs", "same", "same_side"],
    "categories": ["comparison", "category", "votes", "rate", "low", "high", "p_discovery"],
    "ranking": ["question", "group", "system", "strength", "low", "high", "model", "prior"],
    "contrasts": ["first", "second", "opponent", "prompts", "only_first", "only_second"]
    + ["p_family", "note"],
}
EMPTY = {
    "exclusions": "No answer is excluded.",
    "consistency": "No pair was shown twice.",
    "contrasts": "No two comparisons share an opponent.",
}

TEXT = """# {title}

{banner}![Shares of votes by comparison and question]({chart})

## Who wins

{sentences}

{win_rates}

The same with the excluded answers:

{win_rates_with_excluded}

{exclusions}

## Is it decided?

A comparison is decided once its e-value on the primary question reaches the threshold, however
often one has looked. `more` is the median number of further votes until then.

![Evidence from vote to vote]({path})

{decisions}

{forecast}

## Can the votes be trusted?

How often the left clip won, one half where the side plays no part:

{sides}

How far raters agree with each other (preferences are opinions: do not expect the agreement of
factual labels), and with themselves:

{agreement}

{consistency}

## By prompt category

{categories}

## One scale

Groups of systems that never met have no common scale.

{ranking}

{contrasts}

## Methods

{methods}
"""

Progress = Callable[[str], None]  # is told what is being done


def write_report(
    votes: pd.DataFrame,
    definition: StudyDefinition,
    folder: Path,
    *,
    progress: Progress = lambda what: None,
) -> list[Path]:
    """Write charts, tables and text; the same votes give the same bytes.

    Args:
        votes: all of them, of people or simulated, checks and excluded ones included.

    Raises:
        StudyError: there are no votes on real pairs, or people's and simulated ones are mixed.
    """
    check_votes(votes)
    simulated = check_origin(votes)
    votes = votes.sort_values(["answered_at", "vote_id"], ignore_index=True)
    kept, everything = evidence(votes), evidence(votes, with_excluded=True)
    if kept.empty:
        raise StudyError(
            f"Expected votes on real pairs, got none among {len(votes):,} answers. Collect some, "
            "or look at the exclusions with `python -m human_eval status`."
        )
    folder.mkdir(parents=True, exist_ok=True)
    tables = _tabulate(votes, kept, everything, definition, progress)
    paths = []
    for name, table in tables.items():
        write_csv(table, folder / f"{name}.csv")
        paths.append(folder / f"{name}.csv")
    progress("charts")
    figure = draw_win_rates(tables["win_rates"], definition, simulated=simulated)
    paths += save_chart(figure, folder, CHART)
    paths += save_chart(_evidence_chart(kept, definition, simulated), folder, EVIDENCE)
    methods = methods_paragraph(votes, definition)
    (folder / METHODS).write_text(methods + "\n", encoding="utf-8")
    text = _write(tables, methods, definition, simulated=simulated)
    (folder / REPORT).write_text(text, encoding="utf-8")
    return [*paths, folder / METHODS, folder / REPORT]


def report_from_export(
    export: Path, folder: Path, *, progress: Progress = lambda what: None
) -> list[Path]:
    """Write the report of an export, which needs nothing but its folder."""
    votes, definition = read_export(export)
    return write_report(votes, definition, folder, progress=progress)


def _tabulate(
    votes: pd.DataFrame,
    kept: pd.DataFrame,
    everything: pd.DataFrame,
    definition: StudyDefinition,
    progress: Progress,
) -> dict[str, pd.DataFrame]:
    makers: dict[str, Callable[[], pd.DataFrame]] = {
        "win_rates": lambda: win_rates(kept, definition),
        "win_rates_with_excluded": lambda: win_rates(everything, definition),
        "decisions": lambda: decisions(kept, definition),
        "forecast": lambda: forecast_decisions(kept, definition),
        "categories": lambda: category_rates(kept, definition),
        "sides": lambda: side_effects(kept),
        "agreement": lambda: tabulate_agreement(kept),
        "consistency": lambda: consistency(votes[~votes["excluded"]]),
        "ranking": lambda: rank_systems(kept),
        "contrasts": lambda: tabulate_contrasts(kept, definition),
        "exclusions": lambda: _count_exclusions(votes),
    }
    tables = {}
    for name, make in makers.items():
        progress(name.replace("_", " "))
        tables[name] = make()
    return tables


def _count_exclusions(votes: pd.DataFrame) -> pd.DataFrame:
    dropped = votes[votes["excluded"]]
    counted = dropped.groupby("exclusion_rule")["rater"].agg(["nunique", "size"])
    return counted.rename(columns={"nunique": "raters", "size": "answers"}).reset_index()


def _evidence_chart(kept: pd.DataFrame, definition: StudyDefinition, simulated: bool) -> Figure:
    [primary] = [question.key for question in definition.questions if question.primary]
    asked = kept[kept["question"] == primary]
    paths = {
        comparison.key: evidence_path(asked[asked["comparison"] == comparison.key])
        for comparison in definition.comparisons
    }
    threshold = len(definition.comparisons) / LEVEL
    return draw_evidence(paths, threshold, simulated=simulated)


def _write(
    tables: dict[str, pd.DataFrame],
    methods: str,
    definition: StudyDefinition,
    *,
    simulated: bool,
) -> str:
    """Put the report into words, in Markdown."""
    shown = {
        name: _markdown(tables[name], columns, EMPTY.get(name, "Nothing yet."))
        for name, columns in SHOWN.items()
    }
    banner = "**SIMULATED VOTES: no person took part.**\n\n" if simulated else ""
    return TEXT.format(
        title=definition.title or definition.name,
        banner=banner,
        chart=f"{CHART}.svg",
        path=f"{EVIDENCE}.svg",
        sentences=_sentences(tables["win_rates"], definition),
        methods=methods,
        **shown,
    )


def _sentences(table: pd.DataFrame, definition: StudyDefinition) -> str:
    lines = []
    for row in table[table["primary"]].to_dict("records"):
        first, second = (definition.system(row[name]).title for name in ("system_a", "system_b"))
        share = f"{100 * row['rate']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
        if row["claim"]:
            winner, loser = (first, second) if row["rate"] > 0.5 else (second, first)
            lines.append(f"- {row['comparison']}: **{winner} is preferred to {loser}**; ")
        else:
            lines.append(f"- {row['comparison']}: no difference can be claimed; ")
        lines[-1] += f"{first} won {share} of {row['wins'] + row['losses']:,} decisive votes."
    return "\n".join(lines)


def _markdown(table: pd.DataFrame, columns: list[str], otherwise: str = "Nothing yet.") -> str:
    """Return the columns as a Markdown table, numbers to three digits."""
    if table.empty:
        return otherwise
    shown = table[columns].astype(object).map(_cell)
    return str(shown.to_markdown(index=False, floatfmt=".3g"))


def _cell(value: object) -> object:
    """Return a value that cannot end its cell, and nothing where there is none."""
    if isinstance(value, str):
        return value.replace("|", "\\|")  # notes and rules are other people's text
    return "" if value is None or value != value else value
