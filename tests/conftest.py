"""What every test shares: fixtures of `tests/support`, and arithmetic that repeats itself."""

import os

import pytest
import torch

# MKL rounds float32 exp, sin and cos by processor family, unless this is set before its first call.
# The last bit of a frequency, times timestep 999, shows in a recording made in float64.
os.environ.setdefault("MKL_CBWR", "COMPATIBLE")

pytest_plugins = [  # `studies` before those that import it
    f"tests.support.{name}"
    for name in ("studies", "browser", "golden", "rated_study", "tiny_models")
]


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Tiny networks run slower on many threads, and a test machine has other work."""
    torch.set_num_threads(1)
