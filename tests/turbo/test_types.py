"""Public functions check their arguments at run time, without the type checker of the tests."""

import subprocess
import sys

import pytest

SCRIPT = """
import torch
from tests.support.tiny_models import make_unet
from turbo.diffusion.guidance import guide
from turbo.diffusion.schedule import NoiseSchedule
from turbo.types import Conditioning

latents, times, text = torch.zeros(2, 4, 3, 4, 4), torch.tensor([5, 6]), torch.zeros(2, 6, 16)
schedule, unet = NoiseSchedule.scaled_linear(), make_unet(fps_conditioning=True)
fps = Conditioning(fps=torch.tensor([8, 8]))
assert unet(latents, times, text, fps).shape == latents.shape
WRONG = {
    "fps=8": lambda: Conditioning(fps=8),
    "fps of a smaller batch": lambda: unet(
        latents, times, text, Conditioning(fps=torch.tensor([8]))
    ),
    "one timestep": lambda: unet(latents, times[:1], text, fps),
    "a number as timestep": lambda: unet(latents, 5, text, fps),
    "one prompt": lambda: unet(latents, times, text[:1], fps),
    "one level": lambda: schedule.add_noise(latents, latents, times[:1]),
    "a fractional timestep": lambda: schedule.levels(torch.tensor([0.5])),
    "one scale": lambda: guide(latents, latents, torch.tensor([2.0])),
}
for name, call in WRONG.items():
    try:
        call()
    except ValueError:
        continue
    raise SystemExit(f"accepted: {name}")
"""


@pytest.mark.slow
def test_wrong_arguments_raise_a_value_error():
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)

    assert run.returncode == 0, run.stderr
