"""Find the video files of the systems: one folder per system, with numbered files or a manifest."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os.path import normpath
from pathlib import Path, PurePath

from human_eval.definition.prompts import Prompt
from human_eval.errors import StudyError, list_names
from turbo.text_files.decoding import FileRefused
from turbo.text_files.tables import PATH_NAMES, PROMPT_NAMES, Table, read_table, require_columns

MANIFEST = "manifest.csv"
MAX_SEED_DIGITS = 18  # of a number that a database stores
SUFFIXES = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif"}
COLUMNS = {
    "path": PATH_NAMES,
    "prompt": PROMPT_NAMES,
    "seed": ("seed",),
    "sha256": ("sha256",),
    "model": ("model",),
}


@dataclass(frozen=True)
class Source:
    """A video file of one system for one prompt, before it is ingested."""

    system: str
    prompt_index: int
    path: Path
    seed: int | None = None  # None if unknown
    sha256: str = ""  # from the manifest, to detect damage


@dataclass(frozen=True)
class Selection:
    """Which clips of a folder to take, if their names alone do not say."""

    first_number: int | None = None  # of numbered files: the number of the first prompt
    seed: int | None = None  # of several clips of a prompt; VBench's number of the sample


@dataclass(frozen=True)
class _Listed:
    """A clip whose prompt is known by its text."""

    path: Path
    seed: int | None
    sample: int | None  # its seed, or the number in its name
    sha256: str = ""


def find_sources(
    folders: Mapping[str, Path],
    prompts: Sequence[Prompt],
    selection: Selection = Selection(),  # immutable
) -> list[Source]:
    """Find the clips of several systems.

    Args:
        folders: by system. A folder holds a `manifest.csv` with the columns path and prompt and,
            optionally, seed, sha256 and model, or is listed in that of the folder above; or files
            named like EvalCrafter's, 0000.mp4, 0001.mp4, ..., numbered as the prompts; or like
            VBench's, PROMPT-0.mp4.
        selection: which clips are meant, where this leaves a choice.

    Raises:
        StudyError: a folder is missing or empty, or has files that belong to no prompt.
    """
    found = []
    for system, folder in folders.items():
        if not folder.is_dir():
            raise StudyError(
                f"The folder {folder} of the clips of {system} does not exist. Check the path."
            )
        if manifest := _find_manifest(folder):
            found += _from_manifest(system, manifest, folder, prompts, selection)
        else:
            found += _from_names(system, folder, prompts, selection)
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


def _from_names(
    system: str, folder: Path, prompts: Sequence[Prompt], selection: Selection
) -> list[Source]:
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
    numbered = [(int(p.stem), p) for p in files if re.fullmatch(r"\d+", p.stem, re.ASCII)]
    if not numbered:
        clips = _from_prompt_names(files, {_key(prompt.text) for prompt in prompts})
        return _match_prompts(system, folder, clips, prompts, selection)
    known = {prompt.index for prompt in prompts}
    first = selection.first_number
    if first is None and 0 in known and min((n for n, _ in numbered), default=0) == 1:
        raise StudyError(
            f"The clips in {folder} count from 1, but prompts count from 0. If 1 is the clip of "
            "the first prompt, pass --first-number 1. If the first clip is missing, pass "
            "--first-number 0."
        )
    numbered = [(number - (first or 0), path) for number, path in numbered]
    indices = {path: index for index, path in numbered}
    _refuse_surplus([path for path in files if indices.get(path) not in known])
    sources = [Source(system, index, path) for index, path in numbered]
    _check_unique(sources)
    return sources


def _from_prompt_names(files: Sequence[Path], texts: set[str]) -> list[tuple[str, _Listed]]:
    """Read names such as "a cat-0.mp4", the layout of VBench: the prompt and a sample's number.

    Raises:
        StudyError: a file belongs to no prompt, or to two: the prompt "a cat-0" may exist too.
    """
    clips, surplus = [], []
    for path in files:
        text, number = _key(path.stem), None
        if found := re.fullmatch(r"(.*)-(\d+)", path.stem, re.DOTALL | re.ASCII):
            shorter = _key(found[1])
            if text in texts and shorter in texts:
                raise StudyError(
                    f"{path.name} in {path.parent} may be a clip of the prompt {text!r} or sample "
                    f"{found[2]} of {shorter!r}. Say which in a {MANIFEST} with the columns path "
                    "and prompt."
                )
            if shorter in texts:
                text, number = shorter, int(found[2])
        if text in texts:
            clips.append((text, _Listed(path, None, number)))
        else:
            surplus.append(path)
    _refuse_surplus(surplus)
    return clips


def _refuse_surplus(files: Sequence[Path]) -> None:
    if files:
        raise StudyError(
            f"{files[0].parent} has files that belong to no prompt: "
            f"{list_names([path.name for path in files])}. All clips of a folder are named "
            "0000.mp4 and so on, in the order of the prompts, or all PROMPT-0.mp4. Rename or "
            "remove these files, or check the prompts."
        )


def _find_manifest(folder: Path) -> Path | None:
    """Return the manifest in the folder, or the one above that names the folder.

    Raises:
        StudyError: the one above cannot be read, so it may name the folder.
    """
    own, above = folder / MANIFEST, folder.resolve().parent / MANIFEST
    if own.is_file():
        return own
    if not above.is_file():
        return None
    table = _read_table(above, {})
    # Without a column of paths, any cell may be one.
    names = ["path"] if "path" in table.names else table.names
    cells = {row[name] for row in table.rows.values() for name in names}
    named = any(folder.resolve().name in PurePath(_with_slashes(cell)).parts[:-1] for cell in cells)
    return above if named else None


def _from_manifest(
    system: str, manifest: Path, folder: Path, prompts: Sequence[Prompt], selection: Selection
) -> list[Source]:
    rows = _read_rows(manifest, system, folder)
    # A later row replaces an earlier one of the same file.
    latest = {row["path"]: row for row in rows}.values()
    clips = [(_key(row["prompt"]), _list_row(row, manifest)) for row in latest]
    unknown = sorted({text for text, _ in clips} - {_key(prompt.text) for prompt in prompts})
    if unknown:
        raise StudyError(
            f"{manifest} has clips of prompts that the study does not have: "
            f"{list_names([repr(text) for text in unknown])}. Check which prompts were used."
        )
    return _match_prompts(system, manifest, clips, prompts, selection)


def _key(text: str) -> str:
    """Return a prompt in the form in which prompts are compared: composed, with single blanks."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def _match_prompts(
    system: str,
    place: Path,
    clips: Sequence[tuple[str, _Listed]],
    prompts: Sequence[Prompt],
    selection: Selection,
) -> list[Source]:
    """Give each clip to the prompt of its text; prompts with equal text may share a clip."""
    by_text: dict[str, list[_Listed]] = defaultdict(list)
    for text, clip in clips:
        if selection.seed is None or clip.sample in (None, selection.seed):
            by_text[text].append(clip)
    indices: dict[str, list[int]] = defaultdict(list)
    for prompt in prompts:
        indices[_key(prompt.text)].append(prompt.index)
    sources = []
    for text, found in by_text.items():
        if len(found) > len(indices[text]):
            samples = sorted({clip.sample for clip in found if clip.sample is not None})
            choice = (
                f"Choose one seed for all, such as --seed {samples[0]}."
                if len(samples) > 1
                else "Keep one of them."
            )
            raise StudyError(f"{place} has {len(found)} clips of the prompt {text!r}. {choice}")
        for number, index in enumerate(indices[text]):
            clip = found[min(number, len(found) - 1)]
            sources.append(Source(system, index, clip.path, clip.seed, clip.sha256))
    if not sources:
        raise StudyError(f"{place} has no clips of seed {selection.seed}. Choose another.")
    return sources


def _read_table(manifest: Path, needed: Mapping[str, Sequence[str]]) -> Table:
    try:
        table = read_table(manifest, COLUMNS)
        require_columns(table, manifest, needed)
    except FileRefused as refusal:
        raise StudyError(str(refusal)) from refusal
    return table


def _with_slashes(path: str) -> str:
    """Return a path with slashes, as Windows may have written it with backslashes."""
    return path.strip().replace("\\", "/")


def _read_rows(manifest: Path, system: str, folder: Path) -> list[dict[str, str]]:
    """Return the rows of the clips in a folder."""
    table = _read_table(manifest, {"path": PATH_NAMES, "prompt": PROMPT_NAMES})
    rows = list(table.rows.values())
    if manifest.parent != folder:
        paths = [Path(normpath(manifest.parent / _with_slashes(row["path"]))) for row in rows]
        whole = folder.resolve()
        rows = [row for row, path in zip(rows, paths, strict=True) if path.is_relative_to(whole)]
    if not rows:
        raise StudyError(
            f"{manifest} lists no clips in {folder}. Correct its paths: they begin in the folder "
            "of the manifest."
        )
    models = sorted({row["model"] for row in rows}) if "model" in table.names else []
    if len(models) > 1:
        if system not in models:
            raise StudyError(
                f"{manifest} has clips of several models ({', '.join(models)}), none of them named "
                f"{system}. Give each model a folder of its own."
            )
        rows = [row for row in rows if row["model"] == system]
    return rows


def _list_row(row: dict[str, str], manifest: Path) -> _Listed:
    folder = manifest.parent.resolve()
    path = (folder / row["path"].strip()).resolve()
    if not path.exists():
        path = (folder / _with_slashes(row["path"])).resolve()
    if not path.is_relative_to(folder):
        raise StudyError(
            f"{manifest} lists {row['path']!r}, which is outside its folder. Copy the clips into "
            "the folder of their manifest."
        )
    text = row.get("seed", "").strip()
    whole = re.fullmatch(r"(-?\d+)(?:\.0*)?", text, re.ASCII)  # pandas writes 7 as 7.0
    if text and (not whole or len(whole[1].lstrip("-")) > MAX_SEED_DIGITS):
        raise StudyError(
            f"The seed {text!r} of {row['path']} in {manifest} is not a whole number of at most "
            f"{MAX_SEED_DIGITS} digits. Correct it, or leave it empty."
        )
    seed = int(whole[1]) if whole else None
    return _Listed(path, seed, seed, row.get("sha256", "").strip().lower())


def _check_unique(sources: Sequence[Source]) -> None:
    first: dict[tuple[str, int], Path] = {}
    for source in sources:
        earlier = first.setdefault((source.system, source.prompt_index), source.path)
        if earlier != source.path:
            raise StudyError(
                f"{source.system} has two clips for prompt {source.prompt_index}: {earlier.name} "
                f"and {source.path.name}. Keep one."
            )
