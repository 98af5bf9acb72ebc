"""The video UNet: every teacher and student of the two papers is a configuration of this class."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from diffusers import TransformerTemporalModel, UNet3DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer
from einops import rearrange
from torch import Tensor, nn

from turbo import types
from turbo.types import Conditioning, checked

MOTION_EMBEDDING_SIZE = 256  # T2V-Turbo-v2, arXiv:2410.05677, section 4


class ConditionedTimestepEmbedding(TimestepEmbedding):
    """diffusers' timestep MLP that also takes guidance, motion and frame rate.

    `mlp(sinusoid(t) + c) + fps_mlp(sinusoid(fps))`, where c is 0 for a teacher, `P_w(w)` for
    T2V-Turbo, and `C([P_w(w), P_m(m)])` for T2V-Turbo-v2. Without a motion embedding v2 skips C.

    Source: VideoCrafter2's fps embedding; T2V-Turbo-v2, arXiv:2410.05677, section 4.
    """

    def __init__(
        self,
        in_channels: int,
        time_embed_dim: int,
        *,
        guidance_dim: int | None,
        fps: bool,
        motion: bool,
    ) -> None:
        super().__init__(in_channels, time_embed_dim, act_fn="silu", cond_proj_dim=guidance_dim)
        self.fps_proj = Timesteps(in_channels, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.fps_embedding = TimestepEmbedding(in_channels, time_embed_dim) if fps else None
        self.motion_cond_proj: nn.Linear | None = None
        self.combine_proj: nn.Linear | None = None
        if motion:
            self.motion_cond_proj = nn.Linear(MOTION_EMBEDDING_SIZE, in_channels, bias=False)
            self.combine_proj = nn.Linear(2 * in_channels, in_channels, bias=False)

    def forward(self, sample: Tensor, condition: Conditioning | None = None) -> Tensor:
        condition = condition or Conditioning()
        self._check(condition, len(sample))
        if condition.guidance is not None:
            extra = self.cond_proj(condition.guidance.to(sample.dtype))
            if condition.motion is not None:
                assert self.motion_cond_proj is not None and self.combine_proj is not None
                motion = self.motion_cond_proj(condition.motion.to(sample.dtype))
                extra = self.combine_proj(torch.cat([extra, motion], dim=1))
            sample = sample + extra
        embedding = super().forward(sample)
        if self.fps_embedding is not None:
            fps = self.fps_proj(condition.fps).to(sample.dtype)
            embedding = embedding + self.fps_embedding(fps)
        return embedding

    def _check(self, condition: Conditioning, videos: int) -> None:
        if condition.guidance is not None and self.cond_proj is None:
            raise ValueError(
                "Expected no guidance embedding for a network without `cond_proj`, got one. "
                "Guide a teacher with `guidance.bind_guided`."
            )
        if condition.motion is not None and (condition.guidance is None or not self.combine_proj):
            raise ValueError(
                "Expected a motion embedding beside a guidance embedding in a network with "
                "motion_conditioning, got it elsewhere. Only T2V-Turbo-v2 takes one."
            )
        if (condition.fps is None) != (self.fps_embedding is None):
            wanted, got = ("no fps", "one") if self.fps_embedding is None else ("an fps", "None")
            raise ValueError(
                f"Expected {wanted} for this network, got {got}: see its fps_conditioning."
            )
        for name, value in vars(condition).items():
            if value is not None and len(value) != videos:  # torch would repeat one over all
                raise ValueError(
                    f"Expected {name} for {videos} videos, got it for {len(value)}. "
                    "Give each video its own."
                )


class TemporalConv(nn.Conv3d):
    """A `Conv3d` with a kernel one pixel wide, computed as a `Conv2d` over (frames, pixels).

    Same parameters and result. A CPU's 3-D convolution is slow: this takes 50 to 90 % of its time.
    """

    def _conv_forward(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        frames_by_pixels = rearrange(hidden, "B C F h w -> B C F (h w)")
        kernel = rearrange(weight, "O C K 1 1 -> O C K 1")
        padding = (int(self.padding[0]), 0)
        mixed = nn.functional.conv2d(frames_by_pixels, kernel, bias, padding=padding)
        return rearrange(mixed, "B C F (h w) -> B C F h w", h=hidden.shape[-2])


class PromptOnce(AttnProcessor2_0):
    """Attention that projects the prompt once per video: diffusers does it again for every frame.

    Same result. `frames` comes from `VideoUNet.forward`.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        frames: int = 1,
    ) -> Tensor:
        if attention_mask is not None:
            raise ValueError("Expected no attention mask, got one: all tokens of a prompt count.")
        if encoder_hidden_states is None:
            return super().__call__(attn, hidden_states)
        prompts = encoder_hidden_states[::frames]  # one of the copies that the parent makes
        queries, *others = attn.to_q(hidden_states), attn.to_k(prompts), attn.to_v(prompts)
        heads = attn.heads
        rows = rearrange(queries, "(B F) N (H D) -> B H (F N) D", F=frames, H=heads)
        keys, values = (rearrange(other, "B T (H D) -> B H T D", H=heads) for other in others)
        mixed = nn.functional.scaled_dot_product_attention(rows, keys, values)
        mixed = rearrange(mixed, "B H (F N) D -> (B F) N (H D)", F=frames)
        for layer in attn.to_out:
            mixed = layer(mixed)
        return mixed


class Recomputed(nn.Module):
    """A layer that can keep only its inputs for the backward pass, and compute the rest again.

    diffusers' `enable_gradient_checkpointing` sets these two attributes. Of the layers in a
    `UNet3DConditionModel`, only its spatial transformers have them.
    """

    gradient_checkpointing = False
    _gradient_checkpointing_func: Any = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            layer = partial(super().forward, **kwargs)
            return self._gradient_checkpointing_func(layer, *args)
        return super().forward(*args, **kwargs)


class RecomputedResnet(Recomputed, ResnetBlock2D):
    """The residual block within each frame."""


class RecomputedConv(Recomputed, TemporalConvLayer):
    """The residual block over frames."""


class RecomputedTransformer(Recomputed, TransformerTemporalModel):
    """The transformer over frames."""


class SkipOneFrameConv(RecomputedConv):
    """A `TemporalConvLayer` that returns a video of one frame unchanged."""

    def forward(self, hidden_states: Tensor, num_frames: int = 1) -> Tensor:
        return hidden_states if num_frames == 1 else super().forward(hidden_states, num_frames)


class SkipOneFrameTransformer(RecomputedTransformer):
    """A `TransformerTemporalModel` that returns a video of one frame unchanged."""

    def forward(self, hidden_states: Tensor, *, num_frames: int = 1, **rest: Any) -> Any:
        if num_frames == 1:
            return (hidden_states,)
        return super().forward(hidden_states, num_frames=num_frames, **rest)


class VideoUNet(UNet3DConditionModel):
    """diffusers' `UNet3DConditionModel` plus the conditioning of VideoCrafter2 and of T2V-Turbo-v2.

    With `fps_conditioning` and `motion_conditioning` off it is the ModelScope network, and with a
    tiny configuration the shapes network; with both on it is T2V-Turbo-v2's. `patch_size` folds
    squares of latents into channels before the network, as DiT does (arXiv:2212.09748): shapes
    only, where it makes a step four times cheaper. `skip_temporal_for_one_frame` is ModelScope's:
    its published network skips the temporal layers for one frame, VideoCrafter2's does not.
    `temporal_dropout` is that of the temporal convolutions, as published; nothing else drops out.

    `enable_gradient_checkpointing()` keeps only the inputs of every residual and transformer block
    for the backward pass, and computes the rest again: less memory, a third more time.

    A `turbo.types.VideoNetwork`. The output has the dtype of the latents, not of the weights.
    """

    _supports_gradient_checkpointing = True

    # Arguments of the parent that no network here changes; else its config would list them, and
    # loading would warn of attributes that our `__init__` does not take.
    ignore_for_config = [
        "downsample_padding",
        "mid_block_scale_factor",
        "act_fn",
        "norm_eps",
        "num_attention_heads",
    ]

    @register_to_config
    def __init__(
        self,
        sample_size: int | None = None,
        in_channels: int = 4,
        out_channels: int = 4,
        down_block_types: Sequence[str] = ("CrossAttnDownBlock3D",) * 3 + ("DownBlock3D",),
        up_block_types: Sequence[str] = ("UpBlock3D",) + ("CrossAttnUpBlock3D",) * 3,
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        norm_num_groups: int = 32,
        cross_attention_dim: int = 1024,
        attention_head_dim: int = 64,
        time_cond_proj_dim: int | None = None,
        fps_conditioning: bool = False,
        motion_conditioning: bool = False,
        temporal_dropout: float = 0.1,
        patch_size: int = 1,
        skip_temporal_for_one_frame: bool = False,
    ) -> None:
        super().__init__(
            sample_size=sample_size,
            in_channels=in_channels * patch_size**2,
            out_channels=out_channels * patch_size**2,
            down_block_types=down_block_types,
            up_block_types=up_block_types,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            norm_num_groups=norm_num_groups,
            cross_attention_dim=cross_attention_dim,
            attention_head_dim=attention_head_dim,
            time_cond_proj_dim=time_cond_proj_dim,
        )
        self.register_to_config(in_channels=in_channels, out_channels=out_channels)  # unpatched
        self.time_embedding = ConditionedTimestepEmbedding(
            block_out_channels[0],
            block_out_channels[0] * 4,
            guidance_dim=time_cond_proj_dim,
            fps=fps_conditioning,
            motion=motion_conditioning,
        )
        # diffusers' blocks build their layers themselves, and offer no way to choose other classes.
        # The subclasses here add no state, only another forward, so giving the built layers their
        # class keeps parameters, names and initialisation as they are.
        for module in self.modules():
            if isinstance(module, Attention):
                module.set_processor(PromptOnce())
            if isinstance(module, ResnetBlock2D):
                module.__class__ = RecomputedResnet
            if isinstance(module, TransformerTemporalModel):
                module.__class__ = RecomputedTransformer
            if isinstance(module, TemporalConvLayer):
                module.__class__ = RecomputedConv
                for stage in (module.conv1, module.conv2, module.conv3, module.conv4):
                    stage[-1].__class__ = TemporalConv
                    for layer in stage:
                        if isinstance(layer, nn.Dropout):
                            layer.p = temporal_dropout
        if skip_temporal_for_one_frame:
            for name, module in self.named_modules():
                if isinstance(module, TransformerTemporalModel):
                    module.__class__ = SkipOneFrameTransformer
                # The published network overlooks this one layer.
                elif isinstance(module, TemporalConvLayer) and name != "mid_block.temp_convs.0":
                    module.__class__ = SkipOneFrameConv

    @property
    def guidance_size(self) -> int | None:
        """Return the size of the guidance embedding it takes; None for a teacher."""
        return self.config.time_cond_proj_dim

    @property
    def takes_fps(self) -> bool:
        """Return whether it is conditioned on the frame rate."""
        return self.config.fps_conditioning

    def guidance_layers(
        self, size: int, *, motion: bool
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return what makes this teacher a student: new configuration, and its new weights.

        The projection of the guidance scale starts at zero, so the student starts as its teacher.

        With `motion`, the projections C([P_w(w), P_m(m)]) start at P_w = 0, C = [identity | 0] and
        a fixed random P_m: also the teacher, at every w and m. Zeros everywhere would stay zero for
        ever, since the gradient of each layer is a product with the others. Here P_w and C learn
        from the first step, and P_m from the second.
        """
        like, width = self.conv_in.weight, self.config.block_out_channels[0]
        layers = {"time_embedding.cond_proj.weight": like.new_zeros(width, size)}
        if motion:
            projection = torch.empty(width, MOTION_EMBEDDING_SIZE)
            bound = MOTION_EMBEDDING_SIZE**-0.5  # torch's initialisation of a Linear layer
            projection.uniform_(-bound, bound, generator=torch.Generator().manual_seed(0))
            layers["time_embedding.motion_cond_proj.weight"] = projection.to(like)
            identity = torch.eye(width, 2 * width)  # [identity | 0]
            layers["time_embedding.combine_proj.weight"] = identity.to(like)
        return {"time_cond_proj_dim": size, "motion_conditioning": motion}, layers

    @checked
    def forward(
        self,
        noisy: types.Latents,
        timesteps: types.Timesteps,
        prompt_embeds: types.PromptEmbeds,
        conditioning: Conditioning | None = None,
    ) -> types.Latents:
        """Return the raw output, noise or velocity; `Schedule.split` converts it."""
        p = self.config.patch_size
        patches = rearrange(noisy, "B C F (h p) (w q) -> B (C p q) F h w", p=p, q=p)
        # The parent passes `timestep_cond` to `time_embedding` unchanged, so it can be our object.
        (output,) = super().forward(
            patches.to(self.dtype),
            timesteps,
            prompt_embeds.to(self.dtype),
            timestep_cond=conditioning,
            cross_attention_kwargs={"frames": noisy.shape[2]},
            return_dict=False,
        )
        return rearrange(output.to(noisy.dtype), "B (C p q) F h w -> B C F (h p) (w q)", p=p, q=p)
