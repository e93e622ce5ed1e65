"""Formulas of recurrent cells written once, for kernels and for derivatives.

A formula takes a `Mathematics`: `Arrays` computes with it, `Nodes` builds it from differentiable ops. The gradient
rule of an op without a gradient op of its own builds the formula beside the node and differentiates that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from gradserve.errors import UndefinedGradient
from gradserve.graph import shapes
from gradserve.graph.graph import Tensor
from gradserve.graph.op import raw
from gradserve.graph.symbolic import concat, is_zero, part, shape_of
from gradserve.ops.precision import widen


class Mathematics(Protocol):
    """What the formulas need besides operators. Matrices are `[rows, columns]`."""

    def sigmoid(self, x: Any) -> Any: ...
    def tanh(self, x: Any) -> Any: ...
    def relu(self, x: Any) -> Any: ...

    def dot(self, a: Any, b: Any, *, transpose_a: bool = False, transpose_b: bool = False) -> Any:
        """The matrix product."""
        ...

    def columns(self, x: Any, count: int) -> Sequence[Any]:
        """Blocks of equal width, `count` of them."""
        ...

    def join(self, parts: Sequence[Any], axis: int) -> Any:
        """Blocks one after another."""
        ...

    def halves(self, x: Any, left: Any, right: Any) -> Sequence[Any]:
        """The columns that came from `left`, and those that came from `right`."""
        ...

    def rows(self, x: Any) -> Sequence[Any]:
        """The slices along the first axis."""
        ...

    def stack(self, parts: Sequence[Any]) -> Any:
        """At least one array of one shape, along a new first axis."""
        ...

    def swapped(self, x: Any) -> Any:
        """An array of rank 3 with its first two axes swapped."""
        ...

    def reshape(self, x: Any, shape: Sequence[int]) -> Any: ...

    def alive(self, lengths: Any, steps: int, like: Any) -> Any:
        """1 for the steps of a sequence before its length and 0 after, `[steps, batch, 1]`; the dtype is like's."""
        ...

    def total(self, x: Any) -> Any:
        """The sum over the rows."""
        ...

    def clip(self, x: Any, bound: float) -> Any:
        """x within -bound and bound."""
        ...

    def zeros_like(self, x: Any) -> Any: ...


class Arrays:
    """Computes, with arrays of the namespace xp."""

    def __init__(self, xp: Any) -> None:
        self.xp = xp

    def sigmoid(self, x: Any) -> Any:
        return 1 / (1 + self.xp.exp(-x))

    def tanh(self, x: Any) -> Any:
        return self.xp.tanh(x)

    def relu(self, x: Any) -> Any:
        return self.xp.maximum(x, self.xp.zeros_like(x))

    def dot(self, a: Any, b: Any, *, transpose_a: bool = False, transpose_b: bool = False) -> Any:
        left, right = widen(self.xp, a), widen(self.xp, b)
        return ((left.T if transpose_a else left) @ (right.T if transpose_b else right)).astype(a.dtype)

    def columns(self, x: Any, count: int) -> Sequence[Any]:
        return self.xp.split(x, count, axis=-1)

    def join(self, parts: Sequence[Any], axis: int) -> Any:
        return self.xp.concatenate(parts, axis=axis)

    def halves(self, x: Any, left: Any, right: Any) -> Sequence[Any]:
        width = left.shape[1]
        return x[:, :width], x[:, width:]

    def rows(self, x: Any) -> Sequence[Any]:
        return [x[place] for place in range(x.shape[0])]

    def stack(self, parts: Sequence[Any]) -> Any:
        return self.xp.stack(parts)

    def swapped(self, x: Any) -> Any:
        return self.xp.swapaxes(x, 0, 1)

    def reshape(self, x: Any, shape: Sequence[int]) -> Any:
        return x.reshape(shape)

    def alive(self, lengths: Any, steps: int, like: Any) -> Any:
        return (self.xp.arange(steps)[:, None] < lengths)[..., None].astype(like.dtype)

    def total(self, x: Any) -> Any:
        return self.xp.sum(x, axis=0)

    def clip(self, x: Any, bound: float) -> Any:
        return self.xp.clip(x, -bound, bound)

    def zeros_like(self, x: Any) -> Any:
        return self.xp.zeros_like(x)


class Nodes:
    """Builds, with nodes of the graph that the tensors belong to."""

    def sigmoid(self, x: Tensor) -> Tensor:
        return raw.Sigmoid(x)

    def tanh(self, x: Tensor) -> Tensor:
        return raw.Tanh(x)

    def relu(self, x: Tensor) -> Tensor:
        return raw.Relu(x)

    def dot(self, a: Tensor, b: Tensor, *, transpose_a: bool = False, transpose_b: bool = False) -> Tensor:
        return raw.MatMul(a, b, transpose_a=transpose_a, transpose_b=transpose_b)

    def columns(self, x: Tensor, count: int) -> Sequence[Tensor]:
        return raw.Split.outputs(np.int32(-1), x, num_split=count)

    def join(self, parts: Sequence[Tensor], axis: int) -> Tensor:
        return raw.ConcatV2(list(parts), np.int32(axis))

    def halves(self, x: Tensor, left: Tensor, right: Tensor) -> Sequence[Tensor]:
        sizes = concat(part(shape_of(left), 1), part(shape_of(right), 1))
        return raw.SplitV.outputs(x, sizes, np.int32(1), num_split=2)

    def rows(self, x: Tensor) -> Sequence[Tensor]:
        return raw.Unpack.outputs(x, num=steps_of(x))

    def stack(self, parts: Sequence[Tensor]) -> Tensor:
        return raw.Pack(list(parts))

    def swapped(self, x: Tensor) -> Tensor:
        return raw.Transpose(x, np.array([1, 0, 2], np.int32))

    def reshape(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        return raw.Reshape(x, np.array(shape, np.int32))

    def alive(self, lengths: Tensor, steps: int, like: Tensor) -> Tensor:
        before = raw.Less(np.arange(steps, dtype=np.int32)[:, None], lengths)
        return raw.Cast(raw.ExpandDims(before, np.int32(-1)), DstT=like.dtype)

    def total(self, x: Tensor) -> Tensor:
        return raw.Sum(x, np.array([0], np.int32))

    def clip(self, x: Tensor, bound: float) -> Tensor:
        return raw.ClipByValue(x, -bound, bound)

    def zeros_like(self, x: Tensor) -> Tensor:
        return raw.ZerosLike(x)


def steps_of(x: Tensor) -> int:
    """The number of steps along the first axis. Raises UndefinedGradient where it is not static."""
    steps = None if x.shape is None else x.shape[0]
    if steps is None:
        raise UndefinedGradient(
            f"A derivative of the fused recurrent ops unrolls time: give {x.name} a static number of steps.",
            tensor=x.name,
        )
    return steps


def through(
    formula: Callable[..., Sequence[Tensor | None]],
    cotangents: Sequence[Tensor | None],
    inputs: Sequence[Tensor],
    sweep: Any,
) -> list[Any]:
    """Cotangents of the inputs of a node, by differentiating a formula for its outputs.

    Args:
        formula: takes the inputs and gives the outputs; None for one that carries no gradient.
        cotangents: of the outputs.
        sweep: the walk that asks.
    """
    # Some inputs may follow from others outside of the node: that is not this rule's business.
    leaves = [raw.Identity(x) for x in inputs]
    outputs = formula(*leaves)
    pairs = [
        (y, dy)
        for y, dy in zip(outputs, cotangents, strict=True)
        if y is not None and dy is not None and not is_zero(dy)
    ]
    wanted = [leaf for leaf in leaves if leaf.dtype.is_trainable]
    if not pairs:
        return [None] * len(leaves)
    found = dict(zip(wanted, sweep.inside([y for y, _ in pairs], wanted, [dy for _, dy in pairs]), strict=True))
    return [found.get(leaf) for leaf in leaves]


def recurrent_shape(x: Tensor, state: Tensor) -> shapes.Shape:
    """`[steps, batch, units]` from x `[steps, batch, inputs]` and a state `[batch, units]`."""
    if x.shape is None or state.shape is None:
        return None if x.shape is None else (*x.shape[:2], None)
    return (x.shape[0], shapes.merge_dimension(x.shape[1], state.shape[0]), state.shape[1])
