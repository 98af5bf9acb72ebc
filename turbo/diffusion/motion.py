"""Motion guidance: pull a video towards moving as an example does; T2V-Turbo-v2 distils the pull.

How a video moves shows in which frames attend to which. The teacher looks at a noisy video and at
an example equally noisy, and the score says how to change the former to make it look more alike.
The example is the video itself, taken to noise along the teacher's own path, so none is needed.

Source: T2V-Turbo-v2, arXiv:2410.05677, section 4; MotionClone, arXiv:2406.05338.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from diffusers.models.attention_processor import Attention
from einops import einsum, rearrange, reduce
from jaxtyping import Float, Int
from torch import Tensor, nn

from turbo.diffusion.schedule import NoiseSchedule
from turbo.networks.unet import Conditioning, VideoUNet
from turbo.types import Latents, PerVideo, PromptEmbeds, Timesteps

STRENGTH = 0.05  # m, of the released model
PERCENTAGE = 0.5  # the noisiest share of the timesteps, in which motion is guided
ENERGY_SCALE = 100.0 * 100.0  # of a layer's error, times that of their mean

# How much every frame (rows) attends to every frame, at each place and in each head of a layer.
AttentionMap = Float[Tensor, "B _ F F"]


def motion_strength(
    timesteps: Timesteps, strength: float = STRENGTH, percentage: float = PERCENTAGE
) -> PerVideo:
    """Return m: `strength` in the noisiest share of a schedule of 1000 timesteps, 0 below.

    On a grid whose share ends at a grid point, as all published ones, this is the trainer's rule
    too, which counts grid points.
    """
    noisiest = timesteps >= 1000 * (1 - percentage)
    return strength * noisiest.float()


def guide_motion(
    noise: Latents,
    score: Latents,
    strength: PerVideo,
    schedule: NoiseSchedule,
    timesteps: Timesteps,
) -> Latents:
    """Return the noise prediction turned downhill on the motion energy.

    The factor is sqrt(1 - alpha), as in the released code. MotionClone's is sigma, the square root
    of 1 - alpha², which is 1.23 times as much at timestep 504 and 1.03 times at 999.

    Args:
        score: gradient of the energy, from `motion_score`.
        strength: m; 0 leaves a video alone.
    """
    alpha, _ = schedule.levels(timesteps)
    return noise - rearrange(strength, "B -> B 1 1 1 1") * (1 - alpha).sqrt() * score


@torch.no_grad()
def invert_latents(
    teacher: VideoUNet,
    schedule: NoiseSchedule,
    clean: Latents,
    timesteps: Int[Tensor, " steps"],
    prompt_embeds: PromptEmbeds,
    fps: Int[Tensor, " B"] | None = None,
) -> Iterator[Latents]:
    """Yield the latents at every timestep on the way from a video to noise, without guidance.

    The walk starts as if `clean` were at timestep 0, and the network is asked at the timestep that
    a step leads to.

    Args:
        timesteps: rising; those of the grid that is distilled on.

    Source: DDIM, arXiv:2010.02502, section 4.3, in reverse.
    """
    noisy = clean
    conditioning = Conditioning(fps=fps)
    for near, far in pairwise([0, *timesteps.tolist()]):
        start, end = (torch.full_like(clean[:, 0, 0, 0, 0], t).long() for t in (near, far))
        output = teacher(noisy, end, prompt_embeds, conditioning)
        _, noise = schedule.split(noisy, output, end)
        noisy = invert_step(schedule, noisy, noise, start, end)
        yield noisy


def invert_step(
    schedule: NoiseSchedule, noisy: Latents, noise: Latents, start: Timesteps, end: Timesteps
) -> Latents:
    """Take a DDIM step towards noise; the step back, with the same noise, undoes it."""
    return schedule.ddim_step(schedule.remove_noise(noisy, noise, start), noise, end)


def own_example(
    teacher: VideoUNet,
    schedule: NoiseSchedule,
    clean: Latents,
    start: Timesteps,
    timesteps: Int[Tensor, " steps"],
    prompt_embeds: PromptEmbeds,
    fps: Int[Tensor, " B"] | None = None,
) -> Latents:
    """Return each video where the teacher's own path to noise has it at `start`.

    Args:
        start: where each video is wanted; of `timesteps`.
        timesteps: as for `invert_latents`, which is walked only as far as needed.
    """
    example = clean
    walked = timesteps[timesteps <= start.max().item()]
    walk = invert_latents(teacher, schedule, clean, walked, prompt_embeds, fps)
    for timestep, latents in zip(walked.tolist(), walk, strict=True):
        there = rearrange(start == timestep, "B -> B 1 1 1 1")
        example = torch.where(there, latents, example)
    return example


def watch_attention(
    unet: VideoUNet,
    noisy: Latents,
    timesteps: Timesteps,
    prompt_embeds: PromptEmbeds,
    conditioning: Conditioning,
) -> tuple[Latents, list[AttentionMap]]:
    """Return the network's raw output, and how its decoder's frames attended to each other.

    One map for the first attention of every temporal transformer, in the order of the layers:
    nine of the published networks. The output is that of an unwatched call.
    """
    layers = _decoder_attention(unet)
    projected: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        projected[module] = output

    hooks = [m.register_forward_hook(keep) for layer in layers for m in (layer.to_q, layer.to_k)]
    try:
        output = unet(noisy, timesteps, prompt_embeds, conditioning)
    finally:
        for hook in hooks:
            hook.remove()
    maps = []
    for layer in layers:
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


def _decoder_attention(unet: VideoUNet) -> list[Attention]:
    """Return the first attention of every temporal transformer of the decoder."""
    layers = [
        block.attn1
        for stage in unet.up_blocks
        for transformer in getattr(stage, "temp_attentions", ())
        for block in transformer.transformer_blocks
    ]
    if not layers:
        raise ValueError(
            "Expected temporal attention in the decoder, got none. Motion guidance is for networks "
            "with a CrossAttnUpBlock3D."
        )
    return layers


def motion_energy(maps: list[AttentionMap], examples: list[AttentionMap]) -> PerVideo:
    """Return how unlike the example a video moves, at least 0.

    Every frame of the example looks at one frame most, at each place and in each head; there the
    attention of both is compared. The mean square over a layer, then the mean over the layers.

    Source: MotionClone, arXiv:2406.05338, Eq. 5 with k = 1; the scale is T2V-Turbo-v2's.
    """
    errors = []
    for seen, example in zip(maps, examples, strict=True):
        wanted, frame = example.detach().max(dim=-1, keepdim=True)
        errors.append(reduce((seen.gather(-1, frame) - wanted) ** 2, "B N F 1 -> B", "mean"))
    return ENERGY_SCALE * torch.stack(errors).mean(dim=0)


@dataclass(frozen=True)
class MotionScore:
    """Where the energy rises, with what the same call of the teacher predicted."""

    score: Latents  # gradient of the energy with respect to the noisy latents
    energy: PerVideo
    output: Latents  # the teacher's raw output for the prompt


def motion_score(
    teacher: VideoUNet,
    noisy: Latents,
    example: Latents,
    timesteps: Timesteps,
    prompt_embeds: PromptEmbeds,
    example_embeds: PromptEmbeds,
    fps: Int[Tensor, " B"] | None = None,
) -> MotionScore:
    """Compare a noisy video with its example, and say how the difference changes with the video.

    Two calls of the teacher and one backward pass through the second; each video of a batch has
    its own score. Needs the graph of a whole call: without activation checkpointing.

    Args:
        example: latents at the same timesteps, from `invert_latents`.
        example_embeds: the prompt of the example; that of the video, where it is its own example.
    """
    conditioning = Conditioning(fps=fps)
    with torch.no_grad():
        _, examples = watch_attention(teacher, example, timesteps, example_embeds, conditioning)
    with torch.enable_grad():
        changed = noisy.detach().requires_grad_(True)
        output, maps = watch_attention(teacher, changed, timesteps, prompt_embeds, conditioning)
        energy = motion_energy(maps, examples)
        (score,) = torch.autograd.grad(energy.sum(), changed)
    return MotionScore(score, energy.detach(), output.detach())
