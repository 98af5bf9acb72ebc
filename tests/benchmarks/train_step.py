"""Time a training step of T2V-Turbo by part, beside a straightforward loop of the same step.

    python -m tests.benchmarks.train_step                 # mid-size, on two CPU threads
    python -m tests.benchmarks.train_step --size full --device cuda --rewards networks

The straightforward loop has the structure of the published code: one network for the teacher and
another for the student, two calls of the teacher, three-dimensional convolutions over time, the
prompt projected for every frame, adapters beside their layers, and the frames of each reward
decoded by themselves, in one batch. It is timed with and without fused attention, which the
published code takes from a library that may be missing, and with its activations kept and, as
published, recomputed. All have the same weights, adapters, batch, precision and rewards, and take
turns. None has dropout, which the published networks have, so that all compute the same, nor
clipping; the average of the weights is of our loop alone. Without `--rewards networks` a reward is
the mean of the pixels; with it, random networks of the sizes of HPSv2.1 and ViCLIP.

On a GPU it also prints the peak of memory of every loop, without the weights of the others; and
that of our loop without rewards, which `training.distil --dry-run` forecasts.

Prints a table for people and, last, one JSON line for machines.
"""

import argparse
import json
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from einops import rearrange
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import CLIPConfig, CLIPModel

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
from turbo.networks.lora import FOLDING, add_lora
from turbo.networks.text import clip_tokenizer
from turbo.networks.unet import VideoUNet
from turbo.rewards.feedback import WeightedReward, mix_rewards, recompute_blocks, stride_frames
from turbo.rewards.image_text import VIT_H_CONFIG, ImageTextReward
from turbo.rewards.preprocess import letterbox
from turbo.rewards.viclip import ViCLIP, ViCLIPConfig, VideoTextReward
from turbo.types import Frames, Latents, PerVideo, Reward

RANK = 64
PARTS = ("teacher", "student", "target", "rewards", "backward", "update")
SEED = 1  # of the frames of the rewards: 11 different ones, their mean number
IMAGE_FRAMES, VIDEO_FRAMES = 6, 8


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


def build_rewards(kind: str, device: torch.device, dtype: torch.dtype) -> list[WeightedReward]:
    """Return an image and a video reward: means of the pixels, or random networks."""
    models: list[Reward] = [brightness, brightness]
    if kind == "networks":
        torch.manual_seed(0)
        tokenizer = clip_tokenizer()
        with device:
            networks = CLIPModel(CLIPConfig(**VIT_H_CONFIG)), ViCLIP(ViCLIPConfig())
        image, video = (network.to(dtype) for network in networks)
        models = [ImageTextReward(image, tokenizer, letterbox), VideoTextReward(video, tokenizer)]
        tokenizer.model_max_length = ViCLIPConfig().length  # of the shorter one, for both
    shared: dict[str, Any] = {"weight": 1.0}
    return [
        WeightedReward(name="image", model=models[0], frames=IMAGE_FRAMES, **shared),
        WeightedReward(
            name="video", model=models[1], frames=VIDEO_FRAMES, select=stride_frames, **shared
        ),
    ]


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

    def __init__(
        self,
        base: Contestant,
        schedule: NoiseSchedule,
        rewards: list[WeightedReward],
        *,
        recompute: bool,
    ) -> None:
        self.teacher, self.vae, self.schedule = base.unet, base.vae, schedule
        self.rewards = rewards
        self.student = adapted(student_of(base.unet, share=True))
        self.target = frozen_shared_copy(self.student)
        self.clock = Clock(self.teacher.device)
        for name in ("teacher", "student", "target"):
            self.clock.watch(getattr(self, name), name)
        self.recompute = recompute
        if recompute:
            self.student.enable_gradient_checkpointing()
            for reward in rewards:
                recompute_blocks(reward.model)
        trained = [weight for weight in self.student.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)

    def loss(self, batch: DistillationBatch) -> Tensor:
        noisy = batch.add_noise(self.schedule)
        consistency = consistency_loss(
            self.student, self.target, self.teacher, noisy, batch, self.schedule
        )
        with self.clock.part("rewards"):
            reward = mix_rewards(
                consistency.clean,
                ["a cat"],
                self.vae,
                self.rewards,
                torch.Generator().manual_seed(SEED),
                recompute=self.recompute,
            )
        return consistency.value + reward.loss

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()
        update_ema(self.target, self.student, 0.95)


class Straightforward:
    """The same step in the structure of the published code."""

    def __init__(
        self,
        networks: tuple[Contestant, VideoUNet],
        schedule: NoiseSchedule,
        rewards: list[WeightedReward],
        *,
        recompute: bool,
        fused: bool = False,
    ) -> None:
        plain, student = networks
        self.teacher, self.vae, self.schedule = frozen_shared_copy(plain.unet), plain.vae, schedule
        self.rewards = rewards
        self.student = adapted(frozen_shared_copy(student))
        for module in self.student.modules():
            if isinstance(module, LoraLayer):  # computes W x + B (A x)
                module.__class__ = next(c for c in type(module).__mro__ if c in FOLDING)
        if fused:
            for module in (*self.teacher.modules(), *self.student.modules()):
                if isinstance(module, Attention):
                    module.set_processor(EveryFrameFused())
        self.clock = Clock(self.teacher.device)
        self.clock.watch(self.teacher, "teacher")
        self.clock.watch(self.student, "student", without_gradient="target")
        if recompute:
            self.student.enable_gradient_checkpointing()
        trained = [weight for weight in self.student.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5)

    def loss(self, batch: DistillationBatch) -> Tensor:
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
            for reward in self.rewards:
                chosen = reward.select(clean.shape[2], reward.frames, generator)
                loss = loss - reward.model(self.decode(clean[:, :, chosen]), ["a cat"]).mean()
        return loss

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def decode(self, latents: Latents) -> Frames:
        scaled = (latents / self.vae.config.scaling_factor).to(self.vae.dtype)
        frames = self.vae.decode(rearrange(scaled, "1 C F h w -> F C h w")).sample
        return (frames[None].to(latents.dtype) / 2 + 0.5).clamp(0, 1)


class EveryFrameFused(AttnProcessor2_0):
    """Fused attention, which projects the prompt again for every frame."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        frames: int = 1,
    ) -> Tensor:
        return super().__call__(attn, hidden_states, encoder_hidden_states)


def adapted(student: nn.Module) -> nn.Module:
    """Add adapters, the same ones every time, that are not zero."""
    student = add_lora(
        student.requires_grad_(False), RANK, generator=torch.Generator().manual_seed(0)
    )
    generator = torch.Generator().manual_seed(1)
    for name, weight in student.named_parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
            if not name.endswith("lora_A.default.weight"):
                weight.data = (
                    torch.randn(weight.shape, generator=generator).mul_(1e-3).to(weight.data)
                )
    return student


def straight_networks(base: Contestant) -> tuple[Contestant, VideoUNet]:
    """Return a teacher with its VAE, and a student with weights of its own."""
    student = make_straightforward(Contestant(student_of(base.unet), base.vae, 1)).unet
    return make_straightforward(base), student.requires_grad_(False)


Loop = Ours | Straightforward


def step(loop: Loop, batch: DistillationBatch, dtype: torch.dtype) -> float:
    """Train one step; return its loss."""
    device = batch.clean.device.type
    with loop.clock.part("step"):
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            loss = loop.loss(batch)
        with loop.clock.part("backward"):
            loss.backward()
        with loop.clock.part("update"):
            loop.update()
    return loss.item()


def bench(
    makers: Mapping[str, Callable[[], Loop]],
    batch: DistillationBatch,
    dtype: torch.dtype,
    repeats: int,
) -> dict[str, dict[str, float]]:
    """Return median milliseconds of every part of a step, and its peak in GiB, by loop."""
    loops = {name: make() for name, make in makers.items()}
    first = {name: step(loop, batch, dtype) for name, loop in loops.items()}  # warms up
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    for loss in first.values():  # all take the same step
        assert_close(loss, next(iter(first.values())), rtol=tolerance, atol=tolerance)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in loops}
    for _ in range(repeats):
        for name, loop in loops.items():
            loop.clock.parts.clear()
            if batch.clean.is_cuda:
                torch.cuda.reset_peak_memory_stats()
                others = torch.cuda.memory_allocated() - count_weights(loop)
            step(loop, batch, dtype)
            peak = torch.cuda.max_memory_allocated() - others if batch.clean.is_cuda else 0
            runs[name].append(loop.clock.parts | {"GiB": peak / 2**30})
    return {
        name: {part: median(run.get(part, 0.0) for run in rows) for part in (*PARTS, "step", "GiB")}
        for name, rows in runs.items()
    }


def count_weights(loop: Loop) -> int:
    """Return the bytes of everything that a loop holds between two steps."""
    networks = [loop.teacher, loop.student, getattr(loop, "target", None), loop.vae]
    networks += [reward.model for reward in loop.rewards]
    tensors = [p for n in networks if isinstance(n, nn.Module) for p in n.parameters()]
    tensors += [t for state in loop.optimizer.state.values() for t in state.values()]
    return sum({t.data_ptr(): t.nbytes for t in tensors if t.is_cuda}.values())


def main() -> None:
    options = _read_flags()
    size, device = SIZES[options.size], torch.device(options.device)
    torch.set_num_threads(options.threads)
    dtype = {"no": torch.float32, "bf16": torch.bfloat16}[options.precision]
    base = build(size, device, dtype, guidance_size=None)
    schedule = NoiseSchedule.scaled_linear().to(device)
    batch = draw(size, base.unet.config.cross_attention_dim, device)
    straight = straight_networks(base)
    kept, recomputed = (build_rewards(options.rewards, device, dtype) for _ in range(2))
    makers: dict[str, Callable[[], Loop]] = {
        "straightforward": partial(Straightforward, straight, schedule, kept, recompute=False),
        "as published": partial(Straightforward, straight, schedule, kept, recompute=True),
        "fused": partial(Straightforward, straight, schedule, kept, recompute=False, fused=True),
        "fused, published": partial(
            Straightforward, straight, schedule, kept, recompute=True, fused=True
        ),
        "ours": partial(Ours, base, schedule, kept, recompute=False),
        "ours, recomputed": partial(Ours, base, schedule, recomputed, recompute=True),
    }
    rows = bench(makers, batch, dtype, options.repeats)
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    print(
        f"{machine}, {options.threads} threads, torch {torch.__version__}, {options.size}, "
        f"{dtype}, rewards: {options.rewards}, {options.repeats} steps"
    )
    print(f"{'median ms':17}" + "".join(f"{part:>10}" for part in (*PARTS, "step", "peak GiB")))
    for name, row in rows.items():
        parts = "".join(f"{row[part]:10.0f}" for part in (*PARTS, "step"))
        print(f"{name:17}{parts}{row['GiB']:10.2f}")
    ratios = {name: row["step"] / rows["ours"]["step"] for name, row in rows.items()}
    print("step / ours: " + ", ".join(f"{name} {ratio:.2f}x" for name, ratio in ratios.items()))
    line = {"bench": "train_step", "machine": machine, "size": options.size}
    line |= {"precision": options.precision, "rewards": options.rewards}
    line |= {"milliseconds": rows, "ratios": ratios}
    if device.type == "cuda":
        line["memory"] = measure_network(base, schedule, batch, dtype)
    print(json.dumps(line))


def measure_network(
    base: Contestant, schedule: NoiseSchedule, batch: DistillationBatch, dtype: torch.dtype
) -> dict[str, float]:
    """Return the peak in GiB of a step of the UNet alone: without VAE, without rewards.

    `training.distil --dry-run` forecasts it.
    """
    vae = sum(weight.nbytes for weight in base.vae.parameters()) / 2**30
    peaks = {}
    for recompute in (False, True):
        makers = {"ours": partial(Ours, base, schedule, [], recompute=recompute)}
        row = bench(makers, batch, dtype, 1)["ours"]
        peaks["recomputed" if recompute else "kept"] = row["GiB"] - vae
    print("peak GiB of the UNet alone: " + ", ".join(f"{k} {v:.2f}" for k, v in peaks.items()))
    return peaks


def _read_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time a training step by part.")
    parser.add_argument("--size", choices=list(SIZES), default="mid")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["no", "bf16"], default="no")
    parser.add_argument("--rewards", choices=["pixels", "networks"], default="pixels")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
