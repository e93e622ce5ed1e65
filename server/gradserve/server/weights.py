"""Products of what a shard computes and its part of the examples."""

from __future__ import annotations

from collections.abc import Mapping

from gradserve.graph.graph import Node, Tensor
from gradserve.graph.op import raw


class Weights:
    """Products of the shards' tensors and powers of their part of the examples, each made once.

    Attributes:
        name: of the tensor that the part is fed to; "" where there are none.
    """

    def __init__(self, read: Mapping[Node, Mapping[Tensor, int]]) -> None:
        """`read` says for nodes which of their inputs are to be read so, and the powers."""
        self._read = read
        self._weight: Tensor | None = None
        self._made: dict[tuple[Tensor, int], Tensor] = {}

    @property
    def name(self) -> str:
        return "" if self._weight is None else self._weight.name

    def instead(self, node: Node, tensor: Tensor, stands: Tensor) -> Tensor:
        """What a copy of a node reads for one of its inputs."""
        return self.times(stands, self._read.get(node, {}).get(tensor, 0))

    def times(self, tensor: Tensor, power: int = 1) -> Tensor:
        """A tensor times a power of the shard's part of the examples."""
        if not power:
            return tensor
        graph = tensor.graph
        with graph.as_default(), graph.name_scope(""):
            if self._weight is None:
                self._weight = raw.Placeholder(dtype="float64", shape=(), name="gradserve/weight")
            if (tensor, power) not in self._made:
                with graph.colocate_with(tensor):
                    factor = self._weight if power == 1 else raw.Pow(self._weight, float(power))
                    weight = raw.Cast(factor, DstT=tensor.dtype.base)
                    self._made[tensor, power] = raw.Mul(tensor, weight, name="gradserve/share")
        return self._made[tensor, power]
