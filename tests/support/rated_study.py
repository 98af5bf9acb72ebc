"""A study with real clips and its server, for tests that rate it through a browser."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import pandas as pd
import pytest

from human_eval.clips.ingest import Clip
from human_eval.clips.media import Footage, write_footage
from human_eval.definition.definition import parse_definition
from human_eval.definition.prompts import Prompt
from human_eval.study.queries import read_votes
from human_eval.study.store import StudyStore, create_study
from tests.support.studies import add_clips, free_port

ROOT = Path(__file__).parents[2]
FPS = 16
START_SECONDS = 180  # of patience with a machine that is busy
SECRETS = ["sparrowhawk", "nightingale"]  # the systems; no rater may ever read these words
DEFINITION = """
name = "aviary"
language = "{language}"
title = "Sparrowhawk against nightingale"
raters_per_pair = 3
anonymous = {anonymous}

[[systems]]
key = "sparrowhawk"
title = "Sparrowhawk, 4 steps"

[[systems]]
key = "nightingale"
title = "Nightingale, 50 steps"

[[comparisons]]
key = "birds-of-prey"
a = "sparrowhawk"
b = "nightingale"

[[questions]]
key = "Q1"
wording = "Which video is more visually appealing?"

[[questions]]
key = "Q2"
wording = "Which video better fits the text description?"
ties = "{ties}"

[[questions]]
key = "Q3"
wording = "Which video do you prefer given the prompt?"
primary = true

[viewing]
min_loops = {loops}

[consent]
text = '''
You will watch pairs of short generated videos.
We store your answers under a pseudonym.'''

[codes]
done = "DONE1234"
no_work_left = "NONE1234"
technical = "TECH1234"
screened_out = "OUT12345"
"""


def make_footage(system: int, *, frames: int = 16, width: int = 256, height: int = 160) -> Footage:
    """Draw a square that moves; the frame's number is written in the brightness of a corner."""
    pixels = np.full((frames, height, width, 3), (38, 70, 83), np.uint8)
    for number in range(frames):
        left = (number * (width - 60)) // frames + 10
        top = height // 2 - 30 + (number % 8 if system else 0)
        pixels[number, top : top + 50, left : left + 50] = [(244, 162, 97), (42, 157, 143)][system]
        pixels[number, :16, :16] = 255 * number // frames
    return Footage(pixels, Fraction(FPS))


def make_study(
    folder: Path,
    *,
    pairs: int = 4,
    extra: str = "",
    loops: int = 1,
    anonymous: bool = True,
    frames: int = 16,
    width: int = 256,
    height: int = 160,
    language: str = "en",
    ties: str = "tie",
    prompt: str = "a square number {index} that moves to the right",
) -> StudyStore:
    """Create a study of so many pairs, with clips of one second for sixteen frames."""
    settings = {"loops": loops, "anonymous": str(anonymous).lower()}
    text = DEFINITION.format(**settings, language=language, ties=ties) + extra
    prompts = [Prompt(index, prompt.format(index=index)) for index in range(pairs)]
    store = create_study(folder, parse_definition(text), prompts)
    clips = []
    for number, system in enumerate(store.definition.systems):
        footage = make_footage(number, frames=frames, width=width, height=height)
        pattern = store.media / f"pattern{number}.mp4"
        digest = write_footage(footage, pattern)
        for index in range(pairs):
            name = f"{number}{index:06}{'f' * 25}.mp4"
            shutil.copy(pattern, store.media / name)
            clips.append(
                Clip(
                    system=system.key,
                    prompt_index=index,
                    prompt=prompts[index].text,
                    seed=0,
                    source_sha256=digest,
                    stored_name=name,
                    sha256=digest,
                    width=footage.shape.width,
                    height=footage.shape.height,
                    fps=float(FPS),
                    frames=frames,
                    bytes=pattern.stat().st_size,
                )
            )
        pattern.unlink()
    add_clips(store, clips)
    return store


class RatedStudy:
    """A served study; its server can be killed and restarted."""

    def __init__(self, store: StudyStore) -> None:
        self.store = store
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start the server as an operator does, and wait until it answers."""
        command = ["-m", "human_eval", "serve", str(self.store.folder), "--port", str(self.port)]
        with (self.store.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, stdout=log, stderr=log
            )
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            try:
                with urlopen(f"{self.url}/healthz", timeout=10):
                    return
            except (URLError, ConnectionError, TimeoutError):
                assert self.process.poll() is None, (self.store.folder / "server.log").read_text()
                time.sleep(0.05)
        self.kill()
        raise TimeoutError((self.store.folder / "server.log").read_text())

    def kill(self) -> None:
        """Kill the server."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """Stop the server."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(timeout=30)

    def votes(self) -> pd.DataFrame:
        """Return the stored votes."""
        return read_votes(self.store)


@pytest.fixture
def rate_study(tmp_path: Path) -> Iterator[Callable[..., RatedStudy]]:
    """Serve studies of their own for one test: `rate_study(pairs=4, loops=1, extra="...")`."""
    served: list[RatedStudy] = []

    def serve(**changes) -> RatedStudy:
        study = RatedStudy(make_study(tmp_path / f"rated{len(served)}", **changes))
        served.append(study)
        study.start()
        return study

    yield serve
    for study in served:
        study.stop()
        study.store.close()
