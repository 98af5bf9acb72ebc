"""All that a study says, in one folder: charts, tables, and a text that explains them."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from human_eval.definition.definition import StudyDefinition
from human_eval.errors import StudyError
from human_eval.reporting.charts import draw_evidence, draw_win_rates, save_chart
from human_eval.reporting.export import read_export, write_csv
from human_eval.reporting.methods_text import methods_paragraph
from human_eval.statistics.agreement import tabulate_agreement
from human_eval.statistics.bradley_terry import rank_systems
from human_eval.statistics.consensus import tabulate_consensus
from human_eval.statistics.contrasts import tabulate_contrasts
from human_eval.statistics.e_values import LEVEL, Paths, decisions, trace_evidence
from human_eval.statistics.leave_one_out import tabulate_influence
from human_eval.statistics.power import forecast_decisions
from human_eval.statistics.screening import consistency
from human_eval.statistics.side_bias import side_effects, tabulate_adjusted
from human_eval.statistics.votes import COLUMNS, check_origin, check_votes, evidence
from human_eval.statistics.win_rates import category_rates, win_rates

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
    "sides_adjusted": ["comparison", "votes", "rate", "low", "high", "side", "side_error"]
    + ["correlation", "note"],
    "agreement": ["comparison", "question", "pairs", "raw", "alpha", "alpha_low", "alpha_high"]
    + ["kappa", "note"],
    "consistency": ["check", "question", "pairs", "same", "same_side"],
    "influence": ["comparison", "raters", "busiest", "rate", "lowest", "highest", "turns"],
    "consensus": ["comparison", "pairs", "majority_a", "majority_b", "majority_none"]
    + ["weighted_a", "weighted_b", "weighted_none", "differ", "note"],
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

{interim}{sentences}

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

Who would win the primary question if both sides were alike: the win rate adjusted for the side, in
a model whose intervals know of prompts but not of raters; `side` is what standing on the left adds
to the log-odds.

{sides_adjusted}

How far raters agree with each other (preferences are opinions: do not expect the agreement of
factual labels), and with themselves:

{agreement}

{consistency}

How much hangs on a single rater: the largest share of votes that one rater gave, the lowest and
highest win rate with one rater left out, and without how many of them the winner would be another:

{influence}

Who won how many pairs on the primary question, by the majority of their raters and by Dawid and
Skene's vote, which trusts those more who agree with others:

{consensus}

## By prompt category

{categories}

## One scale

Groups of systems that never met have no common scale. Intervals resample prompts, not raters.

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
    words = [name for name, kind in COLUMNS.items() if kind == "text"]
    votes[words] = votes[words].astype("category")  # grouped by a thousand times from here on
    kept, everything = evidence(votes), evidence(votes, with_excluded=True)
    if kept.empty:
        raise StudyError(
            f"Expected votes on real pairs, got none among {len(votes):,} answers. Collect some, "
            "or look at the exclusions with `python -m human_eval status`."
        )
    folder.mkdir(parents=True, exist_ok=True)
    progress("evidence")
    paths_of = trace_evidence(kept, definition)
    tables = _tabulate(votes, kept, everything, definition, paths_of, progress)
    paths = []
    for name, table in tables.items():
        write_csv(table, folder / f"{name}.csv")
        paths.append(folder / f"{name}.csv")
    progress("charts")
    figure = draw_win_rates(tables["win_rates"], definition, simulated=simulated)
    paths += save_chart(figure, folder, CHART)
    paths += save_chart(_evidence_chart(paths_of, definition, simulated), folder, EVIDENCE)
    methods = methods_paragraph(votes, definition)
    (folder / METHODS).write_text(methods + "\n", encoding="utf-8")
    interim = _tell_interim(everything, definition)
    text = _write(tables, methods, definition, interim, simulated=simulated)
    (folder / REPORT).write_text(text, encoding="utf-8")
    return [*paths, folder / METHODS, folder / REPORT]


def report_from_export(
    export: Path,
    folder: Path,
    *,
    simulated: bool = False,
    progress: Progress = lambda what: None,
) -> list[Path]:
    """Write the report of an export, which needs nothing but its folder.

    Args:
        simulated: refuse the votes of people; the report says in any case whose they are.

    Raises:
        StudyError: as said, or as of `read_export` and `write_report`.
    """
    votes, definition = read_export(export)
    if simulated and not votes["simulated"].all():
        raise StudyError(
            f"Expected simulated votes in {export}, got those of people. Leave --simulated out, or "
            "export the simulation with it."
        )
    return write_report(votes, definition, folder, progress=progress)


def _tabulate(
    votes: pd.DataFrame,
    kept: pd.DataFrame,
    everything: pd.DataFrame,
    definition: StudyDefinition,
    paths: Paths,
    progress: Progress,
) -> dict[str, pd.DataFrame]:
    makers: dict[str, Callable[[], pd.DataFrame]] = {
        "win_rates": lambda: win_rates(kept, definition),
        "win_rates_with_excluded": lambda: (
            win_rates(everything, definition)
            if len(everything) > len(kept)
            else tables["win_rates"]
        ),
        "decisions": lambda: decisions(kept, definition, paths=paths),
        "forecast": lambda: forecast_decisions(kept, definition, paths=paths),
        "categories": lambda: category_rates(kept, definition),
        "sides": lambda: side_effects(kept),
        "sides_adjusted": lambda: tabulate_adjusted(kept, definition),
        "agreement": lambda: tabulate_agreement(kept),
        "consistency": lambda: consistency(votes[~votes["excluded"]]),
        "influence": lambda: tabulate_influence(kept, definition),
        "consensus": lambda: tabulate_consensus(kept, definition),
        "ranking": lambda: rank_systems(kept),
        "contrasts": lambda: tabulate_contrasts(kept, definition),
        "exclusions": lambda: _count_exclusions(votes),
    }
    tables: dict[str, pd.DataFrame] = {}
    for name, make in makers.items():
        progress(name.replace("_", " "))
        tables[name] = make()
    return tables


def _count_exclusions(votes: pd.DataFrame) -> pd.DataFrame:
    dropped = votes[votes["excluded"]]
    counted = dropped.groupby("exclusion_rule")["rater"].agg(["nunique", "size"])
    return counted.rename(columns={"nunique": "raters", "size": "answers"}).reset_index()


def _evidence_chart(paths: Paths, definition: StudyDefinition, simulated: bool) -> Figure:
    [primary] = [question.key for question in definition.questions if question.primary]
    shown = {comparison: path for (comparison, key), path in paths.items() if key == primary}
    return draw_evidence(shown, len(definition.comparisons) / LEVEL, simulated=simulated)


def _tell_interim(everything: pd.DataFrame, definition: StudyDefinition) -> str:
    """Return a warning while pairs wait for raters: a p-value is for one look, at the end."""
    [primary] = [question.key for question in definition.questions if question.primary]
    answers = everything[everything["question"] == primary]
    pairs = answers.groupby("comparison", observed=True)["prompt_index"].nunique().sum()
    planned = pairs * definition.raters_per_pair
    if len(answers) >= planned:
        return ""
    return (
        f"**Interim:** the {pairs:,} pairs answered so far have {len(answers):,} of their "
        f"{planned:,} planned answers. The claims below are for one look, at the end; until then "
        'go by "Is it decided?".\n\n'
    )


def _write(
    tables: dict[str, pd.DataFrame],
    methods: str,
    definition: StudyDefinition,
    interim: str,
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
        interim=interim,
        sentences=_sentences(tables["win_rates"], definition),
        methods=methods,
        **shown,
    )


def _sentences(table: pd.DataFrame, definition: StudyDefinition) -> str:
    lines = []
    for row in table[table["primary"]].to_dict("records"):
        if not row["wins"] + row["losses"]:
            lines.append(f"- {row['comparison']}: {row['votes']:,} votes, none of them decisive.")
            continue
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
