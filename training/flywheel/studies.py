"""The studies of a turn: simulated raters of a planted taste vote on clips of two systems."""

import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from string import Template

from human_eval.cli.main import main as human_eval
from human_eval.study.simulation import simulate
from human_eval.study.store import open_study
from training.flywheel import settings
from training.shapes.evaluation.metrics import sprite_row
from training.shapes.evaluation.probes import read_shapes
from training.shapes.world.scenes import SIZE


def hold_study(
    study: Path, prompts: Path, clips: Mapping[str, Path], liking: float, turn: int
) -> Path:
    """Let simulated raters vote on the clips of two systems; return the export of their votes.

    The second system is Turbo-4. An interrupted study is held again from its beginning, with the
    same raters.
    """
    export, unfinished = study / "export", study.with_name(f"{study.name}.unfinished")
    if study.exists():
        return export
    shutil.rmtree(unfinished, ignore_errors=True)
    text = Template(settings.STUDY).substitute(
        system=next(iter(clips)), raters=settings.STUDIES[study.name]
    )
    definition = write_lines(prompts.with_name("study.toml"), [text])
    human_eval(
        ["create", str(unfinished), "--definition", str(definition), "--prompts", str(prompts)]
    )
    human_eval(["ingest", str(unfinished), *(f"{key}={folder}" for key, folder in clips.items())])
    seed = crowd_seed(study.name, turn)
    store = replace(open_study(unfinished), rng=random.Random(seed))  # of the order of the pairs
    crowd = replace(settings.CROWD, seed=seed)
    simulate(store, crowd, utility=cache(lambda clip: rate_height(clip, liking)))
    store.close()
    target = ("--out", str(unfinished / "export"))
    human_eval(["export", str(unfinished), "--simulated", "--clips", *target])
    unfinished.rename(study)
    return export


def crowd_seed(study: str, turn: int) -> int:
    """Return the seed of a study's raters: three times the turn, plus the place in `STUDIES`."""
    return len(settings.STUDIES) * turn + [*settings.STUDIES].index(study)


def rate_height(file: Path, liking: float) -> float:
    """Return the utility of a clip. A clip without a sprite is worse than any with one.

    Raters of the opposite taste like a missing sprite no better.
    """
    row = sprite_row(read_shapes(file))
    return -abs(liking) * SIZE if row is None else -liking * row


def write_lines(file: Path, lines: Sequence[str]) -> Path:
    """Write a file of prompts and return it."""
    file.write_text("".join(f"{line}\n" for line in lines))
    return file
