"""Find the video files of the systems: one folder per system, with numbered files or a manifest."""

import csv
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from human_eval.definition.prompts import Prompt
from human_eval.errors import StudyError

MANIFEST = "manifest.csv"
SUFFIXES = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif"}
MAX_PROBLEMS = 20  # how many a message lists


@dataclass(frozen=True)
class Source:
    """A video file of one system for one prompt, before it is ingested."""

    system: str
    prompt_index: int
    path: Path
    seed: int | None = None  # None if unknown
    sha256: str = ""  # from the manifest, to detect damage


def find_sources(folders: Mapping[str, Path], prompts: Sequence[Prompt]) -> list[Source]:
    """Find the clips of several systems.

    Args:
        folders: by system. A folder holds a `manifest.csv` with the columns path and prompt and,
            optionally, seed, sha256 and model; or files named like EvalCrafter's, 0000.mp4,
            0001.mp4, ..., numbered as the prompts.

    Raises:
        StudyError: a folder is missing or empty, or has files that belong to no prompt.
    """
    found = []
    for system, folder in folders.items():
        if not folder.is_dir():
            raise StudyError(
                f"The folder {folder} of the clips of {system} does not exist. Check the path."
            )
        if (folder / MANIFEST).is_file():
            found += _from_manifest(system, folder / MANIFEST, prompts)
        else:
            found += _from_numbers(system, folder, prompts)
    return found


def find_systems(root: Path, systems: Iterable[str]) -> dict[str, Path]:
    """Return the subfolders that are named after a system of the study.

    Raises:
        StudyError: there is none.
    """
    systems = list(systems)
    folders = {system: root / system for system in systems if (root / system).is_dir()}
    if not folders:
        raise StudyError(
            f"{root} has no folder named {' or '.join(systems)}. Rename the folders of clips, or "
            "name each as SYSTEM=FOLDER."
        )
    return folders


def _from_numbers(system: str, folder: Path, prompts: Sequence[Prompt]) -> list[Source]:
    files = [
        path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    ]
    if not files:
        raise StudyError(
            f"{folder} has neither clips named 0000.mp4, 0001.mp4, ... nor a {MANIFEST}. "
            "Check the path."
        )
    known = {prompt.index for prompt in prompts}
    named = [path for path in files if not re.fullmatch(r"\d+", path.stem, re.ASCII)]
    surplus = [path for path in files if path not in named and int(path.stem) not in known]
    if named or surplus:
        raise StudyError(
            f"{folder} has files that belong to no prompt: "
            f"{list_names([path.name for path in named or surplus])}. Clips are named 0000.mp4 and "
            f"so on, one for each of the {len(known)} prompts. Rename or remove these files, or "
            "check the prompts."
        )
    sources = [Source(system, int(path.stem), path) for path in files]
    _check_unique(sources)
    return sources


def _from_manifest(system: str, manifest: Path, prompts: Sequence[Prompt]) -> list[Source]:
    rows = _read_rows(manifest, system)
    by_text: dict[str, list[dict[str, str]]] = defaultdict(list)
    # A later row replaces an earlier one of the same file.
    for row in {row["path"]: row for row in rows}.values():
        by_text[row["prompt"].strip()].append(row)
    indices: dict[str, list[int]] = defaultdict(list)
    for prompt in prompts:
        indices[prompt.text.strip()].append(prompt.index)
    unknown = sorted(set(by_text) - set(indices))
    if unknown:
        raise StudyError(
            f"{manifest} has clips of prompts that the study does not have: "
            f"{list_names([repr(text) for text in unknown])}. Check which prompts were used."
        )
    sources = []
    for text, clips in by_text.items():
        if len(clips) > len(indices[text]):
            raise StudyError(
                f"{manifest} has {len(clips)} clips of the prompt {text!r}. Keep one of them."
            )
        for place, index in enumerate(indices[text]):
            # Prompts with equal text may share a clip.
            sources.append(_from_row(system, index, clips[min(place, len(clips) - 1)], manifest))
    return sources


def _read_rows(manifest: Path, system: str) -> list[dict[str, str]]:
    try:
        with manifest.open(newline="", encoding="utf-8-sig") as file:
            names, *lines = list(csv.reader(file, strict=True)) or [[]]
    except (csv.Error, UnicodeDecodeError) as error:
        raise StudyError(f"{manifest} is not a valid CSV file: {error}. Correct it.") from error
    if not {"path", "prompt"} <= set(names):
        raise StudyError(
            f"{manifest} needs the columns path and prompt; it has {', '.join(names)}. Add them."
        )
    rows = []
    for number, cells in enumerate(lines, 2):
        if cells and len(cells) != len(names):
            raise StudyError(
                f"Row {number} of {manifest} has {len(cells)} cells instead of {len(names)}. "
                "Complete the row or remove it; put text with commas in quotes."
            )
        if cells:  # else an empty line
            rows.append(dict(zip(names, cells, strict=True)))
    models = sorted({row["model"] for row in rows}) if "model" in names else []
    if len(models) > 1:
        if system not in models:
            raise StudyError(
                f"{manifest} has clips of several models ({', '.join(models)}), none of them named "
                f"{system}. Give each model a folder of its own."
            )
        rows = [row for row in rows if row["model"] == system]
    if not rows:
        raise StudyError(f"{manifest} lists no clips.")
    return rows


def _from_row(system: str, index: int, row: dict[str, str], manifest: Path) -> Source:
    folder = manifest.parent.resolve()
    path = (folder / row["path"]).resolve()
    if not path.is_relative_to(folder):
        raise StudyError(
            f"{manifest} lists {row['path']!r}, which is outside its folder. Copy the clips into "
            "the folder of their manifest."
        )
    seed = row.get("seed") or ""
    if seed and not re.fullmatch(r"-?\d+", seed, re.ASCII):
        raise StudyError(
            f"The seed {seed!r} of {row['path']} in {manifest} is not a whole number. Correct it, "
            "or leave it empty."
        )
    return Source(system, index, path, int(seed) if seed else None, row.get("sha256") or "")


def _check_unique(sources: Sequence[Source]) -> None:
    first: dict[tuple[str, int], Path] = {}
    for source in sources:
        earlier = first.setdefault((source.system, source.prompt_index), source.path)
        if earlier != source.path:
            raise StudyError(
                f"{source.system} has two clips for prompt {source.prompt_index}: {earlier.name} "
                f"and {source.path.name}. Keep one."
            )


def list_names(names: Sequence[str], separator: str = ", ") -> str:
    """Join the first names of a list, and add how many more there are."""
    listed = separator.join(names[:MAX_PROBLEMS])
    more = len(names) - MAX_PROBLEMS
    return f"{listed} and {more:,} more" if more > 0 else listed
