"""What calls, branches and loops have in common: the shapes that bodies return, and bodies run backwards.

The gradient of such a node never changes the node. Where it needs values from inside of a body it adds a second node
that computes what the first one does and returns those values too; it carries the name of the first one in the attr
`_gradserve_forward`, and a plan that has both runs the second one for both (see gradserve.graph.inline). Another
gradient of the same node takes its values from the second one, and adds a third where that lacks any: each gives all
that those before it give, in the same places.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradserve.errors import NoGradient
from gradserve.graph.functions import FORWARD, Function, Spec, argument, clone, copy_of, spec_of
from gradserve.graph.graph import FunctionName, IndexedSlices, Node, Tensor
from gradserve.graph.handles import held_by
from gradserve.graph.inline import body_of
from gradserve.graph.op import current_graph, raw
from gradserve.graph.shapes import Shape, is_static

Call = Callable[[Function, Sequence[Any], Any], list[Any]]
"""How an engine runs a body: (function, arguments, state) -> results."""

_open: contextvars.ContextVar[frozenset[str]] = contextvars.ContextVar("open_functions", default=frozenset())
"""The functions whose shapes are being worked out, to tell recursion."""


def output_shapes(node: Node, called: FunctionName, specs: Sequence[Spec]) -> list[Shape] | None:
    """The shapes that a body returns for such arguments; None for a body that calls itself."""
    names = _open.get()
    if called.name in names:
        return None
    token = _open.set(names | {called.name})
    try:
        return [tensor.shape for tensor in body_of(node.graph, called, specs).outputs]
    finally:
        _open.reset(token)


def forward_of(node: Node) -> str:
    """The name of the node that a node repeats; its own where it repeats none."""
    return node.attrs.get(FORWARD, node.name)


def fullest(node: Node) -> Node:
    """Of the nodes that repeat a node, and itself, the one that gives most: first of all what the node gives."""
    name = forward_of(node)
    again = [reader for reader, slot in node.inputs[0].consumers if slot == 0 and reader.attrs.get(FORWARD) == name]
    return max(again, key=lambda other: len(other.outputs), default=node)


def is_unused(cotangent: Tensor | None) -> bool:
    """Whether a cotangent is the zeros that stand for none."""
    return cotangent is None or cotangent.node.type == "ZerosLike"


@dataclass(frozen=True, eq=False, slots=True)
class Reverse:
    """A body with the nodes of its gradients added.

    Attributes:
        body: the body, in a graph of its own.
        seeds: Placeholders for the cotangents of outputs.
        found: the gradient with respect to each input that was asked for, then to each hidden x.
        captures: what the added nodes read of the body.
        backward: the added nodes, and constants that they read.
    """

    body: Function
    seeds: tuple[Tensor, ...]
    found: tuple[Tensor | IndexedSlices | None, ...]
    captures: tuple[Tensor, ...]
    backward: tuple[Node, ...]

    def emit(self, given: Mapping[Tensor, Tensor]) -> list[Tensor | IndexedSlices | None]:
        """The gradients in the current graph, where `given` stands for the captures and seeds."""
        graph, mapping = current_graph(), dict(given)
        clone(self.backward, mapping, graph, graph.unique_name)
        return [_mapped(dx, mapping) for dx in self.found]


def reverse(function: Function, sweep: Any, ys: Sequence[int], xs: Sequence[int], *hidden: Any) -> Reverse:
    """Differentiates outputs number `ys` of a body with respect to its inputs number `xs`.

    `hidden` are the tensors inside of it that are asked for by name, as the sweep gives them.
    """
    body = copy_of(function)
    graph = body.graph
    start = len(graph.nodes)
    with graph.as_default():
        seeds = [argument(spec_of(body.outputs[y]), f"cotangent_{y}") for y in ys]
        found = sweep.inside([body.outputs[y] for y in ys], [body.inputs[x] for x in xs], seeds, *hidden)
    seed_nodes = {seed.node for seed in seeds}
    backward = [node for node in graph.nodes[start:] if node not in seed_nodes]
    read = [tensor for node in backward for tensor in node.inputs]
    read += [part for dx in found if dx is not None for part in parts(dx)]
    outside = dict.fromkeys(t for t in read if t.node.id < start)
    constants = dict.fromkeys(t.node for t in outside if t.node.type == "Const")
    captures = tuple(t for t in outside if t.node not in constants)
    return Reverse(body, tuple(seeds), tuple(found), captures, (*constants, *backward))


def parts(dx: Tensor | IndexedSlices) -> list[Tensor]:
    """A gradient as tensors: one, or the three of a sparse one."""
    return [dx.values, dx.indices, dx.dense_shape] if isinstance(dx, IndexedSlices) else [dx]


def _mapped(dx: Tensor | IndexedSlices | None, mapping: Mapping[Tensor, Tensor]) -> Tensor | IndexedSlices | None:
    if isinstance(dx, IndexedSlices):
        return IndexedSlices(*(mapping[part] for part in parts(dx)))
    return None if dx is None else mapping[dx]


def unread(functions: Sequence[Function], sweep: Any, dys: Sequence[Tensor | None], xs: Sequence[int]) -> set[int]:
    """Which of the inputs number `xs` only outputs depend on that nobody reads: as in TensorFlow, they have gradient 0.

    What has no gradient on the way there concerns nobody.
    """
    found: set[int] = set()
    ys = [k for k, dy in enumerate(dys) if is_unused(dy)]
    for function in functions:
        trainable = [y for y in ys if function.outputs[y].dtype.is_trainable]
        open_ones = [x for x in xs if x not in found]
        if trainable and open_ones:
            with contextlib.suppress(NoGradient):
                back = reverse(function, sweep, trainable, open_ones)
                found.update(x for x, dx in zip(open_ones, back.found, strict=True) if dx is not None)
    return found


def zeros_for(x: Tensor) -> Tensor:
    """The zero gradient of an input; for a resource that of the variable behind it."""
    if x.dtype.kind != "r":
        return raw.ZerosLike(x)
    dtype, shape = held_by(x)
    if dtype is not None and is_static(shape):
        return raw.Fill(np.array(shape, np.int32), x.graph.constant(np.zeros((), dtype.numpy), dtype))
    return raw.ZerosLike(raw.ReadVariableOp(x, dtype=dtype))


def shape_vector(shape: Shape) -> Any:
    """A shape as the ops of lists take it: -1 for what is unknown."""
    if shape is None:
        return np.int32(-1)
    return np.array([-1 if size is None else size for size in shape], np.int32)
