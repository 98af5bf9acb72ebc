"""A stand-in for the models: deterministic coloured frames, and a log of what it computed."""

import hashlib
import threading
import time
from collections.abc import Generator
from pathlib import Path

import av
import numpy as np

from demo.session import Clip, Contender, ModelInfo, Request, Update
from demo.world import World

FRAMES, SIDE, FPS = 16, 64, 8

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
    return ModelInfo(
        name=name,
        title=title,
        min_steps=1,
        max_steps=100 if teacher else 8,
        default_steps=50 if teacher else 4,
        guidance_note="Classifier-free: two calls a step"
        if teacher
        else "Embedded w: one call a step",
        min_guidance=1.0,
        max_guidance=15.0,
        default_guidance=3.0 if teacher else 7.5,
        world=WORLD,
    )


MODELS = {
    model.name: model
    for model in (
        _model("fake-student", "Fake student", teacher=False),
        _model("fake-teacher", "Fake teacher", teacher=True),
    )
}
CONTENDERS = [
    Contender(model="fake-teacher", steps=12, title="Teacher · 12 steps"),
    Contender(model="fake-teacher", steps=4, title="Teacher · 4 steps"),
    Contender(model="fake-student", steps=4, title="Student · 4 steps"),
]


class FakeEngine:
    """Generates with a fixed pace; `log` tells what really ran, whatever the page shows."""

    def __init__(self, seconds_per_step: float = 0.2, log_file: Path | None = None) -> None:
        self.seconds_per_step = seconds_per_step
        self.log_file = log_file
        self.log: list[str] = []
        self._lock = threading.Lock()

    def note(self, event: str) -> None:
        """Write down what happened; the time in front is the monotonic clock."""
        with self._lock:
            self.log.append(event)
            if self.log_file:
                with self.log_file.open("a") as file:
                    file.write(f"{time.monotonic():.3f} {event}\n")

    def generate(self, request: Request, path: Path) -> Generator[Update, None, None]:
        """Make the clip of a request, one colour a frame, as the recipe decides."""
        began = time.perf_counter()
        self.note(f"begin {request.steps}")
        try:
            yield Update(stage="text", seconds=time.perf_counter() - began)
            if "explode" in request.prompt:
                raise RuntimeError(f"Secret detail about {request.prompt} in /etc/secret")
            for step in range(request.steps):
                time.sleep(self.seconds_per_step)
                self.note(f"step {step + 1}")
                yield Update(
                    stage="denoise",
                    step=step + 1,
                    steps=request.steps,
                    seconds=time.perf_counter() - began,
                )
            yield Update(stage="decode", seconds=time.perf_counter() - began)
            save_colours(request, path)
            self.note("end")
            yield Update(stage="done", clip=_clip(request, path, time.perf_counter() - began))
        except GeneratorExit:
            self.note("stopped")
            raise


def save_colours(request: Request, path: Path) -> None:
    """Write frames of one colour each, decided by the recipe alone."""
    digest = hashlib.sha256(repr(request).encode()).digest()
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for index in range(FRAMES):
            pixels = np.full((SIDE, SIDE, 3), list(digest[:3]), dtype=np.uint8)
            pixels[:, : 4 * (index + 1)] = list(digest[3:6])
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _clip(request: Request, path: Path, total: float) -> Clip:
    calls = request.steps * (2 if request.model == "fake-teacher" else 1)
    return Clip(
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
        recipe={
            "model": request.model,
            "prompt": request.prompt,
            "seed": request.seed,
            "steps": request.steps,
            "guidance": request.guidance,
        },
    )
