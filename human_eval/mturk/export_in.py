"""Votes of another server's export of the same study, to be joined with this one's."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from sqlalchemy import select

from human_eval.collection.pairs import list_clips, list_prompts
from human_eval.errors import StudyError, list_names
from human_eval.mturk.votes_in import ImportedSubmission
from human_eval.reporting.export import CLIPS, check_sums, read_export
from human_eval.storage.tables import PairRow
from human_eval.study.store import StudyStore

SUBMISSION = ["provider", "rater", "task_id"]  # the columns that identify a submission
EQUAL = ["width", "height", "fps", "frames"]  # columns of clips whose values must be equal


@dataclass(frozen=True)
class ExportedSubmissions:
    """What an export holds for this study."""

    submissions: list[ImportedSubmission]
    left_out: int  # submissions to attention checks that this study does not have


def read_submissions(folder: Path, store: StudyStore) -> ExportedSubmissions:
    """Read the submissions of an export of this study that another server made.

    Each server spoils clips of its own for attention checks, which are never analysed. Answers to
    checks that this study does not have are left out.

    Raises:
        StudyError: the export is damaged, simulated, or of another study: its definition, its
            prompts or its clips are others.
    """
    votes, _ = read_export(folder)
    if votes["simulated"].any():
        raise StudyError(f"{folder} has simulated votes. Only human votes can be imported.")
    versions = {definition.hash: n for n, definition in enumerate(store.definition.versions)}
    foreign = sorted(set(votes["definition_hash"]) - set(versions))
    if foreign:
        raise StudyError(
            f"{folder} has votes under the definition {foreign[0][:16]}, which this study never "
            "had. Only exports of studies with the same definition can be joined; amend both alike."
        )
    _check_prompts(folder, votes, store)
    _check_clips(folder, votes, store)
    submissions = [
        _read_submission(group, versions, f"{folder.name}, pair {group['task_id'].iloc[0]}")
        for _, group in votes.groupby(SUBMISSION, sort=False, observed=True)
    ]
    with store.read() as connection:
        checks = {tuple(row) for row in connection.execute(_CHECKS)}
    kept = [
        entry
        for entry in submissions
        if entry.kind == "real"
        or (entry.comparison, entry.prompt_index, entry.kind, entry.gold_answer) in checks
    ]
    return ExportedSubmissions(kept, len(submissions) - len(kept))


def _read_submission(
    votes: pd.DataFrame, versions: dict[str, int], source: str
) -> ImportedSubmission:
    first = votes.iloc[0]
    rules = first["exclusion_rule"].split(";") if first["excluded"] else []
    return ImportedSubmission(
        provider=first["provider"],
        rater=first["rater"],
        is_pseudonym=True,
        comparison=first["comparison"],
        prompt_index=int(first["prompt_index"]),
        side_a=first["side_a"],
        answers=dict(zip(votes["question"], votes["choice"], strict=True)),
        answered_at=votes["answered_at"].max().to_pydatetime(),
        seconds=float(votes["seconds"].max()),
        question_seconds=dict(zip(votes["question"], map(float, votes["seconds"]), strict=True)),
        source=f"{source}, rater {first['rater']}",
        strengths=dict(zip(votes["question"], map(int, votes["strength"]), strict=True)),
        kind=first["kind"],
        gold_answer=first["gold_answer"],
        loops=int(first["loops"]),
        amendment=versions[first["definition_hash"]],
        exclusion_rules=tuple(dict.fromkeys(rules)),
    )


def _check_prompts(folder: Path, votes: pd.DataFrame, store: StudyStore) -> None:
    with store.read() as connection:
        texts = {prompt.index: prompt.text for prompt in list_prompts(connection)}
    given = votes[["prompt_index", "prompt"]].drop_duplicates()
    for index, text in zip(given["prompt_index"], given["prompt"], strict=True):
        if texts.get(int(index)) != text:
            raise StudyError(
                f"Prompt {index} is {text!r} in {folder}, but {texts.get(int(index))!r} in this "
                "study. Only studies with the same prompts can be joined."
            )


def _check_clips(folder: Path, votes: pd.DataFrame, store: StudyStore) -> None:
    """Refuse votes on clips that were not made from the same files, or have another shape."""
    path = folder / CLIPS
    if not path.is_file():
        raise StudyError(f"{folder} has no {CLIPS}. Export the study again.")
    check_sums(folder, CLIPS)
    theirs = pd.read_csv(path, keep_default_na=False, dtype={"system": str})
    sides = [votes[[f"system_{side}", "prompt_index"]].set_axis(["system", "prompt_index"], axis=1)
             for side in "ab"]  # fmt: skip
    voted = pd.concat(sides).drop_duplicates()
    voted = set(zip(voted["system"].astype(str), voted["prompt_index"].astype(int), strict=True))
    with store.read() as connection:
        mine = {(clip.system, clip.prompt_index): clip for clip in list_clips(connection)}
    others, listed = [], set()
    for row in theirs.to_dict("records"):
        place = str(row["system"]), int(row["prompt_index"])
        if place not in voted or row["status"] != "ok":
            continue
        listed.add(place)
        clip = mine.get(place)
        same_file = clip is not None and (
            row["sha256"] == clip.sha256 or row.get("source_sha256") == clip.source_sha256
        )
        if not same_file or any(row[name] != getattr(clip, name) for name in EQUAL):
            others.append(f"{place[0]} {place[1]:04d}")
    others += [f"{system} {index:04d}" for system, index in sorted(voted - listed)]
    if others:
        raise StudyError(
            f"The votes in {folder} are about other clips than this study's: "
            f"{list_names(sorted(others))}. Ingest the same files on both servers."
        )


_CHECKS = select(PairRow.comparison, PairRow.prompt_index, PairRow.kind, PairRow.gold_answer).where(
    PairRow.kind != "real", ~PairRow.simulated
)
