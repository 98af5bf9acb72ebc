"""The methods paragraph of a paper about the study, and the data card of an export."""

from collections.abc import Mapping
from math import isnan

import pandas as pd

from human_eval.definition.definition import Question, StudyDefinition
from human_eval.reporting.preferences import video_align_questions
from human_eval.reporting.win_rate_rows import count_of
from human_eval.statistics.e_values import LEVEL, NEEDS
from human_eval.statistics.intervals import PRIOR_VOTES
from human_eval.statistics.power import POWER, detectable_rate
from human_eval.statistics.votes import (
    COLUMNS,
    FOREIGN,
    MTURK,
    UNKNOWN,
    cluster_kinds,
    count_distinct,
    counted_votes,
    find_unknown,
)

INTERVALS = (
    f"equal-tailed 95 % intervals of a Beta distribution ({PRIOR_VOTES} wins and losses added; "
    "Brown, Cai and DasGupta, 2001)"
)
TIES = {
    "forced": "forced choice",
    "tie": "ties allowed",
    "tie_and_both_bad": 'ties and "both are bad" allowed',
}
MEANINGS = {
    "vote_id": "number of the vote, in the order of arrival",
    "task_id": "number of the pair",
    "comparison": "key of the comparison",
    "system_a": "the system the comparison is about",
    "system_b": "its opponent",
    "prompt_index": "number of the prompt, from 0",
    "prompt": "text of the prompt, verbatim",
    "category": "categories of the prompt, joined by |",
    "question": "key of the question",
    "choice": "a, b, tie or both_bad, in terms of systems",
    "strength": "of a preference on a scale: 1 slightly better, 2 much better; 0 elsewhere",
    "side_a": "where system_a was shown: left or right",
    "rater": "pseudonym",
    "provider": "how the rater came in: a crowd platform, link, staff, ...",
    "kind": "real, or the kind of an attention check: gold, mirror, identical",
    "gold_answer": "the right answer of a gold pair",
    "answered_at": "time of the vote, UTC",
    "seconds": "from both clips ready to the answer",
    "loops": "completed loops of both clips",
    "simulated": "true if no person voted",
    "excluded": "true if an exclusion leaves the vote out of analyses",
    "exclusion_rule": "the rule of that exclusion",
    "definition_hash": "SHA-256 of the definition under which the vote was given",
}


def methods_paragraph(
    votes: pd.DataFrame,
    definition: StudyDefinition,
    *,
    decisions: pd.DataFrame | None = None,
    countries: Mapping[str, int] | None = None,
) -> str:
    """Describe how the votes were collected and analysed, for the methods section of a paper.

    What the study does not know is left to fill in, in brackets.

    Args:
        votes: all votes, attention checks and excluded raters included.
        decisions: of `human_eval.statistics.e_values.tabulate_decisions`, for the win rate that
            the study can detect; None leaves the sentence out.
        countries: number of raters by country, if known.
    """
    if is_foreign(votes):
        return _foreign_paragraph(counted_votes(votes), definition)
    real = counted_votes(votes, with_excluded=True)
    kept = counted_votes(votes)
    simulated = (
        "The votes below are simulated; no person took part. " if votes["simulated"].any() else ""
    )
    dropped = sorted(set(real.loc[real["excluded"], "exclusion_rule"].dropna()))
    rules = f" (rules: {', '.join(dropped)})" if dropped else ""
    checks = votes.loc[votes["kind"] != "real", "kind"].astype(str).value_counts().to_dict()
    pairs = kept.groupby("comparison", observed=True)["prompt_index"].nunique().sum()
    checked = ", ".join(f"{count:,} {kind}" for kind, count in sorted(checks.items())) or "none"
    return (
        f"{simulated}{_asked(kept, definition)} We planned "
        f"{count_of(definition.raters_per_pair, 'rater')} per pair. The side of each "
        "system was randomised within raters and comparisons. Clips were muted, looped and played "
        "in synchrony, at equal size, frame rate and length, re-encoded by the same recipe, under "
        f"random file names.{_watched(definition)}{_imported(real)} We analysed "
        f"{count_of(len(kept), 'answer')} of {count_of(kept['rater'].nunique(), 'rater')} "
        f"({_providers(kept)}) to "
        f"{count_of(pairs, 'pair')}. {_were(len(real) - len(kept))} excluded{rules}; "
        "all win rates are also reported with them. "
        f"Answers to attention checks, which are not analysed: {checked}. "
        f"{_paid(kept, definition, countries)}{_analysed(definition)}"
        f"{_detectable(kept, definition, decisions)}{_amended(kept, definition)} "
        f"Definition {definition.name}, version {definition.version}, SHA-256 {definition.hash}."
    )


def _were(answers: int) -> str:
    return f"{count_of(answers, 'answer')} {'was' if answers == 1 else 'were'}"


def _paid(
    kept: pd.DataFrame, definition: StudyDefinition, countries: Mapping[str, int] | None
) -> str:
    """Return time, pay, countries and ethics of human votes, with what is left to fill in."""
    if kept.empty or kept["simulated"].any():
        return ""
    pay = definition.pay
    seconds = kept.loc[kept["question"] == definition.primary.key, "seconds"].median()
    timed = not isnan(seconds) and seconds > 0
    text = ""
    if timed:
        text += (
            f"The median time for a pair was {seconds:.1f} seconds, from both clips ready to the "
            "answer. "
        )
    if pay.per_pair:
        hourly = [f"{3600 * pay.per_pair / pay.seconds_per_pair:,.2f} {pay.currency} an hour at "
                  f"the planned {pay.seconds_per_pair:g} seconds a pair"]  # fmt: skip
        if timed:
            hourly.append(f"{3600 * pay.per_pair / seconds:,.2f} {pay.currency} at the median time")
        text += (
            f"Raters earned {pay.per_pair:,.2f} {pay.currency} a pair, which is "
            f"{' and '.join(hourly)}. "
        )
    else:
        text += "[Fill in: what raters were paid; the study's definition names no pay.] "
    if countries:
        text += f"Raters lived in {_join_counts(countries)}. "
    else:
        text += "[Fill in: the countries that raters lived in.] "
    return text + (
        "[Fill in: the committee that approved the study and the number of its decision, or why "
        "none was needed; how raters gave their consent.] "
    )


def _join_counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({count:,})" for name, count in counts.items())


def _detectable(
    kept: pd.DataFrame, definition: StudyDefinition, decisions: pd.DataFrame | None
) -> str:
    """Return the win rate that the votes reached can detect, for the weakest comparison."""
    decisive = kept[kept["choice"].isin(["a", "b"])]
    decisive = decisive[decisive["question"] == definition.primary.key]
    if decisions is None or decisive.empty:
        return ""
    asked = decisions[decisions["question"] == definition.primary.key]
    effects = asked.set_index("comparison")["design_effect"]
    given = decisive["comparison"].astype(str).value_counts().reindex(effects.index, fill_value=0)
    effective = (given / effects).clip(upper=given)
    fewest, most = int(effective.min()), int(effective.max())
    level = LEVEL / len(definition.comparisons)
    rate = detectable_rate(fewest, level=level) if fewest else 1.0
    weigh = f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
    found = (
        f"a true win rate of {100 * rate:.1f} % or more"
        if rate < 1
        else "not even a system that always wins"
    )
    split = f"{LEVEL} / {len(definition.comparisons)}" if len(definition.comparisons) > 1 else LEVEL
    return (
        f" The decisive votes of a comparison on the primary question weigh as much as {weigh} "
        f"independent ones; the sign test of the fewest finds {found} with a probability of "
        f"{100 * POWER:.0f} %, at the level {split}."
    )


def is_foreign(votes: pd.DataFrame) -> bool:
    """Return whether the votes are of a study that was not made with this program."""
    return bool(votes["provider"].eq(FOREIGN).all())


def describe_unknown(votes: pd.DataFrame) -> str:
    """Return what is unknown about votes that were collected elsewhere, and what follows from it.

    Args:
        votes: those that count.
    """
    unknown = [what for name, what in UNKNOWN.items() if find_unknown(votes, [name])]
    parts = ["These votes were collected elsewhere and imported from a table."]
    if unknown:
        parts.append(f"It lacks {_join(unknown)}.")
    if {"prompts", "raters"} <= set(unknown):
        parts.append(
            "So intervals take votes as independent, which makes them too short if prompts or "
            "raters have several votes each, and no difference can be claimed."
        )
    elif "raters" in unknown:
        parts.append(
            "So intervals are clustered by prompt only, and claims hold only if votes of one rater "
            "resemble each other no more than votes of several, as where each rater gave few votes."
        )
    elif "prompts" in unknown:
        parts.append(
            "So intervals are clustered by rater only, and claims hold only if votes on one prompt "
            "resemble each other no more than votes on several, as where each prompt has few votes."
        )
    if "sides" in unknown:
        parts.append("An effect of the side on which a system was shown cannot be seen.")
    if find_unknown(votes, NEEDS):
        parts.append(
            "No e-value is computed: the claims are valid for one look, at a number of votes that "
            "was fixed before."
        )
    parts.append(
        "Nothing is known about how the systems were shown, whether sides were random, and how the "
        "raters were chosen."
    )
    return " ".join(parts)


def _join(words: list[str]) -> str:
    """Return words as in a sentence: a, b and c."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _foreign_paragraph(votes: pd.DataFrame, definition: StudyDefinition) -> str:
    """Describe votes that were collected elsewhere, asserting nothing that their table omits."""
    numbers = [
        f"{count_distinct(votes[name]):,} {UNKNOWN[name]}"
        for name in ("prompt", "rater")
        if not find_unknown(votes, [name])
    ]
    named = f", with {_join(numbers)}" if numbers else ""
    comparisons, kinds = len(definition.comparisons), list(cluster_kinds(votes))
    if kinds == ["vote"]:
        analysed = f"{INTERVALS}, which take votes as independent. No difference is claimed."
    else:
        by = _join([{"prompt": "prompt text"}.get(kind, kind) for kind in kinds])
        analysed = (
            f"{INTERVALS} for effective votes (Franco et al., 2019), from a jackknife "
            f"variance clustered by {by}, and Student's t with the degrees of freedom of Bell and "
            "McCaffrey (2002). A difference is claimed if the larger of the p-values of the exact "
            "sign test and of the clustered test, adjusted over all "
            f"{comparisons * len(definition.questions):,} comparisons and questions by Holm's "
            f"method, the primary question ({definition.primary.key}) first, is at most {LEVEL}."
        )
    if not find_unknown(votes, NEEDS):
        analysed += (
            " For looks at any time we use a beta-binomial mixture e-value in which each vote "
            "weighs one over the design effect; a comparison is decided once its e-value reaches "
            f"{comparisons / LEVEL:,.0f}."
        )
    questions = "; ".join(f'{entry.key}, "{entry.wording}"' for entry in definition.questions)
    return (
        f"{describe_unknown(votes)} We analysed {len(votes):,} votes{named}, in "
        f"{comparisons:,} {'comparison' if comparisons == 1 else 'comparisons'} of "
        f"{len(definition.systems):,} systems. Questions: {questions}. Win rates are shares of "
        f"decisive votes, with {analysed} The strengths of all systems are fitted by the model of "
        "Bradley and Terry (of Davidson, 1970, where there are ties; strengths are log-odds of "
        f"decisive votes). SHA-256 of the definition: {definition.hash}."
    )


def _analysed(definition: StudyDefinition) -> str:
    comparisons = len(definition.comparisons)
    return (
        f"Win rates are shares of decisive votes. Intervals are {INTERVALS} for "
        "effective votes (Franco et al., 2019), from a variance clustered by prompt text and "
        "rater (Cameron, Gelbach and Miller, 2011; the largest of the two-way and both one-way "
        "jackknife variances), and Student's t with the degrees of freedom of Bell and McCaffrey "
        "(2002), which allow for unequal numbers of votes; Wilson intervals that take votes as "
        "independent are reported for comparison. A difference is claimed if the larger of "
        "the p-values of the exact sign test and of the clustered test, adjusted over all "
        f"{comparisons * len(definition.questions)} comparisons and questions, is at most {LEVEL}: "
        f"Holm over comparisons, the primary question ({definition.primary.key}) first within "
        "each. Votes of a single rater, or on a single prompt, support no claim. For looks at any "
        "time we use a beta-binomial mixture e-value in which each vote weighs one over the design "
        f"effect; a comparison is decided once its e-value reaches {comparisons / LEVEL:,.0f}. The "
        "strengths of all systems are fitted by the model of Bradley and Terry (of "
        "Davidson, 1970, where there are ties; strengths are log-odds of decisive votes), with "
        "intervals clustered by prompt text and rater. The majority of raters for each pair, and "
        "win rates adjusted for side bias (a generalised estimating equation, exchangeable within "
        "prompts) or for errors of raters (Rogan and Gladen, 1978), are reported as secondary "
        "analyses."
    )


def _amended(kept: pd.DataFrame, definition: StudyDefinition) -> str:
    """Return how often the study was amended, and which answers were given to other wordings."""
    if not definition.earlier:
        return ""
    times = "once" if len(definition.earlier) == 1 else f"{len(definition.earlier)} times"
    text = f" The study was amended {times} while it ran; every vote names its version."
    for former in definition.earlier:
        given = kept[kept["definition_hash"] == former.hash]
        for question in definition.questions:
            answers = int((given["question"] == question.key).sum())
            wording = former.question(question.key).wording
            if answers and wording != question.wording:
                text += (
                    f" {count_of(answers, 'answer')} to {question.key} "
                    f"{'was' if answers == 1 else 'were'} given in version {former.version} to the "
                    f'wording "{wording}"; all are analysed together.'
                )
    return text


def _watched(definition: StudyDefinition) -> str:
    loops = definition.viewing.min_loops
    many = "once" if loops == 1 else f"{loops} times"
    return f" Raters could answer once both clips had played {many} to the end." if loops else ""


def _imported(votes: pd.DataFrame) -> str:
    """Return what does not hold for votes that were collected on a page of Mechanical Turk."""
    imported = int(votes["provider"].eq(MTURK).sum())
    if not imported:
        return ""
    return (
        f" This does not hold for the {count_of(imported, 'answer')} from {MTURK}, which "
        f"{'was' if imported == 1 else 'were'} collected on "
        "its own page: there, sides were balanced within comparisons, and it is unknown how clips "
        "were played."
    )


def _asked(kept: pd.DataFrame, definition: StudyDefinition) -> str:
    questions = "; ".join(
        f'{question.key}, "{question.wording}" ({_describe_choices(question)})'
        for question in definition.questions
    )
    prompts = kept["prompt_index"].nunique()
    comparisons = ", ".join(
        f"{comparison.key} ({definition.system(comparison.a).title} against "
        f"{definition.system(comparison.b).title})"
        for comparison in definition.comparisons
    )
    return (
        f"Raters compared pairs of clips of {count_of(prompts, 'prompt')} "
        f"({count_of(kept['prompt'].nunique(), 'different text')}): {comparisons}. "
        f"For each pair they answered: {questions}."
    )


def _describe_choices(question: Question) -> str:
    if question.kind == "scale":
        return (
            "five-point scale; both strengths of a preference count as one win, its middle as a tie"
        )
    return TIES[question.ties]


def _providers(votes: pd.DataFrame) -> str:
    raters = votes.groupby("provider", observed=True)["rater"].nunique()
    return ", ".join(f"{count:,} from {provider}" for provider, count in raters.items())


def data_card(votes: pd.DataFrame, definition: StudyDefinition, *, with_clips: bool = False) -> str:
    """Describe the files of an export, in Markdown.

    Args:
        with_clips: the export has the files of the clips.
    """
    place = (
        "are in this folder"
        if with_clips
        else "are in the study's folder, not in this export; `export --clips` includes them"
    )
    columns = "\n".join(f"| `{name}` | {MEANINGS[name]} |" for name in COLUMNS)
    systems = "\n".join(f"| `{system.key}` | {system.title} |" for system in definition.systems)
    questions = video_align_questions(definition)
    sources = ", ".join(
        f"{column} from {key}" if key else f"{column} empty, since no question measures it"
        for column, key in questions.items()
    )
    warning = "**Simulated votes: no person took part.**\n\n" if votes["simulated"].any() else ""
    return f"""# {definition.title or definition.name}

{warning}{methods_paragraph(votes, definition)}

## Files

| file | what |
|---|---|
| `votes.csv`, `votes.parquet`, `votes.jsonl` | all current votes, the same in each format |
| `clips.csv` | all clips: system, prompt, seed, file, size |
| `pairs.csv` | the pairs of the plan, and how many raters each is to have |
| `preferences.videoalign.csv` | one row per pair, with the majority as A, B or same: {sources} |
| `preferences.dpo.jsonl` | one line for each pair and question with a winner |
| `study.toml` | the definition; every vote stores its SHA-256 |
| `earlier-definitions.jsonl` | those before each amendment, if the study was amended |
| `SHA256SUMS` | written last: without it, the export is unfinished; check with `sha256sum -c` |

Paths of clips begin with `media/`: the files {place}. Both files of preferences say in `simulated`
whether the votes are.

In CSV files, text that a spreadsheet would run as a formula begins with an apostrophe (').
JSONL and Parquet contain it verbatim. `python -m human_eval report` makes the report again from
this folder alone.

## Columns of the votes

| column | meaning |
|---|---|
{columns}

## Systems

| key | title |
|---|---|
{systems}

## Limits

Raters are pseudonyms; these files do not identify the people behind them. Preferences are those
of the raters who took part, about these clips. Clips and prompts keep their own licences.
"""
