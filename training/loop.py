"""One training loop for every run: VAE, text tower, teacher, student."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

DrawLoss = Callable[[torch.Generator], Tensor]  # draws a batch, returns its mean loss


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How one network is trained."""

    steps: int
    learning_rate: float
    warmup: int = 200  # steps over which the learning rate rises
    decay: float = 0.3  # last share of the steps, over which it falls to zero
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    clip_norm: float = 1.0  # largest norm of the gradient
    ema: float = 0.999  # decay of the averaged weights; 0 turns averaging off
    checkpoint_every: int = 500  # steps
    seed: int = 0

    def rate(self, step: int) -> float:
        """Return the learning rate: a trapezium, so a longer run may resume from a shorter one."""
        left = (self.steps - step) / max(1, round(self.decay * self.steps))
        return self.learning_rate * min(1, (step + 1) / max(1, self.warmup), left)


@dataclass(frozen=True)
class StepReport:
    """What one step measured."""

    step: int  # steps done
    loss: float  # of this process
    grad_norm: float
    learning_rate: float
    seconds: float


def fit(
    model: nn.Module, draw_loss: DrawLoss, config: FitConfig, checkpoint: Path
) -> Iterator[StepReport]:
    """Train the parameters of `model` that require gradients; yield a report after every step.

    `model` ends with the averaged weights (`config.ema`). Everything random comes from a generator
    seeded by (seed, step, process): a run that was killed resumes from `checkpoint` on the very
    path it was on. Under torchrun gradients are averaged over the processes.
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
            group["lr"] = config.rate(step)
        generator = torch.Generator().manual_seed(
            (config.seed * 1_000_003 + step) * state.num_processes + state.process_index
        )
        loss = draw_loss(generator)
        loss.backward()
        _average_gradients(trained, state)
        grad_norm = nn.utils.clip_grad_norm_(trained, config.clip_norm)
        if not math.isfinite(grad_norm):
            raise FloatingPointError(
                f"Expected a finite gradient, got {grad_norm} at step {step}. "
                f"Lower the learning rate; the last good state is in {checkpoint}."
            )
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(model)
        done = step + 1
        if state.is_main_process and (done % config.checkpoint_every == 0 or done == config.steps):
            _save(checkpoint, model, average, optimizer, done)
        seconds = time.perf_counter() - started
        yield StepReport(done, loss.item(), float(grad_norm), config.rate(step), seconds)
    model.load_state_dict(average.module.state_dict())
    model.eval()


def _ema_rule(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """Average exponentially, but follow closely while the average is young."""

    def rule(averaged: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
        if not averaged.is_floating_point():
            return current
        weight = min(decay, (1 + float(count)) / (10 + float(count)))
        return averaged.lerp(current, 1 - weight)

    return rule


def _average_gradients(trained: list[nn.Parameter], state: PartialState) -> None:
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
    partial.replace(path)  # atomic: a killed run leaves the previous checkpoint whole


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
