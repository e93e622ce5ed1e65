"""The largest entries of each row, and the n-th in order."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument, InvalidShape
from gradserve.graph import shapes, static
from gradserve.graph.graph import Tensor
from gradserve.graph.op import Example, call, define, raw
from gradserve.graph.symbolic import concat, count_up, rank_of

_SHORT_ROW = 16


def _descending(xp: Any, x: Any) -> Any:
    """The indices that sort rows from the largest down; of equal entries the first comes first."""
    stable = {} if hasattr(x, "get") else {"stable": True}  # CuPy sorts in no other way
    backwards = xp.argsort(x[..., ::-1], axis=-1, **stable)
    return x.shape[-1] - 1 - backwards[..., ::-1]


def _sifted(xp: Any, heap: Any, root: int) -> Any:
    """The heaps with the entry at `root` sunk to its place: each parent is larger than its children."""
    size = heap.shape[-1]
    slots = xp.arange(size)
    value = heap[..., root : root + 1]
    hole = xp.full_like(value, root)

    def entry(slot: Any) -> Any:
        inside = xp.take_along_axis(heap, xp.minimum(slot, size - 1), axis=-1)
        return xp.where(slot < size, inside, -1)

    for _ in range(size.bit_length()):
        left, right = entry(2 * hole + 1), entry(2 * hole + 2)
        larger = xp.maximum(left, right)
        heap = xp.where((slots == hole) & (larger > value), larger, heap)
        hole = xp.where(larger > value, 2 * hole + xp.where(right > left, 2, 1), hole)
    return xp.where(slots == hole, value, heap)


def _with(xp: Any, heap: Any, entry: Any) -> Any:
    """The heaps with one more entry: put last, it rises past smaller parents."""
    heap = xp.concatenate([heap, entry], axis=-1)
    slots = xp.arange(heap.shape[-1])
    slot = heap.shape[-1] - 1
    while slot:
        parent = (slot - 1) // 2
        below, above = heap[..., slot : slot + 1], heap[..., parent : parent + 1]
        heap = xp.where(slots == slot, xp.minimum(below, above), heap)
        heap = xp.where(slots == parent, xp.maximum(below, above), heap)
        slot = parent
    return heap


def _without_first(xp: Any, heap: Any) -> Any:
    """The heaps without their largest entry: the last takes its place and sinks."""
    return _sifted(xp, xp.concatenate([heap[..., -1:], heap[..., 1:-1]], axis=-1), 0)


def _heap_order(xp: Any, order: Any, k: int) -> Any:
    """The first k of `order` (1 < k < size) as they lie in the heap that TensorFlow keeps, worst first.

    The heap takes the entries of a row as they come; it compares them by their rank in `order`.
    """
    ranks = xp.argsort(order, axis=-1)
    heap = ranks[..., : k + 1]
    for root in reversed(range((k + 1) // 2)):
        heap = _sifted(xp, heap, root)
    heap = _without_first(xp, heap)
    for column in range(k + 1, order.shape[-1]):
        entry = ranks[..., column : column + 1]
        pushed = _with(xp, _without_first(xp, heap), entry)
        heap = xp.where(entry < heap[..., :1], pushed, heap)
    return xp.take_along_axis(order, heap, axis=-1)


def _top(xp: Any, x: Any, k: int, kind: Any, *, is_sorted: bool = True) -> Any:
    """The k largest of each row and their indices.

    Unsorted ones may come in any order. In short rows they come in TensorFlow's, which costs little there, so that
    a small graph gives the same numbers; in long rows they are sorted too.
    """
    size = x.shape[-1]
    if not 0 <= k <= size:
        raise InvalidArgument(f"k is {k}, but a row has {size} entries.", k=k, entries=size)
    order = _descending(xp, x)
    if is_sorted or k in (0, 1, size) or size > _SHORT_ROW:
        indices = order[..., :k]
    else:
        indices = _heap_order(xp, order, k)
    return xp.take_along_axis(x, indices, axis=-1), indices.astype(kind)


def _row_shape(x: Tensor, k: int | None) -> Any:
    if x.shape is None:
        return [None, None]
    if not x.shape:
        raise InvalidShape("The input must have an axis to choose from, but is a scalar.", shape=x.shape)
    return [(*x.shape[:-1], k)] * 2


def _back_to_rows(dy: Tensor, indices: Tensor, x: Tensor) -> Tensor:
    """Zeros like x with each dy added at its index of the row that it came from.

    Rows stand one behind another: entry i of row r is number r n + i.
    """
    indices = raw.Cast(indices, DstT="int64")
    if x.shape is not None and shapes.is_static(x.shape) and shapes.is_static(dy.shape):
        sizes = [size for size in x.shape if size is not None]
        rows, total = math.prod(sizes[:-1]), math.prod(sizes)
        zero, end, one = (np.array(size, np.int64) for size in (0, rows, 1))
        first = raw.ExpandDims(raw.Range(zero, end, one) * np.array(sizes[-1], np.int64), -1)
        chosen: Any = np.array([rows, dy.shape[-1] if dy.shape else 1], np.int64)
        flat, shape = np.array([total], np.int64), np.array(sizes, np.int64)
    else:
        shape = raw.Shape(x, out_type="int64")
        entries = raw.StridedSlice(shape, [-1], [0], [1], shrink_axis_mask=1)
        before = raw.StridedSlice(shape, [0], [-1], [1], begin_mask=1)
        rows = raw.Prod(before, [0])
        width = raw.StridedSlice(raw.Shape(dy, out_type="int64"), [-1], [1], [1], end_mask=1)
        first = raw.ExpandDims(raw.Range(np.int64(0), rows, np.int64(1)) * entries, -1)
        chosen = raw.ConcatV2([raw.ExpandDims(rows, 0), width], 0)
        flat = raw.ExpandDims(rows * entries, 0)
    places = raw.Reshape(raw.Reshape(indices, chosen) + first, [-1, 1])
    return raw.Reshape(raw.ScatterNd(places, raw.Reshape(dy, [-1]), flat), shape)


def _top_examples(draw: Any) -> list[Example]:
    shape = draw.shape(low=1)
    k = draw.size(0, shape[-1])
    return [call(draw.distinct(*shape), k), call(draw.distinct(*shape), k, sorted=False)]


define(
    "TopKV2(input: T, k: Tk; sorted: bool = true, T: real, Tk: int16|int32|int64 = int32, "
    "index_type: int16|int32|int64 = int32) -> (values: T, indices: index_type)",
    shape=lambda x, k: _row_shape(x, static.scalar(k)),
    gradient=lambda dy, _, y, indices, x, k: (_back_to_rows(dy, indices, x), None),
    kernel=lambda xp, x, k, *, sorted, index_type: _top(xp, x, int(k), index_type.numpy, is_sorted=sorted),
    host=("k",),
    examples=_top_examples,
)
define(
    "TopK(input: T; k: int, sorted: bool = true, T: real) -> (values: T, indices: int32)",
    shape=lambda x, *, k: _row_shape(x, k),
    gradient=lambda dy, _, y, indices, x: _back_to_rows(dy, indices, x),
    kernel=lambda xp, x, *, k, sorted: _top(xp, x, k, "int32", is_sorted=sorted),
    examples=lambda draw: [call(draw.distinct(draw.size(), 4), k=draw.size(0, 4))],
)

# The largest or smallest along any axis; what TensorFlow may approximate is exact here


def _approximate_shape(x: Tensor, *, k: int, reduction_dimension: int) -> Any:
    if x.shape is None:
        return [None, None]
    axis = shapes.normalise_axis(reduction_dimension, len(x.shape))
    return [(*x.shape[:axis], k, *x.shape[axis + 1 :])] * 2


def _approximate(xp: Any, x: Any, *, k: int, reduction_dimension: int, is_max_k: bool) -> Any:
    rows = xp.moveaxis(x, reduction_dimension, -1)
    values, indices = _top(xp, rows if is_max_k else -rows, k, "int32")
    values = values if is_max_k else -values
    return xp.moveaxis(values, -1, reduction_dimension), xp.moveaxis(indices, -1, reduction_dimension)


def _approximate_gradient(
    dy: Tensor, _: Any, y: Tensor, indices: Tensor, x: Tensor, *, reduction_dimension: int
) -> Tensor:
    rank = rank_of(x)
    if reduction_dimension in (-1, None if isinstance(rank, Tensor) else rank - 1):
        return _back_to_rows(dy, indices, x)
    axis = reduction_dimension + rank if reduction_dimension < 0 else reduction_dimension
    last = raw.Reshape(axis, [1]) if isinstance(axis, Tensor) else [axis]
    there = concat(count_up(0, axis), count_up(axis + 1, rank), last)
    rows = [raw.Transpose(tensor, there) for tensor in (dy, indices, x)]
    return raw.Transpose(_back_to_rows(*rows), raw.InvertPermutation(there))


def _approximate_examples(draw: Any) -> list[Example]:
    x = draw.distinct(2, 4, 3).astype("float32")
    return [
        call(x, k=2, step=0.02),
        call(x, k=2, reduction_dimension=1, is_max_k=False, step=0.02),
    ]


define(
    "ApproxTopK(input: T; k: int, reduction_dimension: int = -1, recall_target: float = 0.949999988079071, "
    "is_max_k: bool = true, reduction_input_size_override: int = -1, aggregate_to_topk: bool = true, "
    "T: bfloat16|float16|float32) -> (values: T, indices: int32)",
    shape=_approximate_shape,
    gradient=_approximate_gradient,
    kernel=_approximate,
    examples=_approximate_examples,
)

# The n-th in order


def _nth(xp: Any, x: Any, n: Any, *, reverse: bool) -> Any:
    position = x.shape[-1] - 1 - n if reverse else n
    return xp.take(xp.sort(x, axis=-1), position, axis=-1)


def _nth_shape(x: Tensor, n: Tensor) -> Any:
    return None if x.shape is None else x.shape[:-1]


def _nth_gradient(dy: Tensor, y: Tensor, x: Tensor, n: Tensor) -> tuple[Tensor, None]:
    """Equal entries share the cotangent equally."""
    equal = raw.Cast(raw.Equal(raw.ExpandDims(y, -1), x), DstT=x.dtype.base)
    share = equal / raw.Sum(equal, -1, keep_dims=True)
    return share * raw.ExpandDims(dy, -1), None


def _nth_examples(draw: Any) -> list[Example]:
    shape = (*draw.shape(high=2), draw.size(1))
    n = draw.integers(0, shape[-1])
    return [call(draw.distinct(*shape), n), call(draw.distinct(*shape), n, reverse=True)]


define(
    "NthElement(input: T, n: int32; reverse: bool = false, T: real) -> (values: T)",
    shape=_nth_shape,
    gradient=_nth_gradient,
    kernel=_nth,
    examples=_nth_examples,
)
