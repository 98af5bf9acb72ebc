"""The answered pairs one by one, with clips and votes. Shown once a study is closed."""

from dataclasses import dataclass

import pandas as pd
from sqlalchemy import select

from human_eval.errors import StudyError
from human_eval.reporting.live_results import Results
from human_eval.storage.tables import ClipRow, PairRow, PromptRow
from human_eval.study.store import StudyStore


@dataclass(frozen=True, kw_only=True)
class AnsweredPair:
    """A pair and the votes on it."""

    pair_id: int
    comparison: str
    title_a: str
    title_b: str
    prompt: str
    clip_a: str  # signed token of the clip
    clip_b: str
    fps: float
    frames: int
    answers: pd.DataFrame  # columns question, choice, rater, seconds, side_a


def list_answered(results: Results) -> list[int]:
    """Return the ids of the answered pairs, by comparison and prompt.

    Raises:
        StudyError: the results are masked; clips would reveal the system behind a letter.
    """
    _check_named(results)
    pairs = results.votes[["comparison", "prompt_index", "task_id"]].drop_duplicates()
    order = {entry.key: place for place, entry in enumerate(results.definition.comparisons)}
    pairs = pairs.assign(place=pairs["comparison"].map(order))
    return [int(pair) for pair in pairs.sort_values(["place", "prompt_index"])["task_id"]]


def read_pair(store: StudyStore, results: Results, pair_id: int) -> AnsweredPair:
    """Return an answered pair.

    Raises:
        StudyError: the pair has no votes that count, or the results are masked.
    """
    _check_named(results)
    answers = results.votes[results.votes["task_id"] == pair_id]
    if answers.empty:
        raise StudyError(f"Pair {pair_id} has not been answered. Choose another one.")
    with store.read() as connection:
        row = connection.execute(_PAIR.where(PairRow.id == pair_id)).one()
    comparison = results.definition.comparison(row.comparison)
    return AnsweredPair(
        pair_id=pair_id,
        comparison=row.comparison,
        title_a=results.definition.system(comparison.a).title,
        title_b=results.definition.system(comparison.b).title,
        prompt=row.display,
        clip_a=store.keys.sign("clip", [row.clip_a]),
        clip_b=store.keys.sign("clip", [row.clip_b]),
        fps=row.fps,
        frames=row.frames,
        answers=answers[["question", "choice", "rater", "seconds", "side_a"]],
    )


def _check_named(results: Results) -> None:
    if not results.named:
        raise StudyError("Votes are shown when the study is closed.")


_PAIR = (
    select(PairRow.comparison, PairRow.clip_a, PairRow.clip_b)
    .add_columns(PromptRow.display, ClipRow.fps, ClipRow.frames)
    .join(PromptRow, PromptRow.prompt_index == PairRow.prompt_index)
    .join(ClipRow, ClipRow.id == PairRow.clip_a)  # both clips have the same shape
)
