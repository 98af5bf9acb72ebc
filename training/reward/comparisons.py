"""The votes of an export as comparisons of clips, divided by prompt."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from human_eval.definition.definition import StudyDefinition
from human_eval.errors import StudyError
from human_eval.reporting.export import CLIPS, FILES, check_sums, read_export
from human_eval.statistics.votes import counted_votes, find_unknown
from turbo.manifest import sha256_of
from turbo.text_files.tables import PATH_NAMES, PROMPT_NAMES, read_table, require_columns

ANSWERS = {"a": 0, "b": 1, "tie": 2, "both_bad": 2}  # neither clip is better: a tie
TIE = 2
Place = tuple[str, int]  # system, prompt index
PARTS = ("train", "validation", "test")
HELD_OUT = 0.15  # share of the prompts in each of validation and test
MIN_PROMPTS = 6


@dataclass(frozen=True)
class Comparisons:
    """N votes on pairs of the clips; entries of one index belong to one vote."""

    clips: list[Path]
    prompts: list[str]  # of each clip
    first: Int[Tensor, " N"]  # index of clip a
    second: Int[Tensor, " N"]  # index of clip b, of the same prompt
    question: Int[Tensor, " N"]
    answer: Int[Tensor, " N"]  # 0: a, 1: b, 2: neither
    left: Float[Tensor, " N"]  # 1 where a was shown on the left, -1 on the right, 0 if unknown
    rater: Int[Tensor, " N"]  # all 0 if unknown
    part: Int[Tensor, " N"]  # of PARTS
    questions: list[str]  # keys
    primary: str
    wordings: list[str]
    title: str
    simulated: bool
    left_out: int = 0  # votes on clips without a file

    def votes_of(self, part: str) -> Int[Tensor, " M"]:
        """Return the indices of the votes of a part."""
        return (self.part == PARTS.index(part)).nonzero()[:, 0]

    def undecided(self, part: str) -> list[str]:
        """Return the questions on which a part has no votes other than ties."""
        rows = self.votes_of(part)
        decided = set(self.question[rows[self.answer[rows] != TIE]].tolist())
        return [key for number, key in enumerate(self.questions) if number not in decided]


def read_comparisons(export: Path, table: Path | None = None, *, seed: int = 0) -> Comparisons:
    """Read an export of a study, or a folder that `import-votes --mapping` made.

    Votes of excluded raters and on attention checks are left out.

    Args:
        table: where the clips are: columns system (its key or title), prompt and path, relative to
            the table. By default those of the export, made with `--clips`.
        seed: of the division of the prompts.

    Raises:
        StudyError: the export is unfinished or damaged, mixes human votes with simulated ones, or
            has a clip that was changed.
        ValueError: the prompts are unknown or too few, or no vote is on two clips with files.
    """
    votes, definition = read_export(export)
    votes = counted_votes(votes)
    if unknown := find_unknown(votes, ["prompt"]):
        raise ValueError(f"The {unknown} of {export} are not known, so no reward can be trained.")
    files = _exported_clips(export) if table is None else _listed_clips(table, votes, definition)
    rows = {place: row for row, place in enumerate(files)}
    found = pd.DataFrame(
        {
            side: [
                rows.get(place, -1)
                for place in zip(votes[f"system_{side}"], votes["prompt_index"], strict=True)
            ]
            for side in ("a", "b")
        },
        index=votes.index,
    )
    usable = (found >= 0).all(axis=1)
    left_out = int((~usable).sum())
    votes, found = votes[usable], found[usable]
    if votes.empty:
        raise ValueError(
            f"No vote of {export} is on two clips with files. Export the study again with --clips, "
            "or give a table of the clips."
        )
    texts = dict(zip(votes["prompt_index"], votes["prompt"], strict=True))
    parts = divide_prompts({_plain(prompt) for prompt in votes["prompt"]}, seed)
    questions = [
        question for question in definition.questions if (votes["question"] == question.key).any()
    ]
    keys = [question.key for question in questions]
    primary = definition.primary.key
    return Comparisons(
        clips=[*files.values()],
        prompts=[texts.get(index, "") for _, index in files],
        first=torch.tensor(found["a"].to_numpy()),
        second=torch.tensor(found["b"].to_numpy()),
        question=torch.tensor([keys.index(key) for key in votes["question"]]),
        answer=torch.tensor([ANSWERS[choice] for choice in votes["choice"]]),
        left=torch.tensor(
            votes["side_a"].map({"left": 1.0, "right": -1.0, "": 0.0}).to_numpy()
        ).float(),
        rater=torch.tensor(pd.factorize(votes["rater"], sort=True)[0]),
        part=torch.tensor([parts[_plain(prompt)] for prompt in votes["prompt"]]),
        questions=keys,
        primary=primary if primary in keys else keys[0],
        wordings=[question.wording for question in questions],
        title=definition.title,
        simulated=bool(votes["simulated"].any()),
        left_out=left_out,
    )


def divide_prompts(prompts: set[str], seed: int) -> dict[str, int]:
    """Return the part of each prompt, drawn by a hash of its text.

    Raises:
        ValueError: there are too few.
    """
    if len(prompts) < MIN_PROMPTS:
        raise ValueError(
            f"There are votes on {len(prompts)} prompts. At least {MIN_PROMPTS} are needed, since "
            "some are held out to stop the training and to measure it. Collect votes on more."
        )
    order = sorted(prompts, key=lambda text: hashlib.sha256(f"{seed} {text}".encode()).digest())
    held_out = max(1, round(HELD_OUT * len(order)))
    parts = [2] * held_out + [1] * held_out + [0] * (len(order) - 2 * held_out)
    return dict(zip(order, parts, strict=True))


def _exported_clips(export: Path) -> dict[Place, Path]:
    """Return the clips of an export that have a file.

    Raises:
        StudyError: the table of clips or a clip is not the one that was exported.
        ValueError: there is no table of clips.
    """
    if not (export / CLIPS).is_file():
        raise ValueError(f"{export} has no {CLIPS}. Give a table of the clips by --clips.")
    check_sums(export, CLIPS)
    paths = {}
    for row in read_table(export / CLIPS).rows.values():
        path = export / FILES / row["stored_name"]
        if row["status"] != "ok" or not path.is_file():
            continue
        if sha256_of(path) != row["sha256"]:
            raise StudyError(
                f"{path} is not the clip that raters saw: its SHA-256 is not the one in {CLIPS}. "
                "Export the study again with --clips."
            )
        paths[row["system"], int(row["prompt_index"])] = path
    return paths


def _listed_clips(
    table: Path, votes: pd.DataFrame, definition: StudyDefinition
) -> dict[Place, Path]:
    """Return the clips of a table, on whose prompts there are votes.

    Raises:
        ValueError: a column, a system or a file is missing, or a clip is listed twice.
    """
    content = read_table(table, {"prompt": PROMPT_NAMES, "path": PATH_NAMES})
    require_columns(
        content, table, {"system": ("system",), "prompt": PROMPT_NAMES, "path": PATH_NAMES}
    )
    keys = {
        name: system.key for system in definition.systems for name in (system.title, system.key)
    }
    numbers: dict[str, set[int]] = {}
    for index, prompt in zip(votes["prompt_index"], votes["prompt"], strict=True):
        numbers.setdefault(_plain(prompt), set()).add(int(index))
    files: dict[Place, Path] = {}
    for line, row in content.rows.items():
        path = table.parent / row["path"]
        if row["system"] not in keys or not path.is_file():
            raise ValueError(
                f"Line {line} of {table} must name a system of the votes and a file; it has "
                f"{row['system']!r} and {row['path']!r}. Correct it."
            )
        for index in sorted(numbers.get(_plain(row["prompt"]), ())):
            place = (keys[row["system"]], index)
            if place in files:
                raise ValueError(
                    f"Line {line} of {table} is a second clip of {row['system']!r} for this "
                    "prompt. Keep the one that raters saw."
                )
            files[place] = path
    return files


def _plain(prompt: str) -> str:
    """Return the prompt without differences that do not matter, to compare it with others."""
    return " ".join(prompt.split()).casefold()
