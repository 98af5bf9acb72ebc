"""Whether two runs of VBench can be compared: the protocol of each, as its files show it."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import av

from turbo.manifest import Manifest
from turbo.vbench.plan import CLIPS, Plan
from turbo.vbench.scores import DIMENSIONS, RESULTS, prompt_of, read_results

TOTAL, MANIFEST = "total.json", "manifest.csv"
SHOWN = {  # the fields of a protocol, for people
    "prompt_file": "prompt file",
    "augmented": "prompt augmentation",
    "samples": "samples a prompt",
    "flicker_samples": "samples a prompt of temporal flickering",
    "first_seed": "first seed",
    "steps": "sampling steps",
}


def describe(folder: Path) -> dict[str, str]:
    """Return the protocol of a run by choice, in the order of comparison.

    Clips that are there speak for themselves: what their files hold replaces what was planned.

    Raises:
        ValueError: the folder has no plan, or a file in it is damaged.
    """
    plan = Plan.read(folder)
    found = {SHOWN.get(name, name): _show(value) for name, value in vars(plan.protocol).items()}
    files = sorted((folder / CLIPS).glob("*.mp4"))
    if files:
        found.update(_probe(files))
        flicker = {
            prompt_of(clip.name)[0]
            for clip in plan.clips
            if "temporal_flickering" in clip.dimensions
        }
        counts = Counter(prompt_of(file.name)[0] for file in files)
        for name, prompts in (("samples", counts.keys() - flicker), ("flicker_samples", flicker)):
            if prompts:  # a prompt with fewer clips than the others has lost some
                found[SHOWN[name]] = _show(max(counts[prompt] for prompt in prompts))
    if (folder / MANIFEST).is_file():
        rows = Manifest(folder).rows().values()
        for name, column in (("steps", "num_steps"), ("guidance", "guidance")):
            found[SHOWN.get(name, name)] = _list(float(row[column]) for row in rows)
    found["clips left out"] = str(_count_left_out(folder, plan, {file.name for file in files}))
    found["normalisation table"] = _table_of(folder)
    return found


def compare(a: Path, b: Path) -> list[str]:
    """Return the choices that differ between two runs, the first one first."""
    ours, theirs = describe(a), describe(b)
    return [
        f"{choice}: {a} has {ours[choice]}, {b} has {theirs[choice]}"
        for choice in ours
        if choice in theirs and ours[choice] != theirs[choice]  # without clips, no codec is known
    ]


def _probe(files: list[Path]) -> dict[str, str]:
    """Return what the files of the clips hold: one value for all, or all there are."""
    found = []
    for file in files:
        with av.open(file.absolute(), metadata_errors="ignore") as container:
            stream = container.streams.video[0]
            codec = stream.codec_context
            found.append(
                {
                    "fps": stream.average_rate,
                    "width": codec.width,
                    "height": codec.height,
                    "frames": stream.frames,
                    "codec": f"{codec.name} {codec.pix_fmt}",
                }
            )
    return {key: _list(values[key] for values in found) for key in found[0]}


def _list(values: Iterable[object]) -> str:
    return " or ".join(sorted(set(map(_show, values))))


def _show(value: object) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else f"{float(value):g}"  # type: ignore[arg-type]


def _count_left_out(folder: Path, plan: Plan, there: set[str]) -> int:
    """Return how many planned clips were not made, or not scored in a dimension of theirs."""
    missing = {clip.name for clip in plan.clips} - there if there else set()
    if any(folder.glob(RESULTS)):
        scored = read_results(folder).videos
        for dimension in DIMENSIONS:
            if scored.get(dimension):
                planned = {clip.name for clip in plan.clips if dimension in clip.dimensions}
                missing |= planned - set(scored[dimension])
    return len(missing)


def _table_of(folder: Path) -> str:
    path = folder / TOTAL
    if not path.is_file():
        return "none yet"
    try:
        return json.dumps(json.loads(path.read_text(encoding="utf-8"))["table"], sort_keys=True)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}). Compute the total again.") from error
