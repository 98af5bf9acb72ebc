"""Motion guidance: steer a video towards the motion of an example; T2V-Turbo-v2 distils it.

The temporal attention of a network, which frames attend to which, describes how a video moves. The
teacher runs on a noisy video and on an equally noisy example, and the gradient of the difference of
their attention maps says how to change the video. The example is the video itself, inverted to
noise along the teacher's own trajectory, so no other video is needed.

Source: T2V-Turbo-v2, arXiv:2410.05677, section 4; MotionClone, arXiv:2406.05338.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from diffusers.models.attention_processor import Attention
from einops import einsum, rearrange, reduce
from jaxtyping import Float, Int
from torch import Tensor, nn

from turbo.networks.unet import VideoUNet
from turbo.types import (
    Conditioning,
    EnergyScore,
    FrameRate,
    Latents,
    PerVideo,
    PromptEmbeds,
    Schedule,
    Timesteps,
    VideoNetwork,
    checked,
)

STRENGTH = 0.05  # m, of the released model
PERCENTAGE = 0.5  # the noisiest share of the timesteps, in which motion is guided
ENERGY_SCALE = 100.0 * 100.0  # of a layer's error, times that of their mean
# The published code's nine layers, `output_blocks.{3..11}.2`: the first attention of every temporal
# transformer of the decoder of VideoCrafter2.
MOTION_LAYERS = tuple(
    f"up_blocks.{block}.temp_attentions.{layer}.transformer_blocks.0.attn1"
    for block in (1, 2, 3)
    for layer in (0, 1, 2)
)

# The weights with which every frame (rows) attends to every frame, at each place and in each head.
AttentionMap = Float[Tensor, "B _ F F"]


@checked
def motion_strength(
    timesteps: Timesteps,
    strength: float = STRENGTH,
    percentage: float = PERCENTAGE,
    *,
    num_timesteps: int,
) -> PerVideo:
    """Return m: `strength` in the noisiest share of the schedule's timesteps, 0 below.

    On a grid whose share ends at a grid point, as in all published settings, this equals the rule
    of the published trainer, which counts grid points.

    Args:
        num_timesteps: of the schedule: `len(schedule)` or `grid.num_timesteps`.
    """
    noisiest = timesteps >= num_timesteps * (1 - percentage)
    return strength * noisiest.float()


@checked
def guide_motion(
    noise: Latents, score: Latents, strength: PerVideo, schedule: Schedule, timesteps: Timesteps
) -> Latents:
    """Return noise - m sqrt(1 - alpha) score, which steps down the motion energy.

    The factor sqrt(1 - alpha) is that of the released code. MotionClone's is sigma = sqrt(1 -
    alpha²), which is 1.23 times as large at timestep 504 and 1.03 times at 999.

    Args:
        score: gradient of the energy, from `motion_score`.
        strength: m; 0 leaves a video unchanged.
    """
    alpha, _ = schedule.levels(timesteps)
    return noise - rearrange(strength, "B -> B 1 1 1 1") * (1 - alpha).sqrt() * score


def invert_step(
    schedule: Schedule, latents: Latents, noise: Latents, start: Timesteps, end: Timesteps
) -> Latents:
    """Take a DDIM step towards more noise; `ddim_step` back, with the same noise, undoes it."""
    return schedule.ddim_step(schedule.remove_noise(latents, noise, start), noise, end)


@checked
@torch.no_grad()
def invert_to(
    start: Timesteps,
    teacher: VideoNetwork,
    schedule: Schedule,
    clean: Latents,
    timesteps: Int[Tensor, " steps"],
    prompt_embeds: PromptEmbeds,
    fps: FrameRate | None = None,
) -> Latents:
    """Return each video inverted to its own timestep, without guidance: the example of its motion.

    As in the published code, `clean` is used as the latents at timestep 0, and each step calls the
    network at the timestep where the step ends. The teacher is called only for
    videos that have not reached their timestep.

    Args:
        start: the timestep of each video, one of `timesteps`.
        timesteps: rising; those of the grid of the distillation.

    Source: DDIM, arXiv:2010.02502, section 4.3, in reverse.
    """
    example = clean.clone()
    for near, far in pairwise([0, *timesteps.tolist()]):
        going = start >= far
        if not going.any():
            break
        latents = example[going]
        here, there = (torch.full((len(latents),), t, device=latents.device) for t in (near, far))
        conditioning = Conditioning(fps=None if fps is None else fps[going])
        output = teacher(latents, schedule.network_time(there), prompt_embeds[going], conditioning)
        _, noise = schedule.split(latents, output, there)
        example[going] = invert_step(schedule, latents, noise, here, there)
    return example


def temporal_attention_layers(unet: VideoUNet) -> tuple[str, ...]:
    """Return the names of the decoder's first temporal attentions, of a network of any size.

    For the published networks these are `MOTION_LAYERS`.
    """
    pattern = re.compile(r"up_blocks\.\d+\.temp_attentions\.\d+\.transformer_blocks\.\d+\.attn1")
    return tuple(name for name, _ in unet.named_modules() if pattern.fullmatch(name))


@checked
def capture_attention(
    unet: VideoUNet,
    noisy: Latents,
    timesteps: Timesteps,
    prompt_embeds: PromptEmbeds,
    conditioning: Conditioning,
    layers: Sequence[str] = MOTION_LAYERS,
) -> tuple[Latents, list[AttentionMap]]:
    """Return the network's raw output and the attention maps of some temporal layers.

    The output equals that of a plain call.

    Args:
        layers: names of attention modules, one map each.

    Raises:
        ValueError: the network has no such layer.
    """
    attentions = [_find_attention(unet, name) for name in layers]
    projected: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        projected[module] = output

    hooks = [
        m.register_forward_hook(keep) for layer in attentions for m in (layer.to_q, layer.to_k)
    ]
    try:
        output = unet(noisy, timesteps, prompt_embeds, conditioning)
    finally:
        for hook in hooks:
            hook.remove()
    maps = []
    for layer in attentions:
        queries, keys = (
            rearrange(
                projected[m],
                "(B N) F (heads D) -> B (N heads) F D",
                B=len(noisy),
                heads=layer.heads,
            )
            for m in (layer.to_q, layer.to_k)
        )
        weights = einsum(queries, keys, "B N F D, B N G D -> B N F G") * layer.scale
        maps.append(weights.softmax(-1, dtype=torch.promote_types(weights.dtype, torch.float32)))
    return output, maps


def _find_attention(unet: VideoUNet, name: str) -> Attention:
    layer = dict(unet.named_modules()).get(name)
    if not isinstance(layer, Attention):
        raise ValueError(
            f"This network has no attention layer {name!r}. "
            f"Choose from: {', '.join(temporal_attention_layers(unet)) or 'none in its decoder'}."
        )
    return layer


def motion_energy(maps: list[AttentionMap], examples: list[AttentionMap]) -> PerVideo:
    """Return how much the motion of a video differs from its example's; 0 if not at all.

    For every query frame of the example, take the key frame with the largest weight, and compare
    the two videos' weights there: 10⁴ mean over layers of mean over queries of (a - a_example)².

    Source: MotionClone, arXiv:2406.05338, Eq. 5 with k = 1; the scale is T2V-Turbo-v2's.
    """
    errors = []
    for attention, example in zip(maps, examples, strict=True):
        wanted, frame = example.detach().max(dim=-1, keepdim=True)
        errors.append(reduce((attention.gather(-1, frame) - wanted) ** 2, "B N F 1 -> B", "mean"))
    return ENERGY_SCALE * torch.stack(errors).mean(dim=0)


@checked
def motion_score(
    teacher: VideoUNet,
    noisy: Latents,
    example: Latents,
    timesteps: Timesteps,
    prompt_embeds: PromptEmbeds,
    example_embeds: PromptEmbeds,
    fps: FrameRate | None = None,
    layers: Sequence[str] = MOTION_LAYERS,
) -> EnergyScore:
    """Return the gradient of the motion energy of a noisy video relative to its example.

    Two calls of the teacher and one backward pass through the second; each video of a batch has
    its own score. Keeps the graph of a whole call, unless the teacher recomputes activations
    (`enable_gradient_checkpointing`).

    Args:
        example: latents at the same timesteps, from `invert_to`.
        example_embeds: the prompt of the example; the video's own where it is its own example.
        layers: as for `capture_attention`.
    """
    conditioning = Conditioning(fps=fps)
    with torch.no_grad():
        _, examples = capture_attention(
            teacher, example, timesteps, example_embeds, conditioning, layers
        )
    with torch.enable_grad():
        variable = noisy.detach().requires_grad_(True)
        output, maps = capture_attention(
            teacher, variable, timesteps, prompt_embeds, conditioning, layers
        )
        energy = motion_energy(maps, examples)
        (score,) = torch.autograd.grad(energy.sum(), variable)
    return EnergyScore(score, energy.detach(), output.detach())


@dataclass(frozen=True)
class MotionEnergy:
    """The motion of a video against its own, as a `turbo.types.Energy`."""

    teacher: VideoUNet
    schedule: Schedule
    timesteps: Int[Tensor, " steps"]  # rising; those of the grid of the distillation
    layers: tuple[str, ...] = MOTION_LAYERS

    def __call__(
        self,
        noisy: Latents,
        clean: Latents,
        timesteps: Timesteps,
        prompt_embeds: PromptEmbeds,
        fps: FrameRate | None,
        /,
    ) -> EnergyScore:
        """Invert the clean videos, and return the `motion_score` of the noisy ones."""
        example = invert_to(
            timesteps, self.teacher, self.schedule, clean, self.timesteps, prompt_embeds, fps
        )
        return motion_score(
            self.teacher, noisy, example, timesteps, prompt_embeds, prompt_embeds, fps, self.layers
        )
