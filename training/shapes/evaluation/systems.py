"""The systems to evaluate: models at their settings and drawn clips, and the prompts for all."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import diffusers
import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8

from training.shapes.world.scenes import (
    FPS,
    HELD_OUT_SCENES,
    TEMPLATES,
    TRAIN_SCENES,
    Scene,
    draw_clip,
)
from turbo import __version__
from turbo.card import ModelCard
from turbo.models.registry import find_card
from turbo.networks.lora import LORA_FILE
from turbo.networks.vae import decode_latents, encode_frames
from turbo.pipeline import Result, VideoPipeline
from turbo.video import Video

CHUNK = 16  # prompts that are generated together and cached in one file


@dataclass(frozen=True)
class Prompt:
    """A prompt for every system, with the seed of its noise."""

    scene: Scene
    caption: str
    seed: int


@dataclass(frozen=True, eq=False)
class Samples:
    """The clips of one chunk of prompts, and the cost of each."""

    clips: UInt8[np.ndarray, "N F H W 3"]
    seconds: Float[np.ndarray, " N"]  # nan for real clips
    unet_calls: Float[np.ndarray, " N"]


class Source(Protocol):
    """A source of clips: a model, or drawn clips."""

    @property
    def label(self) -> str: ...

    @property
    def run(self) -> int: ...

    def make(self, prompts: Sequence[Prompt], weights: Path, cache: Path) -> Samples: ...


@dataclass(frozen=True)
class System:
    """A model at one setting; None is the default of its card."""

    label: str
    model: str  # name of a card
    steps: int | None = None
    guidance: float | None = None
    lora: str | None = None  # folder of other adapters, relative to the weights or absolute
    run: int = 1  # of its training; the runs differ in their seeds

    def card(self, weights: Path) -> ModelCard:
        """Return the model's card, with `weights` as its folder."""
        card = replace(find_card(self.model), folder=weights)
        return card if self.lora is None else replace(card, lora=self.lora)

    def settings(self, weights: Path) -> dict[str, object]:
        """Return all settings that the frames depend on, except prompt and seed, as JSON."""
        card = self.card(weights)
        chosen = {
            "weights_sha256": card.weights_sha256(),
            "steps": card.default_steps if self.steps is None else self.steps,
            "guidance": card.default_guidance if self.guidance is None else self.guidance,
        }
        kept = ("name", "sampler", "prediction_type", "beta_end", "flow_shift", "spacing", "eta")
        values = asdict(card)
        own = {name: values[name] for name in (*kept, "origin_steps") if values[name] is not None}
        return own | chosen

    def make(self, prompts: Sequence[Prompt], weights: Path, cache: Path) -> Samples:
        """Generate one clip per prompt, or read the clips of the same settings from the cache."""
        versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
        chosen = [[prompt.caption, prompt.seed] for prompt in prompts]
        recipe = {**self.settings(weights), **versions, "turbo": __version__, "prompts": chosen}
        digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:20]
        path = cache / f"{digest}.npz"
        if path.exists():
            with np.load(path) as file:
                return Samples(file["clips"], file["seconds"], file["unet_calls"])
        samples = self._sample(prompts, load_system(self, weights))
        cache.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{digest}.{os.getpid()}.npz")
        np.savez_compressed(partial, **vars(samples))
        partial.replace(path)  # atomic: a killed run leaves no partial file
        return samples

    def _sample(self, prompts: Sequence[Prompt], pipeline: VideoPipeline) -> Samples:
        """Generate all clips at once, in half the time; each costs an equal share of it."""
        *_, result = pipeline.stream(
            [prompt.caption for prompt in prompts],
            [prompt.seed for prompt in prompts],
            steps=self.steps,
            guidance=self.guidance,
            batch_size=len(prompts),
        )
        assert isinstance(result, Result)
        clips = np.stack([video.frames for video in result.videos])
        seconds = np.full(len(prompts), result.timings["total"] / len(prompts))
        return Samples(clips, seconds, np.full(len(prompts), result.timings["unet_calls"]))


@lru_cache(maxsize=1)
def load_system(system: System, weights: Path) -> VideoPipeline:
    """Load the model of a system from the folder `weights`."""
    return VideoPipeline.load(system.card(weights))


@dataclass(frozen=True)
class RealClips:
    """Clean drawn clips of the prompted scenes; each `salt` is another draw."""

    label: str
    salt: int = 9
    run: int = 1
    reconstructed: bool = False  # encoded and decoded by the VAE: an upper bound for every model

    def make(self, prompts: Sequence[Prompt], weights: Path, cache: Path) -> Samples:
        clips = [draw_clip(p.scene, np.random.default_rng([self.salt, p.seed])) for p in prompts]
        if self.reconstructed:
            clips = [reconstruct_clip(clip, weights) for clip in clips]
        nothing = np.full(len(prompts), np.nan)
        return Samples(np.stack(clips), nothing, nothing)


@torch.inference_mode()
def reconstruct_clip(
    clip: UInt8[np.ndarray, "F H W 3"], weights: Path
) -> UInt8[np.ndarray, "F H W 3"]:
    """Encode and decode a clip with the VAE that every system shares."""
    vae = load_system(System("VAE", "shapes-teacher"), weights).vae
    frames = rearrange(torch.from_numpy(clip) / 255, "F H W C -> 1 F C H W")
    return Video.from_frames(decode_latents(vae, encode_frames(vae, frames)), FPS).frames


RUNS = 3  # trainings of each student, with seeds of their own
SYSTEMS = (
    System("teacher-50", "shapes-teacher", 50),
    System("teacher-50 ODE", "shapes-teacher-ode", 50),
    System("teacher-4", "shapes-teacher", 4),
    System("VCM-4", "shapes-vcm", 4),
    System("VCM+R_img-4", "shapes-vcm", 4, lora="vcm-image"),
    System("VCM+R_vid-4", "shapes-vcm", 4, lora="vcm-video"),
    System("Turbo-2", "shapes-turbo", 2),
    System("Turbo-4", "shapes-turbo", 4),
    System("Turbo-8", "shapes-turbo", 8),
    System("Turbo-DMD-4", "shapes-turbo-dmd", 4),
    System("Turbo-DMD-8", "shapes-turbo-dmd", 8),
)
FLOW_SYSTEMS = (  # the transformer and its students, and the UNet's student that they must equal
    System("teacher-50 flow", "shapes-flow-teacher", 50),
    System("teacher-4 flow", "shapes-flow-teacher", 4),
    System("VCM-4 flow", "shapes-flow-vcm", 4),
    System("Turbo-4 flow", "shapes-flow-turbo", 4),
    System("Turbo-8 flow", "shapes-flow-turbo", 8),
    System("Turbo-4", "shapes-turbo", 4),
)
REAL, RECONSTRUCTED = RealClips("real"), RealClips("real, VAE", reconstructed=True)


def run_folder(run: int) -> Path:
    """Return where the students of a run after the first are, relative to the weights."""
    return Path("runs") / str(run)


def with_further_runs(systems: Sequence[System], weights: Path) -> tuple[System, ...]:
    """Return the systems, and their further runs whose adapters are in `weights`."""
    every = []
    for system in systems:
        every.append(system)
        own = system.card(weights).lora
        for run in range(2, RUNS + 1):
            if own is not None and (weights / run_folder(run) / own / LORA_FILE).exists():
                every.append(replace(system, lora=str(run_folder(run) / own), run=run))
    return tuple(every)


def held_out_prompts(count: int) -> list[Prompt]:
    """Return prompts of held-out scenes, with another wording in each round."""
    prompts = []
    for seed in range(count):
        wording, index = divmod(seed, len(HELD_OUT_SCENES))
        scene = HELD_OUT_SCENES[index]
        prompts.append(Prompt(scene, scene.caption(TEMPLATES[wording % len(TEMPLATES)]), seed))
    return prompts


def tuning_prompts(count: int) -> list[Prompt]:
    """Return prompts for choosing settings: training scenes, evenly spread, with other seeds.

    The scenes are those of the reward models, which the judge was not trained on.
    """
    scenes = TRAIN_SCENES[::2]
    chosen = [scenes[i * len(scenes) // count % len(scenes)] for i in range(count)]
    return [Prompt(scene, scene.caption(), 10_000 + i) for i, scene in enumerate(chosen)]
