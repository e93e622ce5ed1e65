"""Reading and writing by index: gathers, scatters, and what selects by value."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradserve.graph import dtypes, shapes, static
from gradserve.graph.checks import refuse_if, refuse_outside
from gradserve.graph.graph import IndexedSlices, Tensor
from gradserve.graph.op import NOT_DIFFERENTIABLE, Example, Rule, call, define, raw
from gradserve.graph.shapes import Shape
from gradserve.graph.symbolic import concat, count_up, part, product, rank_of, shape_of
from gradserve.ops.precision import widen


def sparse_gradient(dy: Tensor, params: Tensor, indices: Tensor, shape: Any) -> IndexedSlices:
    """Rows of dy at indices of params: values [n, ...], indices [n], and the shape of params."""
    flat = raw.Reshape(indices, np.array([-1], np.int32))
    rows = product(shape_of(indices))
    values = raw.Reshape(dy, concat(rows, part(shape, 1)))
    dense_shape = shape if isinstance(shape, Tensor) else params.graph.constant(shape, dtypes.int32, name="Shape")
    return IndexedSlices(values, flat, dense_shape)


def _shape_beside(params: Tensor) -> Any:
    """The shape of params, computed where params are: they may be large and on another device."""
    with params.graph.colocate_with(params):
        if shapes.is_static(params.shape):
            return shape_of(params)
        return raw.Shape(params)


# Gather


def _gathered(params: Tensor, indices: Tensor, axis: Tensor | None = None, batch_dims: int = 0) -> Shape:
    place = 0 if axis is None else static.scalar(axis)
    if params.shape is None or indices.shape is None or place is None:
        return None
    place = shapes.normalise_axis(place, len(params.shape))
    batch = batch_dims + len(indices.shape) if batch_dims < 0 else batch_dims
    return (*params.shape[:place], *indices.shape[batch:], *params.shape[place + 1 :])


def _gather(xp: Any, params: Any, indices: Any, axis: Any, batch_dims: int) -> Any:
    place = shapes.normalise_axis(int(np.reshape(axis, ())), params.ndim)
    batch = batch_dims + indices.ndim if batch_dims < 0 else batch_dims
    refuse_outside(indices, params.shape[place], "Index")
    if not batch:
        return xp.take(params, indices, axis=place)
    lead = params.shape[:batch]
    rows = int(np.prod(lead, dtype=np.int64))
    moved = xp.moveaxis(params, place, batch)  # batch, axis, what lay between, rest
    flat = (
        xp.reshape(moved, (rows, moved.shape[batch], -1))
        if moved.size
        else xp.zeros((rows, moved.shape[batch], 0), moved.dtype)
    )
    chosen = xp.reshape(indices, (rows, int(np.prod(indices.shape[batch:], dtype=np.int64))))
    taken = flat[xp.arange(rows)[:, None], chosen]
    taken = xp.reshape(taken, (*lead, *indices.shape[batch:], *moved.shape[batch + 1 :]))
    extra = indices.ndim - batch
    between = place - batch
    order = [
        *range(batch), *range(batch + extra, batch + extra + between), *range(batch, batch + extra),
        *range(batch + extra + between, taken.ndim),
    ]  # fmt: skip
    return xp.transpose(taken, order)


def _gather_gradient(dy: Tensor, y: Tensor, params: Tensor, indices: Tensor) -> Any:
    return sparse_gradient(dy, params, indices, _shape_beside(params)), None


def _gather_axis_gradient(
    dy: Tensor, y: Tensor, params: Tensor, indices: Tensor, axis: Tensor, *, batch_dims: int
) -> Any:
    """Axis 0 gives IndexedSlices; elsewhere rows of equal index are added up."""
    place = static.scalar(axis)
    if place == 0:
        return sparse_gradient(dy, params, indices, _shape_beside(params)), None, None
    return dense_gather_gradient(dy, params, indices, axis, batch_dims), None, None


def dense_gather_gradient(dy: Tensor, params: Tensor, indices: Tensor, axis: Any, batch_dims: int) -> Tensor:
    """dy led to [batch · index, ...], summed into [batch · axis, ...], and led back to the shape of params."""
    place = static.scalar(axis) if isinstance(axis, Tensor) else int(axis)
    if place is None:
        where: Any = raw.Cast(axis, DstT="int32") if axis.dtype is not dtypes.int32 else axis
        where = raw.FloorMod(where, raw.Rank(params))
    elif place < 0:
        where = rank_of(params) + place
    else:
        where = place
    index_rank = rank_of(indices)
    batch = batch_dims + index_rank if batch_dims < 0 else batch_dims
    extra = index_rank - batch
    params_rank = rank_of(params)
    shape = shape_of(params)
    # dy: batch, between, index, rest -> batch, index, between, rest
    first, second, last = count_up(0, batch), count_up(batch, where), count_up(where + extra, params_rank - 1 + extra)
    middle = count_up(where, where + extra)
    led = raw.Transpose(dy, concat(first, middle, second, last))
    # params: batch, between, axis, rest -> batch, axis, between, rest
    beside = concat(count_up(0, batch), _one(where), count_up(batch, where), count_up(where + 1, params_rank))
    target = _take(shape, beside)
    batch_count = product(
        part(target, 0, batch) if not isinstance(batch, Tensor) else raw.Slice(target, [0], raw.Reshape(batch, [1]))
    )
    length = _take(shape, _one(where))
    rest = _after(target, batch, 1)
    rows = raw.Reshape(led, concat(product(shape_of(indices)), rest))
    flat = raw.Reshape(indices, concat(batch_count, np.array([-1], np.int32)))
    scalar_count, scalar_length = (raw.Reshape(value, np.array([], np.int32)) for value in (batch_count, length))
    offsets = raw.Cast(raw.ExpandDims(raw.Range(0, scalar_count, 1) * scalar_length, 1), DstT=indices.dtype)
    numbered = raw.Reshape(flat + offsets, np.array([-1], np.int32))
    summed = raw.UnsortedSegmentSum(rows, numbered, scalar_count * scalar_length)
    back = concat(
        count_up(0, batch),
        count_up(_plus(batch, 1), _plus(where, 1)),
        _one(batch),
        count_up(_plus(where, 1), params_rank),
    )
    return raw.Transpose(raw.Reshape(summed, target), back)


def _plus(value: Any, more: int) -> Any:
    return value + more


def _one(value: Any) -> Any:
    """A vector of one entry."""
    return raw.Reshape(value, np.array([1], np.int32)) if isinstance(value, Tensor) else np.array([value], np.int32)


def _take(vector: Any, positions: Any) -> Any:
    if isinstance(vector, Tensor) or isinstance(positions, Tensor):
        return raw.GatherV2(vector, positions, np.int32(0))
    return vector[positions]


def _after(vector: Any, start: Any, more: int) -> Any:
    if isinstance(start, Tensor):
        return raw.Slice(vector, _one(start + more), np.array([-1], np.int32))
    return part(vector, start + more)


define(
    "Gather(params: Tparams, indices: Tindices; validate_indices: bool = true, Tparams: type, Tindices: index)"
    " -> (output: Tparams)",
    shape=_gathered,
    gradient=_gather_gradient,
    kernel=lambda xp, params, indices: _gather(xp, params, indices, 0, 0),
    examples=lambda draw: [call(draw.normal(3, draw.size()), draw.integers(0, 3, *draw.shape(0, 2)))],
)


def _gather_examples(draw: Any) -> list[Example]:
    zero, last = np.int32(0), np.int32(-1)
    return [
        call(draw.normal(3, draw.size()), draw.integers(0, 3, *draw.shape(0, 2)), zero),
        call(draw.normal(2, 3), draw.integers(0, 3, *draw.shape(0, 2)), last),
        call(draw.normal(3, 2), draw.integers(0, 3, 4), zero, batch_dims=-1),
        call(draw.normal(2, 3, 4), draw.integers(0, 3, 2, 2), np.int32(1), batch_dims=1),
        call(draw.normal(2, 3, 4), draw.integers(0, 4, 2, 5), np.int32(2), batch_dims=1),
    ]


define(
    "GatherV2(params: Tparams, indices: Tindices, axis: Taxis; batch_dims: int = 0, Tparams: type,"
    " Tindices: int16|int32|int64, Taxis: index) -> (output: Tparams)",
    shape=lambda params, indices, axis, *, batch_dims: _gathered(params, indices, axis, batch_dims),
    gradient=_gather_axis_gradient,
    kernel=lambda xp, params, indices, axis, *, batch_dims: _gather(xp, params, indices, axis, batch_dims),
    host=("axis",),
    examples=_gather_examples,
)


# Gather and scatter by rows of indices


def _gathered_rows(params: Tensor, indices: Tensor) -> Shape:
    if params.shape is None or indices.shape is None or indices.shape[-1] is None:
        return None
    return (*indices.shape[:-1], *params.shape[indices.shape[-1] :])


def _rows(xp: Any, indices: Any, shape: Any) -> tuple[Any, ...]:
    """The last axis of indices as an index of NumPy's; checked against the shape."""
    parts = tuple(indices[..., axis] for axis in range(indices.shape[-1]))
    for axis, column in enumerate(parts):
        refuse_outside(column, shape[axis], f"Index of axis {axis}")
    return parts


def _gather_rows(xp: Any, params: Any, indices: Any) -> Any:
    if indices.shape[-1] == 0:
        return xp.broadcast_to(params, (*indices.shape[:-1], *params.shape))
    return params[_rows(xp, indices, params.shape)]


def _gather_rows_gradient(dy: Tensor, y: Tensor, params: Tensor, indices: Tensor) -> Any:
    shape = shape_of(params)
    if indices.rank == 2 and indices.shape is not None and indices.shape[-1] == 1:
        dense_shape = shape if isinstance(shape, Tensor) else params.graph.constant(shape, dtypes.int32, name="Shape")
        return IndexedSlices(dy, raw.Squeeze(indices, squeeze_dims=[-1]), dense_shape), None
    return raw.ScatterNd(indices, dy, _like(shape, params, indices)), None


def _like(shape: Any, x: Tensor, indices: Tensor) -> Any:
    """A shape in the dtype of the indices."""
    if indices.dtype is dtypes.int32:
        return shape
    return shape.astype(indices.dtype.numpy) if isinstance(shape, np.ndarray) else raw.Cast(shape, DstT=indices.dtype)


define(
    "GatherNd(params: Tparams, indices: Tindices; Tparams: type, Tindices: int16|int32|int64,"
    " bad_indices_policy: string = '') -> (output: Tparams)",
    shape=_gathered_rows,
    gradient=_gather_rows_gradient,
    kernel=_gather_rows,
    examples=lambda draw: [
        call(draw.normal(2, 3, draw.size()), draw.integers(0, 2, 4, draw.size(1, 2))),
        call(draw.normal(3, 2), draw.integers(0, 3, draw.size(), 1)),
    ],
)


def combine(xp: Any, how: str, target: Any, index: Any, values: Any) -> Any:
    """A copy of target with values combined into it at an index: add, maximum, minimum, multiply, or set (last wins)."""
    target = xp.asarray(target)
    if hasattr(target, "at"):  # arrays that can't be written to, as JAX's
        name = {"maximum": "max", "minimum": "min"}.get(how, how)
        return getattr(target.at[index], name)(values)
    if hasattr(target, "get"):  # CuPy's would be combined in any order: sums would differ from run to run
        return xp.asarray(combine(np, how, *map(_on_host, (target, index, values))))
    result = target.copy()
    if how == "set":
        result[index] = values
    else:
        getattr(xp, how).at(result, index, values)
    return result


def _on_host(value: Any) -> Any:
    """An array of CuPy's, or a tuple with some in it, as NumPy's."""
    if isinstance(value, tuple):
        return tuple(map(_on_host, value))
    return value.get() if hasattr(value, "get") else value


def _count(indices: Any) -> int:
    """The number of index vectors."""
    return int(np.prod(indices.shape[:-1], dtype=np.int64))


def _scatter_zeros(xp: Any, indices: Any, updates: Any, shape: Any) -> Any:
    target = tuple(int(size) for size in shape)
    zeros = xp.zeros(target, updates.dtype)
    if indices.shape[-1] == 0:
        return zeros + xp.sum(xp.reshape(updates, (_count(indices), *target)), axis=0)
    return combine(xp, "add", zeros, _rows(xp, indices, target), updates)


define(
    "ScatterNd(indices: Tindices, updates: T, shape: Tindices; T: type, Tindices: int16|int32|int64,"
    " bad_indices_policy: string = '') -> (output: T)",
    shape=lambda indices, updates, shape: static.shape_value(shape),
    gradient=lambda dy, y, indices, updates, shape: (None, raw.GatherNd(dy, indices), None),
    kernel=_scatter_zeros,
    host=("shape",),
    examples=lambda draw: [
        call(draw.integers(0, 3, n := draw.size(), 1), draw.normal(n, m := draw.size()), np.array([3, m], np.int32)),
        call(draw.integers(0, 3, n, 0), draw.normal(n, 2, m), np.array([2, m], np.int32)),
    ],
)


def scatter(how: str) -> Rule:
    """A kernel that combines updates into a copy of its first input, at rows of indices (see `combine`)."""

    def kernel(xp: Any, target: Any, indices: Any, updates: Any) -> Any:
        if indices.shape[-1] == 0:
            flat = xp.reshape(updates, (_count(indices), *target.shape))
            for k in range(flat.shape[0]):
                target = flat[k] if how == "set" else getattr(xp, how)(target, flat[k])
            return target
        return combine(xp, how, target, _rows(xp, indices, target.shape), updates)

    return kernel


def _extreme_gradient(dy: Tensor, y: Tensor, x: Tensor, indices: Tensor, updates: Tensor) -> Any:
    """dy is shared equally among those that attain the extreme, x among them."""
    kept = raw.Cast(raw.Equal(x, y), DstT=dy.dtype)
    hits = raw.Cast(raw.Equal(updates, raw.GatherNd(y, indices)), DstT=dy.dtype)
    share = dy / (kept + raw.ScatterNd(indices, hits, _like(shape_of(x), x, indices)))
    return share * kept, None, raw.GatherNd(share, indices) * hits


def _scatter_op(
    name: str, how: str, gradient: Rule, first: str = "tensor", types: str = "type", places: str = "index"
) -> None:
    define(
        f"{name}({first}: T, indices: Tindices, updates: T; T: {types}, Tindices: {places}, bad_indices_policy: string = '')"
        " -> (output: T)",
        shape=lambda x, indices, updates: x.shape,
        gradient=gradient,
        kernel=scatter(how),
        examples=lambda draw: [
            call(
                draw.distinct(4, m := draw.size()),
                draw.permutation(4)[: (n := draw.size(0, 3)), None],
                draw.distinct(n, m) + 0.01,
            )
        ],
    )


def _update_gradient(dy: Tensor, y: Tensor, x: Tensor, indices: Tensor, updates: Tensor) -> Any:
    return raw.TensorScatterUpdate(dy, indices, raw.ZerosLike(updates)), None, raw.GatherNd(dy, indices)


def _add_gradient(dy: Tensor, y: Tensor, x: Tensor, indices: Tensor, updates: Tensor) -> Any:
    return dy, None, raw.GatherNd(dy, indices)


_scatter_op("ScatterNdNonAliasingAdd", "add", _add_gradient, first="input", types="number|bool")
_scatter_op("TensorScatterAdd", "add", _add_gradient)
_scatter_op("TensorScatterSub", "subtract", lambda dy, y, x, i, u: (dy, None, -raw.GatherNd(dy, i)))
_scatter_op("TensorScatterUpdate", "set", _update_gradient, places="index|int16|uint16")
_scatter_op("TensorScatterMax", "maximum", _extreme_gradient)
_scatter_op("TensorScatterMin", "minimum", _extreme_gradient)


# One-hot, and what selects by value (these run on the host: the shape of the result depends on the values)


def _one_hot_shape(indices: Tensor, depth: Tensor, on: Tensor, off: Tensor, *, axis: int) -> Shape:
    if indices.shape is None:
        return None
    place = len(indices.shape) if axis == -1 else axis
    return (*indices.shape[:place], static.scalar(depth), *indices.shape[place:])


def _one_hot(xp: Any, indices: Any, depth: Any, on: Any, off: Any, *, axis: int) -> Any:
    place = indices.ndim if axis == -1 else axis
    classes = xp.arange(int(depth)).reshape([-1 if k == place else 1 for k in range(indices.ndim + 1)])
    return xp.where(xp.expand_dims(indices, place) == classes, on, off).astype(on.dtype)


def _one_hot_gradient(
    dy: Tensor, y: Tensor, indices: Tensor, depth: Tensor, on: Tensor, off: Tensor, *, axis: int
) -> Any:
    """The on value gets dy where it stands, the off value everywhere else."""
    one, zero = np.ones((), dy.dtype.numpy), np.zeros((), dy.dtype.numpy)
    hot = raw.OneHot(indices, depth, one, zero, axis=axis)
    axes = count_up(0, rank_of(dy))
    return None, None, raw.Sum(dy * hot, axes), raw.Sum(dy * (1 - hot), axes)


define(
    "OneHot(indices: TI, depth: int32, on_value: T, off_value: T; axis: int = -1, T: type,"
    " TI: int32|int64|int8|uint8 = int64) -> (output: T)",
    shape=_one_hot_shape,
    gradient=_one_hot_gradient,
    kernel=_one_hot,
    host=("depth",),
    examples=lambda draw: [
        call(draw.integers(-1, 4, draw.size()), np.int32(3), draw.normal(), draw.normal(), axis=draw.pick([-1, 0]))
    ],
)
define(
    "Where(input: T; T: number|bool = bool) -> (index: int64)",
    shape=lambda x: (None, None if x.shape is None else len(x.shape)),
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp, x: np.argwhere(x).astype(np.int64),
    dynamic=True,
    examples=lambda draw: [call(draw.boolean(3, 2))],
)


def _difference(xp: Any, x: Any, y: Any, *, out_idx: Any) -> tuple[Any, Any]:
    """The entries of x that y lacks, in order, and their positions."""
    kept = np.flatnonzero(~np.isin(x, y))
    return x[kept], kept.astype(out_idx.numpy)


define(
    "ListDiff(x: T, y: T; T: type, out_idx: index = int32) -> (out: T, idx: out_idx)",
    shape=lambda x, y: [(None,), (None,)],
    gradient=NOT_DIFFERENTIABLE,
    kernel=_difference,
    dynamic=True,
    examples=lambda draw: [call(np.arange(5, dtype=np.int32), np.array([1, 3], np.int32))],
)


def _unique(x: Any, kind: Any) -> tuple[Any, Any, Any]:
    """Entries in the order in which they first occur, the place of each entry of x among them, and their counts.

    NaN equals nothing.
    """
    _, first, inverse, counts = np.unique(
        widen(np, x), return_index=True, return_inverse=True, return_counts=True, equal_nan=False
    )
    order = np.argsort(first, kind="stable")
    rank = np.empty(len(order), kind)
    rank[order] = np.arange(len(order))
    return x[first[order]], rank[inverse.reshape(-1)], counts[order].astype(kind)


define(
    "Unique(x: T; T: type, out_idx: index = int32) -> (y: T, idx: out_idx)",
    shape=lambda x: [(None,), x.shape],
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp, x, *, out_idx: _unique(x, out_idx.numpy)[:2],
    dynamic=True,
    examples=lambda draw: [call(draw.integers(0, 3, 5))],
)
define(
    "UniqueWithCounts(x: T; T: type, out_idx: index = int32) -> (y: T, idx: out_idx, count: out_idx)",
    shape=lambda x: [(None,), x.shape, (None,)],
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp, x, *, out_idx: _unique(x, out_idx.numpy),
    dynamic=True,
    examples=lambda draw: [call(draw.integers(0, 3, 5))],
)


# Partition and stitch


def _partition(xp: Any, data: Any, partitions: Any, *, num_partitions: int) -> list[Any]:
    refuse_outside(partitions, num_partitions, "Partition")
    flat = np.reshape(data, (partitions.size, *data.shape[partitions.ndim :]))
    return [flat[np.ravel(partitions) == k] for k in range(num_partitions)]


def _partition_shape(data: Tensor, partitions: Tensor, *, num_partitions: int) -> list[Shape]:
    if data.shape is None or partitions.shape is None:
        return [None] * num_partitions
    return [(None, *data.shape[len(partitions.shape) :])] * num_partitions


def _partition_gradient(
    dys: list[Tensor], ys: list[Tensor], data: Tensor, partitions: Tensor, *, num_partitions: int
) -> Any:
    """Each dy goes back to where its rows came from."""
    shape = shape_of(partitions)
    positions = raw.Reshape(raw.Range(0, raw.Size(partitions), 1), shape)
    places = raw.DynamicPartition.outputs(positions, partitions, num_partitions=num_partitions)
    return raw.Reshape(raw.DynamicStitch(list(places), dys), shape_of(data)), None


define(
    "DynamicPartition(data: T, partitions: int32; num_partitions: int, T: type) -> (outputs: num_partitions * T)",
    shape=_partition_shape,
    gradient=_partition_gradient,
    kernel=_partition,
    dynamic=True,
    examples=lambda draw: [call(draw.normal(n := draw.size(), draw.size()), draw.integers(0, 2, n), num_partitions=2)],
)


def _stitched_shape(indices: list[Tensor], data: list[Tensor]) -> Shape:
    rest: Shape = None
    for index, value in zip(indices, data, strict=True):
        if index.shape is not None and value.shape is not None:
            rest = shapes.merge(rest, value.shape[len(index.shape) :])
    if rest is None:
        return None
    known = [static.value(index) for index in indices]
    if any(entry is None for entry in known):
        return (None, *rest)
    return (max((int(entry.max()) + 1 for entry in known if entry is not None and entry.size), default=0), *rest)


def _stitch(xp: Any, indices: list[Any], data: list[Any]) -> Any:
    """Row i of the result is the last row of the data whose index is i; zeros where there is none."""
    flat = np.concatenate([np.ravel(index) for index in indices])
    refuse_if(bool((flat < 0).any()), f"DynamicStitch: index {flat.min(initial=0)} is negative.")
    rest = data[0].shape[indices[0].ndim :]
    rows = xp.concatenate([xp.reshape(value, (index.size, *rest)) for index, value in zip(indices, data, strict=True)])
    count = int(flat.max()) + 1 if flat.size else 0
    source = np.full(count, -1)
    source[flat] = np.arange(flat.size)
    if not count:
        return xp.zeros((0, *rest), data[0].dtype)
    missing = (source < 0).reshape(-1, *[1] * len(rest))
    taken = rows[np.maximum(source, 0)]
    return xp.where(missing, xp.zeros_like(taken), taken) if missing.any() else taken


def _stitch_gradient(dy: Tensor, y: Tensor, indices: list[Tensor], data: list[Tensor]) -> Any:
    """Each row gets dy of its index, but 0 where a later row of the same index has overwritten it."""
    known = [static.value(index) for index in indices]
    flat = (
        None if any(entry is None for entry in known) else np.concatenate([np.ravel(k) for k in known if k is not None])
    )
    taken = [raw.GatherV2(dy, index, np.int32(0)) for index in indices]
    if flat is not None and len(set(flat.tolist())) == flat.size:
        return [None] * len(indices), taken
    numbers: list[Tensor] = []
    start: Any = np.int32(0)
    for index in indices:
        own = raw.Reshape(raw.Range(0, raw.Size(index), 1), shape_of(index)) + start
        numbers.append(own)
        start = raw.Size(index) + start
    winner = raw.DynamicStitch(indices, numbers)
    results: list[Tensor] = []
    for index, own, value, term in zip(indices, numbers, data, taken, strict=True):
        wins = raw.Cast(raw.Equal(raw.GatherV2(winner, index, np.int32(0)), own), DstT=dy.dtype)
        trailing = concat(shape_of(index), np.ones(0, np.int32))
        extra = raw.OnesLike(part(shape_of(value), len(index.shape))) if index.shape is not None else None
        if extra is None:
            more = raw.Reshape(raw.Rank(value) - raw.Rank(index), [1])
            extra = raw.Fill(more, np.int32(1))
        results.append(term * raw.Reshape(wins, concat(trailing, extra)))
    return [None] * len(indices), results


for _name in ("DynamicStitch", "ParallelDynamicStitch"):
    define(
        f"{_name}(indices: N * int32, data: N * T; N: int, T: type) -> (merged: T)",
        shape=_stitched_shape,
        gradient=_stitch_gradient,
        kernel=_stitch,
        host=("indices",),
        examples=lambda draw: [
            call(
                [np.array([2, 0], np.int32), np.array([[1], [3]], np.int32)],
                [draw.normal(2, m := draw.size()), draw.normal(2, 1, m)],
            ),
            call([np.array([0, 1], np.int32), np.array([1], np.int32)], [draw.normal(2), draw.normal(1)]),
        ],
    )
