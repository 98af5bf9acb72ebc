"""Differences between a file and a network: missing, unexpected and mis-shaped tensors."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from turbo.convert.checkpoint import Checkpoint
from turbo.convert.part import Part, Shapes

SHOWN = 5  # differences in one message; `verify` lists all

# Tables of the noise schedule in a LatentDiffusion checkpoint.
SCHEDULE_TABLES = frozenset(
    "betas alphas_cumprod alphas_cumprod_prev sqrt_alphas_cumprod sqrt_one_minus_alphas_cumprod "
    "log_one_minus_alphas_cumprod sqrt_recip_alphas_cumprod sqrt_recipm1_alphas_cumprod "
    "posterior_variance posterior_log_variance_clipped posterior_mean_coef1 posterior_mean_coef2 "
    "scale_arr".split()
)

_MEANINGS = {  # the first pattern found in a name applies
    r"time_cond_proj|time_embedding\.cond_proj": "the guidance projection of a student",
    r"motion_cond_proj|combine_proj": "the motion projections of T2V-Turbo-v2",
    r"fps_embedding": "the frame-rate embedding of VideoCrafter2",
    r"lora": "an adapter",
    r"ema": "an exponential moving average, for training",
    r"^first_stage_model|^(en|de)coder\.|quant_conv": "the VAE: latents to pixels",
    r"^cond_stage_model|^text_model|resblocks|embeddings\.": "the text encoder: prompt to tensor",
    r"^model\.(?!diffusion_model)": "a network other than the UNet",
    r"temopral_conv|temp_convs": "the UNet: temporal convolution",
    r"init_attn|transformer_in": "the UNet: its first temporal attention",
    r"temp_attentions|(put_blocks\.\d+|middle_block)\.2\.": "the UNet: temporal attention",
    r"attn2\.to_[kv]": "the UNet: cross-attention to the prompt",
    r"attentions|(put_blocks\.\d+|middle_block)\.1\.": "the UNet: spatial attention",
    r"time_embed": "the UNet: timestep embedding",
    r"put_blocks|middle_block|(down|up|mid)_block": "the UNet: spatial convolution",
    r"^(blocks|head|text_embedding|time_projection|patch_embedding)\b": "Wan's network or text "
    "encoder",
    r"^(conv_|out\.)": "the UNet: its first or last convolution",
}


@dataclass(frozen=True)
class Difference:
    """One tensor on which a file and a network disagree."""

    kind: Literal["missing", "unexpected", "mis-shaped"]
    name: str  # as in the file
    expected: tuple[int, ...] | None = None
    got: tuple[int, ...] | None = None

    @property
    def meaning(self) -> str:
        """Return what the tensor is."""
        found = (text for pattern, text in _MEANINGS.items() if re.search(pattern, self.name))
        return next(found, "not a tensor of any network here")

    def __str__(self) -> str:
        sizes = {
            "missing": f"expected {self.expected}",
            "unexpected": f"got {self.got}",
            "mis-shaped": f"expected {self.expected}, got {self.got}",
        }
        return f"{self.kind} {self.name}: {sizes[self.kind]}; {self.meaning}"


def find_differences(parts: Iterable[Part], shapes: Shapes) -> list[Difference]:
    """Compare the tensors of a file with those of all its networks."""
    expected: dict[str, tuple[int, ...]] = {}
    unused: set[str] = set(SCHEDULE_TABLES)
    for part in parts:
        expected |= part.expected
        unused |= part.unused
    missing = [
        Difference("missing", name, expected=shape)
        for name, shape in expected.items()
        if name not in shapes
    ]
    unexpected = [
        Difference("unexpected", name, got=tuple(shape))
        for name, shape in shapes.items()
        if name not in expected and name not in unused
    ]
    misshaped = [
        Difference("mis-shaped", name, expected=shape, got=tuple(shapes[name]))
        for name, shape in expected.items()
        if name in shapes and tuple(shapes[name]) != shape
    ]
    return missing + unexpected + misshaped


def refuse_differences(checkpoint: Checkpoint, *parts: Part) -> None:
    """Raise unless the file holds exactly the tensors of these networks.

    Raises:
        ValueError: names the file, the first differences, and a remedy.
    """
    differences = find_differences(parts, checkpoint.shapes)
    if not differences:
        return
    lines = [f"  {difference}" for difference in differences[:SHOWN]]
    more = len(differences) - SHOWN
    if more > 0:
        lines.append(f"  and {more} more; `python -m turbo.models verify NAME FILE` lists them.")
    names = " and ".join(type(part.network).__name__ for part in parts)
    raise ValueError(
        f"The tensors in {checkpoint.path} are not those of {names}:\n"
        + "\n".join(lines)
        + "\nChoose the published file of this model."
    )
