"""Where values stand: bounds in sorted rows, buckets, histograms, distinct slices, and numbers of places in an array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph import shapes, static
from gradserve.graph.checks import refuse_if
from gradserve.graph.graph import Tensor
from gradserve.graph.op import NOT_DIFFERENTIABLE, Example, Rule, call, define, raw
from gradserve.graph.shapes import Shape

# Bounds


def _bound(side: Any) -> Rule:
    def kernel(xp: Any, rows: Any, values: Any, *, out_type: Any) -> Any:
        """For each value the first place in its sorted row at which it could be put in (left), or the last (right)."""
        if rows.ndim != 2 or values.ndim != 2 or len(rows) != len(values):
            raise InvalidArgument(
                f"Sorted inputs {rows.shape} and values {values.shape} must be [batch, n] and [batch, m]."
            )
        result = np.empty(values.shape, out_type.numpy)
        for k, (row, wanted) in enumerate(zip(rows, values, strict=True)):
            result[k] = np.searchsorted(row, wanted, side=side)
        return result

    return kernel


def _bound_examples(draw: Any) -> list[Example]:
    rows = np.sort(draw.integers(0, 9, n := draw.size(0, 2), draw.size(0, 5)), axis=1)
    return [call(rows, draw.integers(0, 9, n, draw.size(0, 4)), out_type=draw.pick(["int32", "int64"]))]


for _name, _side in (("LowerBound", "left"), ("UpperBound", "right")):
    define(
        f"{_name}(sorted_inputs: T, values: T; T: type, out_type: index = int32) -> (output: out_type)",
        shape=lambda rows, values: values.shape,
        gradient=NOT_DIFFERENTIABLE,
        kernel=_bound(_side),
        dynamic=True,
        examples=_bound_examples,
    )


def _bucketize(xp: Any, x: Any, *, boundaries: Sequence[float]) -> Any:
    """The number of boundaries at or below each x."""
    if list(boundaries) != sorted(boundaries):
        raise InvalidArgument(f"Boundaries must rise, and are {list(boundaries)}.")
    edges = xp.asarray(np.array(boundaries, np.float32))
    return xp.searchsorted(edges, x.astype(edges.dtype) if x.dtype.kind == "i" else x, side="right").astype(xp.int32)


define(
    "Bucketize(input: T; T: float32|float64|int32|int64, boundaries: list(float)) -> (output: int32)",
    shape=lambda x: x.shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=_bucketize,
    examples=lambda draw: [call(draw.normal(*draw.shape()), boundaries=[-0.5, 0.0, 0.75])],
)


def _histogram(xp: Any, values: Any, span: Any, bins: Any, *, dtype: Any) -> Any:
    """How many values lie in each of equally wide bins; the outermost ones also take what lies beyond them."""
    count, low, high = int(bins), float(span[0]), float(span[1])
    if count < 1 or not low < high:
        raise InvalidArgument(f"There must be bins ({count}) and the range must rise ({low} to {high}).")
    step = (high - low) / count
    place = np.clip(np.trunc((np.ravel(values) - low) / step), 0, count - 1).astype(np.int64)
    return np.bincount(place, minlength=count).astype(dtype.numpy)


define(
    "HistogramFixedWidth(values: T, value_range: T, nbins: int32; T: float32|float64|int32|int64, dtype: index = int32)"
    " -> (out: dtype)",
    shape=lambda values, span, bins: (static.scalar(bins),),
    gradient=NOT_DIFFERENTIABLE,
    kernel=_histogram,
    dynamic=True,
    examples=lambda draw: [call(draw.normal(*draw.shape()), np.array([-1.0, 1.5]), np.int32(draw.size(1, 4)))],
)


# Counting with weights


def _counts(xp: Any, values: Any, size: Any, weights: Any, *, binary_output: bool) -> Any:
    """Of each row of values: how often, with what weight together, or whether each number below `size` is in it."""
    refuse_if((values < 0).any(), "DenseBincount: there are negative values.")
    hot = values[..., None] == xp.arange(int(size))
    if binary_output:
        return hot.any(axis=-2).astype(weights.dtype)
    each = weights[..., None] if weights.size else xp.ones((), weights.dtype)
    return xp.sum(xp.where(hot, each, xp.zeros((), weights.dtype)), axis=-2, dtype=weights.dtype)


def _counts_shape(values: Tensor, size: Tensor, weights: Tensor) -> Shape:
    return None if values.shape is None else (*values.shape[:-1], static.scalar(size))


def _counts_gradient(
    dy: Tensor, y: Tensor, values: Tensor, size: Tensor, weights: Tensor, *, binary_output: bool
) -> tuple[None, None, Tensor | None]:
    """Each weight gets dy of its number; none if numbers are only said to be there, or have no weights."""
    if binary_output or shapes.num_elements(weights.shape) == 0:
        return None, None, None
    one, zero = np.ones((), dy.dtype.numpy), np.zeros((), dy.dtype.numpy)
    depth = raw.Cast(size, DstT="int32")
    hot = raw.OneHot(values, depth, one, zero)
    each = raw.Sum(hot * raw.ExpandDims(dy, np.int32(-2)), np.array([-1], np.int32))
    if not shapes.is_static(weights.shape):  # there may turn out to be none
        flat = raw.Reshape(each, np.array([-1], np.int32))
        count = raw.Reshape(raw.Size(weights), np.array([1], np.int32))
        each = raw.Reshape(raw.Slice(flat, np.array([0], np.int32), count), raw.Shape(weights))
    return None, None, each


def _counts_examples(draw: Any) -> list[Example]:
    lead = draw.shape(0, 1)
    values, size = draw.integers(0, 4, *lead, n := draw.size()), np.int32(draw.size(1, 5))
    return [
        call(values, size, draw.normal(*lead, n)),
        call(values, size, np.zeros(0)),
        call(values, size, np.zeros(0), binary_output=True),
    ]


define(
    "DenseBincount(input: Tidx, size: Tidx, weights: T; Tidx: index, T: float32|float64|int32|int64,"
    " binary_output: bool = false) -> (output: T)",
    shape=_counts_shape,
    gradient=_counts_gradient,
    kernel=_counts,
    host=("size",),
    examples=_counts_examples,
)


# Distinct slices along one axis (these run on the host: how many there are depends on the values)


def _distinct(x: Any, axis: Any, kind: Any) -> tuple[Any, Any, Any]:
    """The slices in the order in which they first occur, the number of each slice of x among them, and their counts."""
    given = np.ravel(axis)
    if given.size > 1 or (not given.size and x.ndim != 1):
        raise InvalidArgument(f"axis must name one axis, or none of a vector; it is {given.tolist()} for {x.shape}.")
    place = shapes.normalise_axis(int(given[0]), x.ndim) if given.size else 0
    rows = np.moveaxis(x, place, 0)
    numbers: dict[Any, int] = {}
    keys = [row.tobytes() for row in _keys(rows)]
    if rows.dtype.kind in "fVc":  # NaN equals nothing
        alone = np.isnan(rows).reshape(len(rows), -1).any(1)
        keys = [object() if nan else key for key, nan in zip(keys, alone, strict=True)]
    inverse = np.array([numbers.setdefault(key, len(numbers)) for key in keys], kind)
    first = np.unique(inverse, return_index=True)[1] if len(inverse) else np.zeros(0, np.int64)
    counts = np.bincount(inverse, minlength=len(numbers)).astype(kind)
    return np.moveaxis(rows[first], 0, place), inverse, counts


def _keys(rows: Any) -> Any:
    """The slices as arrays whose bytes agree where the slices do: strings by number, no negative zeros."""
    if rows.dtype.hasobject:
        numbers: dict[Any, int] = {}
        flat = [numbers.setdefault(entry, len(numbers)) for entry in rows.ravel().tolist()]
        return np.array(flat, np.int64).reshape(rows.shape)
    return rows + np.zeros((), rows.dtype) if rows.dtype.kind == "f" else rows


def _distinct_shape(x: Tensor, axis: Tensor, outputs: int) -> list[Shape]:
    known = static.value(axis)
    result: list[Shape] = [None, (None,), (None,)]
    if x.shape is not None and known is not None:
        place = shapes.normalise_axis(int(known.reshape(-1)[0]), len(x.shape)) if known.size else 0
        result[:2] = [(*x.shape[:place], None, *x.shape[place + 1 :]), (x.shape[place],)]
    return result[:outputs]


def _distinct_examples(draw: Any) -> list[Example]:
    x = draw.integers(0, 2, draw.size(1, 4), 2)
    return [call(x, np.array([draw.size(0, 1)], np.int64)), call(x[:, 0], np.zeros(0, np.int64), out_idx="int64")]


_ATTRS = "T: type, Taxis: index = int64, out_idx: index = int32"
define(
    f"UniqueV2(x: T, axis: Taxis; {_ATTRS}) -> (y: T, idx: out_idx)",
    shape=lambda x, axis: _distinct_shape(x, axis, 2),
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp, x, axis, *, out_idx: _distinct(x, axis, out_idx.numpy)[:2],
    dynamic=True,
    examples=_distinct_examples,
)
define(
    f"UniqueWithCountsV2(x: T, axis: Taxis; {_ATTRS}) -> (y: T, idx: out_idx, count: out_idx)",
    shape=lambda x, axis: _distinct_shape(x, axis, 3),
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp, x, axis, *, out_idx: _distinct(x, axis, out_idx.numpy),
    dynamic=True,
    examples=_distinct_examples,
)


# Places


def _unravel(xp: Any, indices: Any, dims: Any) -> Any:
    """The coordinates, one row each, of elements by their number in row-major order."""
    sizes = tuple(int(size) for size in np.ravel(dims))
    outside = (indices < 0) | (indices >= int(np.prod(sizes, dtype=np.int64)))
    refuse_if(outside.any(), f"UnravelIndex: an index is outside of an array of shape {sizes}.")
    rows: list[Any] = []
    rest = indices
    for size in reversed(sizes):
        rows.append(rest % max(size, 1))
        rest = rest // max(size, 1)
    return xp.stack(rows[::-1]) if rows else xp.zeros((0, *indices.shape), indices.dtype)


define(
    "UnravelIndex(indices: Tidx, dims: Tidx; Tidx: index = int32) -> (output: Tidx)",
    shape=lambda indices, dims: (
        None if indices.shape is None else (None if dims.shape is None else dims.shape[0], *indices.shape)
    ),
    gradient=NOT_DIFFERENTIABLE,
    kernel=_unravel,
    host=("dims",),
    examples=lambda draw: [call(draw.integers(0, 6, *draw.shape(0, 1)), np.array([2, 3], np.int32))],
)
