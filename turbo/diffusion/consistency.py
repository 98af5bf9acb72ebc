"""The consistency function: from any point of a trajectory to its clean end, in one jump."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from einops import rearrange
from jaxtyping import Int
from torch import Tensor

from turbo.diffusion.guidance import embed_guidance_scale
from turbo.diffusion.schedule import Level, NoiseSchedule
from turbo.networks.unet import MOTION_EMBEDDING_SIZE, Conditioning, VideoUNet
from turbo.types import Latents, PerVideo, PromptEmbeds, Timesteps

SIGMA_DATA = 0.5  # standard deviation the boundary is scaled to; Karras et al., arXiv:2206.00364
TIMESTEP_SCALING = 10.0  # sharpens the boundary; Latent Consistency Models, arXiv:2310.04378


def boundary_scalings(timesteps: Timesteps) -> tuple[Level, Level]:
    """Return c_skip and c_out, which make the function the identity at timestep 0.

    Source: Consistency Models, arXiv:2303.01469, Eq. 5 and appendix C, on scaled timesteps.
    """
    scaled = rearrange(TIMESTEP_SCALING * timesteps.float(), "B -> B 1 1 1 1")
    variance = scaled**2 + SIGMA_DATA**2
    return SIGMA_DATA**2 / variance, scaled / variance.sqrt()


@dataclass(frozen=True)
class ConsistencyFunction:
    """(noisy, timesteps) -> clean, with prompt and guidance already bound. One network call."""

    unet: VideoUNet
    schedule: NoiseSchedule
    prompt_embeds: PromptEmbeds
    conditioning: Conditioning
    # The motion strength m by timestep, in place of the conditioning's; only for v2.
    motion_at: Callable[[Timesteps], PerVideo] | None = None

    def __call__(self, noisy: Latents, timesteps: Timesteps) -> Latents:
        conditioning = self.conditioning
        if self.motion_at is not None:
            motion = embed_guidance_scale(self.motion_at(timesteps), MOTION_EMBEDDING_SIZE)
            conditioning = replace(conditioning, motion=motion)
        output = self.unet(noisy, timesteps, self.prompt_embeds, conditioning)
        clean, _ = self.schedule.split(noisy, output, timesteps)
        c_skip, c_out = boundary_scalings(timesteps)
        return c_skip * noisy + c_out * clean


def bind_consistency_function(
    unet: VideoUNet,
    schedule: NoiseSchedule,
    prompt_embeds: PromptEmbeds,
    guidance_scale: PerVideo,
    fps: Int[Tensor, " B"] | None = None,
    *,
    motion_at: Callable[[Timesteps], PerVideo] | None = None,
) -> ConsistencyFunction:
    """Bind a student to its prompts.

    Args:
        guidance_scale: w in the LCM convention; embedded, so that no second call is needed.
        fps: frames per second the network was trained at, where it takes them.
        motion_at: the motion strength m by timestep, for a network with motion_conditioning. Where
            it is 0 it is told all the same: to such a network, being told nothing is another thing.
    """
    guidance = embed_guidance_scale(guidance_scale, unet.config.time_cond_proj_dim)
    conditioning = Conditioning(guidance=guidance, fps=fps)
    return ConsistencyFunction(unet, schedule, prompt_embeds, conditioning, motion_at)
