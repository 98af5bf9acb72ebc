"""The training loop: resumes exactly, averages weights and gradients, stops on NaN."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from training.checkpoints import load_newest, saved_checkpoints
from training.loop import FitConfig, Slot, fit

ROOT = Path(__file__).parents[2]
CONFIG = FitConfig(steps=12, learning_rate=0.05, warmup=2, decay=0.5, ema=0.9, checkpoint_every=4)


def build_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def loss_of(network: nn.Module):
    def draw_loss(slot: Slot) -> torch.Tensor:
        features = torch.randn(8, 3, generator=slot.generator)
        return (network(features) - features.sum(dim=1, keepdim=True)).square().mean()

    return draw_loss


def test_a_killed_run_resumes_on_the_same_path(tmp_path: Path):
    whole, killed = build_network(), build_network()
    expected = [r.loss for r in fit(whole, loss_of(whole), CONFIG, tmp_path / "whole")]

    run = fit(killed, loss_of(killed), CONFIG, tmp_path / "killed")
    for _ in range(7):  # past the checkpoint at 4, short of the one at 8
        next(run)
    run.close()
    resumed = build_network()
    losses = [r.loss for r in fit(resumed, loss_of(resumed), CONFIG, tmp_path / "killed")]

    assert losses == expected[4:]
    for mine, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_finished_run_only_loads_its_result(tmp_path: Path):
    network, again = build_network(), build_network()
    list(fit(network, loss_of(network), CONFIG, tmp_path / "run"))

    assert list(fit(again, loss_of(again), CONFIG, tmp_path / "run")) == []
    assert torch.equal(network.weight, again.weight)


def test_training_lowers_the_loss(tmp_path: Path):
    network = build_network()
    losses = [r.loss for r in fit(network, loss_of(network), CONFIG, tmp_path / "run")]

    assert sum(losses[-3:]) < sum(losses[:3]) / 2


def test_frozen_weights_stay_as_they_were(tmp_path: Path):
    network = build_network()
    network.bias.requires_grad_(False)
    before = network.bias.clone()

    list(fit(network, loss_of(network), CONFIG, tmp_path / "run"))

    assert torch.equal(network.bias, before)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path):
    network = build_network()

    with pytest.raises(FloatingPointError, match="norm nan"):
        next(fit(network, lambda _: network.weight.sum() * float("nan"), CONFIG, tmp_path / "r"))


def test_the_learning_rate_rises_stays_and_falls_to_zero():
    rates = [CONFIG.learning_rate_at(step) for step in range(CONFIG.steps + 1)]

    assert rates[0] == pytest.approx(0.025)
    assert rates[2] == pytest.approx(0.05)
    assert rates[-1] == 0
    assert rates[6:] == sorted(rates[6:], reverse=True)


TWO_PROCESSES = """
import sys
from pathlib import Path
import torch
from torch import nn
from training.loop import FitConfig, fit

torch.manual_seed(0)
network = nn.Linear(3, 1)
def draw_loss(slot):
    features = torch.randn(8, 3, generator=slot.generator)
    return (network(features) - features.sum(dim=1, keepdim=True)).square().mean()
config = FitConfig(steps=5, learning_rate=0.05, warmup=1, ema=0.5)
folder = Path(sys.argv[1])
losses = [r.loss for r in fit(network, draw_loss, config, folder / "run")]
rank = torch.distributed.get_rank()
torch.save([network.weight.detach(), torch.tensor(losses)], folder / f"rank{rank}.pt")
"""


@pytest.mark.slow
def test_two_processes_see_other_data_and_keep_the_same_weights(tmp_path: Path):
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    command = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", str(script)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    subprocess.run(
        [sys.executable, *command, str(tmp_path)], env=environment, check=True, timeout=300
    )

    (weight, losses), (other_weight, other_losses) = (
        torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)
    )
    assert torch.equal(weight, other_weight)
    assert not torch.equal(losses, other_losses)
