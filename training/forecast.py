"""What a run will do and need, before anything is trained."""

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from training.build import build_fake, build_student, teacher_card
from training.config import Config
from training.data.source import open_data, read_prompts
from training.data.video_folder import VideoFolder
from training.settings import has_own_target
from training.sharding import count_parameters, units
from training.watch import read_held_out
from turbo.card import ModelCard
from turbo.convert.vae import published_vae
from turbo.networks.families import Network, VideoVAE, network_on_meta, part_on_meta
from turbo.networks.text import UMT5TextEncoder
from turbo.networks.unet import VideoUNet
from turbo.networks.vae import latent_shape
from turbo.networks.wan import WanNetwork
from turbo.types import Conditioning

# Networks and VAEs that need not be on this disk.
FAMILIES: dict[str, tuple[Callable[[], Network], Callable[[], VideoVAE]]] = {
    "videocrafter2": (partial(VideoUNet, fps_conditioning=True), published_vae),
    "modelscope": (partial(VideoUNet, skip_temporal_for_one_frame=True), published_vae),
    "wan2.1-1.3b": (WanNetwork, AutoencoderKLWan),
}
UTILISATION = 125e12  # floating-point operations per second: 40 % of an A100 in half precision


@dataclass(frozen=True)
class Forecast:
    """Memory in bytes of one process, and work in floating-point operations."""

    trained: int  # parameters
    weights: int  # of teacher and student together, with what is trained
    optimiser: int  # AdamW's moments, target and averaged weights
    step: int  # activations and gradients, at the peak of a step; with run.shard no gradients
    step_flops: int  # for one video: of student, teacher, target or fake, and the own samples
    unit: int = 0  # bytes of the largest module whose weights are gathered at once; of run.shard

    @property
    def memory(self) -> int:
        """Return the memory of a process that holds everything."""
        return self.weights + self.optimiser + self.step

    def memory_of(self, processes: int) -> int:
        """Return the memory of one process with run.shard, by the number of processes.

        Gradients of earlier micro-batches are there at the peak of the last. Two modules are
        whole, with their gradients: the one at work, and the next.
        """
        trained = 4 * self.trained  # in float32
        divided = self.optimiser + 2 * trained  # weights and gradients
        return self.weights - trained + self.step + divided // processes + 4 * self.unit


class _PeakMemory(TorchDispatchMode):
    """Adds up the tensors that are alive, and keeps the largest sum; sizes in bytes."""

    def __init__(self, present: Iterable[Tensor]) -> None:
        super().__init__()
        self.alive: dict[int, Any] = {}
        self.now = self.peak = 0
        for tensor in present:
            self._add(tensor)
        self.start = self.now

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._add, made)
        return made

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.alive:
            return

        def free(reference: Any) -> None:
            del self.alive[key]
            self.now -= size

        self.alive[key] = weakref.ref(storage, free)
        self.now += size
        self.peak = max(self.peak, self.now)


def _fused_attention(query: Tensor, key: Tensor, value: Tensor, **others: Any) -> Tensor:
    """Attend as accelerators and CPUs do; the meta device would keep all attention weights."""
    return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]


def forecast(config: Config, card: ModelCard) -> Forecast:
    """Compute a forecast on the meta device: nothing is loaded, nothing is computed.

    VAE, text encoder and rewards are not included.
    """
    dtype = torch.bfloat16 if config.run.precision == "bf16" else torch.float32
    with torch.device("meta"):
        teacher = nn.Module.to(_network(card), dtype).requires_grad_(False).eval()
        student = build_student(teacher, config).train()
        fake = build_fake(teacher, config)
        if config.run.recompute:
            student.enable_gradient_checkpointing()
            if fake is not None:
                fake.enable_gradient_checkpointing()
        noisy, timesteps, embeds, fps = _inputs(config, card, teacher)
        guidance = torch.empty(len(noisy), 256)

    def call(network: Network, videos: int, guidance: Tensor | None) -> Tensor:
        rows = [torch.cat([tensor] * videos) for tensor in (noisy, timesteps, embeds)]
        rates = None if fps is None else torch.cat([fps] * videos)
        return network(*rows, Conditioning(guidance=guidance, fps=rates))

    networks = [student, teacher] if fake is None else [student, teacher, fake]
    weights = [weight for network in networks for weight in network.parameters()]
    own = [weight for weight in weights if weight.requires_grad]
    if config.run.shard:
        for weight in own:
            weight.register_post_accumulate_grad_hook(lambda used: setattr(used, "grad", None))
    attention = patch.object(nn.functional, "scaled_dot_product_attention", _fused_attention)
    autocast = torch.autocast("cpu", dtype, enabled=dtype != torch.float32)
    counter = FlopCounterMode(display=False)
    with _PeakMemory(weights) as memory, attention:
        with autocast:
            if fake is None:
                with torch.no_grad():
                    call(teacher, 2, None)  # with the prompt and without
            with counter:
                outputs = [call(student, 1, guidance)]
            if fake is None:
                with torch.no_grad():
                    call(student, 1, guidance)  # as the target
            else:
                outputs.append(call(fake, 1, guidance))
                with torch.no_grad():
                    call(teacher, 2, None)
        torch.stack([output.float().square().mean() for output in outputs]).sum().backward()
    trained = sum(weight.numel() for weight in own)
    moments = 2 if config.run.optimizer == "adamw8bit" else 8  # bytes; small tensors have 8, too
    target = has_own_target(config.student.target_ema, config.student.target_dropout)
    copies = target + (config.run.weight_ema > 0)
    passes = 4 if config.run.recompute else 3  # of a network that is trained: one, and backward
    calls: float = passes + 2 + (1 if fake is None else passes)  # and target or fake
    if config.data.prompts:
        calls += (config.data.sample_steps - 1) / 2  # in the mean, to the student's own latents
    return Forecast(
        trained=trained,
        weights=memory.start,
        optimiser=trained * (moments + 4 * copies),
        step=memory.peak - memory.start,
        step_flops=round(calls * counter.get_total_flops() / config.run.micro_batch),
        unit=4 * max(map(count_parameters, units(student))) if config.run.shard else 0,
    )


def _network(card: ModelCard) -> Network:
    folder = card.folder / card.unet
    here = (folder / "config.json").is_file()
    return network_on_meta(folder) if here else _family(card, folder)[0]()


def _family(card: ModelCard, folder: Path) -> tuple[Callable[[], Network], Callable[[], VideoVAE]]:
    if card.family not in FAMILIES:
        raise ValueError(f"The configuration of {card.name} is missing in {folder}. Restore it.")
    return FAMILIES[card.family]


def _inputs(
    config: Config, card: ModelCard, teacher: Network
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    videos, folder = config.run.micro_batch, card.folder / "vae"
    here = (folder / "config.json").is_file()
    vae = part_on_meta(folder) if here else _family(card, folder)[1]()
    shape = latent_shape(cast(VideoVAE, vae), card.num_frames, card.height, card.width)
    steps = torch.zeros(videos, dtype=torch.long)
    if isinstance(teacher, WanNetwork):
        tokens, width = UMT5TextEncoder.TOKENS, teacher.config.text_dim
    else:
        tokens, width = 77, teacher.config.cross_attention_dim
    embeds = torch.empty(videos, tokens, width)
    return torch.empty(videos, *shape), steps, embeds, steps if teacher.takes_fps else None


def describe_run(config: Config) -> str:
    """Return settings, data, memory and time of a run, for `--dry-run`."""
    card = teacher_card(config)
    found, run = forecast(config, card), config.run
    flops = found.step_flops * run.batch * run.steps
    uncounted = ""
    if config.student.method == "continuous":
        uncounted = "; the derivative of the continuous method is not counted in memory and time"
    rewards = ", ".join(f"{r.weight:g} x {r.name}" for r in config.rewards) or "none"
    watch = "none"
    if config.watch:
        prompts = read_held_out(Path(config.watch.prompts), [])
        judges = ", ".join(judge.name for judge in config.watch.judges) or "none"
        watch = f"{len(prompts)} prompts every {config.watch.every} steps; judges: {judges}"
    return "\n".join(
        [
            config.model_dump_json(indent=2),
            f"data: {describe_data(config, card)}",
            f"teacher: {card.title}, {'ready' if card.is_ready() else 'not on this disk'}",
            f"rewards: {rewards}",
            f"watch: {watch}",
            f"trained: {found.trained:,} parameters",
            f"memory per process, network alone: {describe_memory(found, config)}",
            f"time on one A100 at 40 % of its peak, network: {flops / UTILISATION / 3600:.1f} h "
            f"for {run.steps} steps of {run.batch} videos{uncounted}",
        ]
    )


def describe_memory(found: Forecast, config: Config) -> str:
    """Return the memory of a process; with run.shard, for each number of several processes."""
    slots = config.run.batch // config.run.micro_batch
    if config.run.shard and slots > 1:
        counts = [count for count in range(2, slots + 1) if slots % count == 0]
        return ", ".join(f"{found.memory_of(n) / 2**30:.2f} GiB with {n}" for n in counts)
    return (
        f"{found.memory / 2**30:.2f} GiB = {found.weights / 2**30:.2f} weights + "
        f"{found.optimiser / 2**30:.2f} optimiser and averages + {found.step / 2**30:.2f} "
        "activations and gradients"
    )


def describe_data(config: Config, card: ModelCard) -> str:
    """Return how many videos there are, and how often a run shows them."""
    if config.data.prompts:
        return (
            f"{len(read_prompts(Path(config.data.prompts)))} prompts, for the student's own samples"
        )
    if not (config.data.folder or config.data.hub or config.data.record):
        return "set data.folder=PATH"
    if config.data.hub and not Path(config.data.hub).is_dir():
        return f"{config.data.hub} of the Hub, which the run downloads at its start"
    videos = open_data(config, card)
    missing = sum(caption.is_missing for caption in videos.captions)
    state = f"{missing} of them missing" if isinstance(videos, VideoFolder) else "prepared"
    epochs = config.run.steps * config.run.batch / len(videos)
    shape = f"{card.num_frames} frames of {card.width} x {card.height}"
    return f"{len(videos)} videos, {state}; {epochs:.2f} epochs; {shape}"
