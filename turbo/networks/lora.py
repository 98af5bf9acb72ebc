"""LoRA adapters of a network: add, save, load, merge."""

import re
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners import lora
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from turbo.networks.families import Network
from turbo.networks.unet import TemporalConv
from turbo.whole_file import whole_file

LORA_FILE = "lora.safetensors"  # in a folder named after the student
DOWN, UP = ".lora_A.default.weight", ".lora_B.default.weight"  # after the name of a layer
# Layers that no teacher has. They are trained in full: there is nothing to adapt.
TRAINED_IN_FULL = ("cond_proj", "motion_cond_proj", "combine_proj")
NO_STUDENT = (
    "Adapters alone do not define a student: they were trained together with this layer, and zeros "
    "or random values in its place make another model. Save the layer with them, as `save_lora` "
    "does, or convert the published list: `python -m turbo.models convert NAME unet_lora.pt`."
)


class _Folding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _fold(self, x) if _folds(self, x) else super().forward(x)


class FoldingLinear(_Folding, lora.Linear): ...


class FoldingConv2d(_Folding, lora.Conv2d): ...


class FoldingConv3d(_Folding, lora.Conv3d): ...


FOLDING = {lora.Linear: FoldingLinear, lora.Conv2d: FoldingConv2d, lora.Conv3d: FoldingConv3d}


def _folds(adapted: LoraLayer, x: Tensor) -> bool:
    """Return whether (W + B A) x takes less time than W x + B (A x).

    With n inputs and m outputs of W, N positions and rank r, the multiplications beside W x are

        folded:  r n m for the sum; in training twice that again, and N n m for its gradient;
        apart:   N r (n + m); in training twice that again.

    Apart, each counts twice: the products are thin, and their results are added. In half precision
    the sum would round away what adapters add. Dropout needs B A x.
    """
    weight, down = adapted.get_base_layer().weight, adapted.lora_A["default"].weight
    exact = x.dtype == weight.dtype and x.dtype in (torch.float32, torch.float64)
    drops = adapted.training and bool(adapted.lora_B["default"]._forward_hooks)
    device = "cpu" if x.is_meta else x.device.type  # memory is forecast on the meta device
    if not exact or drops or adapted.disable_adapters or torch.is_autocast_enabled(device):
        return False
    trains = torch.is_grad_enabled() and down.requires_grad
    size, rank, passes = weight.numel(), len(down), 3 if trains else 1
    positions = x.numel() // weight.shape[1]  # of a strided convolution: of its input
    folded = passes * rank * size + trains * positions * size
    apart = passes * positions * rank * (size // len(weight) + len(weight))
    return folded < 2 * apart


def _fold(adapted: LoraLayer, x: Tensor) -> Tensor:
    layer = adapted.get_base_layer()
    up, down = (part["default"].weight.flatten(1) for part in (adapted.lora_B, adapted.lora_A))
    weight = torch.addmm(layer.weight.flatten(1), up, down).view_as(layer.weight)
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(x, weight, layer.bias)
    return layer._conv_forward(x, weight, layer.bias)


def _adapted_layers(network: Network) -> dict[str, int]:
    """Return the layers to adapt, each with the largest useful rank: its smaller dimension."""
    widths = {}
    for name, module in network.named_modules():
        if name.rpartition(".")[2] in TRAINED_IN_FULL:
            continue
        if isinstance(module, nn.Linear):
            widths[name] = min(module.in_features, module.out_features)
        elif isinstance(module, nn.Conv2d | nn.Conv3d):
            widths[name] = min(module.in_channels, module.out_channels)
    return widths


def add_lora(
    network: Network,
    rank: int,
    *,
    generator: torch.Generator | None = None,
    dropout: float = 0.0,
    skip: Collection[str] = (),
) -> Network:
    """Add an adapter to every linear and convolutional layer, in place, and freeze the rest.

    W becomes W + B A, where A starts as N(0, 1 / rank²) and B as zero, so the network starts
    unchanged. A layer narrower than `rank` gets its width as rank: the input and output
    convolutions (4 latent channels).

    Args:
        dropout: of what the adapters of linear and 2-D layers add, while training: 0.1 in the
            published code. (peft's own drops their inputs.)
        skip: layers that get none.

    Raises:
        ValueError: the rank is below 1, or the network has no such layer to skip.

    Source: T2V-Turbo, arXiv:2405.18750, appendix (rank 64 on VideoCrafter2).
    """
    if rank < 1:
        raise ValueError(f"Expected rank of at least 1, got {rank}.")
    widths = _adapted_layers(network)
    if unknown := set(skip) - widths.keys():
        raise ValueError(
            f"{min(unknown)!r} is not a layer that can be adapted. Remove it from skip."
        )
    widths = {name: width for name, width in widths.items() if name not in skip}
    inject_adapters(network, {name: min(rank, width) for name, width in widths.items()})
    for module in network.modules():
        if isinstance(module, LoraLayer):
            down = module.lora_A["default"].weight
            device = down.device if generator is None else generator.device
            draw = torch.empty(down.shape, dtype=down.dtype, device=device)
            draw.normal_(std=1 / module.r["default"], generator=generator)
            down.data.copy_(draw)
            if dropout and isinstance(module.get_base_layer(), nn.Linear | nn.Conv2d):
                module.lora_B["default"].register_forward_hook(partial(_drop, share=dropout))
    return network


def _drop(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, *, share: float) -> Tensor:
    return nn.functional.dropout(output, share, layer.training)


def inject_adapters(network: Network, ranks: Mapping[str, int]) -> None:
    """Add adapters of these ranks and scale 1 to the named layers, and freeze the rest."""
    rank = max(ranks.values())
    narrow = {f"^{re.escape(name)}$": width for name, width in ranks.items() if width < rank}
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        rank_pattern=narrow,
        alpha_pattern=narrow,
        target_modules=list(ranks),
        init_lora_weights="gaussian",
    )
    inject_adapter_in_model(config, network)
    for module in network.modules():
        if isinstance(module, LoraLayer):
            module.__class__ = FOLDING[type(module)]
            if isinstance(module.get_base_layer(), TemporalConv):
                for layer in (module.lora_A["default"], module.lora_B["default"]):
                    layer.__class__ = TemporalConv  # as quick as the layer that it adapts
    network.train(network.training)  # new modules are in train mode
    for name, parameter in network.named_parameters():
        if name.rpartition(".weight")[0].rpartition(".")[2] in TRAINED_IN_FULL:
            parameter.requires_grad_(True)


def save_lora(network: Network, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Save the adapters and the layers trained in full, by name, as safetensors."""
    tensors = {
        name: parameter.detach().to("cpu", dtype).contiguous()
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
    }
    ranks = [m.r["default"] for m in network.modules() if isinstance(m, LoraLayer)]
    if not ranks:
        raise ValueError("Expected a network with adapters, got none. Call `add_lora` first.")
    with whole_file(path) as unfinished:
        save_file(tensors, unfinished, metadata={"rank": str(max(ranks))})


def load_lora(network: Network, path: Path) -> Network:
    """Add the adapters saved in `path` to a network without any, in place.

    The file determines which layers are adapted, and the ranks.

    Raises:
        ValueError: the network has no such layer, or one of another size; or the file lacks a
            layer that no teacher has.
    """
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    check_lora(network, tensors, path)
    ranks = {n.removesuffix(DOWN): len(t) for n, t in tensors.items() if n.endswith(DOWN)}
    inject_adapters(network, ranks)
    network.load_state_dict(tensors, strict=False)
    return network


def check_lora(network: Network, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise unless these are adapters of this network, with the layers that only students have.

    Raises:
        ValueError: as for `load_lora`.
    """
    foreign = find_foreign(network, tensors)
    if foreign or not any(name.endswith(DOWN) for name in tensors):
        raise ValueError(
            f"{path} does not hold adapters of this network: {[*foreign, 'it has none'][0]}. "
            "Choose the adapters that were trained on it."
        )
    if absent := find_absent(network, tensors):
        raise ValueError(
            f"{path} lacks the layer {absent[0]}, which only students have. {NO_STUDENT}"
        )


def find_foreign(network: Network, tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the saved tensors that fit no layer of this network."""
    weights = dict(network.named_parameters())
    return [name for name, tensor in tensors.items() if not _fits(weights, name, tensor)]


def find_absent(network: Network, tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the weights that only students have, and that were not saved."""
    names = (name for name, _ in network.named_modules())
    in_full = [f"{n}.weight" for n in names if n.rpartition(".")[2] in TRAINED_IN_FULL]
    return [name for name in in_full if name not in tensors]


def _fits(weights: Mapping[str, Tensor], name: str, tensor: Tensor) -> bool:
    """Return whether a saved tensor is an adapter of a layer of this network, or its weight."""
    layer = re.sub(rf"({DOWN}|{UP}|\.weight)$", "", name)
    weight = weights.get(f"{layer}.weight")
    if weight is None:
        return False
    if name.endswith(DOWN):
        return tensor.shape[1:] == weight.shape[1:]
    return tensor.shape[0] == weight.shape[0]


@torch.no_grad()
def merge_lora(network: Network, dtype: torch.dtype | None = None) -> Network:
    """Add the adapters to the weights, in place; names become those of the plain network again.

    Layer by layer, into new tensors: weights in a memory-mapped file are read and never written,
    so memory holds the network once, in its final precision.

    Args:
        dtype: final precision; None keeps the present one. Sums are computed before the cast.
    """
    exact = network._keep_in_fp32_modules or ()  # as when it is loaded in half precision

    def final(name: str) -> torch.dtype | None:
        return torch.float32 if any(part in name.split(".") for part in exact) else dtype

    for name, module in list(network.named_modules()):
        if isinstance(module, LoraLayer):
            layer = module.get_base_layer()
            merged = layer.weight + module.get_delta_weight("default")
            layer.weight.data = merged.to(None if dtype is None else final(name))
            network.set_submodule(name, layer)
    network.__dict__.pop("peft_config", None)
    for name, weight in network.named_parameters():
        if dtype is not None:
            weight.data = weight.data.to(final(name))
    return network
