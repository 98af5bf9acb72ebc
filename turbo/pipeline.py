"""From a prompt to a video: encode the text, draw noise, sample, decode."""

import sys
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from threading import Lock
from time import perf_counter
from typing import Any, Literal

import diffusers
import torch
from torch import Tensor, nn
from tqdm import tqdm

from turbo import __version__
from turbo.card import Dtype, Memory, ModelCard, describe_remedy
from turbo.diffusion.consistency import (
    bind_clean_estimate,
    bind_consistency_function,
    few_step_timesteps,
    sample_consistency,
)
from turbo.diffusion.ddim import ddim_timesteps, sample_ddim, signal_scales
from turbo.diffusion.distillation import student_of
from turbo.diffusion.guidance import bind_guided
from turbo.diffusion.motion import motion_strength
from turbo.diffusion.schedule import draw_noise, schedule_of
from turbo.models.errors import explained_damage
from turbo.models.footprint import DECODE_CHUNK
from turbo.models.placement import Placement, explained_shortage, place
from turbo.models.registry import DEFAULT_MODEL, find_card
from turbo.networks.compilation import compile_blocks
from turbo.networks.families import Network, VideoVAE, load_network, load_text_encoder, load_vae
from turbo.networks.lora import LORA_FILE, load_lora, merge_lora
from turbo.networks.vae import decode_latents, latent_shape, quicken_on_cpu
from turbo.request import Request, check_request
from turbo.types import (
    Latents,
    PerVideo,
    PromptEmbeds,
    SamplerStep,
    Schedule,
    TextEncoder,
    Timesteps,
    checked,
)
from turbo.video import Video, draw_visible_mark

Stage = Literal["text", "denoise", "decode"]
# Loading sets torch's meta device and default dtype, which are those of the whole process.
_LOADING = Lock()


@dataclass(frozen=True)
class Progress:
    """Progress of a stream: the stage that begins, or the denoising step just done."""

    stage: Stage
    step: int  # denoising steps done
    steps: int
    seconds: float  # since the stream began
    video: int = 0  # index of the prompt; of the first one of a batch
    clean: Latents | None = field(default=None, compare=False, repr=False)  # the step's estimate


@dataclass(frozen=True, eq=False)
class Result:
    """The end of a stream."""

    videos: list[Video]
    timings: dict[str, float]  # seconds of "text", "denoise", "decode", "total"; "unet_calls"
    latents: Latents  # the samples, before decoding; see `networks.vae.decode_latents`


@dataclass(frozen=True, eq=False)
class Samples:
    """What the sampler made of a batch of requests, before decoding."""

    latents: Latents
    recipes: list[dict[str, Any]]  # of the videos


@dataclass(frozen=True)
class _Batch:
    """Videos to make at once, with the tensors that the caller gives for them."""

    first: int  # index of the first prompt
    requests: list[Request]
    prompt_embeds: PromptEmbeds | None
    noise: Latents | None
    step_noise: list[Latents] | None


class VideoPipeline:
    """A loaded model. Videos are made one at a time by default, so no prompt changes another's."""

    def __init__(
        self,
        card: ModelCard,
        unet: Network,
        vae: VideoVAE,
        text_encoder: TextEncoder,
        schedule: Schedule,
        *,
        weights_sha256: str = "",
        placement: Placement | None = None,
    ) -> None:
        """Move the parts to their device; None leaves them where they are."""
        self.card = card
        self.unet = unet.eval().requires_grad_(False)
        self.vae = vae.eval().requires_grad_(False)
        self.text_encoder = text_encoder
        self.weights_sha256 = weights_sha256
        self.placement = placement or Placement(unet.device, unet.dtype)
        self.schedule = schedule.to(self.placement.device)
        home = "cpu" if self.placement.memory == "offload" else self.placement.device
        for part in (self.unet, self.vae, self.text_encoder):
            part.to(home)
        if self.placement.device.type == "cpu":
            quicken_on_cpu(self.vae)
        self.compiled = False
        self.visible_mark = False  # whether files say on every frame that a model made them
        self.conditioning_fps = card.network_fps if unet.takes_fps else None

    @classmethod
    def load(
        cls,
        card: ModelCard,
        device: torch.device | str = "auto",
        *,
        dtype: Dtype = "auto",
        memory: Memory | None = None,
        compiled: bool = False,
        visible_mark: bool = False,
    ) -> "VideoPipeline":
        """Load the model a card describes, from local files only; see `placement.place`.

        Args:
            compiled: compile the repeated blocks. The first video then takes minutes, later ones
                less time than otherwise; frames differ in their last bits.
            visible_mark: write "AI-generated" on the frames of every file.

        Raises:
            FileNotFoundError: a part of the weights is not on this disk.
            MemoryError: the model does not fit into the memory of the device; the message names
                an option that would.
            ValueError: this device does not support this use of memory, the weights are damaged,
                or the mark does not fit the frames.
        """
        placement = check_loading(
            card, device, dtype=dtype, memory=memory, visible_mark=visible_mark
        )
        # The blocks that torch caches of an earlier model may fit no tensor of this one.
        if placement.device.type != "cpu":
            torch.accelerator.empty_cache()
        with (
            _LOADING,
            explained_damage(card),
            explained_shortage(placement),
            fixed_threads(card, placement.device),
            _own_precision(torch.device("cpu")),  # adapters are merged on the CPU
        ):
            pipeline = cls._read(card, placement)
        pipeline.visible_mark = visible_mark
        if compiled:
            compile_blocks(pipeline.unet)
            compile_blocks(pipeline.vae)
            pipeline.compiled = True
        return pipeline

    @classmethod
    def _read(cls, card: ModelCard, placement: Placement) -> "VideoPipeline":
        # Adapters are merged in float32; without adapters, weights are read in their final dtype.
        exact = torch.float32 if card.lora else placement.dtype
        unet = load_network(card.folder / card.unet, exact)
        if card.lora:
            student = student_of(unet, share=True)  # one copy of the weights is enough
            adapted = load_lora(student, card.folder / card.lora / LORA_FILE)
            unet = merge_lora(adapted, placement.dtype)
        return cls(
            card,
            unet,
            load_vae(card.folder / "vae", placement.dtype),
            load_text_encoder(
                card.folder / "tokenizer", card.folder / "text_encoder", placement.dtype
            ),
            schedule_of(card),
            weights_sha256=card.weights_sha256(),
            placement=placement,
        )

    def __call__(
        self, prompt: str, *, seed: int = 0, steps: int | None = None, guidance: float | None = None
    ) -> Video:
        """Generate one video. `steps` and `guidance` default to the card's values."""
        *_, result = self.stream([prompt], [seed], steps=steps, guidance=guidance)
        assert isinstance(result, Result)
        return result.videos[0]

    @checked
    def stream(
        self,
        prompts: list[str],
        seeds: list[int],
        *,
        steps: int | None = None,
        guidance: float | None = None,
        batch_size: int = 1,
        prompt_embeds: PromptEmbeds | None = None,
        noise: Latents | None = None,
        step_noise: Sequence[Latents] | None = None,
    ) -> Iterator[Progress | Result]:
        """Yield progress, then one `Result`. Closing the iterator stops within a step.

        Args:
            batch_size: videos to make at once. More than 1 needs that many times the memory for
                activations, and changes frames in their last bits (at most 1 level of 256 in
                float32).
            prompt_embeds: in place of the encoded prompts, which then only name the videos.
            noise: the initial latents (prompts C F h w), in place of draws from the seeds, which
                still draw the noise of later steps, as they would without it.
            step_noise: for each step that adds noise, that noise (prompts C F h w).

        Raises:
            RequestError: a prompt, a seed, steps or guidance is out of range.
            ValueError: the arguments do not fit each other. Both before anything is computed.
            ArithmeticError: the networks computed numbers that are not finite.
        """
        if len(prompts) != len(seeds) or not prompts or batch_size < 1:
            raise ValueError(
                "Expected as many seeds as prompts, at least one, and a positive batch_size, got "
                f"{len(prompts)} prompts, {len(seeds)} seeds and batch_size {batch_size}."
            )
        requests = [
            check_request(self.card, prompt, seed=seed, steps=steps, guidance=guidance)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        shape = (len(prompts), *self.latent_shape)
        for latents in [*([] if noise is None else [noise]), *(step_noise or [])]:
            if latents.shape != shape:
                raise ValueError(f"Expected noise of shape {shape}, got {tuple(latents.shape)}.")
        if prompt_embeds is not None and len(prompt_embeds) != len(prompts):
            raise ValueError(
                f"Expected embeddings of {len(prompts)} prompts, got {len(prompt_embeds)}."
            )

        batches = []
        for first in range(0, len(prompts), batch_size):
            rows = slice(first, first + batch_size)
            batch = _Batch(
                first,
                requests[rows],
                None if prompt_embeds is None else prompt_embeds[rows],
                None if noise is None else noise[rows],
                None if step_noise is None else [latents[rows] for latents in step_noise],
            )
            batches.append(batch)
        return self._run(batches)

    @torch.inference_mode()
    def sample(self, requests: list[Request]) -> Samples:
        """Sample one batch of checked requests with equal steps, to be decoded by `decode`.

        Apart, so that one thread can decode while another samples. See `stream` on how frames
        depend on the size of a batch.
        """
        with explained_shortage(self.placement):
            sampling = self._sample_batch(
                _Batch(0, requests, None, None, None), _Clock(self.placement.device)
            )
            while True:
                try:
                    next(sampling)
                except StopIteration as end:
                    return end.value

    @torch.inference_mode()
    def decode(self, samples: Samples) -> list[Video]:
        """Decode samples of this pipeline to videos."""
        with explained_shortage(self.placement):
            return self._decode(samples, _Clock(self.placement.device))

    @torch.inference_mode()
    def _run(self, batches: list[_Batch]) -> Iterator[Progress | Result]:
        clock = _Clock(self.placement.device)
        videos: list[Video] = []
        samples: list[Latents] = []
        with explained_shortage(self.placement):
            for batch in batches:
                sampled = yield from self._sample_batch(batch, clock)
                steps = batch.requests[0].steps
                yield Progress("decode", steps, steps, clock.elapsed, batch.first)
                videos += self._decode(sampled, clock)
                samples.append(sampled.latents)
        timings = {**clock.timings, "total": clock.elapsed}
        yield Result(videos, timings, torch.cat(samples))

    def _sample_batch(self, batch: _Batch, clock: "_Clock") -> Generator[Progress, None, Samples]:
        steps = batch.requests[0].steps

        def progress(stage: Stage, step: int, clean: Latents | None = None) -> Progress:
            return Progress(stage, step, steps, clock.elapsed, batch.first, clean)

        yield progress("text", 0)
        with self._working(clock, "text"), self._on_device(self.text_encoder):
            sampler = self._sample(batch)
        yield progress("denoise", 0)
        with self._on_device(self.unet):
            for step in range(1, steps + 1):
                with self._working(clock, "denoise"):
                    state = next(sampler)
                clock.timings["unet_calls"] += self.card.calls_per_step
                yield progress("denoise", step, state.clean)
        self._check_finite(state.latents)
        return Samples(state.latents, [self._recipe(request, batch) for request in batch.requests])

    def _decode(self, samples: Samples, clock: "_Clock") -> list[Video]:
        with self._working(clock, "decode"), self._on_device(self.vae):
            chunk = DECODE_CHUNK[self.placement.memory]
            # `Video` clamps them: an infinite pixel would look like a white one.
            frames = decode_latents(self.vae, samples.latents, chunk=chunk, clamp=False)
            self._check_finite(frames)
            return [
                Video.from_frames(clip, self.card.fps, recipe)
                for clip, recipe in zip(frames.split(1), samples.recipes, strict=True)
            ]

    def _check_finite(self, computed: Tensor) -> None:
        """Refuse what overflowed; a video of it would be black.

        Raises:
            ArithmeticError: a number is infinite or not a number. The message names a remedy.
        """
        if computed.isfinite().all():
            return
        advice = f"Verify its weights: python -m turbo.models verify {self.card.name}."
        if self.placement.dtype != torch.float32:
            advice = "Load it in float32: --dtype float32."
        raise ArithmeticError(f"{self.card.name} computed numbers that are not finite. {advice}")

    @contextmanager
    def _working(self, clock: "_Clock", stage: Stage) -> Iterator[None]:
        """Measure a computation, on the card's number of threads and free of ambient state."""
        device = self.placement.device
        with clock.measure(stage), fixed_threads(self.card, device), _own_precision(device):
            yield

    @contextmanager
    def _on_device(self, part: nn.Module | TextEncoder) -> Iterator[None]:
        """Move a part to the device while it computes, if the model is offloaded."""
        if self.placement.memory != "offload":
            yield
            return
        part.to(self.placement.device)
        try:
            yield
        finally:
            part.to("cpu")

    def _sample(self, batch: _Batch) -> Iterator[SamplerStep]:
        """Encode the prompts; return a sampler that computes as it is iterated."""
        device, card, requests = self.placement.device, self.card, batch.requests
        generators = [torch.Generator().manual_seed(request.seed) for request in requests]
        exact = torch.promote_types(self.placement.dtype, torch.float32)
        like = torch.empty((len(requests), *self.latent_shape), device=device, dtype=exact)
        noise = draw_noise(like, generators)  # drawn also if given: later draws stay the same
        if batch.noise is not None:
            noise = batch.noise.to(like)
        scale = torch.tensor(
            [request.guidance for request in requests], device=device, dtype=torch.float32
        )
        fps = None
        if self.conditioning_fps is not None:
            fps = torch.tensor([self.conditioning_fps] * len(requests), device=device)
        prompts = [] if batch.prompt_embeds is not None else [r.prompt for r in requests]
        if card.sampler == "consistency":
            prompt_embeds = self._encode(prompts, batch)
            if card.sigmas:
                consistency_fn = bind_clean_estimate(self.unet, self.schedule, prompt_embeds)
                timesteps = torch.arange(len(card.sigmas), 0, -1, device=device)
                timesteps = timesteps[: requests[0].steps]
                alpha, sigma = self.schedule.levels(timesteps[:1])
                noise = (alpha**2 + sigma**2).sqrt() * noise  # the variance of a noisy latent there
            else:
                consistency_fn = bind_consistency_function(
                    self.unet,
                    self.schedule,
                    prompt_embeds,
                    scale,
                    fps,
                    motion_at=self._motion_at(),
                    timestep_scaling=card.timestep_scaling,
                )
                timesteps = few_step_timesteps(requests[0].steps, card.origin_steps).to(device)
            return sample_consistency(
                consistency_fn,
                self.schedule,
                noise,
                timesteps,
                generators,
                step_noise=batch.step_noise,
            )
        embeds = self._encode([*prompts, ""], batch)
        uncond_embeds = embeds[-1:].expand(len(requests), -1, -1)
        denoiser = bind_guided(self.unet, self.schedule, embeds[:-1], uncond_embeds, scale, fps)
        timesteps = ddim_timesteps(requests[0].steps, spacing=card.spacing).to(device)
        return sample_ddim(
            denoiser,
            self.schedule,
            noise,
            timesteps,
            eta=card.eta,
            generators=generators,
            step_noise=batch.step_noise,
            scales=signal_scales().to(device) if card.clean_rescale else None,
        )

    def _encode(self, prompts: list[str], batch: _Batch) -> PromptEmbeds:
        """Return the embeddings of a batch: those that were given, then those of the prompts."""
        encoded = [self.text_encoder.encode(prompts)] if prompts else []
        if batch.prompt_embeds is not None:
            encoded.insert(0, batch.prompt_embeds.to(self.placement.device, self.unet.dtype))
        return torch.cat(encoded) if len(encoded) > 1 else encoded[0]

    def _motion_at(self) -> Callable[[Timesteps], PerVideo] | None:
        if self.card.motion_strength is None:
            return None
        return partial(
            motion_strength,
            strength=self.card.motion_strength,
            percentage=self.card.motion_share,
            num_timesteps=len(self.schedule),
        )

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Return the shape of one video's latents: C, F, h, w."""
        return latent_shape(self.vae, self.card.num_frames, self.card.height, self.card.width)

    def _recipe(self, request: Request, batch: _Batch) -> dict[str, Any]:
        """Return all that determines the frames; tensors of the caller by name only."""
        versions = {
            "torch": str(torch.__version__),  # is of a class of torch, which a reader would import
            "diffusers": diffusers.__version__,
            "turbo": __version__,
        }
        given = [
            name
            for name in ("prompt_embeds", "noise", "step_noise")
            if getattr(batch, name) is not None
        ]
        unread = "" if batch.prompt_embeds is not None else self.text_encoder.unread(request.prompt)
        return {
            "model": self.card.name,
            "weights_sha256": self.weights_sha256,
            **asdict(request),
            "dtype": str(self.placement.dtype).removeprefix("torch."),
            "device": self.placement.device.type,
            "memory": self.placement.memory,
            "compiled": self.compiled,
            "versions": versions,
            **({"batch_size": len(batch.requests)} if len(batch.requests) > 1 else {}),
            **({"visible_mark": True} if self.visible_mark else {}),
            **({"unread": unread} if unread else {}),
            **({"given": given} if given else {}),  # not made again by prompt and seed alone
        }


def load_pipeline(name: str = DEFAULT_MODEL, device: str = "auto", **options: Any) -> VideoPipeline:
    """Load a model by name, from local files only; `options` are those of `VideoPipeline.load`."""
    return VideoPipeline.load(find_card(name), device, **options)


@contextmanager
def fixed_threads(card: ModelCard, device: torch.device) -> Iterator[None]:
    """Use the card's number of CPU threads inside the block.

    Sums over another number of threads differ in their last bits, and a recipe should make the
    same frames. The number belongs to the whole process, so it is restored between computations.
    """
    if card.cpu_threads is None or device.type != "cpu":
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(card.cpu_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _own_precision(device: torch.device) -> Iterator[None]:
    """Keep the caller's autocast, default device and matrix precision out of a computation.

    The default dtype belongs to all threads, so the code names its dtypes instead.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.device(device), torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def warn_of_unread(pipeline: VideoPipeline, request: Request) -> None:
    """Print the words of a prompt that the model will not read."""
    if unread := pipeline.text_encoder.unread(request.prompt):
        tqdm.write(
            f"The prompt is too long for {pipeline.card.name}, which will not read these words: "
            f"{unread}",
            file=sys.stderr,
        )


def check_loading(
    card: ModelCard,
    device: torch.device | str = "auto",
    *,
    dtype: Dtype = "auto",
    memory: Memory | None = None,
    visible_mark: bool = False,
) -> Placement:
    """Return where `VideoPipeline.load` would put a model now; reads only headers of its files.

    Raises:
        FileNotFoundError, MemoryError, ValueError: as for `VideoPipeline.load`.
    """
    if card.missing:
        raise FileNotFoundError(
            f"The weights of {card.name} are incomplete: {card.missing[0]!r} is missing in "
            f"{card.folder}. {describe_remedy(card)}"
        )
    if visible_mark:  # before minutes of computing
        draw_visible_mark(card.height * card.enlarge, card.width * card.enlarge)
    return place(card, device=device, dtype=dtype, memory=memory)


class _Clock:
    """Sums seconds by stage, without the caller's time between two updates."""

    def __init__(self, device: torch.device) -> None:
        self.timings: dict[str, float] = defaultdict(float)
        self.device = device
        self.begin = perf_counter()

    @property
    def elapsed(self) -> float:
        return perf_counter() - self.begin

    @contextmanager
    def measure(self, stage: Stage) -> Iterator[None]:
        begin = perf_counter()
        yield
        if self.device.type != "cpu":  # its work is queued until then
            torch.accelerator.synchronize(self.device)
        self.timings[stage] += perf_counter() - begin
