"""The training loop: resumes exactly, averages weights and gradients, stops on NaN."""

import csv
import os
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from training.checkpoints import find_newest, load_newest, save_checkpoint, saved_checkpoints
from training.log import Log
from training.loop import FitConfig, Slot, deal, fit

ROOT = Path(__file__).parents[2]
CONFIG = FitConfig(steps=12, learning_rate=0.05, warmup=2, decay=0.5, ema=0.9, checkpoint_every=4)


@pytest.mark.parametrize("terms, slots", [(1, 1), (2, 8), (3, 8), (3, 3)])
def test_terms_dealt_to_micro_batches_keep_their_weights(terms, slots):
    weights = [0.0] * terms
    for index in range(slots):
        term, factor = deal(terms, Slot(0, index, slots, index == 0, torch.Generator()))
        weights[term] += factor / slots

    assert weights == pytest.approx([1.0] * terms)


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


def test_a_log_has_every_step_once_also_after_a_kill_at_a_checkpoint(tmp_path, monkeypatch):
    def save_and_die(*arguments):
        save_checkpoint(*arguments)
        raise KeyboardInterrupt

    def train() -> list[float]:
        network, log = build_network(), Log(tmp_path / "log.csv")
        steps = fit(network, loss_of(network), CONFIG, tmp_path / "run", on_step=log.add)
        return [stats.loss for stats in steps]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("training.loop.save_checkpoint", save_and_die)
        train()
    losses = train()

    rows = list(csv.DictReader((tmp_path / "log.csv").read_text().splitlines()))
    assert [int(row["step"]) for row in rows] == list(range(1, CONFIG.steps + 1))
    assert [float(row["loss"]) for row in rows[4:]] == losses


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


def steps_of(config: FitConfig, folder: Path, **options) -> tuple[nn.Module, list[float]]:
    """Train a new network; return it with the loss of every step."""
    network = build_network()
    losses = [r.loss for r in fit(network, loss_of(network), config, folder, **options)]
    return network, losses


def test_a_step_of_several_slots_uses_their_mean_gradient(tmp_path: Path):
    config = replace(CONFIG, steps=1, slots=3, clip_norm=1e9, betas=(0.5, 0.75))
    steps_of(config, tmp_path)
    network, gradients = build_network(), []
    for index in range(3):
        generator = torch.Generator().manual_seed((config.seed * 1_000_003) * 3 + index)
        network.zero_grad()
        loss_of(network)(Slot(0, index, 3, index == 0, generator)).backward()
        gradients.append(network.weight.grad.clone())

    state = load_newest(tmp_path)["optimizer"]["state"][0]

    mean = torch.stack(gradients).mean(dim=0)
    assert_close(state["exp_avg"], (1 - config.betas[0]) * mean)
    assert_close(state["exp_avg_sq"], (1 - config.betas[1]) * mean**2)


def test_every_run_step_and_slot_has_its_own_draws(tmp_path: Path):
    seeds = []
    for seed in range(2):
        network = build_network()

        def draw_loss(slot: Slot, network: nn.Module = network) -> torch.Tensor:
            seeds.append(slot.generator.initial_seed())
            return network.weight.sum()

        config = replace(CONFIG, steps=3, slots=2, seed=seed)
        list(fit(network, draw_loss, config, tmp_path / str(seed)))

    assert len(set(seeds)) == 2 * 3 * 2


def test_a_step_trains_in_train_mode_and_reports_the_mean_loss(tmp_path: Path):
    network, modes = build_network().eval(), []

    def draw_loss(slot: Slot) -> torch.Tensor:
        modes.append(network.training)
        return 0 * network.weight.sum() + slot.index

    steps = fit(network, draw_loss, replace(CONFIG, slots=3), tmp_path)

    assert next(steps).loss == pytest.approx((0 + 1 + 2) / 3)
    assert modes == [True] * 3


def test_a_run_ends_with_the_averaged_weights_in_eval_mode(tmp_path: Path):
    network, _ = steps_of(CONFIG, tmp_path)

    content = load_newest(tmp_path)

    assert not network.training
    assert torch.equal(network.weight, content["average"]["weight"])
    assert not torch.equal(network.weight, content["trained"]["weight"])


def test_the_gradient_is_clipped(tmp_path: Path):
    config = replace(CONFIG, steps=1, clip_norm=1e-3)
    steps_of(config, tmp_path)

    state = load_newest(tmp_path)["optimizer"]["state"]

    used = torch.cat([s["exp_avg"].flatten() for s in state.values()]) / (1 - config.betas[0])
    assert used.norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_weight_decay_shrinks_the_weights(tmp_path: Path):
    plain, _ = steps_of(replace(CONFIG, weight_decay=0.0), tmp_path / "plain")
    decayed, _ = steps_of(replace(CONFIG, weight_decay=5.0), tmp_path / "decayed")

    assert decayed.weight.norm() < 0.9 * plain.weight.norm()


def test_the_8_bit_optimiser_is_refused_where_it_is_not_installed(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)

    with pytest.raises(ValueError, match="pip install"):
        steps_of(replace(CONFIG, eight_bit=True), tmp_path)


def test_the_8_bit_optimiser_trains_and_resumes_on_the_same_path(tmp_path: Path):
    pytest.importorskip("bitsandbytes")

    def train(folder: Path, steps: int | None = None) -> list[float]:
        torch.manual_seed(0)
        network = nn.Linear(64, 64)  # 4,096 numbers, the fewest that it keeps in bytes

        def draw_loss(slot: Slot) -> torch.Tensor:
            features = torch.randn(8, 64, generator=slot.generator)
            return (network(features) - features).square().mean()

        return [r.loss for r in islice(fit(network, draw_loss, config, folder), steps)]

    config = replace(CONFIG, learning_rate=0.01, eight_bit=True)
    expected = train(tmp_path / "whole")
    before = train(tmp_path / "killed", 4)

    assert before + train(tmp_path / "killed") == expected
    assert expected[-1] < 0.8 * expected[0]
    [weight, _] = load_newest(tmp_path / "whole")["optimizer"]["state"].values()
    assert "uint8" in str(weight)


def test_the_average_has_a_shorter_memory_at_the_start_of_a_run(tmp_path: Path):
    config = replace(CONFIG, steps=3, checkpoint_every=1, keep=3, ema=0.99)
    steps_of(config, tmp_path)
    one, two, three = (torch.load(p, weights_only=True) for p in saved_checkpoints(tmp_path))

    expected = one["trained"]["weight"]
    for count, content in ((1, two), (2, three)):
        kept = (1 + count) / (10 + count)
        expected = kept * expected + (1 - kept) * content["trained"]["weight"]

    assert_close(three["average"]["weight"], expected)


def test_parameters_have_their_own_rate(tmp_path: Path):
    network, _ = steps_of(CONFIG, tmp_path, rate_factor=lambda name: float(name != "bias"))

    assert torch.equal(network.bias, build_network().bias)
    assert not torch.equal(network.weight, build_network().weight)


def test_the_newest_checkpoints_are_kept(tmp_path: Path):
    steps_of(replace(CONFIG, checkpoint_every=2, keep=3), tmp_path)

    assert [path.stem for path in saved_checkpoints(tmp_path)] == [
        "00000008",
        "00000010",
        "00000012",
    ]


def test_a_stop_request_saves_and_exits_with_143_and_the_run_continues(tmp_path: Path):
    _, expected = steps_of(CONFIG, tmp_path / "whole")
    network, losses = build_network(), []

    with pytest.raises(SystemExit) as stopped:
        steps = fit(
            network,
            loss_of(network),
            CONFIG,
            tmp_path / "stopped",
            should_stop=lambda: len(losses) == 4,  # asked during the fifth step
        )
        for stats in steps:
            losses.append(stats.loss)
    _, after = steps_of(CONFIG, tmp_path / "stopped")

    assert stopped.value.code == 143
    assert losses + after == expected


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"learning_rate": 0.1}, {"slots": 2}, {"steps": 20}]
)
def test_a_run_is_not_continued_with_other_settings(tmp_path: Path, change):
    steps_of(replace(CONFIG, steps=4), tmp_path)

    with pytest.raises(ValueError, match=f"another run: {[*change][0]} was"):
        steps_of(replace(CONFIG, **{"steps": 4, **change}), tmp_path)


def test_a_run_is_not_continued_with_another_network(tmp_path: Path):
    steps_of(CONFIG, tmp_path)
    other = nn.Linear(4, 1)

    with pytest.raises(ValueError, match="another run: weight"):
        next(fit(other, loss_of(other), CONFIG, tmp_path))


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(tmp_path: Path, monkeypatch):
    steps_of(replace(CONFIG, steps=4), tmp_path)
    before = find_newest(tmp_path).read_bytes()

    def fill_disk(content, file) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fill_disk)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, 4, {}, keep=1)

    assert [path.name for path in tmp_path.iterdir()] == ["00000004.pt"]
    assert find_newest(tmp_path).read_bytes() == before


def test_a_gradient_far_above_the_usual_one_stops_the_run(tmp_path: Path):
    config = replace(CONFIG, steps=80, checkpoint_every=10, max_spike=100.0, learning_rate=1e-4)

    def train() -> None:
        network = build_network()
        calm = loss_of(network)

        def draw_loss(slot: Slot) -> torch.Tensor:
            return calm(slot) * (1e6 if slot.step == 60 else 1)

        list(fit(network, draw_loss, config, tmp_path))

    for _ in range(2):  # also when the same command runs again, from the checkpoint before it
        with pytest.raises(FloatingPointError, match="usually"):
            train()

    assert find_newest(tmp_path).stem == "00000060"


def test_the_next_checkpoint_removes_what_a_killed_save_left(tmp_path: Path):
    left = tmp_path / "00000003.pt.partial"
    left.write_bytes(b"half")
    network = build_network()

    list(fit(network, loss_of(network), CONFIG, tmp_path))

    assert [path.suffix for path in tmp_path.iterdir()] == [".pt"]


def test_slots_that_cannot_be_shared_equally_are_refused():
    assert FitConfig(steps=1, learning_rate=1.0, slots=8).slots_per_process(4) == 2
    with pytest.raises(ValueError, match="8 micro-batches"):
        FitConfig(steps=1, learning_rate=1.0, slots=8).slots_per_process(3)


def test_parameters_with_dropout_resume_with_the_same_masks(tmp_path: Path):
    def train(folder: Path, steps: int | None = None) -> list[float]:
        network = build_network()
        drop = nn.Dropout(0.5)

        def draw_loss(slot: Slot) -> torch.Tensor:
            features = torch.randn(8, 3, generator=slot.generator)
            return (network(drop(features)) - 1).square().mean()

        return [r.loss for r in islice(fit(network, draw_loss, CONFIG, folder), steps)]

    expected = train(tmp_path / "whole")
    before = train(tmp_path / "killed", 4)
    torch.manual_seed(123)  # a new process begins elsewhere

    assert before + train(tmp_path / "killed") == expected


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
config = FitConfig(steps=3, learning_rate=0.05, warmup=1, ema=0.5, slots=4, clip_norm=1e9)
losses = [step.loss for step in fit(network, draw_loss, config, Path(sys.argv[1]))]
Path(sys.argv[1], "losses").write_text("\\n".join(map(str, losses)))
"""


@pytest.mark.slow
def test_two_processes_take_the_step_of_one(tmp_path: Path):
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    launch = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    command = [sys.executable, *launch, str(script), str(tmp_path / "two")]
    subprocess.run(command, env=environment, check=True, timeout=300)
    config = FitConfig(steps=3, learning_rate=0.05, warmup=1, ema=0.5, slots=4, clip_norm=1e9)
    _, losses = steps_of(config, tmp_path / "one")

    reported = [*map(float, (tmp_path / "two" / "losses").read_text().split())]
    assert reported == pytest.approx(losses, abs=1e-5)
    one, two = (load_newest(tmp_path / processes) for processes in ("one", "two"))
    for name in one["trained"]:
        assert_close(one["trained"][name], two["trained"][name], rtol=0, atol=1e-5)
    for index, state in one["optimizer"]["state"].items():
        assert_close(
            state["exp_avg"], two["optimizer"]["state"][index]["exp_avg"], atol=1e-5, rtol=0
        )
