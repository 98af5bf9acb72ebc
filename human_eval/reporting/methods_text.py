"""The words of a study: the methods paragraph of a paper, and the card of an export."""

from collections.abc import Mapping

import pandas as pd

from human_eval.definition.definition import StudyDefinition
from human_eval.statistics.e_values import LEVEL
from human_eval.statistics.votes import COLUMNS, MTURK, evidence

TIES = {
    "forced": "forced choice",
    "tie": "a tie being allowed",
    "tie_and_both_bad": 'a tie and "both are bad" being allowed',
}
MEANINGS = {
    "vote_id": "number of the answer, in the order of arrival",
    "task_id": "the pair that was answered about",
    "comparison": "key of the comparison",
    "system_a": "the system the comparison is about",
    "system_b": "its opponent",
    "prompt_index": "number of the prompt, from 0",
    "prompt": "its text, verbatim",
    "category": "categories of the prompt, joined by |",
    "question": "key of the question",
    "choice": "a, b, tie or both_bad, in terms of systems",
    "side_a": "where system_a was shown: left or right",
    "rater": "pseudonym",
    "provider": "who sent the rater",
    "kind": "real; or a check of the rater: gold, mirror, identical",
    "gold_answer": "the right answer of a gold pair",
    "answered_at": "when, UTC",
    "seconds": "from both clips ready to the answer",
    "loops": "completed loops of both clips",
    "simulated": "true where no person voted",
    "excluded": "true where a rule excludes the answer",
    "exclusion_rule": "that rule",
    "definition_hash": "SHA-256 of the definition the answer was given under",
}


def methods_paragraph(votes: pd.DataFrame, definition: StudyDefinition) -> str:
    """Describe how the votes were collected and analysed, as a paper's methods section does.

    Args:
        votes: all of them, checks and excluded ones included.
    """
    real = evidence(votes, with_excluded=True)
    kept = evidence(votes)
    simulated = (
        "The votes below are simulated; no person took part. " if votes["simulated"].any() else ""
    )
    dropped = sorted(set(real.loc[real["excluded"], "exclusion_rule"].dropna()))
    rules = f" (rules: {', '.join(dropped)})" if dropped else ""
    checks = votes.loc[votes["kind"] != "real", "kind"].value_counts().to_dict()
    checked = ", ".join(f"{count:,} {kind}" for kind, count in sorted(checks.items())) or "none"
    return (
        f"{simulated}{_asked(kept, definition)} Each pair was meant for "
        f"{definition.raters_per_pair} raters. Which system stood on the left was randomised "
        "within raters and comparisons. Clips were muted, looped and played in step, at equal "
        "size, rate and length, re-encoded alike, under names that tell nothing."
        f"{_watched(definition)}{_elsewhere(real)} We analysed "
        f"{len(kept):,} answers of {kept['rater'].nunique():,} raters ({_providers(kept)}) to "
        f"{kept.groupby('comparison', observed=True)['prompt_index'].nunique().sum():,} pairs. "
        f"{len(real) - len(kept):,} answers were excluded{rules}; all results are also given with "
        f"them. Answers to checks, which never count as evidence: {checked}. "
        f"{_analysed(definition)} Definition {definition.name}, version {definition.version}, "
        f"SHA-256 {definition.hash}."
    )


def _analysed(definition: StudyDefinition) -> str:
    comparisons = len(definition.comparisons)
    return (
        "Win rates are shares of decisive votes. Intervals are at 95 % and clustered by prompt "
        "text and rater (Cameron, Gelbach and Miller, 2011; the largest of the two-way and both "
        "one-way variances), with Student's t and one degree of freedom less than the smaller "
        "number of clusters; Wilson intervals, which take votes as independent, are given for "
        "comparison. A difference is claimed where the larger of the "
        "p-values of the exact sign test and of the clustered test, adjusted over all "
        f"{comparisons * len(definition.questions)} comparisons and questions, is at most {LEVEL}: "
        f"Holm over comparisons, the primary question ({_primary(definition)}) first within each; "
        "votes of one rater, or on one prompt, claim nothing. Evidence that may be looked at after "
        "every vote is a beta-binomial mixture e-value, each vote weighing one over the design "
        f"effect; a comparison is decided once it reaches {comparisons / LEVEL:,.0f}. The majority "
        "of each pair, Dawid and Skene's weighted vote, and win rates adjusted for the side (a "
        "generalised estimating equation, exchangeable within prompts) are given as a second look."
    )


def _watched(definition: StudyDefinition) -> str:
    loops = definition.viewing.min_loops
    many = "once" if loops == 1 else f"{loops} times"
    return f" Answers were taken after both clips had played {many} to the end." if loops else ""


def _elsewhere(votes: pd.DataFrame) -> str:
    """Say what is not known of answers that another page has collected."""
    imported = int(votes["provider"].eq(MTURK).sum())
    if not imported:
        return ""
    return (
        f" This does not hold for the {imported:,} answers from {MTURK}, whose own page showed the "
        "clips: there the sides were balanced within comparisons, and how clips played is unknown."
    )


def _asked(kept: pd.DataFrame, definition: StudyDefinition) -> str:
    questions = "; ".join(
        f'{question.key}, "{question.wording}" ({TIES[question.ties]})'
        for question in definition.questions
    )
    prompts = kept["prompt_index"].nunique()
    met = ", ".join(
        f"{comparison.key} ({definition.system(comparison.a).title} against "
        f"{definition.system(comparison.b).title})"
        for comparison in definition.comparisons
    )
    return (
        f"Raters compared pairs of clips of {prompts:,} prompts ({kept['prompt'].nunique():,} "
        f"different texts): {met}. They were asked about each pair: {questions}."
    )


def _providers(votes: pd.DataFrame) -> str:
    raters = votes.groupby("provider", observed=True)["rater"].nunique()
    return ", ".join(f"{count:,} from {provider}" for provider, count in raters.items())


def _primary(definition: StudyDefinition) -> str:
    return " ".join(question.key for question in definition.questions if question.primary)


def data_card(
    votes: pd.DataFrame, definition: StudyDefinition, dimensions: Mapping[str, str]
) -> str:
    """Describe the files of an export, in Markdown."""
    columns = "\n".join(f"| `{name}` | {MEANINGS[name]} |" for name in COLUMNS)
    systems = "\n".join(f"| `{system.key}` | {system.title} |" for system in definition.systems)
    asked = {name: key for name, key in dimensions.items() if key}
    told = ", ".join(f"{name} from {key}" for name, key in asked.items())
    silent = ", ".join(sorted(set(dimensions) - set(asked)))
    unasked = f" No question asks for {silent}, so that its cells are empty." if silent else ""
    warning = "**Simulated votes: no person took part.**\n\n" if votes["simulated"].any() else ""
    return f"""# {definition.title or definition.name}

{warning}{methods_paragraph(votes, definition)}

## Files

| file | what |
|---|---|
| `votes.csv`, `votes.parquet`, `votes.jsonl` | every current answer, the same in each |
| `clips.csv` | every clip: system, prompt, seed, file, shape |
| `preferences.videoalign.csv` | one row a pair: the majority as A, B or same; {told}.{unasked} |
| `preferences.dpo.jsonl` | one line for each pair and question with a winner |
| `study.toml` | the definition; its SHA-256 stands on every vote |
| `SHA256SUMS` | check with `sha256sum -c SHA256SUMS` |

In CSV files, text that a spreadsheet would run as a formula begins with a quotation mark (').
JSONL and Parquet hold it verbatim. `python -m human_eval report` makes the report again from this
folder alone.

## Columns of the votes

| column | meaning |
|---|---|
{columns}

## Systems

| key | title |
|---|---|
{systems}

## Limits

Raters are pseudonyms; whom they stand for is not in these files. Preferences are those of the
raters who took part, about these clips. Clips and prompts keep the licences of their makers.
"""
