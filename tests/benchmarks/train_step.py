"""Time a training step of T2V-Turbo by part, beside a straightforward loop of the same step.

    python -m tests.benchmarks.train_step                 # mid-size, on two CPU threads

The straightforward loop has the structure of the published code: one network for the teacher and
another for the student, two calls of the teacher, no fused attention, three-dimensional
convolutions over time, the prompt projected for every frame, and frames decoded one by one, for
each reward by itself. Both have the same weights, adapters, batch and rewards, and take turns. A
reward is the mean of the pixels: its network would cost both the same.

Prints a table for people and, last, one JSON line for machines.
"""

import argparse
import json
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import nn
from torch.testing import assert_close

from tests.benchmarks.sampling import (
    PROMPT_TOKENS,
    SIZES,
    Contestant,
    Size,
    build,
    make_straightforward,
)
from turbo.diffusion.consistency import bind_consistency_function
from turbo.diffusion.distillation import (
    DistillationBatch,
    SolverGrid,
    consistency_loss,
    draw_batch,
    frozen_shared_copy,
    pseudo_huber,
    student_of,
    update_ema,
)
from turbo.diffusion.guidance import bind_guided
from turbo.diffusion.schedule import NoiseSchedule
from turbo.networks.lora import add_lora
from turbo.rewards import WeightedReward, mix_rewards, stride_frames
from turbo.rewards.feedback import draw_frames
from turbo.types import Frames, Latents, PerVideo

RANK = 64
PARTS = ("teacher", "student", "target", "rewards", "backward", "update")
SEED = 1  # of the frames of the rewards: 11 different ones, their mean number
REWARDS = {6: draw_frames, 8: stride_frames}  # frames of the image and of the video reward


@dataclass
class Clock:
    """Milliseconds of the parts of a step."""

    device: torch.device
    parts: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._wait()
        began = perf_counter()
        yield
        self._wait()
        self.parts[name] = self.parts.get(name, 0.0) + 1000 * (perf_counter() - began)

    def watch(self, network: nn.Module, name: str, without_gradient: str = "") -> None:
        """Count the calls of a network as a part, those without gradient as another one."""
        open_parts: list[Any] = []

        def enter(*_: Any) -> None:
            part = self.part(name if torch.is_grad_enabled() else without_gradient or name)
            part.__enter__()
            open_parts.append(part)

        def leave(*_: Any) -> None:
            open_parts.pop().__exit__(None, None, None)

        network.register_forward_pre_hook(enter)
        network.register_forward_hook(leave)

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)


def brightness(frames: Frames, prompts: list[str]) -> PerVideo:
    return frames.mean(dim=(1, 2, 3, 4))


def draw(size: Size, text_width: int, device: torch.device) -> DistillationBatch:
    """Return a batch of one video."""
    generator = torch.Generator().manual_seed(0)
    return draw_batch(
        torch.randn(1, 4, size.frames, size.height, size.width, generator=generator).to(device),
        torch.randn(1, PROMPT_TOKENS, text_width, generator=generator).to(device),
        torch.randn(1, PROMPT_TOKENS, text_width, generator=generator).to(device),
        torch.tensor([7.5]),
        grid=SolverGrid(50),
        generator=generator,
        fps=torch.tensor([16], device=device),
    )


class Ours:
    """A step by the functions that `training.distil` calls, on one base network."""

    def __init__(self, base: Contestant, schedule: NoiseSchedule, recompute: bool) -> None:
        self.teacher, self.vae, self.schedule = base.unet, base.vae, schedule
        self.student = adapted(student_of(base.unet, share=True))
        self.target = frozen_shared_copy(self.student)
        self.clock = Clock(base.unet.device)
        for name in ("teacher", "student", "target"):
            self.clock.watch(getattr(self, name), name)
        self.recompute = recompute
        if recompute:
            self.student.enable_gradient_checkpointing()
        trained = [weight for weight in self.student.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)

    def step(self, batch: DistillationBatch) -> float:
        consistency = consistency_loss(
            self.student,
            self.target,
            self.teacher,
            batch,
            self.schedule,
        )
        with self.clock.part("rewards"):
            reward = mix_rewards(
                consistency.clean,
                ["a cat"],
                self.vae,
                [
                    WeightedReward(
                        name=str(frames),
                        model=brightness,
                        weight=1.0,
                        frames=frames,
                        select=select,
                    )
                    for frames, select in REWARDS.items()
                ],
                torch.Generator().manual_seed(SEED),
                recompute=self.recompute,
            )
        loss = consistency.value + reward.loss
        with self.clock.part("backward"):
            loss.backward()
        with self.clock.part("update"):
            self.optimizer.step()
            self.optimizer.zero_grad()
            update_ema(self.target, self.student, 0.95)
        return loss.item()


class Straightforward:
    """The same step in the structure of the published code."""

    def __init__(self, base: Contestant, schedule: NoiseSchedule, recompute: bool) -> None:
        plain = make_straightforward(base)
        self.teacher, self.vae, self.schedule = plain.unet, plain.vae, schedule
        self.student = adapted(straight_student(base))
        self.clock = Clock(base.unet.device)
        self.clock.watch(self.teacher, "teacher")
        self.clock.watch(self.student, "student", without_gradient="target")
        if recompute:
            self.student.enable_gradient_checkpointing()
        trained = [weight for weight in self.student.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5)

    def step(self, batch: DistillationBatch) -> float:
        schedule = self.schedule
        noisy = schedule.add_noise(batch.clean, batch.noise, batch.start)
        guidance = batch.guidance_scale
        clean = bind_consistency_function(
            self.student,
            schedule,
            batch.prompt_embeds,
            guidance,
            batch.fps,
        )(noisy, batch.start)
        with torch.no_grad():
            guided = bind_guided(
                self.teacher,
                schedule,
                batch.prompt_embeds,
                batch.uncond_embeds,
                guidance + 1,
                batch.fps,
            )
            split = schedule.split(noisy, guided(noisy, batch.start), batch.start)
            stepped = schedule.ddim_step(*split, batch.end)
            goal = bind_consistency_function(
                self.student,
                schedule,
                batch.prompt_embeds,
                guidance,
                batch.fps,
            )(stepped, batch.end)
        loss = pseudo_huber(clean - goal).mean()
        with self.clock.part("rewards"):
            generator = torch.Generator().manual_seed(SEED)
            for frames, select in REWARDS.items():
                chosen = select(clean.shape[2], frames, generator)
                loss = loss - brightness(self.decode(clean[:, :, chosen]), ["a cat"]).mean()
        with self.clock.part("backward"):
            loss.backward()
        with self.clock.part("update"):
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss.item()

    def decode(self, latents: Latents) -> Frames:
        scaled = latents / self.vae.config.scaling_factor
        frames = [self.vae.decode(frame).sample for frame in scaled.unbind(2)]
        return (torch.stack(frames, 1) / 2 + 0.5).clamp(0, 1)


def adapted(student: nn.Module) -> nn.Module:
    """Add adapters, the same ones every time, that are not zero."""
    student = add_lora(
        student.requires_grad_(False), RANK, generator=torch.Generator().manual_seed(0)
    )
    generator = torch.Generator().manual_seed(1)
    for name, weight in student.named_parameters():
        if weight.requires_grad and not name.endswith("lora_A.default.weight"):
            nn.init.normal_(weight, std=1e-3, generator=generator)
    return student


def straight_student(base: Contestant) -> nn.Module:
    """Return a student with weights of its own."""
    return make_straightforward(Contestant(student_of(base.unet), base.vae, 1)).unet


def bench(
    loops: Mapping[str, Ours | Straightforward], batch: DistillationBatch, repeats: int
) -> dict[str, dict[str, float]]:
    """Return median milliseconds of every part of a step, after one that warms up."""
    first = [loop.step(batch) for loop in loops.values()]
    assert_close(first[0], first[1], rtol=1e-4, atol=1e-4)  # both take the same step
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in loops}
    for _ in range(repeats):
        for name, loop in loops.items():
            loop.clock.parts.clear()
            with loop.clock.part("step"):
                loop.step(batch)
            runs[name].append(dict(loop.clock.parts))
    return {
        name: {part: median(run[part] for run in rows) for part in (*PARTS, "step")}
        for name, rows in runs.items()
    }


def main() -> None:
    options = _read_flags()
    size, device = SIZES[options.size], torch.device(options.device)
    torch.set_num_threads(options.threads)
    base = build(size, device, torch.float32, guidance_size=None)
    schedule = NoiseSchedule.scaled_linear().to(device)
    batch = draw(size, base.unet.config.cross_attention_dim, device)
    kinds = {"straightforward": Straightforward, "this library": Ours}
    loops = {name: kind(base, schedule, options.recompute) for name, kind in kinds.items()}
    rows = bench(loops, batch, options.repeats)
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    print(
        f"{machine}, {options.threads} threads, torch {torch.__version__}, {options.size}, "
        f"{options.repeats} steps, activations {'recomputed' if options.recompute else 'kept'}"
    )
    print(f"{'median ms':16}" + "".join(f"{part:>10}" for part in (*PARTS, "step")))
    for name, row in rows.items():
        print(f"{name:16}" + "".join(f"{row[part]:10.0f}" for part in (*PARTS, "step")))
    ratio = rows["straightforward"]["step"] / rows["this library"]["step"]
    print(f"straightforward / this library: {ratio:.2f}x")
    line = {"bench": "train_step", "machine": machine, "size": options.size}
    line |= {"recompute": options.recompute, "milliseconds": rows, "ratio": ratio}
    print(json.dumps(line))


def _read_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time a training step by part.")
    parser.add_argument("--size", choices=list(SIZES), default="mid")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--recompute", action="store_true", help="activations in the backward pass")
    return parser.parse_args()


if __name__ == "__main__":
    main()
