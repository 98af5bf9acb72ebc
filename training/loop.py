"""The training loop that every network here is trained with."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

DrawLoss = Callable[[torch.Generator], Tensor]  # draw a batch, return its mean loss (a scalar)


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Hyperparameters of one run: AdamW, a learning rate schedule and weight averaging."""

    steps: int
    learning_rate: float
    warmup: int = 200  # steps of linear warm-up
    decay: float = 0.3  # last share of the steps, over which the learning rate falls to zero
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    clip_norm: float = 1.0  # of the gradient
    ema: float = 0.999  # decay of the averaged weights; 0 keeps the last weights
    checkpoint_every: int = 500  # steps
    seed: int = 0

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step: linear warm-up, constant, linear decay to zero."""
        left = (self.steps - step) / max(1, round(self.decay * self.steps))
        return self.learning_rate * min(1, (step + 1) / max(1, self.warmup), left)


@dataclass(frozen=True)
class StepStats:
    """Measurements of one training step."""

    step: int  # steps done, this one included
    loss: float  # of this process
    grad_norm: float
    learning_rate: float
    seconds: float


def fit(
    model: nn.Module, draw_loss: DrawLoss, config: FitConfig, checkpoint: Path
) -> Iterator[StepStats]:
    """Train the parameters of `model` that require gradients; yield statistics after every step.

    At the end `model` holds the averaged weights (`config.ema`). All randomness comes from a
    generator seeded by (seed, step, process), so a killed run that resumes from `checkpoint` takes
    the same steps as one that was not killed. A finished run only loads its result. Under torchrun,
    gradients are averaged over the processes.

    Raises:
        FloatingPointError: the gradient is not finite.
    """
    state = PartialState(cpu=not torch.cuda.is_available())
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, betas=config.betas, weight_decay=config.weight_decay, fused=True
    )
    average = AveragedModel(model, avg_fn=_ema_rule(config.ema))
    first = _resume(checkpoint, model, average, optimizer)
    model.train()
    for step in range(first, config.steps):
        started = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate_at(step)
        generator = torch.Generator().manual_seed(
            (config.seed * 1_000_003 + step) * state.num_processes + state.process_index
        )
        loss = draw_loss(generator)
        loss.backward()
        _average_gradients(trained, state)
        grad_norm = nn.utils.clip_grad_norm_(trained, config.clip_norm)
        if not math.isfinite(grad_norm):
            raise FloatingPointError(
                f"Training stopped: the gradient is {grad_norm} at step {step}. "
                f"Lower the learning rate. Checkpoints are saved to {checkpoint}."
            )
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(model)
        done = step + 1
        if state.is_main_process and (done % config.checkpoint_every == 0 or done == config.steps):
            _save(checkpoint, model, average, optimizer, done)
        seconds = time.perf_counter() - started
        yield StepStats(done, loss.item(), float(grad_norm), config.learning_rate_at(step), seconds)
    model.load_state_dict(average.module.state_dict())
    model.eval()


def _ema_rule(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """Return the update rule of an exponential moving average with a shorter memory at its start.

    After `count` updates the decay is min(decay, (1 + count) / (10 + count)).
    """

    def rule(averaged: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
        if not averaged.is_floating_point():
            return current
        weight = min(decay, (1 + float(count)) / (10 + float(count)))
        return averaged.lerp(current, 1 - weight)

    return rule


def _average_gradients(trained: list[nn.Parameter], state: PartialState) -> None:
    """Average the gradients over the processes, in one all-reduce of a flat tensor."""
    if state.num_processes == 1:
        return
    gradients = [weight.grad for weight in trained if weight.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= state.num_processes
    sizes = [gradient.numel() for gradient in gradients]
    for gradient, mean in zip(gradients, flat.split(sizes), strict=True):
        gradient.copy_(mean.view_as(gradient))


def _save(
    path: Path, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, step: int
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    content = {
        "model": model.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
    }
    torch.save(content, partial)
    partial.replace(path)  # atomic: if the run is killed here, the previous checkpoint remains


def _resume(
    path: Path, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer
) -> int:
    if not path.exists():
        return 0
    content = torch.load(path, weights_only=True)
    model.load_state_dict(content["model"])
    average.load_state_dict(content["average"])
    optimizer.load_state_dict(content["optimizer"])
    return content["step"]
