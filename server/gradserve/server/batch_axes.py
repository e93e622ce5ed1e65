"""Which dimensions of a tensor hold the batch: those that differ between a part of it and the whole.

The graph is looked at twice, with the sizes of a shard and of the whole batch in its feeds. What it leaves open then
(as many entries as a mask has, say) is taken to go with the batch too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from gradserve.errors import InvalidShape
from gradserve.graph.functions import Function, Spec, spec_of
from gradserve.graph.graph import FunctionName, Graph, Node, Tensor
from gradserve.graph.inline import CALLS, body_of
from gradserve.graph.op import raw
from gradserve.graph.shapes import Dimension
from gradserve.ops.loops import loop_specs
from gradserve.server.flow import LOOPS


class Axis(NamedTuple):
    """A dimension that holds the batch: its size in a shard, and in the whole, where the graph says so."""

    place: int
    part: Dimension
    whole: Dimension


# None: nothing is known, not even the rank.
Axes = tuple[Axis, ...] | None


@dataclass(frozen=True, slots=True)
class Views:
    """Tensors at two sizes of the batch.

    Attributes:
        part, whole: what stands at each size for the tensors that are others then.
        sizes: the numbers of examples.
    """

    part: Mapping[Tensor, Tensor] = field(default_factory=dict)
    whole: Mapping[Tensor, Tensor] = field(default_factory=dict)
    sizes: tuple[int, int] = (1, 1)
    _known: dict[Tensor, Axes] = field(default_factory=dict, compare=False, repr=False)

    def axes(self, tensor: Tensor) -> Axes:
        """The dimensions of a tensor that hold the batch."""
        if tensor not in self._known:
            self._known[tensor] = self._axes(tensor)
        return self._known[tensor]

    def _axes(self, tensor: Tensor) -> Axes:
        part, whole = (view.get(tensor, tensor).shape for view in (self.part, self.whole))
        if part is None or whole is None or len(part) != len(whole):
            return None
        sizes = enumerate(zip(part, whole, strict=True))
        return tuple(Axis(k, a, b) for k, (a, b) in sizes if a is None or a != b)

    def is_open(self, tensor: Tensor) -> bool:
        """Whether values decide how long a tensor is in its first dimension."""
        axes = self.axes(tensor)
        return bool(axes) and axes[0].place == 0 and None in axes[0]

    def is_even(self, tensor: Tensor) -> bool:
        """Whether each example has the same part of a tensor, as far as is known."""
        part, whole = self.sizes
        known = [axis for axis in self.axes(tensor) or () if axis.part is not None and axis.whole is not None]
        return all((axis.part or 0) * whole == (axis.whole or 0) * part for axis in known)

    def body(self, node: Node, called: FunctionName) -> tuple[Function, Views]:
        """A body that a node runs, and its tensors at both sizes."""
        part, whole = (body_of(node.graph, called, _specs(_stands_for(node, view))) for view in (self.part, self.whole))
        pairs = zip(part.graph.nodes, whole.graph.nodes, strict=True)
        return part, Views({}, {x: y for a, b in pairs for x, y in zip(a.outputs, b.outputs, strict=True)}, self.sizes)


def _stands_for(node: Node, view: Mapping[Tensor, Tensor]) -> Node:
    stands = [view[tensor].node for tensor in node.outputs if tensor in view]
    return next((other for other in stands if other.type == node.type), node)


def arguments(node: Node) -> Sequence[Tensor]:
    """What a node hands to its bodies."""
    return node.inputs if node.type in LOOPS or node.type in CALLS else node.inputs[1:]


def _specs(node: Node) -> list[Spec]:
    return loop_specs(node) if node.type in LOOPS else [spec_of(tensor) for tensor in arguments(node)]


def views(nodes: Sequence[Node], rows: Iterable[Tensor], sizes: tuple[int, int]) -> Views:
    """Looks at nodes with a shard's size and the whole's.

    Args:
        nodes: in an order in which they can run.
        rows: tensors that are fed and have a row an example.
        sizes: numbers of examples, of a shard and of the whole.
    """
    cut = [tensor for tensor in rows if tensor.shape]
    try:
        part, whole = (_view(nodes, cut, size) for size in sizes)
    except InvalidShape:  # in a branch that is not taken, say; if it does run, it will say so
        return Views()
    return Views(part, whole, sizes)


def _view(nodes: Sequence[Node], rows: Sequence[Tensor], examples: int) -> dict[Tensor, Tensor]:
    """What stands for the tensors that depend on the rows where there are so many examples."""
    found: dict[Tensor, Tensor] = {}
    with Graph().as_default():
        for x in rows:
            found[x] = raw.Placeholder(dtype=x.dtype.base, shape=(examples, *(x.shape or ())[1:]))
    for node in nodes:
        if any(tensor in found for tensor in node.inputs):
            anew = node.anew(tuple([found.get(tensor, tensor) for tensor in node.inputs]), node.attrs, ())
            for tensor, stands in zip(node.outputs, anew.outputs, strict=True):
                found.setdefault(tensor, stands)
    return found
