"""Students: the consistency function, its guidance embedding, and few-step sampling with it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from math import log

import torch
from einops import rearrange
from jaxtyping import Int
from torch import Tensor

from turbo.diffusion.schedule import NUM_TIMESTEPS, step_noises
from turbo.types import (
    Conditioning,
    ConsistencyFunction,
    Embedding,
    FrameRate,
    Latents,
    Level,
    PerVideo,
    PromptEmbeds,
    SamplerStep,
    Schedule,
    Timesteps,
    VideoNetwork,
    checked,
)

SIGMA_DATA = 0.5  # assumed standard deviation of the data; Karras et al., arXiv:2206.00364
TIMESTEP_SCALING = 10.0  # sharpens the boundary; Latent Consistency Models, arXiv:2310.04378


@checked
def boundary_scalings(
    timesteps: Timesteps, scaling: float = TIMESTEP_SCALING
) -> tuple[Level, Level]:
    """Return c_skip and c_out, which make the consistency function the identity at timestep 0.

    With u = 10 t and sigma = 0.5, c_skip = sigma² / (u² + sigma²), c_out = u / sqrt(u² + sigma²).

    Args:
        scaling: of the timesteps: 10 in all published models.

    Source: Consistency Models, arXiv:2303.01469, Eq. 5 and appendix C, on scaled timesteps.
    """
    scaled = rearrange(scaling * timesteps.float(), "B -> B 1 1 1 1")
    variance = scaled**2 + SIGMA_DATA**2
    return SIGMA_DATA**2 / variance, scaled / variance.sqrt()


@checked
def embed_guidance_scale(scale: PerVideo, size: int = 256) -> Embedding:
    """Embed the guidance scale w as sines, then cosines, of falling frequency.

    sin(1000 w f_j) and cos(1000 w f_j) with f_j = 10000^(-j / (size / 2 - 1)). Always in float32:
    in bfloat16 the phases, which reach thousands, would be noise.

    Args:
        scale: w in the LCM convention, trained on [5, 15]; or v2's motion strength m.
        size: even.

    Source: Latent Consistency Models, arXiv:2310.04378; the layout is that of diffusers' LCM.
    """
    if size % 2:
        raise ValueError(f"Expected an even embedding size, got {size}. The published one is 256.")
    ranks = torch.arange(size // 2, dtype=torch.float32, device=scale.device)
    frequencies = torch.exp(ranks * -(log(10_000) / (size // 2 - 1)))
    phases = 1000 * scale.float()[:, None] * frequencies  # B D/2
    return torch.cat([phases.sin(), phases.cos()], dim=1)


def condition_student(
    network: VideoNetwork, guidance_scale: PerVideo, fps: FrameRate | None = None
) -> Conditioning:
    """Return the guidance and frame rate that condition a student; see `bind_consistency_function`.

    Raises:
        ValueError: the network is a teacher.
    """
    if network.guidance_size is None:
        raise ValueError(
            "Expected a network that takes a guidance embedding, got a teacher. "
            "Bind a teacher with `guidance.bind_guided`, or make a student: `student_of`."
        )
    guidance = embed_guidance_scale(guidance_scale, network.guidance_size)
    return Conditioning(guidance=guidance, fps=fps)


@checked
def bind_consistency_function(
    network: VideoNetwork,
    schedule: Schedule,
    prompt_embeds: PromptEmbeds,
    guidance_scale: PerVideo,
    fps: FrameRate | None = None,
    *,
    motion_at: Callable[[Timesteps], PerVideo] | None = None,
    timestep_scaling: float = TIMESTEP_SCALING,
) -> ConsistencyFunction:
    """Bind a student to its prompts: (noisy, timesteps) -> clean, in one network call.

    f(z, t) = c_skip(t) z + c_out(t) z0(z, t), where z0 is the network's estimate of the clean
    latents.

    Args:
        guidance_scale: w in the LCM convention; embedded, so that no second call is needed.
        fps: frames per second the network was trained at, if it takes them.
        motion_at: the motion strength m by timestep, for a network with motion_conditioning. The
            network gets its embedding even where m is 0: without one it skips a layer.
        timestep_scaling: with which the network was trained, of `boundary_scalings`.
    """
    bound = condition_student(network, guidance_scale, fps)

    def consistency_function(noisy: Latents, timesteps: Timesteps) -> Latents:
        conditioning = bound
        if motion_at is not None:
            motion = embed_guidance_scale(motion_at(timesteps))
            conditioning = replace(bound, motion=motion)
        output = network(noisy, schedule.network_time(timesteps), prompt_embeds, conditioning)
        clean, _ = schedule.split(noisy, output, timesteps)
        c_skip, c_out = boundary_scalings(timesteps, timestep_scaling)
        return c_skip * noisy + c_out * clean

    return consistency_function


@checked
def bind_clean_estimate(
    network: VideoNetwork, schedule: Schedule, prompt_embeds: PromptEmbeds
) -> ConsistencyFunction:
    """Bind a student without guidance embedding: its estimate of the clean latents, as it is.

    For students whose guidance is fixed and whose estimate is exact at sigma 0, such as rCM's.

    Source: rCM, arXiv:2510.08431.
    """

    def clean_estimate(noisy: Latents, timesteps: Timesteps) -> Latents:
        output = network(noisy, schedule.network_time(timesteps), prompt_embeds)
        clean, _ = schedule.split(noisy, output, timesteps)
        return clean

    return clean_estimate


def few_step_timesteps(
    num_steps: int, origin_steps: int, num_timesteps: int = NUM_TIMESTEPS
) -> Int[Tensor, " steps"]:
    """Choose the timesteps to visit: evenly strided points of the distillation grid, from the top.

    The last one may be well above 0 (279 for 4 of 50): the clean estimate there is already the
    sample. diffusers' `LCMScheduler` spaces its default timesteps differently.

    Args:
        origin_steps: size of the grid the student was distilled on: 50 in T2V-Turbo, 200 in v2.

    Source: the released T2V-Turbo scheduler.
    """
    if not 1 <= num_steps <= origin_steps:
        raise ValueError(
            f"Expected num_steps between 1 and {origin_steps}, got {num_steps}. "
            "A student cannot visit more timesteps than it was distilled on."
        )
    stride = num_timesteps // origin_steps
    grid = torch.arange(1, origin_steps + 1) * stride - 1
    return grid.flip(0)[:: origin_steps // num_steps][:num_steps]


@torch.inference_mode()
def sample_consistency(
    consistency_fn: ConsistencyFunction,
    schedule: Schedule,
    noise: Latents,
    timesteps: Int[Tensor, " steps"],
    generators: Sequence[torch.Generator] = (),
    *,
    step_noise: Sequence[Tensor] | None = None,  # each B C F h w
) -> Iterator[SamplerStep]:
    """Jump to the clean estimate, add less noise, jump again; yield every step.

    The last estimate is the sample, and both fields of the last step hold it.

    Args:
        noise: where to start: standard normal at the first timestep.
        timesteps: falling, from `few_step_timesteps`.
        generators: one per video; they draw the fresh noise of all steps but the last.
        step_noise: that noise, in place of draws.

    Source: Consistency Models, arXiv:2303.01469, Algorithm 1.
    """
    latents, fresh = noise, step_noises(noise, generators, step_noise)
    for t, t_next in zip_longest(timesteps, timesteps[1:]):
        clean = consistency_fn(latents, t.expand(len(noise)))
        latents = clean
        if t_next is not None:
            latents = schedule.add_noise(clean, next(fresh), t_next.expand(len(noise)))
        yield SamplerStep(clean, latents)
