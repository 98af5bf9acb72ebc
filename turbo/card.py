"""A model card: what to load, how to sample it, and what may be asked of it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from turbo.options import PredictionType, Role, Sampler, Spacing


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """One line of the table in `turbo/models.py`; a model is this and its weights."""

    name: str  # what commands, manifests and recipes call it
    title: str  # what people read
    family: str  # models of one family share VAE, text encoder and world
    role: Role
    sampler: Sampler
    licence: str  # SPDX

    folder: Path  # holds vae/, text_encoder/, tokenizer/ and the folder of the UNet
    unet: str  # that folder's name
    lora: str | None = None  # folder of the adapters that make a student of it

    height: int  # pixels
    width: int  # pixels
    num_frames: int
    fps: int  # of the clip, and told to networks that take it
    enlarge: int = 1  # each pixel becomes a square of this side in the mp4

    prediction_type: PredictionType = "epsilon"
    beta_end: float = 0.012  # of the noise schedule
    spacing: Spacing = "leading"  # of DDIM timesteps
    eta: float = 0.0  # share of fresh noise in a DDIM step; 1 is VideoCrafter2's own setting
    origin_steps: int = 50  # size of the grid a student was distilled on
    cpu_threads: int | None = None  # a tiny network is quickest on one; None leaves torch's choice

    default_steps: int
    min_steps: int = 1
    max_steps: int
    default_guidance: float
    min_guidance: float
    max_guidance: float
    guidance_kind: str  # one sentence for the page: what the number means here

    @property
    def parts(self) -> list[str]:
        """Return the folders whose weights make up this model."""
        return ["text_encoder", self.unet, *([self.lora] if self.lora else []), "vae"]

    @property
    def unet_calls_per_step(self) -> int:
        """Return 2 where guidance needs a second prediction, for the empty prompt."""
        return 2 if self.sampler == "ddim" else 1

    def weights_sha256(self) -> str:
        """Return the first 16 hexadecimal digits of a hash over all weights of this model."""
        digest = hashlib.sha256()
        for part in self.parts:
            for file in sorted((self.folder / part).glob("*.safetensors")):
                digest.update(file.read_bytes())
        return digest.hexdigest()[:16]
