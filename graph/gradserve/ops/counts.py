"""How often each number occurs in each row of sparse, ragged and dense tensors: as a dense matrix, or as a sparse one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph import shapes, static
from gradserve.graph.dtypes import DType
from gradserve.graph.graph import Tensor
from gradserve.graph.op import MISSING, Example, call, define, raw
from gradserve.graph.shapes import Shape
from gradserve.graph.symbolic import part
from gradserve.ops.coordinates import flat, sizes_of
from gradserve.ops.ragged import checked

Array = np.ndarray[Any, Any]

_LAST = np.array([-1], np.int32)

# Rows


def _sparse_rows(indices: Any, values: Any, sizes: Any) -> tuple[Array, int | None]:
    """The row of each value, and the number of rows: None for a vector, which is one row without an axis for it."""
    outer = sizes_of(sizes)
    flat(np, indices, outer)
    if len(indices) != len(values) or not outer:
        raise InvalidArgument(f"{len(indices)} sparse indices for {len(values)} values of a tensor of {list(outer)}.")
    if len(outer) == 1:
        return np.zeros(len(values), np.int64), None
    return indices[:, 0], outer[0]


def _ragged_rows(splits: Any, values: Any) -> tuple[Array, int]:
    return np.repeat(np.arange(len(splits) - 1), np.diff(checked(splits, len(values)))), len(splits) - 1


def _check_weights(values: Any, weights: Any) -> None:
    if weights.size and weights.shape != values.shape:
        raise InvalidArgument(f"Weights of shape {weights.shape} don't fit values of shape {values.shape}.")


# Dense counts


def _counts(rows: Array, count: int | None, values: Any, size: Any, weights: Any, binary_output: bool) -> Array:
    bins = int(np.ravel(size)[0])
    _check_weights(values, weights)
    if bins < 0 or (values < 0).any():
        raise InvalidArgument("Numbers to be counted, and the size of the result, must not be negative.")
    result = np.zeros((1 if count is None else count, bins), weights.dtype)
    kept = values < bins
    at = rows[kept], values[kept]
    if binary_output:
        result[at] = 1
    else:
        np.add.at(result, at, weights[kept] if weights.size else np.ones((), weights.dtype))
    return result[0] if count is None else result


def _weights_gradient(dy: Tensor, rows: Tensor | None, values: Tensor, size: Tensor, weights: Tensor) -> Tensor:
    """Each weight gets dy of its row and number; those of numbers that are not counted get dy's padding."""
    limit = raw.Cast(size, DstT=values.dtype)
    columns = raw.Minimum(values, raw.Reshape(limit, np.zeros(0, np.int32)))
    if rows is None:
        picked = raw.GatherV2(raw.Pad(dy, np.array([[0, 1]], np.int32)), columns, np.int32(0))
    else:
        padded = raw.Pad(dy, np.array([[0, 0], [0, 1]], np.int32))
        picked = raw.GatherNd(padded, raw.Pack([rows, raw.Cast(columns, DstT=rows.dtype)], axis=1))
    if shapes.is_static(weights.shape):
        return picked
    count = raw.Reshape(raw.Size(weights), np.array([1], np.int32))  # there may turn out to be none
    flat = raw.Reshape(picked, np.array([-1], np.int32))
    return raw.Reshape(raw.Slice(flat, np.array([0], np.int32), count), raw.Shape(weights))


def _column(indices: Tensor) -> Tensor:
    return raw.StridedSlice(indices, [0, 0], [0, 1], [1, 1], begin_mask=1, end_mask=1, shrink_axis_mask=2)


def _sparse_gradient(
    dy: Tensor, y: Tensor, indices: Tensor, values: Tensor, sizes: Tensor, size: Tensor, weights: Tensor, *,
    binary_output: bool,
) -> Sequence[Tensor | None]:  # fmt: skip
    if binary_output or shapes.num_elements(weights.shape) == 0:
        return [None] * 5
    rows = None if y.rank == 1 else _column(indices)
    if y.rank is None:  # a vector is a matrix of one row
        dy = raw.Reshape(dy, part(raw.ConcatV2([np.array([1], np.int32), raw.Shape(dy)], np.int32(0)), -2))
        rows *= raw.Cast(raw.Greater(raw.Rank(y), 1), DstT=indices.dtype)
    return [None, None, None, None, _weights_gradient(dy, rows, values, size, weights)]


def _ragged_gradient(
    dy: Tensor, y: Tensor, splits: Tensor, values: Tensor, size: Tensor, weights: Tensor, *, binary_output: bool
) -> Sequence[Tensor | None]:
    if binary_output or shapes.num_elements(weights.shape) == 0:
        return [None] * 4
    table = raw.RaggedTensorToSparse.outputs([splits], values)[0]
    return [None, None, None, _weights_gradient(dy, _column(table), values, size, weights)]


def _bincount(xp: Any, values: Any, size: Any, weights: Any) -> Any:
    """Sums the weights (ones where there are none) of equal values; values of `size` and more are dropped."""
    count = int(size)
    flat = xp.ravel(values)
    inside = flat < count
    weight = xp.ravel(weights) if weights.size else xp.ones(flat.shape, weights.dtype)
    one_hot = (flat[:, None] == xp.arange(count)[None, :]) & inside[:, None]
    return xp.sum(xp.where(one_hot, weight[:, None], 0), axis=0).astype(weights.dtype)


def _bincount_gradient(dy: Tensor, y: Tensor, values: Tensor, size: Tensor, weights: Tensor) -> Any:
    if shapes.num_elements(weights.shape) == 0:
        return None, None, raw.ZerosLike(weights)
    return None, None, _weights_gradient(dy, None, values, size, weights)


def _sparse_shape(indices: Tensor, values: Tensor, sizes: Tensor, size: Tensor, weights: Tensor) -> Shape:
    known = static.shape_value(sizes)
    if known is None:
        return None
    bins = static.scalar(size)
    return (bins,) if len(known) == 1 else (known[0], bins)


def _ragged_shape(splits: Tensor, values: Tensor, size: Tensor, weights: Tensor) -> Shape:
    rows = splits.shape[0] if splits.shape else None
    return None if rows is None else rows - 1, static.scalar(size)


def _drawn(draw: Any) -> tuple[Array, Array]:
    values = draw.integers(0, 5, draw.size(), dtype=np.int64)
    return values, np.array([0, len(values) // 2, len(values)])


def _sparse_examples(draw: Any) -> list[Example]:
    at = draw.coordinates(2, 3)
    values, size = draw.integers(0, 5, len(at)), np.int32(draw.size(0, 5))
    weights = draw.normal(len(at))
    vector = np.arange(len(at))[:, None]
    return [
        call(at, values, np.array([2, 3]), size, weights),
        call(at, values, np.array([2, 3]), size, np.zeros(0)),
        call(at, values, np.array([2, 3]), size, weights, binary_output=True),
        call(vector, values, np.array([6]), size, weights),
    ]


def _ragged_examples(draw: Any) -> list[Example]:
    values, splits = _drawn(draw)
    return [
        call(splits, values, np.int64(draw.size(0, 5)), weights, binary_output=binary)
        for weights in (draw.normal(len(values)), np.zeros(0))
        for binary in (False, True)
    ]


_DENSE = "size: Tidx, weights: T; Tidx: index, T: float32|float64|int32|int64, binary_output: bool = false"
define(
    f"SparseBincount(indices: int64, values: Tidx, dense_shape: int64, {_DENSE}) -> (output: T)",
    shape=_sparse_shape,
    gradient=_sparse_gradient,
    kernel=lambda xp, indices, values, sizes, size, weights, *, binary_output: _counts(
        *_sparse_rows(indices, values, sizes), values, size, weights, binary_output
    ),
    host=("dense_shape", "size"),
    dynamic=True,
    examples=_sparse_examples,
)
define(
    f"RaggedBincount(splits: int64, values: Tidx, {_DENSE}) -> (output: T)",
    shape=_ragged_shape,
    gradient=_ragged_gradient,
    kernel=lambda xp, splits, values, size, weights, *, binary_output: _counts(
        *_ragged_rows(splits, values), values, size, weights, binary_output
    ),
    host=("size",),
    dynamic=True,
    examples=_ragged_examples,
)

define(
    "Bincount(arr: int32, size: int32, weights: T; T: float32|float64|int32|int64) -> (bins: T)",
    shape=lambda values, size, weights: (static.scalar(size),),
    gradient=_bincount_gradient,
    kernel=_bincount,
    host=("size",),
    examples=lambda draw: [
        call(values := draw.integers(0, 3, *draw.shape()), size := np.int32(draw.size()), draw.normal(*values.shape)),
        call(values, size, np.zeros(0)),
    ],
)

# Sparse counts


def _sparse_counts(
    rows: Array, count: int | None, values: Any, weights: Any, minlength: int, maxlength: int, binary_output: bool,
    output_type: DType,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Numbers that are not below a maxlength above 0 are left out."""
    _check_weights(values, weights)
    if (values < 0).any():
        raise InvalidArgument("Numbers to be counted must not be negative.")
    kept = (values < maxlength) | (maxlength <= 0)
    table, inverse = np.unique(np.stack([rows[kept], values[kept]], 1), axis=0, return_inverse=True)
    totals = np.zeros(len(table), output_type.numpy)
    if binary_output:
        totals[:] = 1
    else:
        np.add.at(totals, inverse.reshape(-1), weights[kept] if weights.size else totals.dtype.type(1))
    width = maxlength if maxlength > 0 else max(int(values[kept].max(initial=0)) + 1, minlength)
    if count is None:
        return table[:, 1:].astype(np.int64), totals, np.array([width], np.int64)
    return table.astype(np.int64), totals, np.array([count, width], np.int64)


def _dense_count(
    xp: Any, values: Any, weights: Any, *, minlength: int, maxlength: int, binary_output: bool, output_type: DType
) -> tuple[Array, ...]:
    if values.ndim not in (1, 2):
        raise InvalidArgument(f"Numbers to be counted are a vector or a matrix, but have the shape {values.shape}.")
    _check_weights(values, weights)
    count = None if values.ndim == 1 else len(values)
    rows = np.zeros(values.size, np.int64) if count is None else np.repeat(np.arange(count), values.shape[1])
    rest = minlength, maxlength, binary_output, output_type
    return _sparse_counts(rows, count, values.reshape(-1), weights.reshape(-1), *rest)


def _sparse_count(
    xp: Any, indices: Any, values: Any, sizes: Any, weights: Any, *, minlength: int, maxlength: int,
    binary_output: bool, output_type: DType,
) -> tuple[Array, ...]:  # fmt: skip
    rest = minlength, maxlength, binary_output, output_type
    return _sparse_counts(*_sparse_rows(indices, values, sizes), values, weights, *rest)


def _ragged_count(
    xp: Any, splits: Any, values: Any, weights: Any, *, minlength: int, maxlength: int, binary_output: bool,
    output_type: DType,
) -> tuple[Array, ...]:  # fmt: skip
    rest = minlength, maxlength, binary_output, output_type
    return _sparse_counts(*_ragged_rows(splits, values), values, weights, *rest)


def _result_shape(rank: int | None) -> list[Shape]:
    return [(None, rank), (None,), (rank,)]


_SPARSE = (
    "weights: output_type; T: index, minlength: int = -1, maxlength: int = -1, binary_output: bool,"
    " output_type: float32|float64|int32|int64)"
    " -> (output_indices: int64, output_values: output_type, output_dense_shape: int64)"
)
define(
    f"DenseCountSparseOutput(values: T, {_SPARSE}",
    shape=lambda values, weights: _result_shape(None if values.shape is None else len(values.shape)),
    gradient=MISSING,
    kernel=_dense_count,
    dynamic=True,
    examples=lambda draw: [
        call(values := draw.integers(0, 4, *draw.shape(1, 2)), np.zeros(0), binary_output=False, minlength=3),
        call(values, draw.normal(*values.shape), binary_output=False, maxlength=3),
        call(values, np.zeros(0), binary_output=True),
    ],
)
define(
    f"SparseCountSparseOutput(indices: int64, values: T, dense_shape: int64, {_SPARSE}",
    shape=lambda *inputs: _result_shape(None),
    gradient=MISSING,
    kernel=_sparse_count,
    host=("dense_shape",),
    dynamic=True,
    examples=lambda draw: [
        call(at := draw.coordinates(2, 3), draw.integers(0, 4, len(at)), np.array([2, 3]), draw.normal(len(at)),
             binary_output=False)
    ],
)  # fmt: skip
define(
    f"RaggedCountSparseOutput(splits: int64, values: T, {_SPARSE}",
    shape=lambda *inputs: _result_shape(2),
    gradient=MISSING,
    kernel=_ragged_count,
    dynamic=True,
    examples=lambda draw: [call(*reversed(_drawn(draw)), np.zeros(0), binary_output=False, minlength=2)],
)
