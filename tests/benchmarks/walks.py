"""Count the files of this repository that one journey passes through.

    python -m tests.benchmarks.walks

A file counts once a function in it is called, in any thread; imports do not count. Prints the files
of every journey in order of entry, a table, and last one JSON line.
"""

import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from time import sleep
from types import FrameType

from human_eval.definition.prompts import Prompt
from human_eval.study.store import StudyStore, create_study
from tests.support.studies import define, fill

ROOT = Path(__file__).parents[2]


class Trace:
    """Records the files entered while it is on. Create it before the threads to be traced."""

    def __init__(self) -> None:
        self.files: dict[str, None] = {}  # in order of entry
        self._on = False
        threading.setprofile(self._see)
        sys.setprofile(self._see)

    @contextmanager
    def on(self) -> Iterator[None]:
        """Record until the end of the block."""
        self.files, self._on = {}, True
        try:
            yield
        finally:
            self._on = False

    def _see(self, frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if not self._on or event != "call" or code.co_name == "<module>":
            return
        path = Path(code.co_filename)
        if path.is_relative_to(ROOT) and ".venv" not in path.parts:
            name = str(path.relative_to(ROOT))
            if not name.startswith("tests"):
                self.files.setdefault(name)


def button_to_clip(trace: Trace, folder: Path) -> None:
    """Press Generate: call the handler of the button, on the real model."""
    from unittest import mock

    from app import open_clip_store, read_flags
    from demo.composition import create_context
    from demo.models import models_to_preload
    from demo.page import build_page

    with mock.patch("sys.argv", ["app.py", "--data-dir", str(folder)]):
        flags = read_flags()
    # The trace sees this process, so the model is loaded here instead of in one of its own.
    here = mock.patch("demo.composition.ModelProcess", lambda load, *_: mock.Mock(load=load))
    with here:
        context = create_context(flags, open_clip_store(flags.data_dir))
    page = build_page(context)
    context.engine.start()
    while not all(context.engine.is_loaded(name) for name in models_to_preload("shapes-turbo")):
        sleep(0.1)
    [handler] = [fn.fn for fn in page.fns.values() if fn.name == "on_generate"]
    arguments = ("a red star jumping in the desert", "shapes-turbo", 4, 1.5, 0, [])
    list(handler(*arguments))
    with trace.on():
        *_, outputs = handler(*arguments)
    trace.files.setdefault("demo/compute/process.py")
    assert outputs, "no clip"


def generate_to_clip(trace: Trace, folder: Path) -> None:
    """Make one clip by the command line; loading the model is no part of the journey."""
    import turbo.generate
    from turbo.request import check_request

    pipeline = turbo.generate.load_pipeline("shapes-turbo")
    prompt = "a red star jumping in the desert"
    list(pipeline.stream([prompt], [0]))
    with trace.on():
        request = check_request(pipeline.card, prompt)
        turbo.generate.make_one(pipeline, request, folder / "clip.mp4")


def answer_to_row(trace: Trace, folder: Path) -> None:
    """Submit the answers to one pair over HTTP, in this process."""
    from fastapi.testclient import TestClient

    from human_eval.server.vote_api import create_app

    with opened_study(folder) as store, TestClient(create_app(store)) as client:
        client.post("/api/enter", json={"consent": True})
        for record in (False, True):  # the first pair fills caches
            claimed = client.post("/api/claim", json={}).json()
            body = {
                "assignment": claimed["assignment"],
                "answers": {key: {"choice": "left", "seconds": 2.0} for key in ("Q1", "Q2")},
                "loops": 1,
            }
            with trace.on() if record else nullcontext():
                reply = client.post("/api/submit", json=body)
            assert reply.status_code == 200, reply.text


def votes_to_chart(trace: Trace, folder: Path) -> None:
    """Read a study's votes and draw its win rates."""
    from human_eval.reporting.charts import draw_win_rates, save_chart
    from human_eval.statistics.votes import counted_votes
    from human_eval.statistics.win_rates import win_rates
    from human_eval.study.queries import read_votes
    from human_eval.study.simulation import Crowd, simulate

    with opened_study(folder) as store:
        simulate(store, Crowd(raters=6))
        with trace.on():
            votes = read_votes(store, simulated=True)
            table = win_rates(counted_votes(votes), store.definition)
            save_chart(draw_win_rates(table, store.definition, simulated=True), folder, "chart")


def batch_to_loss(trace: Trace, folder: Path) -> None:
    """Compute the consistency loss of one batch on the shapes models."""
    import torch

    from turbo.diffusion.distillation import SolverGrid, consistency_loss, draw_batch, student_of
    from turbo.pipeline import load_pipeline

    teacher = load_pipeline("shapes-teacher")
    student = student_of(teacher.unet)
    prompt_embeds, uncond_embeds = teacher.text_encoder.encode(["a red star", ""]).split(1)
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(1, 8, 16, 8, 8, generator=generator)
    scale, grid = torch.tensor([1.5]), SolverGrid(20)
    with trace.on():
        batch = draw_batch(
            clean, prompt_embeds, uncond_embeds, scale, grid=grid, generator=generator
        )
        noisy = batch.add_noise(teacher.schedule)
        consistency_loss(student, student, teacher.unet, noisy, batch, teacher.schedule)


JOURNEYS: dict[str, tuple[Callable[[Trace, Path], None], int]] = {  # with the aim
    "Generate button to clip": (button_to_clip, 12),
    "turbo.generate to clip": (generate_to_clip, 9),
    "POST of an answer to stored row": (answer_to_row, 8),
    "votes to chart": (votes_to_chart, 8),
    "batch to loss": (batch_to_loss, 6),
}


@contextmanager
def opened_study(folder: Path) -> Iterator[StudyStore]:
    """Create a small study with clips that are only names."""
    prompts = [Prompt(index, f"prompt {index}") for index in range(4)]
    with closing(create_study(folder / "study", define(loops=0), prompts)) as store:
        fill(store, len(prompts))
        yield store


def main() -> None:
    """Print every journey, the table and one JSON line."""
    trace, counts = Trace(), {}
    for name, (journey, _) in JOURNEYS.items():
        with TemporaryDirectory() as folder:
            journey(trace, Path(folder))
        counts[name] = len(trace.files)
        print(f"{name}: {', '.join(trace.files)}\n")
    print(f"{'journey':34} files   aim")
    for name, (_, aim) in JOURNEYS.items():
        print(f"{name:34} {counts[name]:5} {aim:5}")
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
