"""The training loop that every network here is trained with, on accelerate's `Accelerator`."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from training.checkpoints import find_newest, load_newest, save_checkpoint
from training.sharding import copy_whole, divide_like, gather, is_sharded

MASKS = 0x9E3779B9  # separates the seed of dropout masks from that of all other draws
SPIKE_WINDOW = 50  # steps


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Hyperparameters of one run: AdamW, a learning rate schedule and weight averaging."""

    steps: int
    learning_rate: float
    eight_bit: bool = False  # AdamW stores its moments in 8 bits
    warmup: int = 200  # steps of linear warm-up
    decay: float = 0.3  # last share of the steps, over which the learning rate falls to zero
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    clip_norm: float = 1.0  # of the gradient
    ema: float = 0.999  # decay of the averaged weights; 0 keeps the last weights
    slots: int | None = None  # micro-batches per step, over all processes; None is one per process
    max_spike: float | None = None  # stop at a gradient of this many times its usual norm
    checkpoint_every: int = 500  # steps
    keep: int = 1  # checkpoints
    seed: int = 0

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step: linear warm-up, constant, linear decay to zero."""
        left = (self.steps - step) / max(1, round(self.decay * self.steps))
        return self.learning_rate * min(1, (step + 1) / max(1, self.warmup), left)

    def slots_per_process(self, processes: int) -> int:
        """Return how many micro-batches each process computes per step.

        Raises:
            ValueError: they cannot be shared equally.
        """
        slots = self.slots or processes
        if slots % processes:
            raise ValueError(
                f"{processes} processes cannot share the {slots} micro-batches of a step equally. "
                "Start another number of processes, or change run.batch or run.micro_batch."
            )
        return slots // processes


@dataclass(frozen=True)
class Slot:
    """One micro-batch of a step: its place, and the source of everything drawn for it.

    Draws depend on the seed, the step and the slot alone. So they are the same however many
    processes share the slots of a step, and after a killed run has resumed.
    """

    step: int
    index: int  # within the step, from 0
    count: int  # slots of a step, over all processes
    is_first: bool  # of this process in this step
    generator: torch.Generator


def deal(count: int, slot: Slot) -> tuple[int, float]:
    """Deal one of `count` terms of a loss to a micro-batch, in turn.

    Returns:
        the term, and the factor with which the mean over all micro-batches of a step is that of the
        term over those that have it.
    """
    term = slot.index % count
    return term, slot.count / len(range(term, slot.count, count))


DrawLoss = Callable[[Slot], Tensor]  # draw a micro-batch, return its mean loss (a scalar)


@dataclass(frozen=True)
class StepStats:
    """Measurements of one training step."""

    step: int  # steps done, this one included
    loss: float  # mean over all micro-batches of all processes
    grad_norm: float
    learning_rate: float
    seconds: float  # without its checkpoint


class _Objective(nn.Module):
    """The loss as a module's output, so that DDP and autocast see all of its computation."""

    def __init__(self, model: nn.Module, draw_loss: DrawLoss) -> None:
        super().__init__()
        self.model = model
        self.draw_loss = draw_loss

    def forward(self, slot: Slot) -> Tensor:
        return self.draw_loss(slot)


def fit(
    model: nn.Module,
    draw_loss: DrawLoss,
    config: FitConfig,
    folder: Path,
    *,
    accelerator: Accelerator | None = None,
    rate_factor: Callable[[str], float] = lambda name: 1.0,
    companions: Mapping[str, Tensor] | None = None,
    on_step: Callable[[StepStats], None] = lambda stats: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[StepStats]:
    """Train the parameters of `model` that require gradients; yield statistics after every step.

    At the end `model` holds the averaged weights (`config.ema`). A killed run that resumes from
    `folder` takes the same steps as one that was not killed. A finished run only loads its result.
    Under `accelerate launch` or torchrun, gradients are averaged over the processes. Checkpoints
    of a sharded model are whole, so any number of processes can continue them.

    Args:
        folder: of the checkpoints, which hold the trained parameters alone.
        accelerator: with the mixed precision to use; by default there is none.
        rate_factor: of a parameter's learning rate, by its name.
        companions: tensors that `draw_loss` changes in place, saved and restored with the weights.
        on_step: called after every step, before it is saved. A log that it writes therefore has
            every step of a checkpoint, whenever the run is killed.
        should_stop: asked after every step; once any process returns True, the run is saved.

    Raises:
        FloatingPointError: the gradient is not finite, or far above its usual norm.
        SystemExit: of status 143, after `should_stop`.
        ValueError: `folder` holds a run of other settings.
    """
    accelerator = accelerator or Accelerator(cpu=not torch.cuda.is_available())
    processes, rank = accelerator.num_processes, accelerator.process_index
    rounds = config.slots_per_process(processes)
    accelerator.gradient_accumulation_steps = rounds
    objective = accelerator.prepare_model(  # a sharded model averages its gradients itself
        _Objective(model, draw_loss), evaluation_mode=is_sharded(model)
    )
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    optimizer = accelerator.prepare(_optimizer(trained, config, rate_factor))
    average: Mapping[str, Tensor] = trained
    if config.ema:
        average = {name: weight.detach().clone() for name, weight in trained.items()}
    tensors: dict[str, Mapping[str, Tensor]] = {
        "trained": trained,
        "average": average,
        "companions": companions or {},
    }
    first, norms = _resume(folder, tensors, optimizer, config)

    def save(done: int) -> None:
        content: dict[str, Any] = {kind: _detached(kept) for kind, kept in tensors.items()}
        content |= {"optimizer": optimizer.state_dict(), "step": done, "norms": norms}
        content = gather(content, keep=accelerator.is_main_process)
        if accelerator.is_main_process:
            save_checkpoint(folder, done, content | {"config": _identity(config)}, config.keep)
        accelerator.wait_for_everyone()

    model.train()
    for step in range(first, config.steps):
        started, loss = time.perf_counter(), torch.zeros((), device=accelerator.device)
        rate = config.learning_rate_at(step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        for turn in range(rounds):
            slot = _slot(config, step, turn * processes + rank, rounds * processes, turn == 0)
            with accelerator.accumulate(objective):
                torch.manual_seed(slot.generator.initial_seed() ^ MASKS)  # of dropout
                part = objective(slot)
                accelerator.backward(part)
                loss += part.detach().float() / rounds
                if accelerator.sync_gradients:
                    found = accelerator.clip_grad_norm_(trained.values(), config.clip_norm)
                    norm = float(gather(found))
                    norms = [*norms[-SPIKE_WINDOW:], _check_norm(norm, norms, config)]
                optimizer.step()
                optimizer.zero_grad()
        if config.ema:
            _update_average(average, trained, config.ema, step)
        mean_loss, stops = accelerator.reduce(
            torch.stack([loss, loss.new_tensor(float(should_stop()))]), "sum"
        ).tolist()
        done, seconds = step + 1, time.perf_counter() - started
        stats = StepStats(done, mean_loss / processes, norms[-1], rate, seconds)
        on_step(stats)
        if done % config.checkpoint_every == 0 or done == config.steps or stops:
            save(done)
        yield stats
        if stops and done < config.steps:
            raise SystemExit(143)
    copy_whole(average, trained)
    model.eval()


def _slot(config: FitConfig, step: int, index: int, count: int, is_first: bool) -> Slot:
    seed = (config.seed * 1_000_003 + step) * count + index
    return Slot(step, index, count, is_first, torch.Generator().manual_seed(seed))


def _optimizer(
    trained: Mapping[str, nn.Parameter], config: FitConfig, rate_factor: Callable[[str], float]
) -> torch.optim.Optimizer:
    factors: dict[float, list[nn.Parameter]] = {}
    for name, weight in trained.items():
        factors.setdefault(rate_factor(name), []).append(weight)
    groups = [{"params": weights, "factor": factor} for factor, weights in factors.items()]
    if config.eight_bit:
        return _eight_bit(groups, config)
    return torch.optim.AdamW(
        groups, betas=config.betas, weight_decay=config.weight_decay, fused=True
    )


def _eight_bit(groups: list[dict[str, Any]], config: FitConfig) -> torch.optim.Optimizer:
    """Return bitsandbytes' AdamW, as in the published code.

    Moments of tensors below 4,096 numbers stay in float32.

    Raises:
        ValueError: it is not installed.

    Source: 8-bit Optimizers via Block-wise Quantization, arXiv:2110.02861.
    """
    try:
        import bitsandbytes
    except ImportError as failure:
        raise ValueError(
            "The 8-bit optimiser needs the package bitsandbytes, which is not installed. Run: "
            'pip install bitsandbytes, or set run.optimizer = "adamw".'
        ) from failure
    return bitsandbytes.optim.AdamW8bit(
        groups, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
    )


def _check_norm(norm: float, recent: list[float], config: FitConfig) -> float:
    """Return the norm of a gradient that may be used.

    Raises:
        FloatingPointError: it is not finite, or `config.max_spike` times the median of the last.
    """
    usual = median(recent) if len(recent) >= SPIKE_WINDOW else math.inf
    if math.isfinite(norm) and norm <= (config.max_spike or math.inf) * usual:
        return norm
    usually = f", usually {usual:.3g}" if usual < math.inf else ""
    raise FloatingPointError(
        f"Training stopped before it used a gradient of norm {norm}{usually}. The weights are "
        "unharmed, and checkpoints are kept. Run the same command again to continue from the last "
        "one; if it stops at the same step, lower the learning rate or the weight of the rewards."
    )


@torch.no_grad()
def _update_average(
    average: Mapping[str, Tensor], trained: Mapping[str, Tensor], decay: float, count: int
) -> None:
    """Move the averaged weights, with a shorter memory at the start of a run.

    After `count` updates the decay is min(decay, (1 + count) / (10 + count)); the first one copies.
    """
    kept = min(decay, (1 + count) / (10 + count)) if count else 0.0
    for name, weight in trained.items():
        average[name].lerp_(weight, 1 - kept)


def _detached(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _identity(config: FitConfig) -> dict[str, Any]:
    """Return the settings that a resumed run must share with the run it continues."""
    free = {"checkpoint_every", "keep", "max_spike"}
    settings = {name: value for name, value in asdict(config).items() if name not in free}
    if not config.eight_bit:
        del settings["eight_bit"]  # runs from before there was the choice have none
    return settings | {"betas": list(config.betas)}


def _resume(
    folder: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    optimizer: torch.optim.Optimizer,
    config: FitConfig,
) -> tuple[int, list[float]]:
    """Load the newest checkpoint, if there is one.

    Returns:
        how many steps are done, and the norms of the last gradients.

    Raises:
        ValueError: it is of another run.
    """
    content = load_newest(folder)
    if content is None:
        return 0, []
    saved, wanted = content["config"], _identity(config)
    changed = sorted(n for n in wanted | saved if saved.get(n) != wanted.get(n))
    others = [
        name
        for kind, kept in tensors.items()
        for name in content[kind].keys() ^ kept.keys()
        | {n for n in content[kind].keys() & kept.keys() if content[kind][n].shape != kept[n].shape}
    ]
    if changed or others:
        difference = (
            f"{changed[0]} was {saved.get(changed[0])!r} and is {wanted.get(changed[0])!r}"
            if changed
            else f"{others[0]} is in only one of them, or of another size"
        )
        raise ValueError(
            f"{find_newest(folder)} belongs to another run: {difference}. Restore the former "
            "setting to continue that run, or choose another folder to start a new one."
        )
    for kind, kept in tensors.items():
        copy_whole(content[kind], kept)
    states = content["optimizer"]["state"]
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for index, weight in enumerate(weights):
        for key, kept in states.get(index, {}).items():
            if isinstance(kept, Tensor) and kept.shape == weight.shape:  # one for each number
                states[index][key] = divide_like(kept, weight)
    optimizer.load_state_dict(content["optimizer"])
    return content["step"], content.get("norms", [])  # earlier versions saved none
