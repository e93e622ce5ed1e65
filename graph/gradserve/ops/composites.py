"""Ops that are several others in one: a formula over those says what they compute, and how they differentiate.

A formula takes what holds the ops as its first argument: `raw`, which adds nodes, or `Kernels`, which runs kernels.
The shape rule follows what the formula adds to a graph beside the node's own; the gradient differentiates that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from gradserve.graph import dtypes, static
from gradserve.graph.graph import Graph, Node, Tensor, group
from gradserve.graph.op import NOT_DIFFERENTIABLE, Example, Op, define, lookup, raw
from gradserve.graph.shapes import Shape
from gradserve.ops.recurrence import through

Formula = Callable[..., Any]
"""(ops, *inputs, node=node) -> the output, or a list of the outputs."""


class _Attrs(NamedTuple):
    """What a kernel asks of the node that it runs for."""

    name: str
    type: str
    attrs: dict[str, Any]


class _Run:
    """What runs the kernel of an op, as `raw` adds a node of it: called for one output, or by `outputs` for all."""

    def __init__(self, xp: Any, definition: Op, name: str) -> None:
        self._xp = xp
        self._op = definition
        self._name = name

    def __call__(self, *inputs: Any, **given: Any) -> Any:
        specs, kernel = self._op.signature.attrs, self._op.kernel
        assert kernel is not None
        attrs = {key: spec.default for key, spec in specs.items()}
        for argument, value in zip(self._op.signature.inputs, inputs, strict=True):
            if argument.type_attr and not argument.is_list:
                attrs[argument.type_attr] = dtypes.as_dtype(value.dtype)
        for key, value in given.items():
            attrs[key] = dtypes.as_dtype(value) if specs[key].kind == "type" else value
        xp, together = self._together(inputs)
        return kernel.bind(_Attrs(self._name, self._op.name, attrs), attrs)(xp, *together)

    def _together(self, inputs: Sequence[Any]) -> tuple[Any, Sequence[Any]]:
        """The namespace to compute in, NumPy's where it holds all inputs, and the inputs as that takes them."""

        def is_there(value: Any) -> bool:
            return any(map(is_there, value)) if isinstance(value, list) else isinstance(value, self._xp.ndarray)

        def there(value: Any) -> Any:
            return [there(entry) for entry in value] if isinstance(value, list) else self._xp.asarray(value)

        if not any(map(is_there, inputs)):
            return np, inputs
        arguments = zip(self._op.signature.inputs, inputs, strict=True)
        return self._xp, [value if argument.name in self._op.host else there(value) for argument, value in arguments]

    def outputs(self, *inputs: Any, **given: Any) -> list[Any]:
        return _listed(self(*inputs, **given))


class Kernels:
    """`Kernels(xp, node).Relu(x)` is what the kernel of Relu gives for an array x of the namespace xp."""

    def __init__(self, xp: Any, node: Node) -> None:
        self._xp = xp
        self._name = node.name

    def __getattr__(self, name: str) -> _Run:
        return _Run(self._xp, lookup(name), self._name)


def composite(
    text: str,
    formula: Formula,
    *,
    host: Sequence[str] = (),
    is_differentiable: bool = True,
    examples: Callable[[Any], Sequence[Example]] | None = None,
) -> Op:
    """Enters an op of this signature in the catalogue, whose outputs are what the formula gives."""

    def shapes(*inputs: Any, node: Node) -> list[Shape]:
        with Graph().as_default() as graph:
            copies = [
                [_copy(graph, x) for x in entry] if isinstance(entry, list) else _copy(graph, entry) for entry in inputs
            ]
            return [tensor.shape for tensor in _listed(formula(raw, *copies, node=node))]

    def kernel(xp: Any, *inputs: Any, node: Node) -> Any:
        return formula(Kernels(xp, node), *inputs, node=node)

    def gradient(*values: Any, node: Node, sweep: Any) -> list[Any]:
        arguments, count = node.op.signature.inputs if node.op else (), len(node.outputs)
        found = through(
            lambda *flat: _listed(formula(raw, *group(arguments, node.attrs, flat), node=node)),
            values[:count],
            node.inputs,
            sweep,
        )
        return group(arguments, node.attrs, found)

    rule = gradient if is_differentiable else NOT_DIFFERENTIABLE
    return define(text, shape=shapes, gradient=rule, kernel=kernel, host=host, examples=examples)


def _copy(graph: Graph, x: Tensor) -> Tensor:
    """What is known of x, in another graph."""
    value = static.value(x)
    return raw.Placeholder(dtype=x.dtype.base, shape=x.shape) if value is None else graph.constant(value, x.dtype.base)


def _listed(outputs: Any) -> list[Any]:
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
