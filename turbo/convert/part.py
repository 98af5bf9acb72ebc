"""One network of a model, and where each of its tensors stands in a published file."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Origin:
    """A tensor of a published file, or a third of one."""

    name: str
    shape: tuple[int, ...]  # there; ours holds the same numbers in the same order
    third: int | None = None  # 0, 1, 2: queries, keys and values share one tensor there

    def taken_from(self, tensor: Tensor) -> Tensor:
        """Return what is ours of the published tensor, a view."""
        return tensor if self.third is None else tensor.chunk(3)[self.third]


@dataclass(frozen=True)
class Part:
    """A network with an origin for every tensor.

    The network is on the meta device: it has names, shapes and a configuration, and takes no
    memory.
    """

    network: nn.Module
    origins: Mapping[str, Origin]  # by our names
    unused: frozenset[str] = frozenset()  # published beside them; no computation reads these

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor of ours."""
        return {name: tuple(tensor.shape) for name, tensor in self.network.state_dict().items()}

    @property
    def expected(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor that the published file must hold."""
        return {origin.name: origin.shape for origin in self.origins.values()}

    @property
    def parameters(self) -> int:
        """Return how many numbers the network learns."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def rename(self, published: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the network's state dict, of views of the published tensors."""
        return {name: self.ours(name, published[o.name]) for name, o in self.origins.items()}

    def ours(self, name: str, published: Tensor) -> Tensor:
        """Return the tensor of that name of ours, a view of the published one."""
        return self.origins[name].taken_from(published).reshape(self.shapes[name])

    def filled(self, published: Mapping[str, Tensor]) -> nn.Module:
        """Return the network with the published numbers, in their precision, ready to run."""
        self.network.load_state_dict(self.rename(published), assign=True)
        return self.network.eval().requires_grad_(False)
