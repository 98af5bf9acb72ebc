"""Map Wan2.1's published files to diffusers' network and VAE and transformers' UMT5."""

import re

import torch
from diffusers import AutoencoderKLWan
from transformers import UMT5Config, UMT5EncoderModel

from turbo.convert.part import Origin, Part, Shapes, renamed_part
from turbo.networks.wan import WanNetwork

HEAD_SIZE = 128  # of attention, in every published size
PATCH = (1, 2, 2)  # frames, height and width of a token, in every published network
CAUSVID = "model."  # before every name of its files
RESNETS = 3  # in each block of the VAE's decoder, before its upsampler

_NETWORK = {  # ours -> theirs, in this order
    r"^condition_embedder\.time_embedder\.linear_1": "time_embedding.0",
    r"^condition_embedder\.time_embedder\.linear_2": "time_embedding.2",
    r"^condition_embedder\.text_embedder\.linear_1": "text_embedding.0",
    r"^condition_embedder\.text_embedder\.linear_2": "text_embedding.2",
    r"^condition_embedder\.time_proj": "time_projection.1",
    r"^scale_shift_table": "head.modulation",
    r"^proj_out": "head.head",
    r"\.scale_shift_table": ".modulation",
    r"\.norm2\.": ".norm3.",  # their numbers follow the order of definition
    r"\.attn1\.": ".self_attn.",
    r"\.attn2\.": ".cross_attn.",
    r"\.to_out\.0\.": ".o.",
    r"\.to_([qkv])\.": r".\1.",
    r"\.ffn\.net\.0\.proj\.": ".ffn.0.",
    r"\.ffn\.net\.2\.": ".ffn.2.",
}
_VAE = {
    r"^quant_conv": "conv1",
    r"^post_quant_conv": "conv2",
    r"coder\.conv_in": "coder.conv1",
    r"coder\.norm_out": "coder.head.0",
    r"coder\.conv_out": "coder.head.2",
    r"mid_block\.resnets\.0": "middle.0",
    r"mid_block\.attentions\.0": "middle.1",
    r"mid_block\.resnets\.1": "middle.2",
    r"down_blocks": "downsamples",
    r"((middle|downsamples|up_blocks)\..*)norm1\.": r"\1residual.0.",
    r"((middle|downsamples|up_blocks)\..*)conv1\.": r"\1residual.2.",
    r"((middle|downsamples|up_blocks)\..*)norm2\.": r"\1residual.3.",
    r"((middle|downsamples|up_blocks)\..*)conv2\.": r"\1residual.6.",
    r"conv_shortcut": "shortcut",
}
_TEXT = {
    r"^shared": "token_embedding",
    r"^encoder\.final_layer_norm": "norm",
    r"^encoder\.block": "blocks",
    r"layer\.0\.SelfAttention\.relative_attention_bias": "pos_embedding.embedding",
    r"layer\.0\.SelfAttention": "attn",
    r"layer\.0\.layer_norm": "norm1",
    r"layer\.1\.DenseReluDense\.wi_0": "ffn.gate.0",
    r"layer\.1\.DenseReluDense\.wi_1": "ffn.fc1",
    r"layer\.1\.DenseReluDense\.wo": "ffn.fc2",
    r"layer\.1\.layer_norm": "norm2",
}


def map_wan_network(shapes: Shapes) -> Part:
    """Return the teacher with tensors of these shapes.

    Raises:
        KeyError: name of a missing tensor that determines the configuration.
    """
    width, channels, *patch = shapes["patch_embedding.weight"]
    heads = max(1, width // HEAD_SIZE)
    with torch.device("meta"):
        network = WanNetwork(
            patch_size=patch,
            num_attention_heads=heads,
            attention_head_dim=width // heads,
            in_channels=channels,
            out_channels=channels,
            text_dim=shapes["text_embedding.0.weight"][1],
            freq_dim=shapes["time_embedding.0.weight"][1],
            ffn_dim=shapes["blocks.0.ffn.0.weight"][0],
            num_layers=_count_blocks(shapes),
        )
    return wan_network_part(network)


def map_rcm_network(shapes: Shapes) -> Part:
    """Return rCM's student: Wan's network, whose first layer is a matrix in the file.

    Raises:
        KeyError: name of a missing tensor that determines the configuration.
    """
    prefix = "net." if "net.patch_embedding.weight" in shapes else ""
    bare = {name.removeprefix(prefix): shape for name, shape in shapes.items()}
    width, inputs = bare["patch_embedding.weight"]
    depth, height, side = PATCH
    bare["patch_embedding.weight"] = (width, inputs // (depth * height * side), *PATCH)
    part = _with_prefix(map_wan_network(bare), prefix)
    first = f"{prefix}patch_embedding.weight"
    origins = {**part.origins, "patch_embedding.weight": Origin(first, shapes[first])}
    counters = (name for name in shapes if name.removeprefix(prefix).startswith("accum_"))
    return Part(part.network, origins, frozenset(counters))


def map_causvid_network(shapes: Shapes) -> Part:
    """Return CausVid's bidirectional student: Wan's network, whose names have a prefix.

    Raises:
        KeyError: name of a missing tensor that determines the configuration.
    """
    bare = {name.removeprefix(CAUSVID): shape for name, shape in shapes.items()}
    return _with_prefix(map_wan_network(bare), CAUSVID)


def _with_prefix(part: Part, prefix: str) -> Part:
    origins = {name: Origin(prefix + o.name, o.shape) for name, o in part.origins.items()}
    return Part(part.network, origins)


def wan_network_part(network: WanNetwork) -> Part:
    """Return a network with the published names of its tensors."""
    return renamed_part(network, lambda name: _rename(name, _NETWORK))


def map_wan_vae(shapes: Shapes) -> Part:
    """Return the VAE with tensors of these shapes; its proportions are the published ones.

    Raises:
        KeyError: name of a missing tensor that determines the configuration.
    """
    with torch.device("meta"):
        vae = AutoencoderKLWan(
            base_dim=shapes["encoder.conv1.weight"][0], z_dim=shapes["conv2.weight"][0]
        )
    return wan_vae_part(vae)


def wan_vae_part(vae: AutoencoderKLWan) -> Part:
    """Return a VAE with the published names of its tensors."""
    return renamed_part(vae, _vae_name)


def map_wan_text(shapes: Shapes) -> Part:
    """Return the text encoder with tensors of these shapes.

    Raises:
        KeyError: name of a missing tensor that determines the configuration.
    """
    vocab, width = shapes["token_embedding.weight"]
    buckets, heads = shapes["blocks.0.pos_embedding.embedding.weight"]
    config = UMT5Config(
        vocab_size=vocab,
        d_model=width,
        d_kv=shapes["blocks.0.attn.q.weight"][0] // heads,
        d_ff=shapes["blocks.0.ffn.fc1.weight"][0],
        num_layers=_count_blocks(shapes),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
    )
    with torch.device("meta"):
        model = UMT5EncoderModel(config)
    return wan_text_part(model)


def wan_text_part(model: UMT5EncoderModel) -> Part:
    """Return a text encoder with the published names of its tensors."""
    return renamed_part(model, lambda name: _rename(name, _TEXT))


def published_wan_network() -> WanNetwork:
    """Return the network of Wan2.1-T2V-1.3B on the meta device."""
    with torch.device("meta"):
        return WanNetwork()


def published_wan_vae() -> AutoencoderKLWan:
    """Return the VAE of Wan2.1 on the meta device."""
    with torch.device("meta"):
        return AutoencoderKLWan()


def published_wan_text() -> UMT5EncoderModel:
    """Return the text encoder of Wan2.1 (umt5-xxl) on the meta device."""
    config = UMT5Config(
        vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64
    )
    with torch.device("meta"):
        return UMT5EncoderModel(config)


def _vae_name(name: str) -> str:
    name = _rename(name, _VAE)

    def flatten(match: re.Match[str]) -> str:
        block, kind, place = int(match[1]), match[2], int(match[3])
        index = (RESNETS + 1) * block + (place if kind == "resnets" else RESNETS)
        return f"decoder.upsamples.{index}."

    return re.sub(r"^decoder\.up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)\.", flatten, name)


def _rename(name: str, patterns: dict[str, str]) -> str:
    for ours, theirs in patterns.items():
        name = re.sub(ours, theirs, name)
    return name


def _count_blocks(shapes: Shapes) -> int:
    found = map(re.compile(r"blocks\.(\d+)\.").match, shapes)
    return 1 + max(int(match[1]) for match in found if match)
