"""Measure the shapes systems: every system makes the same held-out prompts from the same seeds."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from einops import rearrange
from statsmodels.stats.proportion import proportion_confint
from tqdm import tqdm

from training.shapes.probes import has_watermark, read_clip, sharpness
from training.shapes.world import FPS, HELD_OUT_SCENES, TEMPLATES, Scene, draw_clip
from turbo.latents import decode_latents, encode_frames
from turbo.models import load_pipeline
from turbo.pipeline import Result
from turbo.video import Video

ATTRIBUTES = ("colour", "background", "shape", "motion", "all")


@dataclass(frozen=True)
class System:
    """A model at one setting; None is the card's default."""

    label: str
    model: str
    steps: int | None = None
    guidance: float | None = None


SYSTEMS = (
    System("teacher, 50 steps", "shapes-teacher", 50),
    System("teacher, 4 steps", "shapes-teacher", 4),
    System("VCM, 4 steps", "shapes-vcm", 4),
    System("VCM, 8 steps", "shapes-vcm", 8),
)
REAL, REBUILT = "real clips", "real clips through the VAE"


def held_out_prompts(count: int) -> list[tuple[Scene, str, int]]:
    """Return (scene, caption, seed) of combinations never trained on, a new wording each round."""
    prompts = []
    for seed in range(count):
        wording, index = divmod(seed, len(HELD_OUT_SCENES))
        scene = HELD_OUT_SCENES[index]
        prompts.append((scene, scene.caption(TEMPLATES[wording % len(TEMPLATES)]), seed))
    return prompts


def measure_systems(
    systems: tuple[System, ...], count: int, workers: int | None = None
) -> pd.DataFrame:
    """Return one row per clip: system, scene, hits, watermark, sharpness, seconds, calls."""
    jobs = [
        (system, start, min(start + 20, count))
        for system in (*systems, System(REAL, ""), System(REBUILT, "shapes-teacher"))
        for start in range(0, count, 20)
    ]
    workers = workers or os.cpu_count() or 1
    with ProcessPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        rows = tqdm(pool.map(_measure_job, jobs), total=len(jobs), desc="evaluate")
        return pd.DataFrame([row for chunk in rows for row in chunk])


def _measure_job(job: tuple[System, int, int]) -> list[dict[str, object]]:
    system, start, stop = job
    prompts = held_out_prompts(stop)[start:]
    clips = _real_clips(system, prompts) if system.label in (REAL, REBUILT) else None
    rows = []
    for (scene, prompt, seed), (clip, timings) in zip(
        prompts, clips or _sampled_clips(system, prompts), strict=True
    ):
        read = read_clip(clip)
        rows.append(
            {"system": system.label, **vars(scene), "prompt": prompt, "seed": seed}
            | {f"hit_{name}": hit for name, hit in read.matches(scene).items()}
            | {f"read_{name}": word for name, word in vars(read).items()}
            | {"watermark": has_watermark(clip), "sharpness": sharpness(clip)}
            | {"seconds": timings.get("total"), "unet_calls": timings.get("unet_calls")}
        )
    return rows


def _sampled_clips(
    system: System, prompts: list[tuple[Scene, str, int]]
) -> Iterator[tuple[np.ndarray, dict[str, float]]]:
    pipeline = load_pipeline(system.model)
    for _, prompt, seed in prompts:
        *_, result = pipeline.stream([prompt], [seed], steps=system.steps, guidance=system.guidance)
        assert isinstance(result, Result)
        yield np.asarray(result.videos[0].frames), result.timings


def _real_clips(
    system: System, prompts: list[tuple[Scene, str, int]]
) -> Iterator[tuple[np.ndarray, dict[str, float]]]:
    vae = load_pipeline(system.model).vae if system.model else None
    for scene, _, seed in prompts:
        clip = draw_clip(scene, np.random.default_rng([9, seed]))
        if vae is not None:
            frames = rearrange(torch.from_numpy(clip) / 255, "F H W C -> 1 F C H W")
            with torch.inference_mode():
                decoded = decode_latents(vae, encode_frames(vae, frames))
            clip = Video.from_frames(decoded, FPS).frames
        yield clip, {}


def tabulate(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one line per system: rates in per cent, sharpness, seconds and network calls."""
    groups = rows.groupby("system", sort=False)
    table = pd.DataFrame(
        {name: 100 * groups[f"hit_{name}"].mean() for name in ATTRIBUTES}
        | {"watermark": 100 * groups["watermark"].mean()}
        | {"washed out": 100 * groups["read_washed_out"].mean()}
        | {"sharpness": groups["sharpness"].mean(), "clips": groups.size()}
        | {"seconds": groups["seconds"].median(), "UNet calls": groups["unet_calls"].median()}
    )
    return table


def tabulate_classes(rows: pd.DataFrame, attribute: str) -> pd.DataFrame:
    """Return the hit rate per class of one attribute (rows) and system (columns), in per cent."""
    hits = rows.pivot_table(f"hit_{attribute}", attribute, "system", sort=False, aggfunc="mean")
    return 100 * hits


def interval(rows: pd.DataFrame, attribute: str) -> pd.DataFrame:
    """Return the 95 % Wilson interval of every system's hit rate, in per cent."""
    groups = rows.groupby("system", sort=False)[f"hit_{attribute}"]
    low, high = proportion_confint(groups.sum(), groups.count(), method="wilson")
    return pd.DataFrame({"low": 100 * low, "high": 100 * high})


def write_report(rows: pd.DataFrame, folder: Path) -> str:
    """Write evaluation.json (all numbers) and evaluation.md (the tables); return the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    table = tabulate(rows)
    classes = {name: tabulate_classes(rows, name) for name in ("shape", "motion")}
    intervals = {name: interval(rows, name).round(2).to_dict("index") for name in ATTRIBUTES}
    content = {
        "systems": table.round(3).astype(object).where(table.notna(), None).to_dict("index"),
        "intervals": intervals,
        "classes": {name: frame.round(2).to_dict() for name, frame in classes.items()},
    }
    (folder / "evaluation.json").write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    parts = [table.round(2).to_markdown(missingval="")]
    parts += [f"{name} by class, %\n\n{t.round(0).to_markdown()}" for name, t in classes.items()]
    text = "\n\n".join(parts) + "\n"
    (folder / "evaluation.md").write_text(text)
    return text
