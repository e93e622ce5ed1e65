"""Formulas of recurrent networks written once, for kernels and for derivatives.

A formula takes a `Mathematics`: `Arrays` computes with it, `Nodes` builds it from differentiable ops, whatever of the
sizes is known. The gradient rule of an op without a gradient op of its own builds the formula beside the node and
differentiates that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from gradserve.graph import shapes
from gradserve.graph.graph import Tensor
from gradserve.graph.op import raw
from gradserve.graph.symbolic import Size, concat, is_zero, part, shape_of, size_of, vector
from gradserve.ops.precision import widen
from gradserve.ops.scan import Step, scan


class Mathematics(Protocol):
    """What the formulas need besides operators. Matrices are `[rows, columns]`."""

    def sigmoid(self, x: Any) -> Any: ...
    def tanh(self, x: Any) -> Any: ...
    def relu(self, x: Any) -> Any: ...

    def dot(self, a: Any, b: Any, *, transpose_a: bool = False, transpose_b: bool = False) -> Any:
        """The matrix product."""
        ...

    def projected(self, x: Any, w: Any) -> Any:
        """x wᵀ for all steps at once: `[steps, rows, outputs]` of `[steps, rows, inputs]` and `[outputs, inputs]`."""
        ...

    def correlated(self, a: Any, b: Any) -> Any:
        """Σ aᵀ b over all steps, `[m, n]` of `[steps, rows, m]` and `[steps, rows, n]`."""
        ...

    def columns(self, x: Any, count: int) -> Sequence[Any]:
        """Blocks of equal width along the last axis, `count` of them."""
        ...

    def join(self, parts: Sequence[Any], axis: int) -> Any:
        """Blocks one after another."""
        ...

    def stack(self, parts: Sequence[Any]) -> Any:
        """Arrays of one shape along a new first axis."""
        ...

    def halves(self, x: Any, left: Any, right: Any) -> Sequence[Any]:
        """The columns that came from `left`, and those that came from `right`."""
        ...

    def split(self, x: Any, sizes: Sequence[Size]) -> Sequence[Any]:
        """Blocks of these sizes along the first axis."""
        ...

    def scan(
        self,
        step: Step,
        state: Sequence[Any],
        rows: Sequence[Any],
        fixed: Sequence[Any],
        made: Sequence[Any],
        *,
        backwards: bool = False,
    ) -> tuple[Sequence[Any], Sequence[Any]]:
        """See gradserve.ops.scan."""
        ...

    def first(self, x: Any, count: Size) -> Any:
        """So many rows."""
        ...

    def filled_up(self, x: Any, count: Size) -> Any:
        """The rows of x, then zeros: so many rows in all."""
        ...

    def size(self, x: Any, axis: int) -> Size: ...

    def shape(self, x: Any) -> Any:
        """All sizes."""
        ...

    def vector(self, *sizes: Size) -> Any:
        """Sizes as `shape` gives them."""
        ...

    def reshape(self, x: Any, *sizes: Size) -> Any: ...

    def swapped(self, x: Any) -> Any:
        """An array of rank 3 with its first two axes swapped."""
        ...

    def alive(self, lengths: Any, like: Any) -> Any:
        """1 for the steps of a sequence before its length and 0 after, `[steps, batch, 1]`, for x of like's shape."""
        ...

    def total(self, x: Any, axes: Sequence[int] = (0,)) -> Any:
        """The sum over these axes."""
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

    def projected(self, x: Any, w: Any) -> Any:
        return self.dot(x, w, transpose_b=True)

    def correlated(self, a: Any, b: Any) -> Any:
        return self.xp.tensordot(widen(self.xp, a), widen(self.xp, b), ((0, 1), (0, 1))).astype(a.dtype)

    def columns(self, x: Any, count: int) -> Sequence[Any]:
        return self.xp.split(x, count, axis=-1)

    def join(self, parts: Sequence[Any], axis: int) -> Any:
        return self.xp.concatenate(parts, axis=axis)

    def stack(self, parts: Sequence[Any]) -> Any:
        return self.xp.stack(parts)

    def halves(self, x: Any, left: Any, right: Any) -> Sequence[Any]:
        width = left.shape[-1]
        return x[..., :width], x[..., width:]

    def split(self, x: Any, sizes: Sequence[int]) -> Sequence[Any]:
        return self.xp.split(x, [int(end) for end in np.cumsum(sizes)[:-1]])

    def scan(
        self, step: Step, state: Sequence[Any], rows: Sequence[Any], fixed: Sequence[Any], made: Sequence[Any],
        *, backwards: bool = False,
    ) -> tuple[Sequence[Any], Sequence[Any]]:  # fmt: skip
        items: list[Sequence[Any]] = []
        for place in range(rows[0].shape[0])[:: -1 if backwards else 1]:
            state, item = step(state, [x[place] for x in rows], fixed)
            items.append(item)
        if not items:
            return state, [self.xp.zeros((0, *shape), rows[0].dtype) for shape in made]
        return state, [self.xp.stack(each) for each in zip(*items[:: -1 if backwards else 1], strict=True)]

    def first(self, x: Any, count: int) -> Any:
        return x[:count]

    def filled_up(self, x: Any, count: int) -> Any:
        return self.xp.concatenate([x, self.xp.zeros((count - x.shape[0], *x.shape[1:]), x.dtype)])

    def size(self, x: Any, axis: int) -> int:
        return x.shape[axis]

    def shape(self, x: Any) -> Any:
        return x.shape

    def vector(self, *sizes: int) -> Any:
        return sizes

    def reshape(self, x: Any, *sizes: int) -> Any:
        return x.reshape(sizes)

    def swapped(self, x: Any) -> Any:
        return self.xp.swapaxes(x, 0, 1)

    def alive(self, lengths: Any, like: Any) -> Any:
        return (self.xp.arange(like.shape[0])[:, None] < lengths)[..., None].astype(like.dtype)

    def total(self, x: Any, axes: Sequence[int] = (0,)) -> Any:
        return self.xp.sum(x, axis=tuple(axes))

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

    def projected(self, x: Tensor, w: Tensor) -> Tensor:
        return raw.Einsum([x, w], equation="sbi,oi->sbo")

    def correlated(self, a: Tensor, b: Tensor) -> Tensor:
        return raw.Einsum([a, b], equation="sbi,sbj->ij")

    def columns(self, x: Tensor, count: int) -> Sequence[Tensor]:
        return raw.Split.outputs(np.int32(-1), x, num_split=count)

    def join(self, parts: Sequence[Tensor], axis: int) -> Tensor:
        return raw.ConcatV2(list(parts), np.int32(axis))

    def stack(self, parts: Sequence[Tensor]) -> Tensor:
        return raw.Pack(list(parts))

    def halves(self, x: Tensor, left: Tensor, right: Tensor) -> Sequence[Tensor]:
        sizes = concat(part(shape_of(left), -1), part(shape_of(right), -1))
        return raw.SplitV.outputs(x, sizes, np.int32(-1), num_split=2)

    def split(self, x: Tensor, sizes: Sequence[Size]) -> Sequence[Tensor]:
        return raw.SplitV.outputs(x, vector(*sizes), np.int32(0), num_split=len(sizes))

    def scan(
        self, step: Step, state: Sequence[Tensor], rows: Sequence[Tensor], fixed: Sequence[Tensor], made: Sequence[Any],
        *, backwards: bool = False,
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:  # fmt: skip
        return scan(step, state, rows, fixed, made, backwards=backwards)

    def first(self, x: Tensor, count: Size) -> Tensor:
        return x if isinstance(count, int) and count == size_of(x, 0) else x[:count]

    def filled_up(self, x: Tensor, count: Size) -> Tensor:
        missing = count - size_of(x, 0)
        if isinstance(missing, int) and not missing:
            return x
        none = np.zeros(2, np.int32)
        return raw.Pad(x, raw.Pack([vector(0, missing), none, none]))

    def size(self, x: Tensor, axis: int) -> Size:
        return size_of(x, axis)

    def shape(self, x: Tensor) -> Any:
        return shape_of(x)

    def vector(self, *sizes: Size) -> Any:
        return vector(*sizes)

    def reshape(self, x: Tensor, *sizes: Size) -> Tensor:
        return raw.Reshape(x, vector(*sizes))

    def swapped(self, x: Tensor) -> Tensor:
        return raw.Transpose(x, np.array([1, 0, 2], np.int32))

    def alive(self, lengths: Tensor, like: Tensor) -> Tensor:
        before = raw.Less(raw.Range(0, size_of(like, 0), 1)[:, None], lengths)
        return raw.Cast(raw.ExpandDims(before, np.int32(-1)), DstT=like.dtype)

    def total(self, x: Tensor, axes: Sequence[int] = (0,)) -> Tensor:
        return raw.Sum(x, np.array(axes, np.int32))

    def clip(self, x: Tensor, bound: float) -> Tensor:
        return raw.ClipByValue(x, -bound, bound)

    def zeros_like(self, x: Tensor) -> Tensor:
        return raw.ZerosLike(x)


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
