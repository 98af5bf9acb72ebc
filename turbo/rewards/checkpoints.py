"""Reading the published weights of a reward: its card, and the steps common to all readers."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from turbo.card import HubFile
from turbo.convert.checkpoint import Checkpoint
from turbo.convert.difference import refuse_differences
from turbo.convert.part import Part

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class RewardCard:
    """A published reward: what to download, and how to load it."""

    title: str
    files: tuple[HubFile, ...]
    load: Callable[[Path], nn.Module]  # from the folder of these files to a `types.Reward`


def read_part(checkpoint: Checkpoint, part: Part) -> dict[str, Tensor]:
    """Read the tensors of a network, in float32, by their published names.

    Raises:
        ValueError: the file does not match the network.
    """
    refuse_differences(checkpoint, part)
    return {name: checkpoint.read(name).float() for name in part.expected}


def build_on_meta(build: Callable[[], Network]) -> Network:
    """Build a network on the meta device, except for the buffers that no file contains.

    They are transformers' position ids (0, 1, 2, ...) and token type ids (all zero).
    """
    with torch.device("meta"):
        network = build()
    for module in network.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            constant = torch.zeros(buffer.shape, dtype=buffer.dtype)
            if name == "position_ids":
                constant = torch.arange(buffer.shape[-1]).expand(1, -1)
            module.register_buffer(name, constant, persistent=False)
    return network
