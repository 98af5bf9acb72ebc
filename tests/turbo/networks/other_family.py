"""Another family of networks, in a process of its own: loaded, sampled and distilled.

The table of families names the classes, and its types are checked wherever tests import it.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from torch import Tensor, nn

from training.tiny import write_tiny
from turbo.diffusion.distillation import (
    SolverGrid,
    consistency_loss,
    draw_batch,
    draw_guidance,
    student_of,
)
from turbo.diffusion.schedule import schedule_of
from turbo.networks import families
from turbo.networks.lora import add_lora
from turbo.pipeline import VideoPipeline
from turbo.types import Conditioning


class OtherTransformer(ModelMixin, ConfigMixin):
    """A transformer of another kind: one token per latent position, and time as a token."""

    takes_fps = False

    @register_to_config
    def __init__(
        self,
        width: int = 16,
        channels: int = 4,
        text_dim: int = 16,
        guidance_dim: int | None = None,
        patch_size: tuple[int, int, int] = (1, 1, 1),  # for the estimate of memory, as the rest
        num_attention_heads: int = 2,
        attention_head_dim: int = 8,
        ffn_dim: int = 32,
    ) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(channels, width), nn.Linear(width, channels)
        self.text, self.time = nn.Linear(text_dim, width), nn.Linear(1, width)
        if guidance_dim:
            self.cond_proj = nn.Linear(guidance_dim, width, bias=False)
        self.block = nn.TransformerEncoderLayer(width, 2, ffn_dim, 0.0, batch_first=True)

    @property
    def guidance_size(self) -> int | None:
        return self.config.guidance_dim

    def guidance_layers(
        self, size: int, *, motion: bool
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return {"guidance_dim": size}, {"cond_proj.weight": torch.zeros(self.config.width, size)}

    def forward(
        self,
        noisy: Tensor,
        told: Tensor,
        prompt_embeds: Tensor,
        conditioning: Conditioning | None = None,
    ) -> Tensor:
        time = self.time(told[:, None].to(noisy) / 1000)
        if conditioning and conditioning.guidance is not None:
            time = time + self.cond_proj(conditioning.guidance)
        tokens = self.into(rearrange(noisy, "B C F h w -> B (F h w) C"))
        mixed = self.block(torch.cat([time[:, None], self.text(prompt_embeds), tokens], dim=1))
        places = self.out(mixed[:, -tokens.shape[1] :])
        _, _, frames, height, _ = noisy.shape
        return rearrange(places, "B (F h w) C -> B C F h w", F=frames, h=height)


def main(folder: Path) -> None:
    """Make a clip with it, and take the gradient of a student."""
    families.NETWORKS["OtherTransformer"] = OtherTransformer  # the line in the table
    card = write_tiny("tiny-wan", folder)  # its VAE, its text encoder and its card
    (folder / "teacher" / "diffusion_pytorch_model.safetensors").unlink()
    torch.manual_seed(0)
    OtherTransformer().save_pretrained(folder / "teacher")

    pipeline = VideoPipeline.load(card, "cpu")
    video = pipeline("a cat", steps=2)

    assert video.frames.shape == (9, 32, 32, 3)
    teacher = pipeline.unet
    student = add_lora(student_of(teacher, share=True).requires_grad_(False), 2)
    embeds, generator = (
        pipeline.text_encoder.encode(["a cat", ""]),
        torch.Generator().manual_seed(0),
    )
    batch = draw_batch(
        torch.randn(1, *pipeline.latent_shape),
        embeds[:1],
        embeds[1:],
        draw_guidance(1, generator),
        grid=SolverGrid(50),
        generator=generator,
    )
    schedule = schedule_of(card)
    noisy = batch.add_noise(schedule)
    loss = consistency_loss(student, student, teacher, noisy, batch, schedule)
    loss.value.backward()
    assert student.cond_proj.weight.grad.abs().sum() > 0


if __name__ == "__main__":
    main(Path(sys.argv[1]))
