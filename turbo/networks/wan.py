"""Wan2.1's video transformer, teacher or student."""

from collections.abc import Sequence
from typing import Any

from diffusers import WanTransformer3DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.transformers.transformer_wan import (
    WanRotaryPosEmbed,
    WanTimeTextImageEmbedding,
)
from torch import Tensor

from turbo import types
from turbo.types import Conditioning, checked


class ConditionedEmbedding(WanTimeTextImageEmbedding):
    """diffusers' embedding of timestep and text that also takes guidance, as the video UNet does:
    `mlp(sinusoid(t) + P_w(w))`.
    """

    def __init__(self, dim: int, freq_dim: int, text_dim: int, guidance_dim: int | None) -> None:
        super().__init__(dim, freq_dim, 6 * dim, text_dim)
        self.time_embedder = TimestepEmbedding(freq_dim, dim, cond_proj_dim=guidance_dim)

    def forward(
        self,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        guidance: Tensor | None = None,
        timestep_seq_len: int | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        dtype = self.time_embedder.linear_1.weight.dtype
        condition = None if guidance is None else guidance.to(dtype)
        waves = self.timesteps_proj(timestep).to(dtype)
        time = self.time_embedder(waves, condition).type_as(encoder_hidden_states)
        text = self.text_embedder(encoder_hidden_states)
        return time, self.time_proj(self.act_fn(time)), text, None


class WanNetwork(WanTransformer3DModel):
    """diffusers' `WanTransformer3DModel` plus the guidance embedding of students.

    The defaults are Wan2.1-T2V-1.3B. With `guidance_dim` None it has the teacher's weights and
    names. A `turbo.types.VideoNetwork`. The output has the dtype of the latents.

    Args:
        rope_theta: base of the rotary positions, whose slowest rotation takes about 2 pi theta
            positions. A video of few patches needs a small one: else most rotations hardly turn.

    Source: Wan, arXiv:2503.20314, section 4.
    """

    @register_to_config
    def __init__(
        self,
        patch_size: Sequence[int] = (1, 2, 2),
        num_attention_heads: int = 12,
        attention_head_dim: int = 128,
        in_channels: int = 16,
        out_channels: int = 16,
        text_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 8960,
        num_layers: int = 30,
        cross_attn_norm: bool = True,
        qk_norm: str = "rms_norm_across_heads",
        eps: float = 1e-6,
        image_dim: int | None = None,
        added_kv_proj_dim: int | None = None,
        rope_max_seq_len: int = 1024,
        pos_embed_seq_len: int | None = None,
        guidance_dim: int | None = None,
        rope_theta: float = 10_000.0,
    ) -> None:
        if image_dim is not None:
            raise ValueError(
                f"Expected a text-to-video transformer, got image_dim {image_dim}. "
                "Models that take an image are not supported."
            )
        super().__init__(
            patch_size=tuple(patch_size),
            num_attention_heads=num_attention_heads,
            attention_head_dim=attention_head_dim,
            in_channels=in_channels,
            out_channels=out_channels,
            text_dim=text_dim,
            freq_dim=freq_dim,
            ffn_dim=ffn_dim,
            num_layers=num_layers,
            cross_attn_norm=cross_attn_norm,
            qk_norm=qk_norm,
            eps=eps,
            rope_max_seq_len=rope_max_seq_len,
        )
        self.rope = WanRotaryPosEmbed(
            attention_head_dim, tuple(patch_size), rope_max_seq_len, rope_theta
        )
        dim = num_attention_heads * attention_head_dim
        self.condition_embedder = ConditionedEmbedding(dim, freq_dim, text_dim, guidance_dim)

    @property
    def guidance_size(self) -> int | None:
        """Return the size of the guidance embedding it takes; None for a teacher."""
        return self.config.guidance_dim

    @property
    def takes_fps(self) -> bool:
        """Return whether it is conditioned on the frame rate: never."""
        return False

    def guidance_layers(
        self, size: int, *, motion: bool
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return what makes this teacher a student: new configuration, and its new weights.

        The projection of the guidance scale starts at zero, so the student starts as its teacher.

        Raises:
            ValueError: motion conditioning is asked for; only the video UNet has it.
        """
        if motion:
            raise ValueError("This network takes no motion conditioning. Set motion to False.")
        weight = self.condition_embedder.time_embedder.linear_1.weight
        name = "condition_embedder.time_embedder.cond_proj.weight"
        return {"guidance_dim": size}, {name: weight.new_zeros(self.config.freq_dim, size)}

    @checked
    def forward(
        self,
        noisy: types.Latents,
        time: types.NetworkTime,
        prompt_embeds: types.PromptEmbeds,
        conditioning: Conditioning | None = None,
    ) -> types.Latents:
        """Return the velocity; `Schedule.split` converts it.

        Args:
            time: 1000 sigma.
        """
        guidance = self._guidance_of(conditioning or Conditioning(), len(noisy))
        for size, patch in zip(noisy.shape[2:], self.config.patch_size, strict=True):
            if size % patch:
                raise ValueError(
                    f"Expected latents that patches of {self.config.patch_size} fill, got "
                    f"{tuple(noisy.shape[2:])}. Choose a height and width divisible by 16."
                )
        # The parent passes the embedding of an image to `condition_embedder` unchanged.
        output = super().forward(
            noisy.to(self.dtype), time, prompt_embeds.to(self.dtype), guidance, return_dict=False
        )
        return output[0].to(noisy.dtype)

    def _guidance_of(self, condition: Conditioning, videos: int) -> Tensor | None:
        if condition.fps is not None or condition.motion is not None:
            raise ValueError("Expected neither fps nor motion for this network, got one.")
        if condition.guidance is None:
            return None
        if self.guidance_size is None:
            raise ValueError(
                "Expected no guidance embedding for a network without `cond_proj`, got one. "
                "Guide a teacher with `guidance.bind_guided`."
            )
        if len(condition.guidance) != videos:
            raise ValueError(
                f"Expected guidance for {videos} videos, got it for {len(condition.guidance)}. "
                "Give each video its own."
            )
        return condition.guidance
