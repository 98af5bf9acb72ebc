"""Time a UNet call, a video of four steps and its decoding, beside a straightforward network.

    python -m tests.benchmarks.sampling                           # mid-size, on two CPU threads
    python -m tests.benchmarks.sampling --size full --device cuda # 16 frames of 320 x 512

Weights are random: speed does not ask what they are. The straightforward network has the same ones
and no fused attention, convolves over time in three dimensions, and decodes frame by frame, with
torch's usual layout of memory. Runs of all kinds take turns, so that a machine that slows down
slows all of them.

Prints a table for people and, last, one JSON line for machines.
"""

import argparse
import copy
import json
import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import nn
from torch.testing import assert_close

from turbo.diffusion.consistency import (
    bind_consistency_function,
    few_step_timesteps,
    sample_consistency,
)
from turbo.diffusion.schedule import NoiseSchedule, draw_noise
from turbo.models.footprint import DECODE_CHUNK
from turbo.networks.compilation import compile_blocks
from turbo.networks.unet import TemporalConv, VideoUNet
from turbo.networks.vae import decode_latents, quicken_on_cpu

STEPS = 4
PROMPT_TOKENS = 77


@dataclass(frozen=True)
class Size:
    """A network and a clip."""

    unet: dict[str, Any]
    vae_widths: tuple[int, ...]
    frames: int
    height: int  # of latents
    width: int


SIZES = {
    "tiny": Size(  # to try a benchmark
        {
            "block_out_channels": (32, 64, 64, 64),
            "cross_attention_dim": 16,
            "attention_head_dim": 16,
        },
        (32, 32, 32, 32),
        frames=8,
        height=8,
        width=8,
    ),
    "mid": Size(
        {
            "block_out_channels": (64, 128, 256, 256),
            "cross_attention_dim": 96,
            "attention_head_dim": 16,
        },
        (32, 64, 128, 128),
        frames=16,
        height=16,
        width=16,
    ),
    "full": Size({}, (128, 256, 512, 512), frames=16, height=40, width=64),
}


@dataclass(frozen=True)
class Contestant:
    """A student and its decoder."""

    unet: VideoUNet
    vae: AutoencoderKL
    decode_chunk: int

    @property
    def weights(self) -> int:
        """Return the bytes of its two networks."""
        tensors = (*self.unet.state_dict().values(), *self.vae.state_dict().values())
        return sum(tensor.nbytes for tensor in tensors)


def build(
    size: Size, device: torch.device, dtype: torch.dtype, guidance_size: int | None = 256
) -> Contestant:
    """Return a student of VideoCrafter2's kind with random weights; without guidance, a teacher."""
    torch.manual_seed(0)
    with device:
        unet = VideoUNet(**size.unet, fps_conditioning=True, time_cond_proj_dim=guidance_size)
        vae = AutoencoderKL(
            block_out_channels=size.vae_widths,
            down_block_types=("DownEncoderBlock2D",) * len(size.vae_widths),
            up_block_types=("UpDecoderBlock2D",) * len(size.vae_widths),
            layers_per_block=2,
            latent_channels=4,
        )
    for network in (unet, vae):
        nn.Module.to(network, dtype).eval().requires_grad_(False)
    if device.type == "cpu":  # as a pipeline does
        return Contestant(unet, quicken_on_cpu(vae), DECODE_CHUNK["sliced"])
    return Contestant(unet, vae, DECODE_CHUNK["full"])


class EveryFrame(AttnProcessor):
    """Attention without a fused kernel, which projects the prompt again for every frame."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        frames: int = 1,
    ) -> torch.Tensor:
        return super().__call__(attn, hidden_states, encoder_hidden_states)


def make_straightforward(contestant: Contestant) -> Contestant:
    """Return a copy that computes the same without what makes it quick."""
    unet, vae = copy.deepcopy(contestant.unet), copy.deepcopy(contestant.vae)
    nn.Module.to(vae, memory_format=torch.contiguous_format)
    for module in (*unet.modules(), *vae.modules()):
        if isinstance(module, TemporalConv):
            module.__class__ = nn.Conv3d
        elif isinstance(module, Attention):
            module.set_processor(EveryFrame())
    return Contestant(unet, vae, decode_chunk=1)


def make_compiled(contestant: Contestant) -> Contestant:
    """Return a copy whose repeated blocks are compiled when first called."""
    compiled = copy.deepcopy(contestant)
    compile_blocks(compiled.unet)
    compile_blocks(compiled.vae)
    return compiled


@torch.inference_mode()
def make_video(contestant: Contestant, size: Size, steps: int) -> dict[str, Any]:
    """Make one video; return its frames, milliseconds by stage, calls, and the peak of memory.

    The peak is the contestant's alone: all wait on the device, so the others' weights are taken off
    what is allocated. It holds no text encoder.
    """
    unet, device = contestant.unet, contestant.unet.device
    calls: list[int] = []
    counter = unet.register_forward_hook(lambda *_: calls.append(1))
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(1, PROMPT_TOKENS, unet.config.cross_attention_dim, generator=generator)
    like = torch.empty(1, 4, size.frames, size.height, size.width, device=device)
    schedule = NoiseSchedule.scaled_linear().to(device)
    noise = draw_noise(like, [generator])
    function = bind_consistency_function(
        unet,
        schedule,
        text.to(device),
        torch.tensor([7.5], device=device),
        torch.tensor([16], device=device),
    )
    timesteps = few_step_timesteps(steps, 50).to(device)
    others = 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        others = torch.cuda.memory_allocated() - contestant.weights
    _wait(device)
    began = perf_counter()
    *_, latents = sample_consistency(function, schedule, noise, timesteps, [generator])
    _wait(device)
    denoised = perf_counter()
    frames = decode_latents(contestant.vae, latents, chunk=contestant.decode_chunk).cpu()
    ended = perf_counter()
    peak = torch.cuda.max_memory_allocated() - others if device.type == "cuda" else 0
    counter.remove()
    milliseconds = {
        "call": 1000 * (denoised - began) / steps,
        "denoise": 1000 * (denoised - began),
        "decode": 1000 * (ended - denoised),
        "video": 1000 * (ended - began),
    }
    return {"frames": frames, "milliseconds": milliseconds, "calls": len(calls), "peak": peak}


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def bench(
    contestants: dict[str, Callable[[int], dict[str, Any]]], repeats: int
) -> dict[str, dict[str, float]]:
    """Return milliseconds by stage of every contestant, after a run of each to warm up."""
    rows: dict[str, dict[str, float]] = {}
    cold, first = {}, {}
    for name, run in contestants.items():
        began = perf_counter()
        first[name] = run(STEPS)
        cold[name] = perf_counter() - began
    names = list(contestants)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    peaks = dict.fromkeys(names, 0)
    for _ in range(repeats):
        for name in names:
            result = contestants[name](STEPS)
            assert result["calls"] == STEPS
            runs[name].append(result["milliseconds"])
            peaks[name] = result["peak"]
    for name in names:
        rows[name] = {
            stage: median(run[stage] for run in runs[name])
            for stage in ("call", "denoise", "decode", "video")
        }
        videos = [run["video"] for run in runs[name]]
        rows[name]["p95"] = float(np.percentile(videos, 95))  # never above the slowest
        rows[name]["first"] = 1000 * cold[name]
        rows[name]["peak_gb"] = peaks[name] / 1e9
        rows[name]["deviation"] = (
            (first[name]["frames"] - first[names[0]]["frames"]).abs().max().item()
        )
    return rows


def main() -> None:
    options = _read_flags()
    size, device = SIZES[options.size], torch.device(options.device)
    if options.frames:
        size = replace(size, frames=options.frames)
    torch.set_num_threads(options.threads)
    dtype = {"cpu": torch.float32}.get(device.type, torch.bfloat16)
    ours = build(size, device, dtype)
    contestants = {"straightforward": make_straightforward(ours), "eager": ours}
    if not options.no_compile:
        contestants["compiled"] = make_compiled(ours)
    runs = {name: partial(make_video, contestant, size) for name, contestant in contestants.items()}
    rows = bench(runs, options.repeats)
    if dtype == torch.float32:
        for row in rows.values():  # all of them compute the same
            assert_close(row["deviation"], 0.0, rtol=0, atol=1e-2)
    _report(rows, options, size, device, dtype)


def _report(
    rows: dict[str, dict[str, float]],
    options: argparse.Namespace,
    size: Size,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    clip = f"{size.frames} x {8 * size.height} x {8 * size.width}"
    print(
        f"{machine}, {device.type}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{dtype}, {options.size}: {clip}, {STEPS} steps, {options.repeats} runs"
    )
    heads = ("UNet call", "denoise", "decode", "video p50", "p95", "first run", "peak GB")
    keys = ("call", "denoise", "decode", "video", "p95", "first", "peak_gb")
    print(f"{'median ms':16}" + "".join(f"{head:>11}" for head in heads))
    for name, row in rows.items():
        print(f"{name:16}" + "".join(f"{row[key]:11.1f}" for key in keys))
    ratios = {
        name: {
            stage: rows["straightforward"][stage] / row[stage]
            for stage in ("call", "decode", "video")
        }
        for name, row in rows.items()
        if name != "straightforward"
    }
    for name, ratio in ratios.items():
        shares = ", ".join(f"{stage} {share:.2f}x" for stage, share in ratio.items())
        print(f"straightforward / {name}: {shares}")
    print(
        json.dumps(
            {
                "bench": "sampling",
                "machine": machine,
                "size": options.size,
                "clip": clip,
                "torch": torch.__version__,
                "milliseconds": rows,
                "ratios": ratios,
            }
        )
    )


def _read_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time the sampler beside a straightforward one.")
    parser.add_argument("--size", choices=list(SIZES), default="mid")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--frames", type=int, help="default: 16")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled one out")
    return parser.parse_args()


if __name__ == "__main__":
    main()
