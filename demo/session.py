"""What passes between the page and the models: plain data, without tensors."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class EngineError(RuntimeError):
    """A model cannot be loaded or downloaded, or a computation failed. Visitors see the text."""


class ServerStopping(EngineError):
    """The page's program is ending; the model has not failed."""

    def __init__(self) -> None:
        super().__init__("The server is shutting down. Try again when it is back.")


@dataclass(frozen=True, kw_only=True)
class GeneratedClip:
    """A finished mp4 file, what it cost, and the recipe that makes it again."""

    path: Path
    seconds: dict[str, float]  # "text", "steps", "decode", "encode", "total"
    unet_calls: int
    frames: int
    fps: float
    recipe: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Update:
    """The progress of a computation or download. A computation ends with the clip."""

    # "load", "text", "denoise", "decode", "encode", "done"; or "download", "check", "convert"
    stage: str
    step: int = 0  # denoising steps done; bytes done, of a download
    steps: int = 0  # denoising steps in total; bytes in total, of a download
    seconds: float = 0.0  # since the start
    clip: GeneratedClip | None = None


Updates = Generator[Update, None, None]  # closing it stops the computation or the download
Download = Callable[[str], Updates]  # takes the name of a model; a later call resumes


@dataclass(frozen=True, kw_only=True)
class CompareRow:
    """One row of the Compare tab: a model at a number of steps."""

    model: str
    steps: int
    title: str
