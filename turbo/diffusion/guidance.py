"""Classifier-free guidance of a teacher: how strongly a video follows its prompt.

Two conventions differ by one. A teacher combines two predictions with the scale s of Imagen,
`uncond + s (cond - uncond)`. A student takes the scale w of Latent Consistency Models as an input
(`consistency.embed_guidance_scale`) and was trained to predict `cond + w (cond - uncond)` in one
call. Hence s = w + 1.
"""

import torch
from einops import rearrange
from torch import Tensor

from turbo.types import (
    Conditioning,
    Denoiser,
    FrameRate,
    Latents,
    PerVideo,
    PromptEmbeds,
    Schedule,
    Timesteps,
    VideoNetwork,
    checked,
)


@checked
def guide(cond: Latents, uncond: Latents, scale: PerVideo | float) -> Latents:
    """Combine two predictions, noise or velocity alike, by classifier-free guidance.

    Args:
        scale: s in the Imagen convention; 1 returns the conditional prediction itself.

    Source: Classifier-Free Guidance, arXiv:2207.12598, as in Imagen, arXiv:2205.11487, Eq. 7.
    """
    if isinstance(scale, Tensor):
        scale = rearrange(scale, "B -> B 1 1 1 1")
    return uncond + scale * (cond - uncond)


@checked
def bind_guided(
    network: VideoNetwork,
    schedule: Schedule,
    prompt_embeds: PromptEmbeds,
    uncond_embeds: PromptEmbeds,
    scale: PerVideo,
    fps: FrameRate | None = None,
    *,
    one_call: bool = False,
) -> Denoiser:
    """Bind a teacher to its prompts: (noisy, timesteps) -> raw output, in two network calls.

    Args:
        uncond_embeds: the encoding of the empty prompt, one per video.
        scale: s in the Imagen convention.
        fps: goes to both calls.
        one_call: compute both predictions as one batch: faster on an accelerator, twice the memory.
    """
    conditioning = Conditioning(fps=fps)

    def denoiser(noisy: Latents, timesteps: Timesteps) -> Latents:
        time = schedule.network_time(timesteps)
        if one_call:
            both = Conditioning(fps=None if fps is None else torch.cat([fps, fps]))
            embeds = torch.cat([prompt_embeds, uncond_embeds])
            output = network(torch.cat([noisy] * 2), torch.cat([time] * 2), embeds, both)
            cond, uncond = output.chunk(2)
            return guide(cond, uncond, scale)
        cond = network(noisy, time, prompt_embeds, conditioning)
        uncond = network(noisy, time, uncond_embeds, conditioning)
        return guide(cond, uncond, scale)

    return denoiser
