"""Measurements of clips: every system generates the same prompts from the same seeds."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from training.shapes.evaluation.judge import JUDGE, Judge, load_judge, to_frames
from training.shapes.evaluation.metrics import Clip, displacement, flicker, frame_change
from training.shapes.evaluation.probes import has_watermark, read_clip, sharpness
from training.shapes.evaluation.systems import CHUNK, Prompt, RealClips, Samples, Source, System
from turbo.types import Reward

REAL_DRAWS = 4  # clean clips per prompt, the reference of the Fréchet distance


@dataclass(frozen=True, eq=False)
class Measurements:
    """One row of numbers per clip, and the judge's features of the clips of every system."""

    rows: pd.DataFrame
    features: dict[str, np.ndarray]  # by label, (clips, D), in the order of the rows
    real_features: np.ndarray  # of other draws of the same scenes
    settings: dict[str, object]  # JSON


def measure_systems(
    systems: Sequence[Source],
    prompts: Sequence[Prompt],
    weights: Path,
    cache: Path,
    *,
    rewards: Mapping[str, Reward] | None = None,
    workers: int | None = None,
) -> Measurements:
    """Generate every prompt with every system and measure the clips.

    Args:
        weights: the folder of the models to measure.
        cache: folder of generated clips. Clips that the same weights generated are read from it.
        rewards: reward models by name; each adds a column `reward_NAME`.
        workers: processes of one thread each; 1 measures in this process, None takes every core.
    """
    workers = workers or os.cpu_count() or 1
    chunks = [prompts[start : start + CHUNK] for start in range(0, len(prompts), CHUNK)]
    jobs = [(system, chunk) for system in systems for chunk in chunks]
    judge, rewards = load_judge(), rewards or {}
    rows: list[dict[str, object]] = []
    features: dict[str, list[np.ndarray]] = {system.label: [] for system in systems}
    work = partial(_measure_job, weights=weights, cache=cache)
    for (system, chunk), (samples, probed) in zip(
        jobs, _run_jobs(work, jobs, workers), strict=True
    ):
        scored, penultimate = score_clips(samples.clips, chunk, judge, rewards)
        features[system.label].append(penultimate)
        rows += [
            {"system": system.label, "run": system.run}
            | {**vars(prompt.scene), "scene": repr(prompt.scene)}
            | {"prompt": prompt.caption, "seed": prompt.seed, **row, **scores}
            for prompt, row, scores in zip(chunk, probed, scored, strict=True)
        ]
    settings = {
        "prompts": len(prompts),
        "scenes": len({prompt.scene for prompt in prompts}),
        "seeds": [prompts[0].seed, prompts[-1].seed],
        "systems": {_name(s): s.settings(weights) for s in systems if isinstance(s, System)},
        "judge_sha256": hashlib.sha256((JUDGE / "judge.safetensors").read_bytes()).hexdigest()[:16],
        "torch": torch.__version__,
    }
    real = np.concatenate([_real_features(chunk, weights, cache, judge) for chunk in chunks])
    joined = {label: np.concatenate(parts) for label, parts in features.items()}
    return Measurements(pd.DataFrame(rows), joined, real, settings)


def _name(system: System) -> str:
    return system.label if system.run == 1 else f"{system.label}, run {system.run}"


Job = tuple[Source, Sequence[Prompt]]
Probed = list[dict[str, object]]


def _run_jobs(
    work: Callable[[Job], tuple[Samples, Probed]], jobs: list[Job], workers: int
) -> Iterator[tuple[Samples, Probed]]:
    """Run the jobs in parallel and yield their results in order, with a progress bar."""
    with tqdm(total=len(jobs), desc="evaluate", unit="chunk", disable=None) as bar:
        if workers == 1:
            for job in jobs:
                yield work(job)
                bar.update()
            return
        context = get_context("spawn")  # torch's threads do not survive a fork
        with ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
            for result in pool.map(work, jobs):
                yield result
                bar.update()


def _measure_job(job: Job, weights: Path, cache: Path) -> tuple[Samples, Probed]:
    system, prompts = job
    samples = system.make(prompts, weights, cache)
    rows = [
        probe_clip(clip, prompt) | {"seconds": float(seconds), "unet_calls": float(calls)}
        for clip, prompt, seconds, calls in zip(
            samples.clips, prompts, samples.seconds, samples.unet_calls, strict=True
        )
    ]
    return samples, rows


def probe_clip(clip: Clip, prompt: Prompt) -> dict[str, object]:
    """Measure a clip without a network: attributes, flaws, motion."""
    read = read_clip(clip)
    return (
        {f"hit_{name}": hit for name, hit in read.matches(prompt.scene).items()}
        | {f"read_{name}": getattr(read, name) for name in vars(prompt.scene)}
        | {"watermark": has_watermark(clip), "washed_out": read.washed_out}
        | {"sharpness": sharpness(clip), "flicker": flicker(clip)}
        | {"displacement": displacement(clip), "frame_change": frame_change(clip)}
    )


@torch.inference_mode()
def score_clips(
    clips: np.ndarray, prompts: Sequence[Prompt], judge: Judge, rewards: Mapping[str, Reward]
) -> tuple[list[dict[str, float]], np.ndarray]:
    """Return the scores of each clip by the judge and the rewards, and the judge's features."""
    frames = to_frames(list(clips))
    features = judge.features(frames)
    quality = judge.rate_quality(features)
    fit = judge.rate_fit(features, [prompt.scene for prompt in prompts])
    columns = {"judge": quality + fit, "judge_quality": quality, "judge_fit": fit}
    captions = [prompt.caption for prompt in prompts]
    columns |= {f"reward_{name}": reward(frames, captions) for name, reward in rewards.items()}
    values = {name: column.tolist() for name, column in columns.items()}
    rows = [{name: column[i] for name, column in values.items()} for i in range(len(clips))]
    return rows, features.numpy()


@torch.inference_mode()
def _real_features(
    prompts: Sequence[Prompt], weights: Path, cache: Path, judge: Judge
) -> np.ndarray:
    draws = [RealClips("reference", salt=100 + draw) for draw in range(REAL_DRAWS)]
    clips = [draw.make(prompts, weights, cache).clips for draw in draws]
    return np.concatenate([judge.features(to_frames(list(part))).numpy() for part in clips])
