"""The commands of this repository that a turn runs: generation and training."""

import os
import subprocess
import sys
from pathlib import Path

from training.flywheel import settings


def generate(
    model: str,
    prompts: Path,
    clips: Path,
    processes: int,
    seed: int = 0,
    models: Path | None = None,
) -> None:
    """Generate the clips of the prompts that do not exist yet."""
    arguments = ("--prompts", prompts, "--model", model, "--seed", seed, "--out", clips)
    run("turbo.generate", *map(str, arguments), processes=processes, models=models)


def distil(name: str, start: str, folder: Path, prompts: Path, steps: int, processes: int) -> str:
    """Train a student with the reward of the votes and the shipped ones; return its folder."""
    out = folder / "run"
    made = out / "models" / name
    mine = f'{{ name = "mine", folder = "{folder}/mine", weight = {settings.VOTE_WEIGHT} }}'
    rewards = f"[{mine}, {settings.SHIPPED_REWARDS}]"
    changes = {
        "name": name, "student.start": start, "data.prompts": prompts, "rewards": rewards,
        "run.out": out, "run.steps": settings.FAKE_WARMUP + steps,
        "matching.warmup": settings.FAKE_WARMUP,
    }  # fmt: skip
    if not (made / "card.json").exists():
        arguments = [f"{key}={value}" for key, value in changes.items()]
        command = (str(settings.STUDENT_CONFIG), *settings.CHANGES, *arguments)
        equal = max(count for count in range(1, processes + 1) if settings.SLOTS % count == 0)
        run("training.distil", *command, processes=equal, models=folder)
    return str(made)


def run(module: str, *arguments: str, processes: int, models: Path | None) -> None:
    """Run a command of this repository in several processes of one thread each.

    Args:
        models: folder of models that it also finds by name.
    """
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m")
    print(f"python -m {module} {' '.join(arguments)}", flush=True)
    command = [sys.executable, "-m", *(torchrun if processes > 1 else ()), module, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if models is not None:
        environment["T2V_MODELS_DIR"] = str(models)
    subprocess.run(command, env=environment, check=True)
