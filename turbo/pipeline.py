"""From a prompt to a video: encode the text, draw noise, sample, decode."""

from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from time import perf_counter
from typing import Any, Literal

import diffusers
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from turbo import __version__
from turbo.card import Dtype, Memory, ModelCard, describe_remedy
from turbo.diffusion.consistency import bind_consistency_function
from turbo.diffusion.ddim import ddim_timesteps, sample_ddim, signal_scales
from turbo.diffusion.distillation import student_of
from turbo.diffusion.few_step import draw_noise, few_step_timesteps, sample_latents
from turbo.diffusion.guidance import bind_guided_unet
from turbo.diffusion.motion import motion_strength
from turbo.diffusion.schedule import NoiseSchedule
from turbo.models.errors import explained_damage
from turbo.models.footprint import DECODE_CHUNK
from turbo.models.placement import Placement, explained_shortage, place
from turbo.models.registry import DEFAULT_MODEL, find_card
from turbo.networks.compilation import compile_blocks
from turbo.networks.lora import LORA_FILE, load_lora, merge_lora
from turbo.networks.text import TextEncoder
from turbo.networks.unet import VideoUNet
from turbo.networks.vae import decode_latents, quicken_on_cpu
from turbo.request import Request, check_request
from turbo.types import Latents, PerVideo, Timesteps
from turbo.video import Video

Stage = Literal["text", "denoise", "decode"]


@dataclass(frozen=True)
class Progress:
    """Where a request stands: the stage now beginning, or the denoising step just done."""

    stage: Stage
    step: int  # denoising steps done
    steps: int
    seconds: float  # since the stream began
    video: int = 0  # index of the prompt


@dataclass(frozen=True)
class Result:
    """The end of a stream."""

    videos: list[Video]
    timings: dict[str, float]  # seconds of "text", "denoise", "decode", "total"; "unet_calls"


class VideoPipeline:
    """A loaded model. Videos are made one at a time, so a batch cannot change any of them."""

    def __init__(
        self,
        card: ModelCard,
        unet: VideoUNet,
        vae: AutoencoderKL,
        text_encoder: TextEncoder,
        schedule: NoiseSchedule,
        *,
        weights_sha256: str = "",
        placement: Placement | None = None,
    ) -> None:
        """Put the parts in their place; None leaves them where they are."""
        self.card = card
        self.unet = unet.eval().requires_grad_(False)
        self.vae = vae.eval().requires_grad_(False)
        self.text_encoder = text_encoder
        self.weights_sha256 = weights_sha256
        self.placement = placement or Placement(unet.device, unet.dtype)
        self.schedule = schedule.to(self.placement.device)
        home = "cpu" if self.placement.memory == "offload" else self.placement.device
        for network in (self.unet, self.vae, self.text_encoder.model):
            network.to(home)
        if self.placement.device.type == "cpu":
            quicken_on_cpu(self.vae)
        self.compiled = False

    @classmethod
    def load(
        cls,
        card: ModelCard,
        device: torch.device | str = "auto",
        *,
        dtype: Dtype = "auto",
        memory: Memory | None = None,
        compiled: bool = False,
    ) -> "VideoPipeline":
        """Load the model a card describes, from local files only; see `placement.place`.

        Args:
            compiled: compile the repeated blocks. The first video then takes minutes, later ones
                less time than without; frames differ in their last bits.

        Raises:
            FileNotFoundError: a part of the weights is not on this disk.
            MemoryError: the model does not fit into the memory of the device; the message says
                what would.
            ValueError: this use of memory makes no sense on this device, or the weights are
                damaged.
        """
        _check_folders(card)
        placement = place(card, device=device, dtype=dtype, memory=memory)
        if placement.device.type != "cpu":  # the pieces of a model before may fit none of this one
            torch.accelerator.empty_cache()
        with (
            explained_damage(card),
            explained_shortage(placement),
            fixed_threads(card, placement.device),
        ):
            pipeline = cls._read(card, placement)
        return pipeline.compile() if compiled else pipeline

    @classmethod
    def _read(cls, card: ModelCard, placement: Placement) -> "VideoPipeline":
        local = {"local_files_only": True, "use_safetensors": True}
        # Adapters are merged in full precision; what needs no merging is read in the final one.
        exact = torch.float32 if card.lora else placement.dtype
        unet = VideoUNet.from_pretrained(card.folder / card.unet, torch_dtype=exact, **local)
        if card.lora:
            student = student_of(unet, share=True)  # one copy of the weights is enough
            adapted = load_lora(student, card.folder / card.lora / LORA_FILE)
            unet = merge_lora(adapted, placement.dtype)
        return cls(
            card,
            unet,
            AutoencoderKL.from_pretrained(
                card.folder / "vae", torch_dtype=placement.dtype, **local
            ),
            TextEncoder.load(
                card.folder / "tokenizer", card.folder / "text_encoder", placement.dtype
            ),
            NoiseSchedule.scaled_linear(
                beta_end=card.beta_end, prediction_type=card.prediction_type
            ),
            weights_sha256=card.weights_sha256(),
            placement=placement,
        )

    def compile(self) -> "VideoPipeline":
        """Compile the repeated blocks, in place, at the first video."""
        compile_blocks(self.unet)
        compile_blocks(self.vae)
        self.compiled = True
        return self

    def __call__(
        self,
        prompt: str,
        *,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> Video:
        """Make one video; None takes the card's default."""
        *_, result = self.stream([prompt], [seed], steps=steps, guidance=guidance)
        assert isinstance(result, Result)
        return result.videos[0]

    def stream(
        self,
        prompts: list[str],
        seeds: list[int],
        *,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> Iterator[Progress | Result]:
        """Yield progress, then one `Result`. Closing the iterator stops within a step.

        Raises:
            ValueError: a request is out of range; before anything is computed.
        """
        if len(prompts) != len(seeds) or not prompts:
            raise ValueError(
                f"Expected as many seeds as prompts and at least one, "
                f"got {len(prompts)} prompts and {len(seeds)} seeds."
            )
        return self._run(
            [
                check_request(self.card, prompt, seed=seed, steps=steps, guidance=guidance)
                for prompt, seed in zip(prompts, seeds, strict=True)
            ]
        )

    @torch.inference_mode()
    def _run(self, requests: list[Request]) -> Iterator[Progress | Result]:
        clock = _Clock(self.placement.device)
        videos = []
        with explained_shortage(self.placement):
            for index, request in enumerate(requests):
                video = yield from self._make(request, index, clock)
                videos.append(video)
        yield Result(videos, {**clock.timings, "total": clock.elapsed})

    def _make(
        self, request: Request, index: int, clock: "_Clock"
    ) -> Generator[Progress, None, Video]:
        yield Progress("text", 0, request.steps, clock.elapsed, index)
        with self._working(clock, "text"), self._on_device(self.text_encoder.model):
            states = self._sample(request)
        yield Progress("denoise", 0, request.steps, clock.elapsed, index)
        with self._on_device(self.unet):
            for step in range(1, request.steps + 1):
                with self._working(clock, "denoise"):
                    latents = next(states)
                clock.timings["unet_calls"] += self.card.unet_calls_per_step
                yield Progress("denoise", step, request.steps, clock.elapsed, index)
        yield Progress("decode", request.steps, request.steps, clock.elapsed, index)
        with self._working(clock, "decode"), self._on_device(self.vae):
            chunk = DECODE_CHUNK[self.placement.memory]
            frames = decode_latents(self.vae, latents, chunk=chunk)
            return Video.from_frames(frames, self.card.fps, self._recipe(request))

    @contextmanager
    def _working(self, clock: "_Clock", stage: Stage) -> Iterator[None]:
        """Measure a computation, on the card's number of threads."""
        with clock.measure(stage), fixed_threads(self.card, self.placement.device):
            yield

    @contextmanager
    def _on_device(self, network: nn.Module) -> Iterator[None]:
        """Have a network on the device; when offloading, only for as long as it works."""
        if self.placement.memory != "offload":
            yield
            return
        network.to(self.placement.device)
        try:
            yield
        finally:
            network.to("cpu")

    def _sample(self, request: Request) -> Iterator[Latents]:
        """Encode the prompt now; sample when iterated."""
        device, card = self.placement.device, self.card
        generator = torch.Generator().manual_seed(request.seed)
        noise = draw_noise(self._empty_latents(), [generator])
        scale = torch.tensor([request.guidance], device=device)
        fps = self._told_fps()
        if card.sampler == "consistency":
            prompt_embeds = self.text_encoder.encode([request.prompt])
            consistency_fn = bind_consistency_function(
                self.unet, self.schedule, prompt_embeds, scale, fps, motion_at=self._motion_at()
            )
            timesteps = few_step_timesteps(request.steps, card.origin_steps).to(device)
            return sample_latents(consistency_fn, self.schedule, noise, timesteps, [generator])
        prompt_embeds, uncond_embeds = self.text_encoder.encode([request.prompt, ""]).split(1)
        denoiser = bind_guided_unet(self.unet, prompt_embeds, uncond_embeds, scale, fps)
        timesteps = ddim_timesteps(request.steps, spacing=card.spacing).to(device)
        return sample_ddim(
            denoiser,
            self.schedule,
            noise,
            timesteps,
            eta=card.eta,
            generators=[generator],
            scales=signal_scales().to(device) if card.clean_rescale else None,
        )

    def _told_fps(self) -> Tensor | None:
        if not self.unet.config.fps_conditioning:
            return None
        return torch.tensor([self.card.told_fps], device=self.placement.device)

    def _motion_at(self) -> Callable[[Timesteps], PerVideo] | None:
        if self.card.motion_strength is None:
            return None
        return partial(
            motion_strength,
            strength=self.card.motion_strength,
            percentage=self.card.motion_share,
        )

    def _empty_latents(self) -> Latents:
        config = self.vae.config
        shrink = 2 ** (len(config.block_out_channels) - 1)
        height, width = self.card.height // shrink, self.card.width // shrink
        return torch.empty(
            (1, config.latent_channels, self.card.num_frames, height, width),
            device=self.placement.device,
        )

    def _recipe(self, request: Request) -> dict[str, Any]:
        versions = {
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "turbo": __version__,
        }
        return {
            "model": self.card.name,
            "weights_sha256": self.weights_sha256,
            **asdict(request),
            "dtype": str(self.placement.dtype).removeprefix("torch."),
            "device": self.placement.device.type,
            "memory": self.placement.memory,
            "compiled": self.compiled,
            "versions": versions,
        }


def load_pipeline(name: str = DEFAULT_MODEL, device: str = "auto", **options: Any) -> VideoPipeline:
    """Load a model by name from local files only; `options` are those of `VideoPipeline.load`."""
    return load_card(find_card(name), device, **options)


def load_card(card: ModelCard, device: str = "auto", **options: Any) -> VideoPipeline:
    """Load the model a card describes, which need not be in the table."""
    return VideoPipeline.load(card, device, **options)


@contextmanager
def fixed_threads(card: ModelCard, device: torch.device) -> Iterator[None]:
    """Compute meanwhile on as many threads as the card says, on a CPU.

    Sums split over another number of threads differ in their last bits, and a recipe should make
    the same frames. The number is the whole process's, so it is given back between computations.
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


def _check_folders(card: ModelCard) -> None:
    """Refuse a model that is not on this disk, naming what is missing."""
    if card.missing:
        raise FileNotFoundError(
            f"Expected the weights of {card.name} in {card.folder}, got no {card.missing[0]!r}. "
            f"{describe_remedy(card)}"
        )


class _Clock:
    """Adds up seconds by stage, without the time the caller spends between two updates."""

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
        if self.device.type != "cpu":  # its work is queued, not done
            torch.accelerator.synchronize(self.device)
        self.timings[stage] += perf_counter() - begin
