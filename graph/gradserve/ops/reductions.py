"""Reductions, scans, sums of many, and the positions of extremes.

x is the input, axes its reduction indices, y the result, dy its cotangent.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from gradserve.errors import InvalidArgument, InvalidShape
from gradserve.graph import shapes, static
from gradserve.graph.graph import Tensor
from gradserve.graph.op import NOT_DIFFERENTIABLE, Example, NoRule, Op, Rule, call, define, raw, within
from gradserve.graph.shapes import Shape
from gradserve.graph.symbolic import Size, product, shape_of, size_of, spread, vector, with_kept
from gradserve.graph.variants import Variant
from gradserve.ops.elementwise import real_part
from gradserve.ops.precision import widen
from gradserve.ops.scan import scan

# Reductions over axes

_MOST_AXES = 4096


def _axes(x: Any, axes: Any) -> tuple[int, ...]:
    if np.size(axes) > _MOST_AXES:
        raise InvalidArgument(f"{np.size(axes)} axes are named, of an input that has {x.ndim}.", axes=np.size(axes))
    return tuple(sorted({shapes.normalise_axis(int(axis), x.ndim) for axis in np.ravel(axes)}))


def _reduced(x: Tensor, axes: Tensor, *, keep_dims: bool) -> Shape:
    if x.shape is None:
        return None
    known = static.axes(axes, len(x.shape))
    if known is None:
        return (None,) * len(x.shape) if keep_dims else None
    if keep_dims:
        return tuple(1 if k in known else size for k, size in enumerate(x.shape))
    return tuple(size for k, size in enumerate(x.shape) if k not in known)


def _reduce(function: Callable[..., Any]) -> Rule:
    """A kernel from a function of (xp, x, axis, keepdims); 16-bit floats are summed in float32."""

    def kernel(xp: Any, x: Any, axes: Any, *, keep_dims: bool) -> Any:
        wide = widen(xp, x)
        return xp.asarray(function(xp, wide, _axes(x, axes), keep_dims)).astype(x.dtype)

    return kernel


def _examples(domain: str, smallest: int = 0) -> Callable[[Any], list[Example]]:
    def examples(draw: Any) -> list[Example]:
        rank = draw.size(0, 3)
        axes = [axis for axis in range(rank) if draw.size(0, 1)]
        shape = [draw.size(smallest if axis in axes else 0, 3) for axis in range(rank)]
        axes = [axis - rank if draw.size(0, 1) else axis for axis in axes]
        keep_dims = bool(draw.size(0, 1))
        return [call(getattr(draw, domain)(*shape), np.array(axes, np.int32), keep_dims=keep_dims)]

    return examples


def reduction(
    name: str,
    y: Callable[..., Any],
    gradient: Rule | NoRule,
    *,
    types: str = "number",
    domain: str = "normal",
    smallest: int = 0,
    holomorphic: bool = False,
) -> Op:
    """A row: a reduction of x over axes. `y` is a function of (xp, x, axis, keepdims)."""
    return define(
        f"{name}(input: T, reduction_indices: Tidx; keep_dims: bool = false, T: {types}, Tidx: index = int32)"
        " -> (output: T)",
        shape=_reduced,
        gradient=gradient,
        kernel=_reduce(y),
        host=("reduction_indices",),
        holomorphic=holomorphic,
        examples=_examples(domain, smallest),
    )


def _sum_gradient(dy: Tensor, y: Tensor, x: Tensor, axes: Tensor, *, keep_dims: bool) -> tuple[Tensor, None]:
    """Every term gets dy."""
    return spread(dy, x, axes, keep_dims=keep_dims), None


def _mean_gradient(dy: Tensor, y: Tensor, x: Tensor, axes: Tensor, *, keep_dims: bool) -> tuple[Tensor, None]:
    """Every one of the n terms gets dy / n."""
    total, left = shapes.num_elements(x.shape), shapes.num_elements(y.shape)
    if total is not None and left is not None:
        count: Any = max(total, 1) // max(left, 1)
    else:
        parts = raw.FloorDiv(raw.Size(x), raw.Maximum(raw.Size(y), 1))
        count = raw.Cast(raw.Maximum(parts, 1), DstT=x.dtype)
    return spread(dy, x, axes, keep_dims=keep_dims) / count, None


def _extreme_gradient(dy: Tensor, y: Tensor, x: Tensor, axes: Tensor, *, keep_dims: bool) -> tuple[Tensor, None]:
    """dy is shared equally among the terms that attain the extreme."""
    hit = raw.Cast(raw.Equal(x, with_kept(y, x, axes, keep_dims=keep_dims)), DstT=x.dtype)
    share = with_kept(dy, x, axes, keep_dims=keep_dims) / raw.Sum(hit, axes, keep_dims=True)
    return hit * share, None


def _prod_gradient(dy: Tensor, y: Tensor, x: Tensor, axes: Tensor, *, keep_dims: bool) -> tuple[Tensor, None]:
    """dx_i = dy Π_{j≠i} x_j, as the product of those before i and of those after: exact where a factor is 0."""
    known = None if x.shape is None else static.axes(axes, len(x.shape))
    if known is not None and x.shape is not None and shapes.is_static(x.shape):
        order = known + [k for k in range(len(x.shape)) if k not in known]
        count = shapes.num_elements(tuple(x.shape[k] for k in known)) or 0
        rest = shapes.num_elements(tuple(size for k, size in enumerate(x.shape) if k not in known)) or 0
        flat_shape: Any = np.array([count, rest], np.int32)
        permutation: Any = np.array(order, np.int32)
        inverse: Any = np.argsort(order).astype(np.int32)
    else:
        rank = raw.Rank(x)
        reduced = raw.FloorMod(raw.Cast(raw.Reshape(axes, [-1]), DstT="int32") + rank, rank)
        others, _ = raw.ListDiff.outputs(raw.Range(0, rank, 1), reduced)
        permutation = raw.ConcatV2([reduced, others], 0)
        inverse = raw.InvertPermutation(permutation)
        count = raw.Prod(raw.GatherV2(raw.Shape(x), reduced, 0), [0])
        rest = raw.Prod(raw.GatherV2(raw.Shape(x), others, 0), [0])
        flat_shape = raw.Pack([count, rest])
    permuted = raw.Transpose(x, permutation)
    flat = raw.Reshape(permuted, flat_shape)
    before = raw.Cumprod(flat, 0, exclusive=True)
    after = raw.Cumprod(flat, 0, exclusive=True, reverse=True)
    others_product = raw.Transpose(raw.Reshape(before * after, shape_of(permuted)), inverse)
    return spread(dy, x, axes, keep_dims=keep_dims) * others_product, None


def _norm_gradient(dy: Tensor, y: Tensor, x: Tensor, axes: Tensor, *, keep_dims: bool) -> tuple[Tensor, None]:
    """dx = dy x / |x|; of complex numbers the norm is real, and so is what counts of dy."""
    dy, y = (with_kept(value, x, axes, keep_dims=keep_dims) for value in (dy, y))
    return x * (real_part(dy) / y), None


def _mean(xp: Any, x: Any, axis: tuple[int, ...], keepdims: bool) -> Any:
    total = xp.sum(x, axis=axis, keepdims=keepdims)
    count = int(np.prod([x.shape[k] for k in axis], dtype=np.int64))
    if x.dtype.kind in "iu":
        return total // max(count, 1)
    return total / count if count else total * float("nan")


def _norm(xp: Any, x: Any, axis: tuple[int, ...], keepdims: bool) -> Any:
    return xp.sqrt(xp.sum(xp.real(x * xp.conj(x)), axis=axis, keepdims=keepdims))


def _largest(xp: Any, x: Any, axis: tuple[int, ...], keepdims: bool) -> Any:
    lowest: Any = -float("inf") if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    return _extreme(xp, xp.max, lowest, x, axis, keepdims)


def _smallest(xp: Any, x: Any, axis: tuple[int, ...], keepdims: bool) -> Any:
    highest: Any = float("inf") if x.dtype.kind == "f" else np.iinfo(x.dtype).max
    return _extreme(xp, xp.min, highest, x, axis, keepdims)


def _extreme(
    xp: Any, extreme: Callable[..., Any], of_none: Any, x: Any, axis: tuple[int, ...], keepdims: bool
) -> Any:  # fmt: skip
    if x.size:
        return extreme(x, axis=axis, keepdims=keepdims)
    return xp.full_like(xp.sum(x, axis=axis, keepdims=keepdims), of_none, dtype=x.dtype)


# fmt: off
#          name            y                                                                        gradient
reduction("Sum",           lambda xp, x, axis, keepdims: xp.sum(x, axis=axis, keepdims=keepdims),   _sum_gradient)
reduction("Mean",          _mean,                                                                   _mean_gradient, smallest=1)
reduction("Prod",          lambda xp, x, axis, keepdims: xp.prod(x, axis=axis, keepdims=keepdims),  _prod_gradient, holomorphic=True, domain="sparse")
reduction("Max",           _largest,                                                                _extreme_gradient, types="ordered", domain="distinct", smallest=1)
reduction("Min",           _smallest,                                                               _extreme_gradient, types="ordered", domain="distinct", smallest=1)
reduction("EuclideanNorm", _norm,                                                                   _norm_gradient, smallest=1)
# fmt: on


def _logic(name: str) -> Op:
    return define(
        f"{name}(input: bool, reduction_indices: Tidx; keep_dims: bool = false, Tidx: index = int32) -> (output: bool)",
        shape=_reduced,
        gradient=NOT_DIFFERENTIABLE,
        kernel=lambda xp, x, axes, *, keep_dims: getattr(xp, name.lower())(x, axis=_axes(x, axes), keepdims=keep_dims),
        host=("reduction_indices",),
        examples=_examples("boolean"),
    )


_logic("All")
_logic("Any")


# Sums of many terms


def _common_shape(terms: Sequence[Tensor], **_: Any) -> Shape:
    result: Shape = None
    for term in terms:
        result = shapes.merge(result, term.shape)
    return result


def _terms(draw: Any) -> list[Example]:
    shape = draw.shape()
    return [call([draw.normal(*shape) for _ in range(draw.size(1, 4))])]


define(
    "AddN(inputs: N * T; N: int, T: summable) -> (sum: T)",
    shape=_common_shape,
    gradient=lambda dy, y, terms: [[dy] * len(terms)],
    kernel=lambda xp, terms: functools.reduce(operator.add if isinstance(terms[0], Variant) else xp.add, terms),
    takes_slices=True,
    examples=_terms,
)
define(
    "AccumulateNV2(inputs: N * T; N: int, T: number, shape: shape) -> (sum: T)",
    shape=lambda terms, *, shape: shape,
    gradient=lambda dy, y, terms: [[dy] * len(terms)],
    kernel=lambda xp, terms: functools.reduce(xp.add, terms),
    takes_slices=True,
    examples=lambda draw: [call([draw.normal(*(s := draw.shape())) for _ in range(1)] + [draw.normal(*s)], shape=s)],
)


# Positions of extremes


def _without_axis(x: Tensor, axis: Tensor, **_: Any) -> Shape:
    known = static.scalar(axis)
    if x.shape is None or known is None:
        return None if x.shape is None else (None,) * (len(x.shape) - 1)
    dropped = shapes.normalise_axis(known, len(x.shape))
    return tuple(size for k, size in enumerate(x.shape) if k != dropped)


def _position(name: str, places: str, results: str) -> Op:
    find, worst = name.lower(), -np.inf if name == "ArgMax" else np.inf

    def kernel(xp: Any, x: Any, axis: Any, *, output_type: Any) -> Any:
        """The first of the extremes; NaN is none."""
        numbers = xp.where(xp.isnan(x), xp.asarray(worst, dtype=x.dtype), x) if x.dtype.kind in "fV" else x
        return getattr(xp, find)(numbers, axis=int(axis)).astype(output_type.numpy)

    return define(
        f"{name}(input: T, dimension: Tidx; T: ordered|bool, Tidx: {places} = int32, output_type: {results} = int64)"
        " -> (output: output_type)",
        shape=_without_axis,
        gradient=NOT_DIFFERENTIABLE,
        kernel=kernel,
        host=("dimension",),
        examples=lambda draw: [call(draw.distinct(draw.size(1), draw.size(1)), np.int32(draw.pick([0, 1, -1])))],
    )


_position("ArgMax", "index|int16", "index|int16|uint16")
_position("ArgMin", "index", "index")


# Scans


def _scan(xp: Any, x: Any, axis: int, exclusive: bool, reverse: bool, neutral: Any, run: Callable[..., Any]) -> Any:
    """A scan along an axis, turned around for reverse, shifted by one for exclusive."""
    if reverse:
        x = xp.flip(x, axis)
    if exclusive and x.shape[axis]:
        first = xp.full((*x.shape[:axis], 1, *x.shape[axis + 1 :]), neutral, x.dtype)
        head = x[(slice(None),) * axis + (slice(0, x.shape[axis] - 1),)]
        x = xp.concatenate([first, head], axis=axis)
    y = run(x)
    return xp.flip(y, axis) if reverse else y


def _scan_kernel(neutral: float, run: Callable[..., Any]) -> Rule:
    def kernel(xp: Any, x: Any, axis: Any, *, exclusive: bool, reverse: bool) -> Any:
        place = shapes.normalise_axis(int(axis), x.ndim)
        wide = widen(xp, x)
        return _scan(xp, wide, place, exclusive, reverse, neutral, lambda v: run(xp, v, place)).astype(x.dtype)

    return kernel


def _scan_examples(draw: Any, domain: str = "normal") -> list[Example]:
    shape = draw.shape(1, 3)
    axis = np.int32(draw.size(0, len(shape) - 1) - draw.pick([0, len(shape)]))
    exclusive, reverse = bool(draw.size(0, 1)), bool(draw.size(0, 1))
    return [call(getattr(draw, domain)(*shape), axis, exclusive=exclusive, reverse=reverse)]


def _log_scan_examples(draw: Any) -> list[Example]:
    """The first of an exclusive scan is -∞: differences can't bear it."""
    (example,) = _scan_examples(draw)
    if not example.attrs["exclusive"]:
        return [example]
    x, axis = example.inputs
    bounded = within(lambda x: [raw.Maximum(raw.CumulativeLogsumexp(x, axis, **example.attrs), -10)], x)
    return [example._replace(differences=False), bounded]


def _scan_op(
    name: str,
    kernel: Rule,
    gradient: Rule,
    *,
    types: str = "number",
    holomorphic: bool = False,
    examples: Callable[[Any], list[Example]] = _scan_examples,
) -> Op:
    return define(
        f"{name}(x: T, axis: Tidx; exclusive: bool = false, reverse: bool = false, T: {types}, Tidx: index = int32)"
        " -> (out: T)",
        shape=lambda x, axis: x.shape,
        gradient=gradient,
        kernel=kernel,
        host=("axis",),
        holomorphic=holomorphic,
        examples=examples,
    )


def _cumsum_gradient(
    dy: Tensor, y: Tensor, x: Tensor, axis: Tensor, *, exclusive: bool, reverse: bool
) -> tuple[Tensor, None]:
    """The transposed scan runs the other way."""
    return raw.Cumsum(dy, axis, exclusive=exclusive, reverse=not reverse), None


def _cumprod_gradient(
    dy: Tensor, y: Tensor, x: Tensor, axis: Tensor, *, exclusive: bool, reverse: bool
) -> tuple[Tensor, None]:
    """dx_i = (Π of those before i) T_i, exact where x has zeros: T_i = dy_i + x_{i+1} T_{i+1}, or with dy_{i+1}."""
    shape = _around(x, axis)
    flat, cotangent = raw.Reshape(x, shape), raw.Reshape(dy, shape)
    before = raw.Cumprod(flat, np.int32(1), exclusive=True, reverse=reverse)
    own = _following(cotangent, 1, reverse) if exclusive else cotangent
    return raw.Reshape(before * _recurrence(_following(flat, 1, reverse), own, reverse), shape_of(x)), None


def _around(x: Tensor, axis: Tensor) -> Any:
    """The shape of x with what lies before and after an axis as one axis each."""
    known = static.scalar(axis)
    if shapes.is_static(x.shape) and x.shape is not None and known is not None:
        place = shapes.normalise_axis(known, len(x.shape))
        ends = (shapes.num_elements(side) for side in (x.shape[:place], x.shape[place + 1 :]))
        return np.array([next(ends), x.shape[place], next(ends)], np.int32)
    shape, place = raw.Shape(x), raw.FloorMod(raw.Cast(axis, DstT="int32"), raw.Rank(x))
    return raw.ConcatV2([product(shape[:place]), shape[place : place + 1], product(shape[place + 1 :])], np.int32(0))


def _following(x: Tensor, places: Size, reverse: bool) -> Tensor:
    """For each entry of x `[before, along, after]` the one so many places on along the middle axis, 0 past the end."""
    none = np.zeros(2, np.int32)
    wide = raw.Pad(x, raw.Pack([none, vector(places, 0) if reverse else vector(0, places), none]))
    return wide[:, : size_of(x, 1)] if reverse else wide[:, places:]


def _recurrence(factor: Tensor, term: Tensor, reverse: bool) -> Tensor:
    """T_i = b_i + a_i T_{i+1} along the middle axis: T 2d places long is b + a T, each of d places, d = 1, 2, 4, …"""

    def doubled(state: Sequence[Any], rows: Sequence[Any], fixed: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
        factor, term = state
        return [factor * _following(factor, rows[0], reverse), term + factor * _following(term, rows[0], reverse)], []

    lengths, length = factor.graph.constant(2 ** np.arange(31, dtype=np.int32)), size_of(factor, 1)
    count = raw.Sum(raw.Cast(raw.Less(lengths, length), DstT="int32"), np.array([0], np.int32))
    return scan(doubled, [factor, term], [lengths[:count]], [], [])[0][1]


def _cumulative_logsumexp_gradient(
    dy: Tensor, y: Tensor, x: Tensor, axis: Tensor, *, exclusive: bool, reverse: bool
) -> tuple[Tensor, None]:
    """dx_i = Σ_k dy_k exp(x_i - y_k), summed in the log domain for each sign of dy so that nothing overflows."""

    def part(weight: Tensor) -> Tensor:
        there = raw.Greater(weight, 0)
        log_weight = raw.Log(raw.SelectV2(there, weight, raw.OnesLike(weight)))
        lowest = np.array(ml_dtypes.finfo(x.dtype.numpy).min, x.dtype.numpy)
        term = raw.SelectV2(there, log_weight - y, raw.BroadcastTo(lowest, shape_of(y)))
        total = raw.CumulativeLogsumexp(term, axis, exclusive=exclusive, reverse=not reverse)
        return raw.Exp(total + x)

    return part(dy) - part(-dy), None


def _cumulative_logsumexp(xp: Any, x: Any, axis: Any, *, exclusive: bool, reverse: bool) -> Any:
    """log of the running sum of exp x; that of no terms is -∞."""
    wide = widen(xp, x)
    place = shapes.normalise_axis(int(axis), x.ndim)
    y = _scan(xp, wide, place, exclusive, reverse, -np.inf, lambda v: xp.logaddexp.accumulate(v, axis=place))
    return y.astype(x.dtype)


_scan_op("Cumsum", _scan_kernel(0.0, lambda xp, x, axis: xp.cumsum(x, axis=axis)), _cumsum_gradient)
_scan_op(
    "Cumprod",
    _scan_kernel(1.0, lambda xp, x, axis: xp.cumprod(x, axis=axis)),
    _cumprod_gradient,
    holomorphic=True,
    examples=lambda draw: _scan_examples(draw, "sparse"),
)
_scan_op(
    "CumulativeLogsumexp",
    _cumulative_logsumexp,
    _cumulative_logsumexp_gradient,
    types="floating",
    examples=_log_scan_examples,
)


# Broadcasting


def _broadcast_axes(xp: Any, a: Any, b: Any) -> tuple[Any, Any]:
    """For each of two shapes, the axes over which a cotangent of the broadcast shape is summed for it.

    As in TensorFlow these are all axes where the shape has a 1 or nothing, and none where the shapes are the same.
    """
    left, right = [int(size) for size in a], [int(size) for size in b]
    try:
        rank = len(np.broadcast_shapes(tuple(left), tuple(right)))
    except ValueError:
        raise InvalidShape(f"Shapes {left} and {right} can't be broadcast together.", a=left, b=right) from None

    def axes(shape: list[int]) -> Any:
        padded = [1] * (rank - len(shape)) + shape
        return np.array([] if left == right else [k for k in range(rank) if padded[k] == 1], a.dtype)

    return axes(left), axes(right)


def _broadcast_axes_shapes(a: Tensor, b: Tensor) -> Any:
    left, right = static.value(a), static.value(b)
    if left is None or right is None:
        return [(None,), (None,)]
    return [axes.shape for axes in _broadcast_axes(np, left, right)]


define(
    "BroadcastGradientArgs(s0: T, s1: T; T: index = int32) -> (r0: T, r1: T)",
    shape=_broadcast_axes_shapes,
    gradient=NOT_DIFFERENTIABLE,
    kernel=_broadcast_axes,
    host=("s0", "s1"),
    dynamic=True,
    examples=lambda draw: [call(np.array([2, 1, 3], np.int32), np.array([4, 1], np.int32))],
)
