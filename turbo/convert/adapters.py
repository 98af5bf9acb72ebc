"""T2V-Turbo's published LoRA adapters: a list of tensors without names, [up, down, up, down, ...].

The position in the list determines the layer: it is the order in which the published network lists
its modules. Every Linear, Conv2d and Conv3d is adapted: W' = W + up @ down, with factor 1.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from turbo.card import ModelCard
from turbo.convert.checkpoint import Checkpoint, open_checkpoint
from turbo.convert.part import Part
from turbo.convert.unet import modelscope_part, videocrafter_part
from turbo.networks.families import network_on_meta
from turbo.networks.lora import DOWN, LORA_FILE, UP
from turbo.networks.unet import VideoUNet
from turbo.whole_file import open_whole

PROJECTION = "time_embedding.cond_proj"
LARGEST_SEED = 2**63 - 1
PROJECTION_ORIGINS = ("time_cond_proj.weight", f"{PROJECTION}.weight")

PROJECTION_REQUIRED = (
    "The published adapters are incomplete: the student's guidance projection (time_cond_proj) was "
    "initialised at random, frozen and never saved, only its adapter was. No file restores it, and "
    "each choice gives a different model. Choose one:\n"
    "  --projection zeros      the mean of its random initialisation; reproducible, recommended\n"
    "  --projection random:N   a random initialisation from seed N; the published loader uses one\n"
    "  --projection FILE       the weight before the adapters, from the authors"
)

# The components of VideoCrafter2's parameter names, in the order of its modules.
_ORDER = (
    "time_embed fps_embedding time_cond_proj motion_cond_proj combine_proj "
    "input_blocks init_attn middle_block output_blocks out "
    "in_layers emb_layers out_layers skip_connection temopral_conv conv1 conv2 conv3 conv4 op conv "
    "proj_in transformer_blocks attn1 ff attn2 to_q to_k to_v to_out net proj proj_out"
).split()


@dataclass(frozen=True)
class Pair:
    """The adapter of one layer: the change of its weight is up @ down."""

    up: str  # names in the checkpoint: positions in the list
    down: str
    rank: int


def adapter_order(part: Part) -> list[str]:
    """Return our names of the adapted layers of a network, in the order of a published list."""
    names = {
        name.removesuffix(".weight"): origin.name.removesuffix(".weight")
        for name, origin in part.origins.items()
        if name.endswith(".weight") and len(origin.shape) in (2, 4, 5)  # not a norm, not Conv1d
    }
    if all(ours == theirs for ours, theirs in names.items()):
        return list(names)  # the same network, so the same order
    return sorted(names, key=lambda ours: _module_order(names[ours]))


def _module_order(name: str) -> list[int]:
    return [int(word) if word.isdigit() else _ORDER.index(word) for word in name.split(".")]


def pair_up(checkpoint: Checkpoint, part: Part) -> dict[str, Pair]:
    """Assign the tensors of a published list to the layers of a network.

    Returns:
        One pair per adapted layer, by our names.

    Raises:
        ValueError: the list belongs to another network.
    """
    layers = adapter_order(part)
    if len(checkpoint.shapes) != 2 * len(layers):
        raise ValueError(
            f"{checkpoint.path} holds {len(checkpoint.shapes) / 2:g} pairs of adapters; this "
            f"network has {len(layers)} adapted layers. Choose the adapters of this model."
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
    # In a convolution both are convolutions, and the kernel of `up` has one element.
    if got_up == (weight[0], rank, *(1 for _ in weight[2:])) and got_down[1:] == weight[1:]:
        return
    raise ValueError(
        f"{checkpoint.path} belongs to another network: its tensors {up} and {down} of shapes "
        f"{got_up} and {got_down} do not adapt {layer}, whose weight is {weight}. "
        "Choose the adapters of this model; those for ModelScope and VideoCrafter2 differ."
    )


def change_of(checkpoint: Checkpoint, pair: Pair, shape: tuple[int, ...]) -> Tensor:
    """Return up @ down, the change of a layer's weight, in float32."""
    up, down = (checkpoint.read(name).float() for name in (pair.up, pair.down))
    return (up.flatten(1) @ down.flatten(1)).reshape(shape)


def list_adapters(named: Mapping[str, Tensor], part: Part) -> list[Tensor]:
    """Return the named adapters of a student as a published list, [up, down, up, down, ...].

    The guidance projection is trained in full here. It becomes a pair whose product it is, so the
    list belongs to a projection of zeros.

    Raises:
        ValueError: the list has no place for an adapter, or a layer of the list has none.
    """
    order = adapter_order(part)
    adapted = {name.removesuffix(DOWN) for name in named if name.endswith(DOWN)} | {PROJECTION}
    if homeless := adapted - set(order):
        raise ValueError(
            f"A published list has no place for the adapter of {min(homeless)}. Train the student "
            f"with student.lora_skip = {sorted(homeless)}."
        )
    if absent := set(order) - adapted:
        raise ValueError(
            f"A published list needs an adapter of {min(absent)}, and the student has none. "
            "Remove that layer from student.lora_skip, and train it again."
        )
    tensors: list[Tensor] = []
    for layer in order:
        if layer == PROJECTION:
            projection = named[f"{PROJECTION}.weight"]
            tensors += [projection, torch.eye(projection.shape[1]).to(projection)]
        else:
            tensors += [named[f"{layer}{UP}"], named[f"{layer}{DOWN}"]]
    return tensors


def export_adapters(card: ModelCard, path: Path) -> None:
    """Write the adapters of a student as the list that the published code reads.

    Raises:
        ValueError: the model has no adapters, or they do not fit such a list.
        OSError: the file cannot be written.
    """
    if card.lora is None:
        raise ValueError(f"{card.name} has no adapters. Choose a student that was trained by them.")
    named = load_file(card.folder / card.lora / LORA_FILE)
    projection = named.get(f"{PROJECTION}.weight")
    sizes = {} if projection is None else {"time_cond_proj_dim": projection.shape[1]}
    unet = network_on_meta(card.folder / card.unet, sizes)
    if not isinstance(unet, VideoUNet):
        raise ValueError(f"No list was published for networks of the kind {type(unet).__name__}.")
    part = videocrafter_part(unet) if unet.takes_fps else modelscope_part(unet)
    adapters = list_adapters(named, part)
    with open_whole(path) as file:
        torch.save(adapters, file)


def read_projection(choice: str | None, shape: tuple[int, ...], path: Path) -> Tensor:
    """Return the guidance projection's weight before the adapters.

    Args:
        choice: "zeros", "random:SEED", or the path of a file that holds it.
        shape: (channels, guidance embedding size).
        path: the file of adapters, for the message.

    Raises:
        ValueError: no choice was made, or the file holds no projection of this shape.
    """
    if choice is None:
        raise ValueError(f"{path} needs a guidance projection. {PROJECTION_REQUIRED}")
    if choice == "zeros":
        return torch.zeros(shape)
    seed = _seed_of(choice)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        bound = shape[1] ** -0.5  # torch's initialisation of a Linear layer
        return torch.empty(shape).uniform_(-bound, bound, generator=generator)
    checkpoint, name = _find_projection(choice)
    if checkpoint.shapes[name] != shape:
        raise ValueError(
            f"{name!r} in {choice} has shape {checkpoint.shapes[name]}, not {shape}. "
            "Choose the projection of this student."
        )
    return checkpoint.read(name).float()


def check_projection(choice: str) -> None:
    """Check a choice for `read_projection` before anything is downloaded.

    Raises:
        ValueError: it is neither a known word nor a file that holds a projection.
    """
    if choice != "zeros" and _seed_of(choice) is None:
        _find_projection(choice)


def _seed_of(choice: str) -> int | None:
    kind, _, seed = choice.partition(":")
    if kind != "random" or not seed.isdecimal():
        return None
    # Compare lengths first: Python refuses to parse a number of thousands of digits.
    if len(seed) > len(str(LARGEST_SEED)) or int(seed) > LARGEST_SEED:
        raise ValueError(
            f"The seed in --projection {choice[:40]!r} is too large. "
            f"Choose one from 0 to {LARGEST_SEED}."
        )
    return int(seed)


def _find_projection(choice: str) -> tuple[Checkpoint, str]:
    """Return the opened file and the name of the projection in it."""
    if not Path(choice).is_file():
        raise ValueError(
            f"The projection {choice!r} is not known. Choose zeros, random:SEED or the path of a "
            "file."
        )
    checkpoint = open_checkpoint(Path(choice))
    for name in checkpoint.shapes:
        if name.endswith(PROJECTION_ORIGINS):
            return checkpoint, name
    raise ValueError(
        f"{choice} does not hold a guidance projection "
        f"({' or '.join(map(repr, PROJECTION_ORIGINS))}). Choose another file."
    )


def read_merged(
    base: Callable[[str], Tensor],
    checkpoint: Checkpoint,
    pairs: dict[str, Pair],
    shapes: dict[str, tuple[int, ...]],
) -> Callable[[str], Tensor]:
    """Return a function that reads a tensor and merges its adapter, if it has one.

    Args:
        base: reads a tensor of the network that the adapters were trained on.
        shapes: of the weights, by our names.
    """

    def read(name: str) -> Tensor:
        pair = pairs.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        weight = base(name)
        if pair is None:
            return weight
        return weight + change_of(checkpoint, pair, shapes[name]).to(weight.dtype)

    return read
