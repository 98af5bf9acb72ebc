"""A stand-in for the models: deterministic coloured frames, and a log of what was computed."""

import hashlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import av
import numpy as np

from demo.clip_store import ClipStore
from demo.compute.engine import Engine, Generate
from demo.context import PageContext
from demo.dropped_clips import DroppedClips
from demo.models import ModelInfo, Request
from demo.session import CompareRow, GeneratedClip, Update, Updates
from demo.world import World
from human_eval.server.study_mount import StudyMount
from turbo.models.registry import MODELS as CARDS
from turbo.video import X264_OPTIONS

FRAMES, SIDE, FPS = 16, 64, 8
CONTACT = "operator@lab.example"

WORLD = World.from_json(
    {
        "template": "a {colour} {shape} {motion} {background}",
        "colours": ["red", "green", "blue", "yellow", "orange"],
        "shapes": ["star", "circle", "square", "heart"],
        "motions": ["moving left", "moving right", "jumping", "standing still"],
        "backgrounds": ["on a black background", "on a white background", "in the desert"],
        "examples": [
            "a red star moving left on a black background",
            "a blue heart jumping on a white background",
            "a green circle standing still in the desert",
            "a yellow square moving right on a black background",
        ],
    }
)


def _model(name: str, title: str, *, teacher: bool) -> ModelInfo:
    card = replace(
        CARDS["shapes-turbo"],
        name=name,
        title=title,
        min_steps=1,
        max_steps=100 if teacher else 8,
        default_steps=50 if teacher else 4,
        guidance_kind="Classifier-free: two calls a step"
        if teacher
        else "Embedded w: one call a step",
        min_guidance=1.0,
        max_guidance=15.0,
        default_guidance=3.0 if teacher else 7.5,
    )
    return ModelInfo(card=card, world=WORLD)


MODELS = {
    "fake-student": _model("fake-student", "Fake student", teacher=False),
    "fake-teacher": _model("fake-teacher", "Fake teacher", teacher=True),
}
ROWS = [
    CompareRow(model="fake-teacher", steps=12, title="Teacher · 12 steps"),
    CompareRow(model="fake-teacher", steps=4, title="Teacher · 4 steps"),
    CompareRow(model="fake-student", steps=4, title="Student · 4 steps"),
]


class FakeEngine:
    """Generates at a fixed pace. `log` has what really ran, whatever the page shows."""

    def __init__(self, seconds_per_step: float = 0.2, log_file: Path | None = None) -> None:
        self.seconds_per_step = seconds_per_step
        self.log_file = log_file
        self.log: list[str] = []
        self._lock = threading.Lock()

    def load(self, name: str) -> Generate:
        """Return the function that generates with a model, as `demo.models.load_model` does."""
        return partial(self.generate, name)

    def note(self, event: str) -> None:
        """Log an event; the monotonic time comes first in the file."""
        with self._lock:
            self.log.append(event)
            if self.log_file:
                with self.log_file.open("a") as file:
                    file.write(f"{time.monotonic():.3f} {event}\n")

    def generate(self, model: str, request: Request, path: Path) -> Updates:
        """Generate the clip of a request: one colour per frame, determined by the request."""
        start = time.perf_counter()
        self.note(f"begin {request.steps}")
        try:
            yield Update(stage="text", seconds=time.perf_counter() - start)
            if "explode" in request.prompt:
                raise RuntimeError(f"Secret detail about {request.prompt} in /etc/secret")
            for step in range(request.steps):
                time.sleep(self.seconds_per_step)
                self.note(f"step {step + 1}")
                yield Update(
                    stage="denoise",
                    step=step + 1,
                    steps=request.steps,
                    seconds=time.perf_counter() - start,
                )
            yield Update(stage="decode", seconds=time.perf_counter() - start)
            save_colours(model, request, path)
            self.note("end")
            clip = _clip(model, request, path, time.perf_counter() - start)
            yield Update(stage="done", clip=clip)
        except GeneratorExit:
            self.note("stopped")
            raise


def create_fake_context(
    load: Callable[[str], Generate], data_dir: Path, study: StudyMount
) -> PageContext:
    """Return what the page gets, with the fake models in place of the library's."""
    return PageContext(
        models=MODELS,
        default_model="fake-student",
        rows=ROWS,
        engine=Engine(load, MODELS, ClipStore(data_dir / "clips")),
        study=study,
        dropped=DroppedClips(data_dir / "dropped"),
        contact=CONTACT,
    )


def save_colours(model: str, request: Request, path: Path) -> None:
    """Write frames of one colour each; model and request determine every byte."""
    digest = hashlib.sha256(f"{model} {request}".encode()).digest()
    with av.open(str(path), "w", format="mp4") as container:
        container.metadata["comment"] = json.dumps({"model": model, **asdict(request)})
        stream = container.add_stream("libx264", rate=FPS, options=X264_OPTIONS)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for index in range(FRAMES):
            pixels = np.full((SIDE, SIDE, 3), list(digest[:3]), dtype=np.uint8)
            pixels[:, : 4 * (index + 1)] = list(digest[3:6])
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _clip(model: str, request: Request, path: Path, total: float) -> GeneratedClip:
    calls = request.steps * (2 if model == "fake-teacher" else 1)
    return GeneratedClip(
        path=path,
        seconds={
            "text": 0.001,
            "steps": total - 0.03,
            "decode": 0.02,
            "encode": 0.009,
            "total": total,
        },
        unet_calls=calls,
        frames=FRAMES,
        fps=FPS,
        recipe={"model": model, **asdict(request)},
    )
