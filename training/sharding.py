"""Divide what is trained over processes, by FSDP2: weights, gradients and optimiser.

accelerate shards by the same function of torch, but on accelerators only, and it would shard the
frozen teacher too, which processes need not call equally often.
"""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

UNITS = 16  # a unit has at most this fraction of the weights; two are whole at a time


def shard(network: nn.Module, accelerator: Accelerator) -> None:
    """Divide the parameters of a network over all processes, in place.

    Every process must then call it the same number of times. A single process keeps it whole.
    """
    if accelerator.num_processes == 1:
        return
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    # It warns of outputs that are views; no network here changes another module's output in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    for unit in [*units(network), network]:
        # Also the root: the average is updated between calls, where all must be divided.
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)


def is_sharded(network: nn.Module) -> bool:
    """Return whether `shard` has divided a network."""
    return isinstance(network, FSDPModule)


def units(network: nn.Module, limit: int | None = None) -> Iterator[nn.Module]:
    """Yield the largest modules with at most 1 / `UNITS` of the parameters: gathered as one."""
    limit = limit or count_parameters(network) // UNITS
    for child in network.children():
        if isinstance(child, nn.ModuleList) or count_parameters(child) > limit:
            yield from units(child, limit)
        elif count_parameters(child):
            yield child


def count_parameters(module: nn.Module) -> int:
    """Return how many numbers the parameters of a module hold, over all processes."""
    return sum(weight.numel() for weight in module.parameters())


def gather(state: Any, *, keep: bool = True) -> Any:
    """Return nested tensors undivided, on the CPU where they were divided.

    All processes must call it.

    Args:
        keep: False takes part only, and returns empty tensors for those that are divided.
    """

    def whole(tensor: Any) -> Tensor:
        full = tensor.detach().full_tensor()
        return full.cpu() if keep else full.new_empty(0)

    return tree_map_only(DTensor, whole, state)


@torch.no_grad()
def copy_whole(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    """Copy undivided tensors, which every process has, into those of the same name."""
    for name, tensor in target.items():
        if tensor is not source[name]:
            tensor.copy_(divide_like(source[name], tensor))


def divide_like(whole: Tensor, like: Tensor) -> Tensor:
    """Return an undivided tensor as `like` is divided."""
    if not isinstance(like, DTensor) or isinstance(whole, DTensor):
        return whole
    local = whole.to(like.device)
    return distribute_tensor(local, like.device_mesh, like.placements, src_data_rank=None)
