"""A model card: which files to load, how to sample, and the limits of a request."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

# The options of a card. This module does not import torch, so that the registry loads at once.
Dtype = Literal["auto", "float32", "bfloat16", "float16"]  # turbo/models/placement.py
Memory = Literal["full", "sliced", "offload"]  # most memory first; turbo/models/footprint.py
MotionLayers = Literal["never", "maybe", "always"]  # "maybe": both kinds of file are published
PredictionType = Literal["epsilon", "v_prediction"]  # network output; turbo/diffusion/schedule.py
Role = Literal["teacher", "student"]
Sampler = Literal["ddim", "consistency"]  # turbo/diffusion/ddim.py, consistency.py
Spacing = Literal["leading", "trailing"]  # of DDIM timesteps; turbo/diffusion/ddim.py

CONVERSION = "conversion.json"  # beside converted weights: their SHA-256 and their origin


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """A published file on the Hugging Face Hub, and the folders of weights converted from it."""

    repository: str
    path: str  # inside the repository
    size: int  # bytes; to three digits where the Hub shows no more
    gives: tuple[str, ...] = ()  # parts of a model, as in `ModelCard.parts`
    sha256: str | None = None  # of the published file; None if unknown

    @property
    def address(self) -> str:
        """Return its page on the Hub."""
        return f"https://huggingface.co/{self.repository}/blob/main/{self.path}"


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """One row of `turbo/models/registry.py`. A model is its card and its weights."""

    name: str  # identifies it in commands, manifests and recipes
    title: str  # for people
    family: str  # models of one family share VAE, text encoder and world
    role: Role
    sampler: Sampler
    licence: str  # SPDX

    folder: Path  # holds vae/, text_encoder/, tokenizer/ and the folder of the UNet
    unet: str  # that folder's name
    lora: str | None = None  # folder of the adapters that turn the UNet into a student
    sources: tuple[HubFile, ...] = ()  # published files; none for models trained here
    memory_gb: float = 0.1  # estimate of turbo/models/footprint.py: half precision, memory "full"

    height: int  # pixels
    width: int  # pixels
    num_frames: int
    fps: int  # of the clip
    conditioning_fps: int | None = None  # input of the network, if it takes one; None is `fps`
    enlarge: int = 1  # each pixel becomes a square of this side in the mp4

    half: bool = False  # half precision on an accelerator; float32 on a CPU
    prediction_type: PredictionType = "epsilon"
    beta_end: float = 0.012  # of the noise schedule
    flow_shift: float | None = None  # of a flow-matching model; None: it has a noise schedule
    spacing: Spacing = "leading"  # of DDIM timesteps
    eta: float = 0.0  # share of fresh noise in a DDIM step; 1 is VideoCrafter2's own setting
    clean_rescale: bool = False  # VideoCrafter2's teacher was trained on weakened latents
    origin_steps: int = 50  # size of the grid a student was distilled on
    sigmas: tuple[float, ...] = ()  # noise levels that a student visits in its place, falling
    timestep_scaling: float = 10.0  # of a student's boundary; turbo/diffusion/consistency.py
    motion_layers: MotionLayers = "never"  # whether the network has v2's motion projections
    motion_strength: float | None = None  # v2's m; None: no motion embedding, which differs from 0
    motion_share: float = 0.5  # the noisiest share of timesteps, where m applies; 0 elsewhere
    simulated_votes: bool = False  # it, or what it started from, was trained on such votes
    cpu_threads: int | None = None  # a tiny network is fastest on one; None: torch's default

    default_steps: int
    min_steps: int = 1
    max_steps: int
    default_guidance: float
    min_guidance: float
    max_guidance: float
    guidance_kind: str  # one sentence for the page: what the number means for this model

    @property
    def parts(self) -> list[str]:
        """Return the folders whose weights make up this model."""
        return ["text_encoder", self.unet, *([self.lora] if self.lora else []), "vae"]

    @property
    def calls_per_step(self) -> int:
        """Return the network calls of one step: a teacher is guided, which takes two."""
        return 1 if self.sampler == "consistency" else 2

    @property
    def network_fps(self) -> int:
        """Return the frame rate for a network conditioned on it; the clip may play at another."""
        return self.fps if self.conditioning_fps is None else self.conditioning_fps

    @property
    def missing(self) -> list[str]:
        """Return the folders that are missing on this disk; none if the model is ready to load."""
        absent = [part for part in self.parts if not self._files(part)]
        if not (self.folder / "tokenizer" / "tokenizer.json").is_file():
            absent.append("tokenizer")
        return absent

    def is_ready(self) -> bool:
        """Return whether it can be loaded without a download. Does not import torch."""
        return not self.missing

    @property
    def needed(self) -> list[HubFile]:
        """Return the published files to download before this model can be loaded."""
        missing = set(self.missing)
        return [source for source in self.sources if missing & set(source.gives)]

    @property
    def unpublished(self) -> list[str]:
        """Return the missing parts that no published file contains: they must be trained."""
        published = {folder for source in self.sources for folder in source.gives}
        missing = set(self.missing)
        return [part for part in self.parts if part in missing and part not in published]

    @property
    def download_bytes(self) -> int:
        """Return the size of the download; 0 if nothing is missing, or nothing is published."""
        return sum(source.size for source in self.needed)

    def weights_sha256(self) -> str:
        """Return the first 16 hexadecimal digits of a hash over all weights of this model.

        Converted weights are not read: the conversion has recorded their hash.
        """
        digest = hashlib.sha256()
        for part in self.parts:
            for file in self._files(part):
                record = file.with_name(CONVERSION)
                if record.exists():
                    digest.update(json.loads(record.read_text())["sha256"].encode())
                else:
                    with file.open("rb") as opened:
                        hashlib.file_digest(opened, lambda: digest)
        return digest.hexdigest()[:16]

    def _files(self, part: str) -> list[Path]:
        return sorted((self.folder / part).glob("*.safetensors"))


def describe_state(card: ModelCard) -> str:
    """Return "ready", or what a model still needs, in a few words."""
    if card.is_ready():
        return "ready"
    if card.unpublished:
        return "needs training"
    if needs_choice(card):  # of a guidance projection; only the command offers it
        return f"needs a {card.download_bytes / 1e9:.1f} GB download and --projection"
    return f"needs a {card.download_bytes / 1e9:.1f} GB download"


def needs_choice(card: ModelCard) -> bool:
    """Return whether a fetch includes published adapters, which lack their guidance projection."""
    return card.lora is not None and any(card.lora in file.gives for file in card.needed)


def describe_remedy(card: ModelCard) -> str:
    """Return how to make a model ready."""
    command = "python -m turbo.models"
    if card.sources and card.unpublished:
        return (
            f"Distil it from {card.family}: {command} fetch {card.family}, python -m "
            f"training.distil training/configs/{card.name.replace('-', '_')}.toml "
            "data.folder=VIDEOS. To convert adapters from elsewhere: "
            f"{command} convert {card.name} lora.safetensors."
        )
    if needs_choice(card):
        return f"Fetch it: {command} fetch {card.name} --projection zeros (see the README)."
    if card.sources:
        return f"Fetch it: {command} fetch {card.name}."
    return (
        f"Restore {card.folder} if the repository holds its weights; train it by python -m "
        "training.shapes if it does not (see training/README.md)."
    )
