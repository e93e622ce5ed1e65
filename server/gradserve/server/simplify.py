"""Simplifies what a request needs of a graph: prunes, folds constants, merges equal nodes, drops identities.

The graph itself is not changed: the result is a view of it, where each node's inputs are said anew. No sum is
re-associated and no kernel is replaced by another, so the reference engine gives the same bits with and without.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradserve.errors import GradserveError
from gradserve.graph import codec, dtypes
from gradserve.graph.graph import Node, Tensor, group
from gradserve.graph.op import FAILURES, Op
from gradserve.graph.shapes import is_static, num_elements
from gradserve.workers.segment import controls, needed

_DROPPED = frozenset(("Identity", "StopGradient", "PreventGradient", "Snapshot", "Conj"))
# What gives its first input back where it has the same shape, and what does where it reduces over no axes.
_RESHAPING = frozenset(("Reshape", "BroadcastTo", "EnsureShape", "Squeeze", "Tile", "Slice", "Pad", "PadV2"))
_REDUCING = frozenset(("Sum", "Mean", "Prod", "Max", "Min"))
_SIMPLE = frozenset((dtypes.DType, int, bool, str))
_LARGEST_FOLDED = 4096
_LARGEST_READ = 1 << 20
_LARGEST_REPEATED_BYTES = 1 << 24
_LARGEST_COMPARED_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Work:
    """What is left to do.

    Attributes:
        nodes: in an order in which they can run; constants are not among them.
        inputs: what each node reads, after simplifying.
        controls: the nodes that each node runs after.
        constants: values known now; a worker that reads one gets its own copy.
        feeds: the tensors whose values the request gives.
        fetches: what the request wants, after simplifying: outputs of nodes, constants or feeds.
        targets: nodes to run for their effect.
    """

    nodes: tuple[Node, ...]
    inputs: Mapping[Node, tuple[Tensor, ...]]
    controls: Mapping[Node, tuple[Node, ...]]
    constants: Mapping[Tensor, np.ndarray[Any, Any]]
    feeds: tuple[Tensor, ...]
    fetches: tuple[Tensor, ...]
    targets: tuple[Node, ...]


def simplify(feeds: Sequence[Tensor], fetches: Sequence[Tensor], targets: Sequence[Node]) -> Work:
    """What must run for these fetches and targets. Raises InvalidArgument where a placeholder is not fed."""
    fed = frozenset(feeds)
    order = needed(fetches, targets, fed)
    anchors = {control for node in order for control in node.control_inputs}
    anchors.update(targets)
    state = _Pass(fed, anchors, all(tensor.node.type == "Placeholder" for tensor in feeds))
    for node in order:
        state.visit(node)
    return _pruned(state, feeds, [state.source(t) for t in fetches], [state.same.get(n, n) for n in targets])


class _Pass:
    """One walk over the nodes, inputs first. `replaced` never has a fed tensor: what is fed stands for itself."""

    def __init__(self, fed: frozenset[Tensor], anchors: set[Node], shapes_hold: bool) -> None:
        self.fed = fed
        self.fed_nodes = frozenset(tensor.node for tensor in fed)
        self.anchors = anchors
        # A fed inner tensor may contradict the static shapes that were inferred from what it replaces.
        self.shapes_hold = shapes_hold
        self.replaced: dict[Tensor, Tensor] = {}
        self.same: dict[Node, Node] = {}
        self.inputs: dict[Node, tuple[Tensor, ...]] = {}
        self.controls: dict[Node, tuple[Node, ...]] = {}
        self.constants: dict[Tensor, np.ndarray[Any, Any]] = {}
        self.nodes: list[Node] = []
        self.seen: dict[Hashable, Node] = {}
        self.alike: dict[tuple[str, tuple[Tensor, ...]], Node] = {}
        self.pure: dict[Op | None, bool] = {}

    def source(self, tensor: Tensor) -> Tensor:
        """What a tensor is after simplifying."""
        return self.replaced.get(tensor, tensor)

    def visit(self, node: Node) -> None:
        find = self.replaced.get
        inputs = tuple([find(tensor, tensor) for tensor in node.inputs])
        after: tuple[Node, ...] = ()
        if node.control_inputs:
            after = tuple(dict.fromkeys(self.same.get(control, control) for control in controls(node, self.fed)))
        if node.type == "Const" and self._is_constant(node):
            return
        pure = self.pure.get(node.op)
        if pure is None:
            pure = self.pure[node.op] = _is_pure(node.op)
        if pure and not after and node not in self.anchors:
            if inputs and (inputs[0] in self.constants or _is_static(node)) and self._folds(node, inputs):
                return
            if node.type in _DROPPED and self._passes_through(node, inputs):
                return
            if self._keeps_all(node, inputs) and self._stands_for(node, inputs[0]):
                return
        if pure and node not in self.fed_nodes:  # what is fed for it need not be what it would compute
            first = self.alike.setdefault((node.type, inputs), node)
            if first is not node and self._merges(node, inputs, after, first):
                return
        self.inputs[node] = inputs
        self.controls[node] = after
        self.nodes.append(node)

    def _merges(self, node: Node, inputs: tuple[Tensor, ...], after: tuple[Node, ...], first: Node) -> bool:
        """Whether an earlier node computes the same values; `first` is of the same type and reads the same."""
        key = _key(node, inputs, after)
        if key is None:
            return False
        own = _key(first, self.inputs[first], self.controls[first])
        if own is not None:
            self.seen.setdefault(own, first)
        twin = self.seen.setdefault(key, node)
        if twin is node:
            return False
        self.same[node] = twin
        self.replaced.update(zip(node.outputs, twin.outputs, strict=True))
        return True

    def _is_constant(self, node: Node) -> bool:
        """A Const that nobody waits for needs no worker."""
        if node.control_inputs or node in self.anchors:
            return False
        output = node.outputs[0]
        if output in self.fed:
            return True
        value = node.attrs["value"]
        if value.nbytes > _LARGEST_REPEATED_BYTES and codec.is_repeated(value):
            return False  # a few bytes in the graph: only a worker, within its bounds, makes them many
        self.constants[output] = value
        if value.nbytes <= _LARGEST_COMPARED_BYTES and value.dtype != np.dtype(object):
            key = ("Const", node.attrs["dtype"], value.shape, value.tobytes())
            twin = self.seen.setdefault(key, node)
            if twin is not node:
                self.replaced[output] = twin.outputs[0]
        return True

    def _passes_through(self, node: Node, inputs: tuple[Tensor, ...]) -> bool:
        source = inputs[0]
        if node.type != "Conj":
            return self._stands_for(node, source)
        if source.node.type != "Conj" or source in self.fed or source.node not in self.inputs:
            return False
        return self._stands_for(node, self.inputs[source.node][0])

    def _stands_for(self, node: Node, source: Tensor) -> bool:
        """Lets a tensor stand for a node's only output, unless that is fed or the tensor may change meanwhile."""
        output = node.outputs[0]
        if output in self.fed or source.dtype.is_reference:
            return False
        self.replaced[output] = source
        return True

    def _keeps_all(self, node: Node, inputs: tuple[Tensor, ...]) -> bool:
        """Whether a node gives its first input back, by what is known of shapes."""
        if node.type in _RESHAPING:
            return self.shapes_hold and is_static(inputs[0].shape) and node.outputs[0].shape == inputs[0].shape
        if node.type in _REDUCING:
            axes = self.constants.get(inputs[1])
            return axes is not None and inputs[1] not in self.fed and not axes.size
        return False

    def _folds(self, node: Node, inputs: tuple[Tensor, ...]) -> bool:
        values = self._static_values(node) if _is_static(node) else None
        if values is None:
            values = self._kernel_values(node, inputs)
        if values is None:
            return False
        for tensor, value in zip(node.outputs, values, strict=True):
            if tensor not in self.fed:
                self.constants[tensor] = value
        return True

    def _static_values(self, node: Node) -> list[np.ndarray[Any, Any]] | None:
        """The values that follow from shapes alone."""
        assert node.op is not None
        assert node.op.static is not None
        if not self.shapes_hold or len(node.outputs) != 1:
            return None
        value = node.op.static(node, node.attrs, *node.arguments())
        return None if value is None else [value]

    def _kernel_values(self, node: Node, inputs: tuple[Tensor, ...]) -> list[np.ndarray[Any, Any]] | None:
        assert node.op is not None
        if not all(tensor in self.constants and tensor not in self.fed for tensor in inputs):
            return None
        if any(tensor.dtype.kind in "srv" for tensor in (*inputs, *node.outputs)):
            return None
        sizes = [num_elements(tensor.shape) for tensor in node.outputs]
        if any(size is None or size > _LARGEST_FOLDED for size in sizes):
            return None
        values = [self.constants[tensor] for tensor in inputs]
        if any(value.size > _LARGEST_READ for value in values):
            return None
        try:
            with np.errstate(all="ignore"):
                result = node.op.kernel(  # pyright: ignore[reportOptionalCall]
                    node, node.attrs, np, *group(node.op.signature.inputs, node.attrs, values)
                )
        except (GradserveError, *FAILURES):
            return None  # it will say so when it runs
        results = result if isinstance(result, (tuple, list)) else [result]
        return [np.asarray(value) for value in results]


def _is_pure(op: Op | None) -> bool:
    """Whether equal inputs give equal outputs, and running a node of this op changes nothing."""
    if op is None or op.kernel is None or op.stateful or op.kernel.wants_state:
        return False
    return bool(op.signature.outputs)


def _is_static(node: Node) -> bool:
    return node.op is not None and node.op.static is not None


def _key(node: Node, inputs: tuple[Tensor, ...], after: tuple[Node, ...]) -> Hashable | None:
    """Nodes with the same key compute the same values; None for one that is like no other."""
    attrs: list[Hashable] = []
    for name, value in node.attrs.items():
        if name[0] == "_" and name != "_class":
            continue
        if value.__class__ not in _SIMPLE:
            value = _frozen(value)
            if value is None:
                return None
        attrs.append((name, value))
    return node.type, inputs, after, node.device, frozenset(attrs)


def _frozen(value: Any) -> Hashable | None:
    """A hashable stand-in of an attr's value, None where there is none."""
    if isinstance(value, np.ndarray):
        if value.nbytes > _LARGEST_COMPARED_BYTES or value.dtype == np.dtype(object):
            return None
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, list):
        entries = tuple(_frozen(entry) for entry in value)
        return None if None in entries else entries
    if value is None:
        return ("None",)
    if isinstance(value, float):
        return value.hex()  # 0.0 and -0.0 are equal, and not the same
    return value if isinstance(value, Hashable) else None


def _pruned(state: _Pass, feeds: Sequence[Tensor], fetches: Sequence[Tensor], targets: Sequence[Node]) -> Work:
    """Drops what nothing reads any more: a walk from the last node to the first, readers before what they read."""
    given = state.fed.union(state.constants)
    kept = {tensor.node for tensor in fetches if tensor not in given}
    kept.update(targets)
    for node in reversed(state.nodes):
        if node in kept:
            for tensor in state.inputs[node]:
                if tensor not in given:
                    kept.add(tensor.node)
            kept.update(state.controls[node])
    nodes = tuple([node for node in state.nodes if node in kept])
    return Work(
        nodes, state.inputs, state.controls, state.constants, tuple(feeds), tuple(fetches),
        tuple(dict.fromkeys(targets)),
    )  # fmt: skip
