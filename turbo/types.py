"""The contracts between the parts of a model: array types, protocols, and their run-time check.

Axes: B videos, C latent channels, F latent frames, N frames, h w latent size, H W pixel size,
L tokens, D features.

A model is a `VideoNetwork` with its `Schedule`, a `TextEncoder` and a `VAE`. Binding a network to
its prompts and its guidance gives a `Denoiser` (a teacher) or a `ConsistencyFunction` (a student),
which is all that a sampler knows of a model. In training, a `Reward` scores the decoded frames, and
an `Energy` guides the teacher.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from beartype import BeartypeConf, BeartypeViolationVerbosity, beartype
from jaxtyping import Float, Int, Real, jaxtyped
from torch import Tensor

Latents = Float[Tensor, "B C F h w"]  # VAE latents, already scaled to unit variance
Frames = Float[Tensor, "B N 3 H W"]  # RGB in [0, 1]; N is F, or more for a causal VAE
Timesteps = Int[Tensor, " B"]  # index into the noise schedule, from 0 (nearly clean) to T - 1
NetworkTime = Real[Tensor, " B"]  # what a network gets for timesteps, see `Schedule`
PerVideo = Float[Tensor, " B"]  # one number per video: a reward, a loss, a guidance scale
Level = Float[Tensor, "B 1 1 1 1"]  # of signal or noise, per video
FrameRate = Int[Tensor, " B"]  # frames per second
PromptEmbeds = Float[Tensor, "B L D"]  # the text encoder's output for every token
Embedding = Float[Tensor, "B D"]  # one vector per video

Checked = TypeVar("Checked", bound=Callable[..., Any])

_CONFIGURATION = BeartypeConf(
    violation_type=ValueError,
    violation_verbosity=BeartypeViolationVerbosity.MINIMAL,
    is_pep484_tower=True,  # an int is accepted as a float
)


def checked(function: Checked) -> Checked:
    """Check at every call that the arguments are as annotated; takes 30 microseconds.

    Axes of one letter must agree: torch would silently repeat one timestep or frame rate over a
    batch of two videos. A violation raises a ValueError that names the argument. Also decorates
    dataclasses. Not for generator functions, whose yields jaxtyping cannot check.
    """
    if isinstance(function, type):
        function.__init__ = checked(function.__init__)  # type: ignore[misc]
        return function
    return jaxtyped(typechecker=None)(beartype(conf=_CONFIGURATION)(function))


@checked
@dataclass(frozen=True)
class Conditioning:
    """Inputs of a network besides timestep and prompt; None where it was not trained on them."""

    guidance: Float[Tensor, "B D"] | None = None  # `embed_guidance_scale` of w
    motion: Float[Tensor, "B M"] | None = None  # the same embedding of the motion strength m (v2)
    fps: FrameRate | None = None  # of the training clips (VideoCrafter2)


@runtime_checkable
class VideoNetwork(Protocol):
    """A denoising network, teacher or student: one of `turbo.networks.families.Network`."""

    @property
    def guidance_size(self) -> int | None:
        """Return the size of the guidance embedding it takes; None for a teacher."""
        ...

    @property
    def takes_fps(self) -> bool:
        """Return whether it is conditioned on the frame rate."""
        ...

    def __call__(
        self,
        noisy: Latents,
        time: NetworkTime,
        prompt_embeds: PromptEmbeds,
        conditioning: Conditioning | None = None,
        /,
    ) -> Latents:
        """Return the raw output, noise or velocity; `Schedule.split` converts it.

        Latents keep their dtype, whatever that of the weights. Differentiable in `noisy`.
        """
        ...


@runtime_checkable
class Schedule(Protocol):
    """How much signal and noise latents hold at each timestep: `turbo.diffusion.schedule`."""

    def __len__(self) -> int:
        """Return the number of timesteps."""
        ...

    def to(self, device: torch.device | str) -> "Schedule":
        """Return the schedule on a device."""
        ...

    def network_time(self, timesteps: Timesteps) -> NetworkTime:
        """Return the time values that the network receives for these timesteps."""
        ...

    def levels(self, timesteps: Timesteps) -> tuple[Level, Level]:
        """Return the levels of signal and noise, alpha and sigma."""
        ...

    def add_noise(self, clean: Latents, noise: Latents, timesteps: Timesteps) -> Latents:
        """Return alpha * clean + sigma * noise."""
        ...

    def remove_noise(self, noisy: Latents, noise: Latents, timesteps: Timesteps) -> Latents:
        """Return the clean latents, given the noise that was added to them."""
        ...

    def target(self, clean: Latents, noise: Latents, timesteps: Timesteps) -> Latents:
        """Return what a network of this schedule is trained to output."""
        ...

    def split(
        self, noisy: Latents, output: Latents, timesteps: Timesteps
    ) -> tuple[Latents, Latents]:
        """Convert a network's raw output to its estimates of the clean latents and the noise."""
        ...

    def ddim_step(self, clean: Latents, noise: Latents, end: Timesteps) -> Latents:
        """Step along the probability-flow ODE to `end`, from the estimates at the start."""
        ...


@runtime_checkable
class Denoiser(Protocol):
    """A network bound to its prompts and guidance: `guidance.bind_guided`."""

    def __call__(self, noisy: Latents, timesteps: Timesteps, /) -> Latents:
        """Return the guided raw output, noise or velocity."""
        ...


@runtime_checkable
class ConsistencyFunction(Protocol):
    """A student bound to its prompts and guidance: `consistency.bind_consistency_function`."""

    def __call__(self, noisy: Latents, timesteps: Timesteps, /) -> Latents:
        """Return the clean latents at the end of the trajectory; `noisy` itself at timestep 0."""
        ...


@dataclass(frozen=True, eq=False)
class SamplerStep:
    """One step of a sampler."""

    clean: Latents  # the estimate of the clean latents
    latents: Latents  # at the timestep reached; after a sampler's last step, the sample


@dataclass(frozen=True, eq=False)
class EnergyScore:
    """The gradient of an energy, and what the same call of the teacher predicted."""

    score: Latents  # gradient of the energy with respect to the noisy latents
    energy: PerVideo
    output: Latents  # the teacher's raw output for the prompt


@runtime_checkable
class Energy(Protocol):
    """What guidance lowers, bound to a teacher: `turbo.diffusion.motion.MotionEnergy`."""

    def __call__(
        self,
        noisy: Latents,
        clean: Latents,
        timesteps: Timesteps,
        prompt_embeds: PromptEmbeds,
        fps: FrameRate | None,
        /,
    ) -> EnergyScore:
        """Return the energy of each noisy video, and its gradient.

        `clean` are the same videos without noise: what they should resemble. No graph is kept.
        """
        ...


@runtime_checkable
class TextEncoder(Protocol):
    """Prompts to embeddings: `turbo.networks.text.CLIPTextEncoder`."""

    def encode(self, prompts: list[str]) -> PromptEmbeds:
        """Embed every token; the empty prompt gives the unconditional embedding. No gradient."""
        ...

    def unread(self, prompt: str) -> str:
        """Return the words at the end of a prompt that `encode` does not read; "" if none."""
        ...

    def to(self, device: torch.device | str) -> Any:
        """Move the weights to a device, in place."""
        ...


@runtime_checkable
class VAE(Protocol):
    """An image autoencoder with the interface of diffusers' `AutoencoderKL`.

    Images are in [-1, 1] (N 3 H W), latents unscaled (N C h w). `networks.vae.encode_frames` and
    `decode_latents` apply it to videos, with scaling and range.
    """

    config: Any  # scaling_factor, shift_factor, latent_channels, block_out_channels
    dtype: torch.dtype

    def encode(self, images: Tensor) -> Any:
        """Return an object whose `latent_dist` has `parameters`: means, then log variances."""
        ...

    def decode(self, latents: Tensor) -> Any:
        """Return an object whose `sample` is the images, not clamped."""
        ...


@runtime_checkable
class Reward(Protocol):
    """A score of frames against their prompts: `turbo.rewards`."""

    def __call__(self, frames: Frames, prompts: list[str], /) -> PerVideo:
        """Return one score per video, higher is better; differentiable in `frames`."""
        ...
