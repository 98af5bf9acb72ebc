"""One network of a model, and the origin of each of its tensors in a published file."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Origin:
    """A tensor of a published file, or a third of one."""

    name: str
    shape: tuple[int, ...]  # in the file; ours has the same elements in the same order
    third: int | None = None  # 0, 1, 2 if queries, keys and values share one tensor in the file


@dataclass(frozen=True)
class Part:
    """A network with an origin for every tensor.

    The network is on the meta device: it has names, shapes and a configuration, but no data.
    """

    network: nn.Module
    origins: Mapping[str, Origin]  # by our names
    unused: frozenset[str] = frozenset()  # other tensors of the file, which are not read

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor of the network."""
        return {name: tuple(tensor.shape) for name, tensor in self.network.state_dict().items()}

    @property
    def expected(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor that the published file must contain."""
        return {origin.name: origin.shape for origin in self.origins.values()}

    @property
    def parameters(self) -> int:
        """Return the parameter count."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def rename(self, published: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the network's state dict, as views of the published tensors."""
        return {name: self.ours(name, published[o.name]) for name, o in self.origins.items()}

    def ours(self, name: str, published: Tensor) -> Tensor:
        """Return our tensor of this name, a view of the published one."""
        third = self.origins[name].third
        own = published if third is None else published.chunk(3)[third]
        return own.reshape(self.shapes[name])

    def filled(self, published: Mapping[str, Tensor], *, share: bool = False) -> nn.Module:
        """Return a new network with the published weights, in their dtype, frozen, in eval mode.

        Args:
            share: use the tensors of `published` themselves, without a copy: half the memory, but a
                change to the network then changes them, and every other network that shares them.
        """
        network, weights = copy.deepcopy(self.network), self.rename(published)
        if not share:
            weights = {name: tensor.clone() for name, tensor in weights.items()}
        network.load_state_dict(weights, assign=True)
        return network.eval().requires_grad_(False)


def renamed_part(
    network: nn.Module, rename: Callable[[str], str] = str, unused: frozenset[str] = frozenset()
) -> Part:
    """Return a part whose tensors have the same shapes in the file, under other names.

    Args:
        rename: returns the published name of a tensor, given ours.
    """
    shapes = saved_shapes(network)
    return Part(network, {name: Origin(rename(name), shapes[name]) for name in shapes}, unused)


def saved_shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors that a file holds: without second names of tied weights."""
    tied = getattr(network, "_tied_weights_keys", None) or {}
    weights = network.state_dict()
    return {name: tuple(tensor.shape) for name, tensor in weights.items() if name not in tied}
