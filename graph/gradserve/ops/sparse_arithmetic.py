"""Arithmetic on sparse tensors: sums, products, reductions, softmax.

A sparse tensor is (coordinates [n, rank], values [n], dense shape); gradients flow through values and dense operands.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph import dtypes, shapes, static
from gradserve.graph.graph import Tensor
from gradserve.graph.op import Rule, call, define, raw
from gradserve.graph.shapes import Shape
from gradserve.ops.coordinates import find, flat, in_order, keys, pick, sizes_of
from gradserve.ops.elementwise import conjugate
from gradserve.ops.gather import combine
from gradserve.ops.precision import is_narrow, widen
from gradserve.ops.sparse import FIRST, rank_of_shape

LAST = np.array([-1], np.int32)


def _entries(indices: Tensor) -> Shape:
    return (indices.shape[0] if indices.shape else None,)


def _examples(draw: Any, low: int = 1) -> tuple[Any, Any, Any]:
    sizes = draw.shape(low, 3)
    at = draw.coordinates(*sizes)
    return at, draw.normal(len(at)), np.array(sizes, np.int64)


# Sparse and sparse


def _add(
    xp: Any, a_at: Any, a: Any, a_shape: Any, b_at: Any, b: Any, b_shape: Any, threshold: Any
) -> tuple[Any, ...]:  # fmt: skip
    """Sums of entries that both have are dropped below the threshold; entries that one of them has stay."""
    if sizes_of(a_shape) != sizes_of(b_shape):
        raise InvalidArgument(f"Sparse tensors of shapes {list(a_shape)} and {list(b_shape)} can't be added.")
    indices, a_there, b_there, both = _union(a_at, a, b_at, b)
    total = a_there + b_there
    kept = ~both | (np.abs(total) >= threshold)
    return indices[kept], total[kept], np.asarray(a_shape)


def _union(a_at: Any, a: Any, b_at: Any, b: Any) -> tuple[Any, Any, Any, Any]:
    """The coordinates that a or b has, in order; the values of both there, and where both have one."""
    _, in_a = find(b_at, a_at)
    rows = np.concatenate([a_at, b_at[~in_a]])
    rows = rows[in_order(rows)]
    return rows, pick(a, rows, a_at), pick(b, rows, b_at), find(rows, a_at)[1] & find(rows, b_at)[1]


def _union_examples(draw: Any, numbers: Any = None) -> tuple[Any, ...]:
    sizes = draw.shape(1, 3)
    a, b = draw.coordinates(*sizes), draw.coordinates(*sizes)
    shape = np.array(sizes, np.int64)
    values = (numbers or draw.normal)(len(a) + len(b))
    return a, values[: len(a)], shape, b, values[len(a) :], shape


define(
    "SparseAdd(a_indices: int64, a_values: T, a_shape: int64, b_indices: int64, b_values: T, b_shape: int64,"
    " thresh: Treal; T: number, Treal: real) -> (sum_indices: int64, sum_values: T, sum_shape: int64)",
    shape=lambda a_at, a, a_shape, *_: [(None, rank_of_shape(a_shape)), (None,), a_shape.shape],
    gradient=lambda _, dy, __, at, y, ___, a_at, a, a_shape, b_at, b, b_shape, thresh: (
        None, (pair := raw.SparseAddGrad.outputs(dy, a_at, b_at, at))[0], None, None, pair[1], None, None,
    ),
    kernel=_add,
    dynamic=True,
    examples=lambda draw: [
        call(*_union_examples(draw), np.float64(0)),
        call(*_union_examples(draw, draw.complex), np.float64(0), differences=False),
    ],
)  # fmt: skip


def _add_grad_gradient(
    da: Tensor, db: Tensor, a: Tensor, b: Tensor, dy: Tensor, a_at: Tensor, b_at: Tensor, at: Tensor
) -> tuple[Any, ...]:
    """Looking values up by coordinate is undone by looking them up the other way round."""
    return looked_up(da, at, a_at) + looked_up(db, at, b_at), None, None, None


def looked_up(values: Tensor, wanted: Tensor, among: Tensor) -> Tensor:
    """The values of the wanted coordinates, of a tensor with `values` at the coordinates `among`; 0 where it has none."""
    return raw.SparseAddGrad.outputs(values, wanted, wanted, among)[0]


define(
    "SparseAddGrad(backprop_val_grad: T, a_indices: int64, b_indices: int64, sum_indices: int64; T: number)"
    " -> (a_val_grad: T, b_val_grad: T)",
    shape=lambda dy, a_at, b_at, at: [_entries(a_at), _entries(b_at)],
    gradient=_add_grad_gradient,
    kernel=lambda xp, dy, a_at, b_at, at: (pick(dy, a_at, at), pick(dy, b_at, at)),
    dynamic=True,
    examples=lambda draw: [
        call(draw.normal(len(at := draw.coordinates(2, 3))), draw.coordinates(2, 3), draw.coordinates(2, 3), at)
    ],
)


def _extreme_gradient(*arguments: Any, node: Any) -> tuple[Any, ...]:
    """The operand that gave the entry gets its cotangent, a at ties; absent entries count as 0."""
    dy, at, a_at, a, b_at, b = (arguments[k] for k in (1, 2, 4, 5, 7, 8))
    mine, other = looked_up(a, at, a_at), looked_up(b, at, b_at)
    wins = raw.GreaterEqual(mine, other) if node.type == "SparseSparseMaximum" else raw.LessEqual(mine, other)
    zeros = raw.ZerosLike(dy)
    da, db = raw.SelectV2(wins, dy, zeros), raw.SelectV2(wins, zeros, dy)
    return None, looked_up(da, a_at, at), None, None, looked_up(db, b_at, at), None


def _extreme(function: Any) -> Rule:
    def kernel(
        xp: Any, a_at: Any, a: Any, a_shape: Any, b_at: Any, b: Any, b_shape: Any
    ) -> tuple[Any, Any]:  # fmt: skip
        if sizes_of(a_shape) != sizes_of(b_shape):
            raise InvalidArgument(f"Sparse tensors of shapes {list(a_shape)} and {list(b_shape)} don't fit together.")
        indices, a_there, b_there, _ = _union(a_at, a, b_at, b)
        return indices, function(a_there, b_there)

    return kernel


for _name, _function, _types in (
    ("SparseSparseMaximum", np.maximum, "real"),
    ("SparseSparseMinimum", np.minimum, "number"),
):
    define(
        f"{_name}(a_indices: int64, a_values: T, a_shape: int64, b_indices: int64, b_values: T, b_shape: int64;"
        f" T: {_types}) -> (output_indices: int64, output_values: T)",
        shape=lambda a_at, a, a_shape, *_: [(None, rank_of_shape(a_shape)), (None,)],
        gradient=_extreme_gradient,
        kernel=_extreme(_function),
        dynamic=True,
        examples=lambda draw: [call(*_union_examples(draw, draw.distinct))],
    )

# Sparse and dense


def _dense_add(xp: Any, indices: Any, values: Any, shape: Any, dense: Any) -> Any:
    sizes = sizes_of(shape)
    if sizes != dense.shape:
        raise InvalidArgument(f"A sparse tensor of shape {list(sizes)} can't be added to a dense one of {dense.shape}.")
    places = flat(xp, indices, sizes)
    return xp.reshape(combine(xp, "add", xp.reshape(dense, (-1,)), places, values), sizes)


define(
    "SparseTensorDenseAdd(a_indices: Tindices, a_values: T, a_shape: Tindices, b: T; T: number, Tindices: index)"
    " -> (output: T)",
    shape=lambda indices, values, shape, dense: dense.shape,
    gradient=lambda dy, y, indices, values, shape, dense: (None, raw.GatherNd(dy, indices), None, dy),
    kernel=_dense_add,
    host=("a_shape",),
    examples=lambda draw: [call(*(e := _examples(draw)), draw.normal(*e[2]))],
)


def _dense_places(xp: Any, indices: Any, shape: Any, dense: Any) -> Any:
    """Where each sparse entry finds its partner in the dense operand, which broadcasts to the sparse shape."""
    sizes = sizes_of(shape)
    lead = len(sizes) - dense.ndim
    if lead < 0 or any(mine not in (1, whole) for mine, whole in zip(dense.shape, sizes[lead:], strict=True)):
        raise InvalidArgument(f"A dense tensor of shape {dense.shape} doesn't broadcast to the sparse {list(sizes)}.")
    flat(xp, indices, sizes)
    mask = xp.asarray([size != 1 for size in dense.shape], np.int64)
    return flat(xp, indices[:, lead:] * mask, dense.shape)


def _with_dense(function: Any) -> Rule:
    def kernel(xp: Any, indices: Any, values: Any, shape: Any, dense: Any) -> Any:
        partners = xp.reshape(dense, (-1,))[_dense_places(xp, indices, shape, dense)]
        return function(values, partners).astype(values.dtype)

    return kernel


def _partner_indices(indices: Tensor, shape: Tensor, dense: Tensor) -> Tensor:
    """The coordinates of the sparse entries in the dense operand."""
    rank = rank_of_shape(shape)
    if rank is not None and dense.shape is not None and shapes.is_static(dense.shape):
        columns = indices if rank == len(dense.shape) else _columns(indices, rank - len(dense.shape), rank)
        return columns * np.array([size != 1 for size in dense.shape], np.int64)
    begin = raw.Pack([np.int32(0), raw.Size(shape) - raw.Rank(dense)])
    columns = raw.Slice(indices, begin, np.array([-1, -1], np.int32))
    return columns * raw.Cast(raw.NotEqual(raw.Shape(dense), np.int32(1)), DstT=dtypes.int64)


def _columns(indices: Tensor, start: int, stop: int) -> Tensor:
    return raw.Slice(indices, np.array([0, start], np.int32), np.array([-1, stop - start], np.int32))


def _with_dense_gradient(
    dy: Tensor, y: Tensor, indices: Tensor, values: Tensor, shape: Tensor, dense: Tensor, *, node: Any
) -> tuple[Any, ...]:
    at = _partner_indices(indices, shape, dense)
    kind = node.type.removeprefix("SparseDenseCwise")
    dvalues, dpartners = dy, dy
    if kind != "Add":
        partners = raw.GatherNd(dense, at)
        dvalues = dy * conjugate(partners) if kind == "Mul" else dy / conjugate(partners)
        dpartners = dy * conjugate(values) if kind == "Mul" else -dvalues * conjugate(values / partners)
    size = raw.Cast(raw.Shape(dense), DstT=dtypes.int64) if not shapes.is_static(dense.shape) else None
    known = np.array(dense.shape, np.int64) if size is None else size
    return None, dvalues, None, raw.ScatterNd(at, dpartners, known)


def _with_dense_examples(draw: Any) -> list[Any]:
    at, values, shape = _examples(draw)
    dense = [draw.pick([1, int(size)]) for size in shape[draw.size(0, len(shape)) :]]
    return [
        call(at, values, shape, draw.positive(*dense)),
        call(at, draw.complex(len(at)), shape, draw.complex(*dense) + 2),
    ]


for _name, _function in (
    ("Add", lambda values, partners: values + partners),
    ("Mul", lambda values, partners: values * partners),
    ("Div", lambda values, partners: values / partners),
):
    define(
        f"SparseDenseCwise{_name}(sp_indices: int64, sp_values: T, sp_shape: int64, dense: T; T: number)"
        " -> (output: T)",
        shape=lambda indices, values, shape, dense: _entries(indices),
        gradient=_with_dense_gradient,
        kernel=_with_dense(_function),
        host=("sp_shape",),
        examples=_with_dense_examples,
    )

# Product of a sparse and a dense matrix


def _matmul(
    xp: Any, indices: Any, values: Any, shape: Any, b: Any, *, adjoint_a: bool, adjoint_b: bool
) -> Any:  # fmt: skip
    sizes = sizes_of(shape)
    if len(sizes) != 2 or b.ndim != 2:
        raise InvalidArgument(f"Only matrices are multiplied, not {list(sizes)} and {b.shape}.")
    flat(xp, indices, sizes)
    rows, columns = indices[:, 0], indices[:, 1]
    right = xp.conj(b.T) if adjoint_b else b
    if adjoint_a:
        rows, columns, sizes, values = columns, rows, sizes[::-1], xp.conj(values)
    if sizes[1] != right.shape[0]:
        raise InvalidArgument(f"Matrices of shapes {list(sizes)} and {right.shape} can't be multiplied.")
    products = widen(xp, values)[:, None] * widen(xp, right)[columns]
    return combine(xp, "add", xp.zeros((sizes[0], right.shape[1]), products.dtype), rows, products).astype(b.dtype)


def _matmul_shape(
    indices: Tensor, values: Tensor, shape: Tensor, b: Tensor, *, adjoint_a: bool, adjoint_b: bool
) -> Shape:
    sizes = static.shape_value(shape)
    rows = sizes[1 if adjoint_a else 0] if sizes is not None and len(sizes) == 2 else None
    return rows, None if b.shape is None else b.shape[0 if adjoint_b else 1]


def _matmul_gradient(
    dy: Tensor, y: Tensor, indices: Tensor, values: Tensor, shape: Tensor, b: Tensor, *,
    adjoint_a: bool, adjoint_b: bool,
) -> tuple[Any, ...]:  # fmt: skip
    """dA = dC B^H at the entries of A, dB = A^H dC; adjoint operands get the adjoint of that."""
    db = raw.SparseTensorDenseMatMul(indices, values, shape, dy, adjoint_a=not adjoint_a)
    right = _adjoint(b) if adjoint_b else b
    rows, columns = indices[:, 0], indices[:, 1]
    if adjoint_a:
        terms = raw.GatherV2(right, rows, FIRST) * conjugate(raw.GatherV2(dy, columns, FIRST))
    else:
        terms = raw.GatherV2(dy, rows, FIRST) * conjugate(raw.GatherV2(right, columns, FIRST))
    return None, raw.Sum(terms, np.int32(1)), None, _adjoint(db) if adjoint_b else db


def _adjoint(x: Tensor) -> Tensor:
    return conjugate(raw.Transpose(x, np.array([1, 0], np.int32)))


def _matmul_examples(draw: Any) -> list[Any]:
    rows, inner, columns = draw.size(), draw.size(), draw.size()
    examples: list[Any] = []
    for adjoint_a, adjoint_b in ((False, False), (True, False), (False, True), (True, True)):
        sizes = (inner, rows) if adjoint_a else (rows, inner)
        right = (columns, inner) if adjoint_b else (inner, columns)
        at = draw.coordinates(*sizes)
        for numbers in (draw.normal, draw.complex):
            operands = (at, numbers(len(at)), np.array(sizes, np.int64), numbers(*right))
            examples.append(call(*operands, adjoint_a=adjoint_a, adjoint_b=adjoint_b))
    return examples


define(
    "SparseTensorDenseMatMul(a_indices: Tindices, a_values: T, a_shape: int64, b: T; T: type,"
    " Tindices: index = int64, adjoint_a: bool = false, adjoint_b: bool = false) -> (product: T)",
    shape=_matmul_shape,
    gradient=_matmul_gradient,
    kernel=_matmul,
    host=("a_shape",),
    examples=_matmul_examples,
)

# Reductions


def _groups(shape: Any, axes: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The sizes of a sparse tensor, and the same with 1 for the axes that are reduced."""
    sizes = sizes_of(shape)
    reduced = {shapes.normalise_axis(int(axis), len(sizes)) for axis in np.ravel(axes)}
    return sizes, tuple(1 if axis in reduced else size for axis, size in enumerate(sizes))


def _group_places(xp: Any, indices: Any, sizes: tuple[int, ...], kept: tuple[int, ...]) -> Any:
    flat(xp, indices, sizes)
    # An axis of size 1 has only the index 0, reduced or not.
    return flat(xp, indices * xp.asarray([size != 1 for size in kept], np.int64), kept)


def _without(kept: tuple[int, ...], sizes: tuple[int, ...], axes: Any, keep_dims: bool) -> tuple[int, ...]:
    if keep_dims:
        return kept
    reduced = {shapes.normalise_axis(int(axis), len(sizes)) for axis in np.ravel(axes)}
    return tuple(size for axis, size in enumerate(kept) if axis not in reduced)


def _reduced(how: str) -> Rule:
    def kernel(xp: Any, indices: Any, values: Any, shape: Any, axes: Any, *, keep_dims: bool) -> Any:
        sizes, kept = _groups(shape, axes)
        places = _group_places(xp, indices, sizes, kept)
        zeros = xp.zeros((int(np.prod(kept, dtype=np.int64)),), values.dtype)
        if how == "add":
            wide = is_narrow(values.dtype)
            total = combine(xp, how, zeros.astype(xp.float32) if wide else zeros, places, widen(xp, values))
        else:  # the first entry replaces the 0 that stands where there is no entry
            total = combine(xp, how, combine(xp, "set", zeros, places, values), places, values)
        return xp.reshape(total.astype(values.dtype), _without(kept, sizes, axes, keep_dims))

    return kernel


def _reduced_sparse(how: str) -> Rule:
    def kernel(xp: Any, indices: Any, values: Any, shape: Any, axes: Any, *, keep_dims: bool) -> tuple[Any, ...]:
        sizes, kept = _groups(shape, axes)
        flat(np, indices, sizes)
        reduced = {shapes.normalise_axis(int(axis), len(sizes)) for axis in np.ravel(axes)}
        rows = indices * np.array([axis not in reduced for axis in range(len(sizes))], np.int64)
        _, first, group = np.unique(keys(rows)[0], return_index=True, return_inverse=True)
        result = values[first].copy() if how == "maximum" else np.zeros(len(first), values.dtype)
        getattr(np, how).at(result, group, values)
        table = rows[first]
        if not keep_dims:
            table = table[:, [axis for axis in range(len(sizes)) if axis not in reduced]]
        return table.astype(np.int64), result, np.array(_without(kept, sizes, axes, keep_dims), np.int64)

    return kernel


def _mask(shape: Tensor, axes: Tensor) -> Any:
    """1 for every axis that stays, 0 for those reduced (int64 [rank])."""
    rank, known = rank_of_shape(shape), static.value(axes)
    if rank is not None and known is not None:
        reduced = {shapes.normalise_axis(int(axis), rank) for axis in known.reshape(-1)}
        return np.array([axis not in reduced for axis in range(rank)], np.int64)
    count = raw.Size(shape)
    positive = raw.FloorMod(raw.Reshape(axes, LAST) + count, count)
    ones = raw.Fill(raw.Reshape(count, np.array([1], np.int32)), np.int64(1))
    everything = raw.Range(FIRST, count, np.int32(1))
    return raw.DynamicStitch([everything, positive], [ones, raw.Cast(raw.ZerosLike(positive), DstT=dtypes.int64)])


def each_entry(dense: Tensor, indices: Tensor, shape: Tensor, axes: Tensor) -> Tensor:
    """For each entry what a reduction over the axes gave for it; `dense` is the reduction, with or without the axes."""
    mask = _mask(shape, axes)
    kept = shape * mask + (1 - mask)
    return raw.GatherNd(raw.Reshape(dense, kept), indices * mask)


def _sum_gradient(
    dy: Tensor, y: Tensor, indices: Tensor, values: Tensor, shape: Tensor, axes: Tensor
) -> tuple[Any, ...]:
    return None, each_entry(dy, indices, shape, axes), None, None


def _max_gradient(
    dy: Tensor, y: Tensor, indices: Tensor, values: Tensor, shape: Tensor, axes: Tensor
) -> tuple[Any, ...]:
    """Entries that reach the maximum share its cotangent equally."""
    return None, _shared(dy, y, indices, values, shape, axes), None, None


def _shared(dy: Tensor, y: Tensor, indices: Tensor, values: Tensor, shape: Tensor, axes: Tensor) -> Tensor:
    hits = raw.Cast(raw.Equal(values, each_entry(y, indices, shape, axes)), DstT=values.dtype)
    counts = raw.SparseReduceSum(indices, hits, shape, axes, keep_dims=True)
    return hits * each_entry(dy, indices, shape, axes) / each_entry(counts, indices, shape, axes)


def _dense(values: Tensor, at: Tensor, shape: Tensor) -> Tensor:
    return raw.SparseToDense(at, shape, values, np.zeros((), values.dtype.numpy))


def _sparse_gradient(
    _: Any, dy: Tensor, __: Any, at: Tensor, y: Tensor, size: Tensor, indices: Tensor, values: Tensor, shape: Tensor,
    axes: Tensor, *, node: Any,
) -> tuple[Any, ...]:  # fmt: skip
    whole = _dense(dy, at, size)
    if node.type == "SparseReduceSumSparse":
        return None, each_entry(whole, indices, shape, axes), None, None
    return None, _shared(whole, _dense(y, at, size), indices, values, shape, axes), None, None


def _reduced_shape(
    indices: Tensor, values: Tensor, shape: Tensor, axes: Tensor, *, keep_dims: bool
) -> Shape:  # fmt: skip
    sizes, known = static.shape_value(shape), static.value(axes)
    if sizes is None or known is None:
        return None
    reduced = {shapes.normalise_axis(int(axis), len(sizes)) for axis in known.reshape(-1)}
    if keep_dims:
        return tuple(1 if axis in reduced else size for axis, size in enumerate(sizes))
    return tuple(size for axis, size in enumerate(sizes) if axis not in reduced)


def _reduced_sparse_shapes(
    indices: Tensor, values: Tensor, shape: Tensor, axes: Tensor, *, keep_dims: bool
) -> list[Shape]:
    whole = _reduced_shape(indices, values, shape, axes, keep_dims=keep_dims)
    rank = None if whole is None else len(whole)
    return [(None, rank), (None,), (rank,)]


def _reduction_examples(draw: Any) -> list[Any]:
    at, _, shape = _examples(draw)
    axes = np.array(sorted({draw.size(0, len(shape) - 1) for _ in range(draw.size(0, 2))}), np.int32)
    return [
        call(at, draw.distinct(len(at)), shape, chosen, keep_dims=keep)
        for chosen, keep in ((axes, False), (axes, True), (np.int32(-1), False))
    ]


_INPUTS = "input_indices: int64, input_values: T, input_shape: int64, reduction_axes: int32; keep_dims: bool = false"
for _name, _how, _types, _rule in (
    ("Sum", "add", "number", _sum_gradient),
    ("Max", "maximum", "real", _max_gradient),
):
    define(
        f"SparseReduce{_name}({_INPUTS}, T: {_types}) -> (output: T)",
        shape=_reduced_shape,
        gradient=_rule,
        kernel=_reduced(_how),
        host=("input_shape", "reduction_axes"),
        examples=_reduction_examples,
    )
    define(
        f"SparseReduce{_name}Sparse({_INPUTS}, T: {_types})"
        " -> (output_indices: int64, output_values: T, output_shape: int64)",
        shape=_reduced_sparse_shapes,
        gradient=_sparse_gradient,
        kernel=_reduced_sparse(_how),
        host=("input_shape", "reduction_axes"),
        dynamic=True,
        examples=_reduction_examples,
    )

# Softmax


def _softmax(xp: Any, indices: Any, values: Any, shape: Any) -> Any:
    """Over the entries of each row (the last axis); what is not there counts as minus infinity."""
    sizes = sizes_of(shape)
    if len(sizes) < 2:
        raise InvalidArgument(f"A sparse softmax needs at least a matrix, not the shape {list(sizes)}.")
    flat(xp, indices, sizes)
    rows = flat(xp, indices[:, :-1], sizes[:-1])
    wide = widen(xp, values)
    empty = xp.zeros((int(np.prod(sizes[:-1], dtype=np.int64)),), wide.dtype)
    largest = combine(xp, "maximum", combine(xp, "set", empty, rows, wide), rows, wide)
    shares = xp.exp(wide - largest[rows])
    return (shares / combine(xp, "add", empty, rows, shares)[rows]).astype(values.dtype)


def _softmax_gradient(dy: Tensor, y: Tensor, indices: Tensor, values: Tensor, shape: Tensor) -> tuple[Any, ...]:
    axis = indices.graph.constant(LAST)
    mean = raw.SparseReduceSum(indices, dy * y, shape, axis, keep_dims=True)
    return None, y * (dy - each_entry(mean, indices, shape, axis)), None


define(
    "SparseSoftmax(sp_indices: int64, sp_values: T, sp_shape: int64; T: float16|float32|float64) -> (output: T)",
    shape=lambda indices, values, shape: values.shape,
    gradient=_softmax_gradient,
    kernel=_softmax,
    host=("sp_shape",),
    examples=lambda draw: [call(*_examples(draw, 2))],
)
