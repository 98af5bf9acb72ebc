"""The report of an evaluation: means with intervals, paired tests and claims, as JSON and Markdown.

Rates and shares are in per cent, sharpness, flicker and frame change in 0..255, displacement in
pixels per frame, scores in nats.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from training.shapes.evaluation.intervals import (
    SHARE,
    Clusters,
    Estimate,
    clustered_mean,
    clustered_ratio,
    mcnemar_p,
)
from training.shapes.evaluation.measurements import Measurements
from training.shapes.evaluation.metrics import frechet_distance
from training.shapes.evaluation.systems import CHUNK, REAL, Source

RATES = {
    "colour": "hit_colour",
    "background": "hit_background",
    "shape": "hit_shape",
    "motion": "hit_motion",
    "all": "hit_all",
    "watermark": "watermark",
    "washed out": "washed_out",
    "no flaw": "clean",
}
MEANS = {
    "judge": "judge",
    "judge, quality": "judge_quality",
    "judge, fit": "judge_fit",
    "sharpness": "sharpness",
    "flicker": "flicker",
    "displacement": "displacement",
    "frame change": "frame_change",
}
COMPARISONS = (
    ("Turbo-4", "VCM-4"),
    ("Turbo-4", "teacher-50"),
    ("Turbo-4", "teacher-50 ODE"),
    ("Turbo-8", "Turbo-4"),
    ("Turbo-8", "teacher-50"),
    ("Turbo-8", "teacher-50 ODE"),
    ("Turbo-DMD-4", "Turbo-4"),
    ("Turbo-DMD-4", "teacher-50"),
    ("Turbo-DMD-4", "teacher-50 ODE"),
    ("Turbo-DMD-8", "Turbo-DMD-4"),
    ("Turbo-DMD-8", "teacher-50"),
    ("Turbo-DMD-8", "teacher-50 ODE"),
    ("VCM+R_img-4", "VCM-4"),
    ("VCM+R_vid-4", "VCM-4"),
    ("Turbo-4", "VCM+R_img-4"),
    ("Turbo-4", "VCM+R_vid-4"),
    ("Turbo-2", "VCM-4"),
    ("VCM-4", "teacher-4"),
    ("Turbo-4 flow", "Turbo-4"),
    ("Turbo-4 flow", "VCM-4 flow"),
)  # besides every system with the first one
TEACHERS = {  # what a student must beat: both samplers are baselines of the papers
    "teacher-50": "50 steps with fresh noise (eta 1, as VideoCrafter2)",
    "teacher-50 ODE": "50 steps of the ODE that is distilled (eta 0, as ModelScope)",
}
SAMPLE = 8  # prompts whose readings are stored, to test whether a machine reproduces the clips
RATE_TOLERANCE, MEAN_TOLERANCE = 1.0, 0.02  # points; share of a mean
INTERVALS = (
    "95 %, clustered by scene, and by training run where there are several; p-values two-sided, "
    "not corrected for multiple testing"
)
TOLERANCE = (
    "The same processor, versions and weights give the same numbers. Another processor rounds "
    f"differently: rates within {RATE_TOLERANCE:g} point and other means within "
    f"{MEAN_TOLERANCE:.0%} count as reproduced. Seconds are not compared."
)
BASELINES = (
    "teacher-50 draws fresh noise at every step (DDIM with eta = 1, as VideoCrafter2's script). "
    "Students are distilled from the teacher's ODE (eta = 0, as ModelScope's script), so they "
    "imitate another sampler than teacher-50; where it is listed, it is teacher-50 ODE."
)
EXTRACTOR = (
    "Fréchet distance between the judge's 64 penultimate features (a (2+1)D convolutional network) "
    "of the clips and of clean drawn clips of the same scenes, with a ridge on the covariances. "
    "The row of real clips is its floor. It is not comparable with FVD."
)


def check_runs(systems: Sequence[Source]) -> None:
    """Refuse systems that `compare_systems` cannot compare run by run.

    Raises:
        ValueError: two that are compared have several runs each, and not the same ones.
    """
    runs: dict[str, list[int]] = {}
    for system in systems:
        runs.setdefault(system.label, []).append(system.run)
    for a, b in _pairs_of([*runs]):
        if len(runs[a]) > 1 and len(runs[b]) > 1 and set(runs[a]) != set(runs[b]):
            ours, theirs = (", ".join(map(str, sorted(runs[label]))) for label in (a, b))
            raise ValueError(
                f"{a} has the training runs {ours}, but {b} has {theirs}, so they cannot be "
                "compared run by run. Train the missing ones by the stage runs, or move those that "
                "only one of them has out of the folder runs of the weights."
            )


def _pairs_of(labels: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs that are compared; the second is the reference."""
    pairs = [pair for pair in COMPARISONS if set(pair) <= set(labels)]
    return pairs + [(label, labels[0]) for label in labels[1:] if (label, labels[0]) not in pairs]


def build_report(measured: Measurements) -> dict[str, Any]:
    """Return all numbers of the evaluation, as JSON."""
    labels = list(dict.fromkeys(measured.rows["system"]))
    tables = {label: _table_of(measured.rows, label) for label in labels}
    report: dict[str, Any] = {
        "settings": measured.settings,
        "intervals": INTERVALS,
        "extractor": EXTRACTOR,
        "tolerance": TOLERANCE,
        "systems": {
            label: _summarise(tables[label], tables.get(REAL.label))
            | {"frechet": frechet_distance(measured.features[label], measured.real_features)}
            for label in labels
        },
        "pairs": {
            f"{a} vs {b}": compare_systems(tables[a], tables[b]) for a, b in _pairs_of(labels)
        },
        "classes": {name: _classes(measured.rows, name) for name in ("shape", "motion")},
        "sample": {label: _sample(table) for label, table in tables.items()},
    }
    report["claims"] = check_claims(report)
    return _rounded(report)


def _table_of(rows: pd.DataFrame, label: str) -> pd.DataFrame:
    table = rows[rows["system"] == label].sort_values(["run", "seed"], ignore_index=True)
    clean = ~(table["watermark"].astype(bool) | table["washed_out"].astype(bool))
    return table.assign(clean=clean)


def _clusters_of(table: pd.DataFrame) -> Clusters:
    kinds = ["scene", "run"] if table["run"].nunique() > 1 else ["scene"]
    return {kind: table[kind].to_numpy() for kind in kinds}


def _summarise(table: pd.DataFrame, real: pd.DataFrame | None) -> dict[str, Any]:
    clusters = _clusters_of(table)
    summary: dict[str, Any] = {
        name: _percent(clustered_mean(table[column].to_numpy(dtype=bool), clusters, bounds=SHARE))
        for name, column in RATES.items()
    }
    rewards = {c.replace("_", " "): c for c in table.columns if c.startswith("reward_")}
    summary |= {
        name: asdict(clustered_mean(table[column].to_numpy(), clusters))
        for name, column in (MEANS | rewards).items()
    }
    if real is not None:
        moved, reference = (side["displacement"].to_numpy() for side in _pair(table, real))
        summary["motion, % of real"] = _percent(clustered_ratio(moved, reference, clusters))
    if table["seconds"].notna().all():
        summary["seconds"] = float(table["seconds"].median())
        summary["network calls"] = int(table["unet_calls"].median())
    return summary


def compare_systems(ours: pd.DataFrame, theirs: pd.DataFrame) -> dict[str, Any]:
    """Compare two systems on the same prompts and seeds, run by run.

    A system with a single run is compared with every run of the other.

    Returns:
        the judge's preference (expected share of votes for ours), the share of prompts on which
        ours scores higher, and the difference of every rate and mean, ours minus theirs.
    """
    ours, theirs = _pair(ours, theirs)
    clusters = _clusters_of(ours)
    ahead = (ours["judge"] - theirs["judge"]).to_numpy()
    quality = (ours["judge_quality"] - theirs["judge_quality"]).to_numpy()
    result: dict[str, Any] = {
        "preference": _percent(clustered_mean(expit(ahead), clusters, 0.5, SHARE)),
        "preference, quality": _percent(clustered_mean(expit(quality), clusters, 0.5, SHARE)),
        "wins": _percent(clustered_mean((1 + np.sign(ahead)) / 2, clusters, 0.5, SHARE)),
    }
    for name, column in RATES.items():
        a, b = (side[column].to_numpy(dtype=bool) for side in (ours, theirs))
        difference = clustered_mean(a.astype(float) - b.astype(float), clusters, 0.0, (-1, 1))
        result[name] = _percent(difference) | {"mcnemar_p": mcnemar_p(a, b)}
    columns = MEANS | {c.replace("_", " "): c for c in ours.columns if c.startswith("reward_")}
    for name, column in columns.items():
        difference = clustered_mean((ours[column] - theirs[column]).to_numpy(), clusters, null=0.0)
        result[name] = asdict(difference)
    return result


def _pair(ours: pd.DataFrame, theirs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows of both systems side by side, those of a single run once for each run.

    Raises:
        ValueError: the systems have other prompts, seeds or runs.
    """
    runs = max(ours["run"].unique(), theirs["run"].unique(), key=len)
    keys = ["run", "seed", "prompt"]
    sides = [
        pd.concat([side.assign(run=run) for run in runs], ignore_index=True)
        if side["run"].nunique() == 1
        else side.reset_index(drop=True)
        for side in (ours, theirs)
    ]
    if sides[0][keys].values.tolist() != sides[1][keys].values.tolist():
        raise ValueError(
            "Expected both systems on the same prompts, seeds and training runs, got different "
            "ones. Measure both by one call of `measure_systems`."
        )
    return sides[0], sides[1]


def _percent(estimate: Estimate) -> dict[str, Any]:
    scaled = {name: 100 * getattr(estimate, name) for name in ("mean", "low", "high")}
    return asdict(estimate) | scaled


def _classes(rows: pd.DataFrame, attribute: str) -> dict[str, Any]:
    """Return the hit rate by class of one attribute and system, in per cent."""
    hits = rows.pivot_table(f"hit_{attribute}", attribute, "system", sort=False, aggfunc="mean")
    return (100 * hits).to_dict()


def _sample(table: pd.DataFrame) -> list[list[Any]]:
    """Return the attributes and the judge's score of the first clips."""
    columns = [f"read_{name}" for name in ("colour", "shape", "motion", "background")]
    first = table.head(SAMPLE)
    words = first[columns].astype(object).where(first[columns].notna(), None)
    return [[*row, score] for row, score in zip(words.values.tolist(), first["judge"], strict=True)]


def _rounded(value: Any) -> Any:
    """Round to six significant digits, which are reproducible on one machine."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.6g}")
    return value.item() if isinstance(value, np.generic) else value


def check_claims(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the claims of the paper with their bar, the measured value, and whether it is met.

    Claims about systems that were not measured are omitted.
    """
    pairs, systems = report["pairs"], report["systems"]
    claims = []

    def claim(text: str, bar: str, value: dict[str, Any], unit: str, met: bool) -> None:
        shown = f"{value['mean']:.1f} {unit} [{value['low']:.1f}, {value['high']:.1f}]"
        claims.append({"claim": text, "bar": bar, "measured": shown, "met": bool(met)})

    if pair := pairs.get("Turbo-4 vs VCM-4"):
        text = "Turbo-4 beats VCM-4"
        claim(text, "all correct: interval above 0", pair["all"], "points", pair["all"]["low"] > 0)
        vote = pair["preference"]
        claim(text, "judge: interval above 50 %", vote, "%", vote["low"] > 50)
    for student in ("Turbo-4", "Turbo-8", "Turbo-DMD-4", "Turbo-DMD-8"):
        for label, sampler in TEACHERS.items():
            if pair := pairs.get(f"{student} vs {label}"):
                text, vote = f"{student} beats the teacher, {sampler}", pair["preference"]
                hits, bar = pair["all"], "all correct: interval above -2 points"
                claim(text, "judge: interval above 50 %", vote, "%", vote["low"] > 50)
                claim(text, bar, hits, "points", hits["low"] > -2)
        if motion := systems.get(student, {}).get("motion, % of real"):
            near = abs(motion["mean"] - 100) <= 10
            claim(f"{student} moves as real clips do", "motion within 10 %", motion, "%", near)
    if pair := pairs.get("Turbo-4 flow vs Turbo-4"):
        text, hits = "Turbo-4 of the flow teacher is no worse than the UNet's", pair["all"]
        claim(text, "all correct: interval above -3 points", hits, "points", hits["low"] > -3)
    for student in ("Turbo", "Turbo-DMD"):
        if pair := pairs.get(f"{student}-8 vs {student}-4"):
            text, vote = f"{student}: 8 steps are no worse than 4", pair["preference"]
            bar = "judge: 50 % or more within the interval"
            claim(text, bar, vote, "%", vote["high"] >= 50)
    return claims


def find_deviations(committed: dict[str, Any], fresh: dict[str, Any]) -> list[str]:
    """Return the numbers of two reports that differ by more than the tolerance, one line each.

    Raises:
        ValueError: the reports have different settings.
    """
    if committed["settings"] != fresh["settings"]:
        changed = [k for k, v in committed["settings"].items() if fresh["settings"].get(k) != v]
        raise ValueError(
            f"The report was made with other settings: {', '.join(changed)}. "
            "Commit the new one instead."
        )
    lines = []
    for label, numbers in committed["systems"].items():
        for name, old in numbers.items():
            if name in ("seconds", "network calls"):
                continue
            new = fresh["systems"][label][name]
            before, after = (v["mean"] if isinstance(v, dict) else v for v in (old, new))
            slack = RATE_TOLERANCE if name in RATES else MEAN_TOLERANCE * max(abs(before), 0.1)
            if abs(after - before) > slack:
                lines.append(f"{label}, {name}: {before:.4g} became {after:.4g}")
    return lines


def write_report(measured: Measurements, folder: Path, name: str = "evaluation") -> dict[str, Any]:
    """Write NAME.json (all numbers) and NAME.md (the tables); return the report."""
    folder.mkdir(parents=True, exist_ok=True)
    report = build_report(measured)
    text = json.dumps(report, indent=1, allow_nan=False, ensure_ascii=False)
    (folder / f"{name}.json").write_text(text + "\n")
    (folder / f"{name}.md").write_text(format_report(report))
    return report


def format_report(report: dict[str, Any]) -> str:
    """Return the report as Markdown tables."""
    systems, settings = report["systems"], report["settings"]
    rewards = [name for name in next(iter(systems.values())) if name.startswith("reward ")]
    attributes = ["colour", "background", "shape", "motion", "all"]
    looks = ["judge", "judge, quality", "watermark", "washed out"]
    looks += ["sharpness", "flicker", "frechet"]
    motion = ["motion, % of real", "displacement", "frame change", *rewards]
    costs = ["network calls", "seconds"]
    parts = [
        "# Evaluation of the shapes models",
        f"{settings['prompts']} prompts of {settings['scenes']} held-out scenes, the same seeds "
        f"for every system. Intervals: {report['intervals']}. {report['extractor']} Rates in %.",
        *([BASELINES] if "teacher-50" in systems else []),
        *[f"## {title}\n\n{_markdown(systems, columns)}" for title, columns in (
            ("Correct attributes, %", attributes),
            ("Image quality", looks),
            ("Motion and rewards", motion),
            (f"Cost of a clip, in batches of {CHUNK} on one thread", costs),
        )],
        f"## Pairwise comparisons\n\n{_pairs_markdown(report['pairs'])}",
    ]  # fmt: skip
    if report["claims"]:
        claims = pd.DataFrame(report["claims"])
        claims["met"] = claims["met"].map({True: "yes", False: "no"})
        parts.append(f"## Claims\n\n{claims.to_markdown(index=False)}")
    for name, table in report["classes"].items():
        by_class = pd.DataFrame(table).round(0).astype(int)
        parts.append(f"## Correct {name} by class, %\n\n{by_class.to_markdown()}")
    parts.append(f"## Reproduction\n\n{report['tolerance']}")
    return "\n\n".join(parts) + "\n"


def _markdown(systems: dict[str, Any], columns: list[str]) -> str:
    lines = {
        label: {column: _cell(numbers.get(column)) for column in columns}
        for label, numbers in systems.items()
    }
    return pd.DataFrame.from_dict(lines, orient="index").to_markdown(disable_numparse=True)


def _cell(value: Any) -> str:
    match value:
        case None:
            return ""
        case {"mean": mean, "low": low, "high": high}:
            digits = 1 if abs(mean) >= 5 else 2
            return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
        case float():
            return f"{value:.2f}"
        case _:
            return str(value)


def _pairs_markdown(pairs: dict[str, Any]) -> str:
    columns = ("preference", "preference, quality", "wins", "all", "no flaw", "displacement")
    lines = {
        name: {column: _cell(numbers[column]) for column in columns}
        | {"p (preference)": _p(numbers["preference"]["p"]), "p (all)": _p(numbers["all"]["p"])}
        | {"McNemar p (all)": _p(numbers["all"]["mcnemar_p"])}
        for name, numbers in pairs.items()
    }
    table = pd.DataFrame.from_dict(lines, orient="index")
    return (
        "Preference: the judge's expected share of votes for the first system, by its whole score "
        "or by quality only. Wins: share of prompts on which the first scores higher. The other "
        "columns: first minus second.\n\n" + table.to_markdown(disable_numparse=True)
    )


def _p(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"
