"""What passes between the page and the models: plain data, no tensor in sight."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.world import World

MAX_SEED = 2**32 - 1
MAX_PROMPT = 1000  # characters, as in turbo.pipeline


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """One model as the page shows it: its name, its dials and what it knows."""

    name: str  # key of the model table, e.g. "shapes-turbo"
    title: str  # as people read it
    min_steps: int
    max_steps: int
    default_steps: int
    min_guidance: float
    max_guidance: float
    default_guidance: float
    guidance_note: str  # what that number does in this model, and what it costs
    world: World  # what its prompts may speak of


@dataclass(frozen=True, kw_only=True)
class Request:
    """One video that somebody wants; checked, see `demo.requests`."""

    model: str
    prompt: str
    steps: int
    guidance: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A finished video: its file, where the time went, and how to make it again."""

    path: Path
    seconds: dict[str, float]  # "text", "steps", "decode", "encode", "total"
    unet_calls: int
    frames: int
    fps: float
    recipe: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Update:
    """Where a computation stands, the last one with the clip; or where a download stands."""

    # "load", "text", "denoise", "decode", "encode", "done"; or "download", "check", "convert"
    stage: str
    step: int = 0  # of a download: bytes done
    steps: int = 0  # of a download: bytes in all
    seconds: float = 0.0  # since the computation began
    clip: Clip | None = None


# The Path is where the mp4 goes; closing the generator ends the computation.
Generate = Callable[[Request, Path], Generator[Update, None, None]]
# Brings the weights of a model by that name; closing the generator ends it, and it can go on later.
Fetch = Callable[[str], Generator[Update, None, None]]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One row of the Compare tab."""

    model: str
    steps: int
    title: str
