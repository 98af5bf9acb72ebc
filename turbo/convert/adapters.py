"""T2V-Turbo's published adapters: a list of tensors without names, [up, down, up, down, ...].

The names are in the order alone: that in which the published network lists its layers. Every
Linear, Conv2d and Conv3d is adapted; their product is added to the weight with factor 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from turbo.convert.checkpoint import Checkpoint, open_checkpoint
from turbo.convert.part import Part

PROJECTION = "time_embedding.cond_proj"
LARGEST_SEED = 2**63 - 1
PROJECTION_ORIGINS = ("time_cond_proj.weight", f"{PROJECTION}.weight")

THE_TRAP = (
    "The published adapters do not contain their student: its guidance projection "
    "(time_cond_proj) was random, frozen and never saved, only a change to it was. No file "
    "restores it, and every guess makes another model. Choose one and say so:\n"
    "  --projection zeros      the mean of what it was drawn from; reproducible, recommended\n"
    "  --projection random:N   a draw from seed N, as the published loader makes without asking\n"
    "  --projection FILE       the weight before the adapters, from whoever trained them"
)

# The words of VideoCrafter2's names, in the order in which its network lists its layers.
_ORDER = (
    "time_embed fps_embedding time_cond_proj motion_cond_proj combine_proj "
    "input_blocks init_attn middle_block output_blocks out "
    "in_layers emb_layers out_layers skip_connection temopral_conv conv1 conv2 conv3 conv4 op conv "
    "proj_in transformer_blocks attn1 ff attn2 to_q to_k to_v to_out net proj proj_out"
).split()


@dataclass(frozen=True)
class Pair:
    """The adapter of one layer: what it adds to the weight is up times down."""

    up: str  # names in the list, that is, places
    down: str
    rank: int


def adapter_order(part: Part) -> list[str]:
    """Return the adapted layers of a network, by our names, in the order of a published list."""
    names = {
        name.removesuffix(".weight"): origin.name.removesuffix(".weight")
        for name, origin in part.origins.items()
        if name.endswith(".weight") and len(origin.shape) in (2, 4, 5)  # neither norm nor Conv1d
    }
    if all(ours == theirs for ours, theirs in names.items()):
        return list(names)  # one network, hence one order
    return sorted(names, key=lambda ours: _place(names[ours]))


def _place(name: str) -> list[int]:
    return [int(word) if word.isdigit() else _ORDER.index(word) for word in name.split(".")]


def pair_up(checkpoint: Checkpoint, part: Part) -> dict[str, Pair]:
    """Return which two tensors of a published list adapt each layer, by our names.

    Raises:
        ValueError: the list is of another network.
    """
    layers = adapter_order(part)
    if len(checkpoint.shapes) != 2 * len(layers):
        raise ValueError(
            f"Expected {len(layers)} pairs of adapters in {checkpoint.path}, "
            f"got {len(checkpoint.shapes) / 2:g}: a list for another network. "
            "Choose the adapters of this model."
        )
    pairs = {}
    for index, layer in enumerate(layers):
        up, down = str(2 * index), str(2 * index + 1)
        _check_pair(checkpoint, up, down, layer, part.shapes[f"{layer}.weight"])
        pairs[layer] = Pair(up, down, checkpoint.shapes[down][0])
    return pairs


def _check_pair(
    checkpoint: Checkpoint, up: str, down: str, layer: str, weight: tuple[int, ...]
) -> None:
    got_up, got_down = checkpoint.shapes[up], checkpoint.shapes[down]
    rank = got_down[0] if got_down else 0
    # Both are convolutions where the layer is one; that of `up` is one pixel wide.
    if got_up == (weight[0], rank, *(1 for _ in weight[2:])) and got_down[1:] == weight[1:]:
        return
    raise ValueError(
        f"Expected the adapter of {layer}, whose weight is {weight}, at {up} and {down} of "
        f"{checkpoint.path}, got {got_up} and {got_down}: a list for another network. "
        "Choose the adapters of this model; those for ModelScope and VideoCrafter2 differ."
    )


def change_of(checkpoint: Checkpoint, pair: Pair, shape: tuple[int, ...]) -> Tensor:
    """Return what a pair adds to the weight of its layer."""
    up, down = (checkpoint.read(name).float() for name in (pair.up, pair.down))
    return (up.flatten(1) @ down.flatten(1)).reshape(shape)


def read_projection(choice: str | None, shape: tuple[int, ...], path: Path) -> Tensor:
    """Return the guidance projection's weight before the adapters, as chosen.

    Args:
        choice: "zeros", "random:" and a seed, or the path of a file that holds it.
        path: of the adapters, for the message.

    Raises:
        ValueError: nothing, or nothing of this size, was chosen.
    """
    if choice is None:
        raise ValueError(f"Expected a guidance projection for {path}, got none. {THE_TRAP}")
    if choice == "zeros":
        return torch.zeros(shape)
    seed = _seed_of(choice)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        bound = shape[1] ** -0.5  # of torch's Linear
        return torch.empty(shape).uniform_(-bound, bound, generator=generator)
    checkpoint, name = _find_projection(choice)
    if checkpoint.shapes[name] != shape:
        raise ValueError(
            f"Expected {name!r} of shape {shape} in {choice}, got {checkpoint.shapes[name]}. "
            "Choose the projection of this student."
        )
    return checkpoint.read(name).float()


def check_projection(choice: str) -> None:
    """Refuse a choice of `read_projection` that can be none, before anything is downloaded.

    Raises:
        ValueError: it is no word that is known, and no file that holds a projection.
    """
    if choice != "zeros" and _seed_of(choice) is None:
        _find_projection(choice)


def _seed_of(choice: str) -> int | None:
    kind, _, seed = choice.partition(":")
    if kind != "random" or not seed.isdecimal():
        return None
    # By its digits first: Python refuses to read a number of thousands of them.
    if len(seed) > len(str(LARGEST_SEED)) or int(seed) > LARGEST_SEED:
        raise ValueError(
            f"Expected a seed from 0 to {LARGEST_SEED} as projection, got {choice[:40]!r}. "
            "Choose a smaller one."
        )
    return int(seed)


def _find_projection(choice: str) -> tuple[Checkpoint, str]:
    """Return the file, and under which name the projection is in it."""
    if not Path(choice).is_file():
        raise ValueError(
            f"Expected zeros, random:SEED or the path of a file as projection, got {choice!r}. "
            "Check the spelling."
        )
    checkpoint = open_checkpoint(Path(choice))
    for name in checkpoint.shapes:
        if name.endswith(PROJECTION_ORIGINS):
            return checkpoint, name
    raise ValueError(
        f"Expected {' or '.join(map(repr, PROJECTION_ORIGINS))} in {choice}, got neither. "
        "Choose a file that holds the guidance projection."
    )


def read_merged(
    base: Callable[[str], Tensor],
    checkpoint: Checkpoint,
    pairs: dict[str, Pair],
    shapes: dict[str, tuple[int, ...]],
) -> Callable[[str], Tensor]:
    """Return a function that reads a tensor with its adapter, if any, folded in.

    Args:
        base: reads a tensor of the network the adapters were trained on.
    """

    def read(name: str) -> Tensor:
        pair = pairs.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        weight = base(name)
        if pair is None:
            return weight
        return weight + change_of(checkpoint, pair, shapes[name]).to(weight.dtype)

    return read
