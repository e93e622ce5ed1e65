"""Sums, means, extremes and products of the rows that belong to one segment.

ids[i] is the segment of row i. The sorted ops have as many segments as the last id says; the unsorted ones are
told how many, and drop rows of a negative id. Sparse ones gather rows by index first.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph import dtypes, shapes, static
from gradserve.graph.checks import refuse_outside
from gradserve.graph.graph import IndexedSlices, Tensor
from gradserve.graph.op import Example, Rule, call, define, raw
from gradserve.graph.shapes import Shape
from gradserve.graph.symbolic import shape_of
from gradserve.ops.gather import combine
from gradserve.ops.precision import highest, is_narrow, lowest

_NEUTRAL = {"add": 0, "multiply": 1}


def _neutral(how: str, kind: Any, *, finite: bool) -> Any:
    if how in _NEUTRAL:
        return _NEUTRAL[how]
    if finite or kind.kind in "iu":
        return lowest(kind) if how == "maximum" else highest(kind)
    return -np.inf if how == "maximum" else np.inf


def _segments(xp: Any, how: str, data: Any, ids: Any, count: int, *, drop: bool) -> Any:
    """Rows of data combined by segment; empty segments hold the neutral element, a finite one where ids may be dropped."""
    kind = data.dtype
    flat_ids = ids.ravel()
    rows = xp.reshape(data, (flat_ids.shape[0], *data.shape[ids.ndim :]))
    narrow = is_narrow(kind) and how == "add"
    rows = rows.astype(xp.float32) if narrow else rows
    if drop:  # negative ids fall into one segment more, which is cut off
        refuse_outside(xp.where(flat_ids < 0, 0, flat_ids), max(count, 1), "Segment id")
        flat_ids = xp.where(flat_ids < 0, count, flat_ids)
    start = xp.full((count + 1, *rows.shape[1:]), _neutral(how, rows.dtype, finite=drop), rows.dtype)
    return combine(xp, how, start, flat_ids, rows)[:count].astype(kind)


def _last_id(ids: Any) -> int:
    """The number of segments that sorted ids speak of. Raises InvalidArgument where they do not rise from 0 on."""
    if not ids.size:
        return 0
    if ids[0] < 0 or (np.diff(ids) < 0).any():
        raise InvalidArgument(f"Segment ids must rise and not be negative, but are {ids[:8].tolist()}.")
    return int(ids[-1]) + 1


def _counts(xp: Any, ids: Any, count: int, like: Any) -> Any:
    ones = xp.ones(ids.size, xp.float32 if like.dtype.itemsize == 2 else like.dtype)
    counted = _segments(xp, "add", ones, ids, count, drop=False)
    return xp.reshape(counted, (count, *[1] * (like.ndim - ids.ndim)))


def _sorted_kernel(how: str) -> Rule:
    def kernel(xp: Any, data: Any, ids: Any, count: Any = None) -> Any:
        number = _last_id(ids) if count is None else int(count)
        result = _segments(xp, how, data, ids, number, drop=count is not None)
        if how in ("maximum", "minimum"):  # TensorFlow leaves 0 where a segment has no row
            present = np.zeros(number, bool)
            present[ids[ids >= 0]] = True
            result = xp.where(xp.asarray(present.reshape(-1, *[1] * (data.ndim - 1))), result, xp.zeros_like(result))
        return result

    return kernel


def _mean(xp: Any, data: Any, ids: Any) -> Any:
    count = _last_id(ids)
    total = _segments(xp, "add", data, ids, count, drop=False)
    return (total / xp.maximum(_counts(xp, ids, count, data), 1)).astype(data.dtype)


def _sorted_shape(data: Tensor, ids: Tensor, count: Tensor | None = None) -> Shape:
    if data.shape is None:
        return None
    if count is not None:
        return (static.scalar(count), *data.shape[1:])
    known = static.value(ids)
    return (None if known is None else _last_id(known), *data.shape[1:])


# Gradients of the sorted ops


def _rows(dy: Tensor, ids: Tensor) -> Tensor:
    """The row of each segment, for each id."""
    return raw.GatherV2(dy, ids, np.int32(0))


def _mean_gradient(dy: Tensor, y: Tensor, data: Tensor, ids: Tensor) -> Any:
    ones = raw.Fill(_column(data, ids), np.ones((), dy.dtype.numpy))
    sizes = raw.SegmentSum(ones, ids)
    return _rows(dy / raw.SelectV2(raw.Equal(sizes, raw.ZerosLike(sizes)), raw.OnesLike(sizes), sizes), ids), None


def _column(data: Tensor, ids: Tensor) -> Any:
    """The shape of ids with a 1 for every further axis of data."""
    if data.shape is not None and shapes.is_static(ids.shape):
        assert ids.shape is not None
        return np.array((*ids.shape, *[1] * (len(data.shape) - len(ids.shape))), np.int32)
    more = raw.Reshape(raw.Rank(data) - raw.Rank(ids), np.array([1], np.int32))
    return raw.ConcatV2([raw.Shape(ids), raw.Fill(more, np.int32(1))], np.int32(0))


def _extreme_gradient(dy: Tensor, y: Tensor, data: Tensor, ids: Tensor, *, node: Any) -> Any:
    """dy is shared equally among the rows that attain the extreme."""
    hits = raw.Cast(raw.Equal(data, _rows(y, ids)), DstT=dy.dtype)
    return hits * _rows(raw.DivNoNan(dy, raw.SegmentSum(hits, ids)), ids), None


def _prod_terms(dy: Tensor, data: Tensor, gather: Any, total: Any, product: Any) -> Tensor:
    """dx_i = dy Π_{j≠i} x_j: the product of the others, exact with one zero and 0 with more.

    `gather` takes segments' rows to data's rows, `total` and `product` sum and multiply data's rows by segment.
    """
    zero = raw.Equal(data, raw.ZerosLike(data))
    zeros = total(raw.Cast(zero, DstT=dy.dtype))
    safe = raw.SelectV2(zero, raw.OnesLike(data), data)
    nonzero = product(safe)
    none, one = raw.Equal(gather(zeros), raw.ZerosLike(data)), raw.Equal(gather(zeros), raw.OnesLike(data))
    others = gather(nonzero)
    kept = raw.SelectV2(none, others / safe, raw.ZerosLike(data))
    alone = raw.SelectV2(raw.LogicalAnd(one, zero), others, raw.ZerosLike(data))
    return gather(dy) * (kept + alone)


def _sorted_prod_gradient(dy: Tensor, y: Tensor, data: Tensor, ids: Tensor) -> Any:
    return _prod_terms(
        dy, data, lambda t: _rows(t, ids), lambda t: raw.SegmentSum(t, ids), lambda t: raw.SegmentProd(t, ids)
    ), None


def _sorted_example(draw: Any) -> Any:
    count = draw.size(1)
    ids = np.sort(draw.integers(0, 3, count))
    return [call(draw.distinct(count, draw.size(0, 2)), ids)]


def _sum_example(draw: Any) -> Any:
    ids = np.array([0, 0, 2], np.int32)
    return [*_sorted_example(draw), call(draw.complex(3, draw.size(0, 2)), ids)]


for _name, _kernel, _gradient, _types in (
    ("SegmentSum", _sorted_kernel("add"), lambda dy, y, data, ids: (_rows(dy, ids), None), "number"),
    ("SegmentProd", _sorted_kernel("multiply"), _sorted_prod_gradient, "number"),
    ("SegmentMax", _sorted_kernel("maximum"), _extreme_gradient, "real"),
    ("SegmentMin", _sorted_kernel("minimum"), _extreme_gradient, "real"),
    ("SegmentMean", _mean, _mean_gradient, "number"),
):
    define(
        f"{_name}(data: T, segment_ids: Tindices; T: {_types}, Tindices: index) -> (output: T)",
        shape=_sorted_shape,
        gradient=_gradient,
        kernel=_kernel,
        host=("segment_ids",),
        holomorphic=_name == "SegmentProd",
        examples=_sorted_example if _types == "real" else _sum_example,
    )


# Unsorted segments


def _unsorted_kernel(how: str) -> Rule:
    def kernel(xp: Any, data: Any, ids: Any, count: Any) -> Any:
        if how == "maximum":  # as in TensorFlow -∞ becomes the lowest number
            data = xp.maximum(data, xp.asarray(lowest(data.dtype), dtype=data.dtype))
        elif how == "minimum":
            data = xp.minimum(data, xp.asarray(highest(data.dtype), dtype=data.dtype))
        return _segments(xp, how, data, ids, int(count), drop=True)

    return kernel


def _unsorted_shape(data: Tensor, ids: Tensor, count: Tensor) -> Shape:
    if data.shape is None or ids.shape is None:
        return None
    return (static.scalar(count), *data.shape[len(ids.shape) :])


def _kept_rows(dy: Tensor, ids: Tensor, data: Tensor) -> Tensor:
    """The row of each segment, for each id; 0 for negative ids."""
    taken = raw.GatherV2(dy, raw.Maximum(ids, 0), np.int32(0))
    known = static.value(ids)
    if known is not None and (known >= 0).all():
        return taken
    inside = raw.Reshape(raw.GreaterEqual(ids, 0), _column(data, ids))
    return raw.SelectV2(inside, taken, raw.ZerosLike(taken))


def _unsorted_sum_gradient(dy: Tensor, y: Tensor, data: Tensor, ids: Tensor, count: Tensor) -> Any:
    return _kept_rows(dy, ids, data), None, None


def _unsorted_extreme_gradient(dy: Tensor, y: Tensor, data: Tensor, ids: Tensor, count: Tensor) -> Any:
    hits = raw.Cast(raw.Equal(data, _kept_rows(y, ids, data)), DstT=dy.dtype)
    share = raw.DivNoNan(dy, raw.UnsortedSegmentSum(hits, ids, count))
    return hits * _kept_rows(share, ids, data), None, None


def _unsorted_prod_gradient(dy: Tensor, y: Tensor, data: Tensor, ids: Tensor, count: Tensor) -> Any:
    return (
        _prod_terms(
            dy,
            data,
            lambda t: _kept_rows(t, ids, data),
            lambda t: raw.UnsortedSegmentSum(t, ids, count),
            lambda t: raw.UnsortedSegmentProd(t, ids, count),
        ),
        None,
        None,
    )


def _unsorted_example(draw: Any) -> Any:
    # Every segment has a row: the extreme of none is the lowest number there is, which differences can't bear.
    rows, width = draw.size(0, 2), draw.size(0, 2)
    ids = np.concatenate([draw.integers(-1, 3, rows), np.arange(3, dtype=np.int32)])
    twice = np.stack([ids, ids])
    return [
        call(draw.distinct(rows + 3, width), ids, np.int32(3)),
        call(draw.distinct(2, rows + 3, width), twice, np.int32(3)),
    ]


for _name, _how, _gradient, _types, _places in (
    ("UnsortedSegmentSum", "add", _unsorted_sum_gradient, "number", "index|int16"),
    ("UnsortedSegmentProd", "multiply", _unsorted_prod_gradient, "number", "index"),
    ("UnsortedSegmentMax", "maximum", _unsorted_extreme_gradient, "real", "index"),
    ("UnsortedSegmentMin", "minimum", _unsorted_extreme_gradient, "real", "index"),
):
    define(
        f"{_name}(data: T, segment_ids: Tindices, num_segments: Tnumsegments; T: {_types},"
        f" Tindices: {_places}, Tnumsegments: index = int32) -> (output: T)",
        shape=_unsorted_shape,
        gradient=_gradient,
        kernel=_unsorted_kernel(_how),
        host=("num_segments",),
        holomorphic=_name == "UnsortedSegmentProd",
        examples=_unsorted_example,
    )


def _each_segment_example(draw: Any) -> list[Example]:
    # As above, no segment without a row.
    ids = np.sort(np.concatenate([draw.integers(0, 2, draw.size(0, 2)), np.arange(2, dtype=np.int32)]))
    return [call(draw.distinct(len(ids), draw.size()), ids, np.int32(2))]


for _name, _how in (("Sum", "add"), ("Prod", "multiply"), ("Max", "maximum"), ("Min", "minimum")):
    _same = {
        "Sum": _unsorted_sum_gradient,
        "Prod": _unsorted_prod_gradient,
        "Max": _unsorted_extreme_gradient,
        "Min": _unsorted_extreme_gradient,
    }[_name]
    _types = "real" if _name in ("Max", "Min") else "number"
    define(
        f"Segment{_name}V2(data: T, segment_ids: Tindices, num_segments: Tnumsegments; T: {_types}, Tindices: index,"
        " Tnumsegments: index = int32) -> (output: T)",
        shape=_sorted_shape,
        gradient=_same,
        kernel=_unsorted_kernel(_how),
        host=("num_segments",),
        holomorphic=_name == "Prod",
        examples=_each_segment_example,
    )


# Sparse segments: rows are gathered by index, then summed by segment


def _scale(xp: Any, how: str, ids: Any, count: int, like: Any) -> Any:
    """What a segment's sum is divided by: 1, the number of its rows, or the root of it."""
    if how == "Sum":
        return 1
    rows = xp.maximum(_counts(xp, ids, count, like), 1)
    return rows if how == "Mean" else xp.sqrt(rows)


def _sparse_kernel(how: str) -> Rule:
    def kernel(xp: Any, data: Any, indices: Any, ids: Any, count: Any = None) -> Any:
        refuse_outside(indices, data.shape[0], "Index")
        number = _last_id(ids) if count is None else int(count)
        rows = xp.take(data, indices, axis=0)
        total = _segments(xp, "add", rows, ids, number, drop=False)
        return (total / _scale(xp, how, ids, number, rows)).astype(data.dtype) if how != "Sum" else total

    return kernel


def _sparse_grad_kernel(how: str) -> Rule:
    def kernel(xp: Any, dy: Any, indices: Any, ids: Any, rows: Any) -> Any:
        number = dy.shape[0]
        scaled = dy / _scale(xp, how, ids, number, dy) if how != "Sum" else dy
        start = xp.zeros((int(rows), *dy.shape[1:]), dy.dtype)
        return combine(xp, "add", start, indices, xp.take(scaled, ids, axis=0).astype(dy.dtype))

    return kernel


def _sparse_gradient(how: str, with_count: bool) -> Rule:
    def rule(dy: Tensor, y: Tensor, data: Tensor, indices: Tensor, ids: Tensor, *rest: Tensor, node: Any) -> Any:
        nothing = [None] * (len(rest) + 2)
        if node.attrs.get("sparse_gradient"):
            return [_sparse_slices(how, dy, data, indices, ids), *nothing]
        first = raw.Reshape(raw.StridedSlice(_shape(data), [0], [1], [1]), np.array([], np.int32))
        grad = getattr(raw, f"SparseSegment{how}Grad")(dy, indices, ids, first)
        return [grad, *nothing]

    return rule


def _shape(data: Tensor) -> Tensor:
    shape = shape_of(data)
    return shape if isinstance(shape, Tensor) else data.graph.constant(shape, dtypes.int32)


def _sparse_slices(how: str, dy: Tensor, data: Tensor, indices: Tensor, ids: Tensor) -> IndexedSlices:
    if how != "Sum":
        ones = raw.Fill(_column(dy, ids), np.ones((), dy.dtype.numpy))
        count = raw.Reshape(raw.StridedSlice(_shape(dy), [0], [1], [1]), np.array([], np.int32))
        rows = raw.Maximum(raw.UnsortedSegmentSum(ones, ids, count), 1)
        dy = dy / (rows if how == "Mean" else raw.Sqrt(rows))
    return IndexedSlices(_rows(dy, ids), indices, _shape(data))


def _sparse_rows_grad_kernel(how: str) -> Rule:
    """As the gradient op, but only of the rows that have an index, and those indices in rising order."""
    plain = _sparse_grad_kernel(how)

    def kernel(xp: Any, dy: Any, indices: Any, ids: Any, rows: Any) -> tuple[Any, Any]:
        refuse_outside(indices, int(rows), "Index")
        used, places = np.unique(indices, return_inverse=True)
        return plain(xp, dy, places.reshape(-1), ids, np.int32(len(used))), used

    return kernel


def _sparse_rows_grad_gradient(how: str) -> Rule:
    def rule(
        dz: Tensor, d_used: None, z: Tensor, used: Tensor, dy: Tensor, indices: Tensor, ids: Tensor, rows: Tensor
    ) -> Any:  # fmt: skip
        """The gradient op is linear in dy; its transpose sums the rows of dz where each index stands among the used."""
        first = np.int32(0)
        places = raw.LowerBound(raw.ExpandDims(used, first), raw.ExpandDims(indices, first))
        count = raw.Reshape(raw.StridedSlice(_shape(dy), [0], [1], [1]), np.array([], np.int32))
        forward = getattr(raw, f"SparseSegment{how}WithNumSegments")
        return forward(dz, raw.Squeeze(places, squeeze_dims=[0]), ids, count), None, None, None

    return rule


def _sparse_grad_gradient(how: str) -> Rule:
    def rule(dz: Tensor, z: Tensor, dy: Tensor, indices: Tensor, ids: Tensor, rows: Tensor) -> Any:
        """The gradient op is linear in dy, and the forward op is its transpose."""
        count = raw.Reshape(raw.StridedSlice(_shape(dy), [0], [1], [1]), np.array([], np.int32))
        forward = getattr(raw, f"SparseSegment{how}WithNumSegments")
        return forward(dz, indices, ids, count), None, None, None

    return rule


def _sparse_shape(data: Tensor, indices: Tensor, ids: Tensor, count: Tensor | None = None) -> Shape:
    return _sorted_shape(data, ids, count)


def _sparse_example(counted: bool) -> Any:
    def examples(draw: Any) -> Any:
        rows = draw.size(1)
        inputs = (draw.normal(4, draw.size(0, 2)), draw.integers(0, 4, rows), np.sort(draw.integers(0, 3, rows)))
        return [call(*inputs, np.int32(4)) if counted else call(*inputs)]

    return examples


_INDEX_TYPES = "Tidx: index = int32, Tsegmentids: index = int32"


def _sparse_grad_examples(draw: Any) -> list[Example]:
    segments, rows = draw.size(1, 3), draw.size(0, 5)
    ids = np.sort(draw.integers(0, segments, rows))
    return [call(draw.normal(segments, draw.size()), draw.integers(0, 4, rows), ids, np.int32(4))]


for _how, _types in (("Sum", "real"), ("Mean", "floating"), ("SqrtN", "floating")):
    for _counted in (False, True):
        _extra = ", num_segments: Tnumsegments" if _counted else ""
        _attr = ", Tnumsegments: index = int32" if _counted else ""
        define(
            f"SparseSegment{_how}{'WithNumSegments' if _counted else ''}(data: T, indices: Tidx,"
            f" segment_ids: Tsegmentids{_extra}; T: {_types}, {_INDEX_TYPES}{_attr}, sparse_gradient: bool = false)"
            " -> (output: T)",
            shape=_sparse_shape,
            gradient=_sparse_gradient(_how, _counted),
            kernel=_sparse_kernel(_how),
            host=("segment_ids", "num_segments") if _counted else ("segment_ids",),
            examples=_sparse_example(_counted),
        )
    define(
        f"SparseSegment{_how}Grad(grad: T, indices: Tidx, segment_ids: Tsegmentids, output_dim0: int32; T: floating,"
        f" {_INDEX_TYPES}) -> (output: T)",
        shape=lambda dy, indices, ids, rows: None if dy.shape is None else (static.scalar(rows), *dy.shape[1:]),
        gradient=_sparse_grad_gradient(_how),
        kernel=_sparse_grad_kernel(_how),
        host=("segment_ids", "output_dim0"),
        examples=_sparse_grad_examples,
    )
    define(
        f"SparseSegment{_how}GradV2(grad: T, indices: Tidx, segment_ids: Tsegmentids, dense_output_dim0: int32;"
        f" T: floating, {_INDEX_TYPES}) -> (output: T, sorted_unique_indices: Tidx)",
        shape=lambda dy, indices, ids, rows: [None if dy.shape is None else (None, *dy.shape[1:]), (None,)],
        gradient=_sparse_rows_grad_gradient(_how),
        kernel=_sparse_rows_grad_kernel(_how),
        host=("segment_ids", "dense_output_dim0"),
        dynamic=True,
        examples=_sparse_grad_examples,
    )
