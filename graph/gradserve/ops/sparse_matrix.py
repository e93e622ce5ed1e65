"""Sparse matrices as values of dtype variant, one or a batch: TensorFlow's CSRSparseMatrix ops.

A cotangent of a matrix is a matrix. It may have entries where the matrix has none, and lack some: every rule looks
at the entries that it asks for, and takes 0 for those that are not there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument, InvalidType
from gradserve.graph import dtypes
from gradserve.graph.dtypes import DType
from gradserve.graph.graph import Node, Tensor
from gradserve.graph.op import NOT_DIFFERENTIABLE, Example, define, raw, within
from gradserve.graph.shapes import Shape, is_static
from gradserve.graph.variants import Variant
from gradserve.ops.coordinates import flat, in_order, keys, pick, sizes_of
from gradserve.ops.elementwise import conjugate
from gradserve.ops.gather import combine
from gradserve.ops.linalg import adjoint as adjoint_of
from gradserve.ops.sparse_arithmetic import each_entry, looked_up

Array = np.ndarray[Any, Any]
FIRST = np.int32(0)


@dataclass(frozen=True, slots=True, eq=False)
class SparseMatrix(Variant):
    """A sparse matrix, or a batch of them.

    Attributes:
        sizes: [rows, columns] or [batch, rows, columns].
        indices: coordinates of the entries in row-major order, int64 [n, rank].
        values: of the entries [n].
    """

    sizes: tuple[int, ...]
    indices: Array
    values: Array

    @property
    def rows(self) -> Array:
        """The row of each entry, counted through the batch."""
        return flat(np, self.indices[:, :-1], self.sizes[:-1])

    def row_pointers(self, place: int) -> Array:
        """Where each row of matrix number `place` begins among that matrix's entries, and where the last one ends."""
        count = self.sizes[-2]
        return np.searchsorted(self.rows, np.arange(place * count, place * count + count + 1))

    def with_values(self, values: Array) -> SparseMatrix:
        """The same entries with other values."""
        return SparseMatrix(self.sizes, self.indices, values)

    def conjugate(self) -> SparseMatrix:
        """The conjugate of each entry: NumPy asks an array of objects for it, as Conj does."""
        return self.with_values(np.conj(self.values))

    def transposed(self, conjugated: bool) -> SparseMatrix:
        """Rows and columns swapped."""
        order = [*range(len(self.sizes) - 2), -1, -2]
        values = np.conj(self.values) if conjugated else self.values
        return made((*self.sizes[:-2], self.sizes[-1], self.sizes[-2]), self.indices[:, order], values)

    def zeros_like(self) -> SparseMatrix:
        return SparseMatrix(self.sizes, self.indices[:0], self.values[:0])

    def plus(self, other: SparseMatrix) -> SparseMatrix:
        if self.sizes != other.sizes:
            raise InvalidArgument(f"Sparse matrices of shapes {self.sizes} and {other.sizes} can't be added.")
        indices = np.concatenate([self.indices, other.indices])
        return summed(self.sizes, indices, np.concatenate([self.values, other.values]))


def made(sizes: tuple[int, ...], indices: Array, values: Array) -> SparseMatrix:
    """The matrix with these entries, in any order. Raises InvalidArgument where one lies outside."""
    if len(sizes) not in (2, 3):
        raise InvalidArgument(f"A sparse matrix has the rank 2, or 3 with a batch, but the shape is {list(sizes)}.")
    flat(np, indices, sizes)
    order = in_order(indices)
    return SparseMatrix(sizes, indices[order].astype(np.int64), values[order])


def summed(sizes: tuple[int, ...], indices: Array, values: Array) -> SparseMatrix:
    """The matrix with these entries, those of one place added up."""
    _, first, group = np.unique(keys(indices)[0], return_index=True, return_inverse=True)
    return SparseMatrix(sizes, indices[first], combine(np, "add", np.zeros(len(first), values.dtype), group, values))


# Examples: dense matrices, of which some entries make a sparse one, and dense results


def _matrices(draw: Any, *inner: int, is_complex: bool = False) -> Any:
    """One matrix or two of these inner sizes."""
    return (draw.complex if is_complex else draw.normal)(*([2] if draw.size(0, 1) else []), *inner)


def _within(way: Callable[..., Tensor], dense: Array, at: Array, *more: Array, order: int = 2) -> Example:
    """What a way makes of a sparse matrix, read as a dense one."""

    def build(x: Tensor, *others: Tensor) -> list[Tensor]:
        return [raw.CSRSparseMatrixToDense(way(raw.DenseToCSRSparseMatrix(x, at), *others), type=x.dtype.base)]

    return within(build, dense, *more, order=order)


def _one(
    way: Callable[[Tensor], Tensor], *, order: int = 2, is_complex: bool = False
) -> Callable[[Any], list[Example]]:
    """Examples of a way from one sparse matrix to another."""

    def examples(draw: Any) -> list[Example]:
        dense = _matrices(draw, draw.size(), draw.size(), is_complex=is_complex)
        return [_within(way, dense, draw.coordinates(*dense.shape), order=order)]

    return examples


def _flag(draw: Any, side: str) -> dict[str, Any]:
    kind = draw.pick(["", "transpose", "adjoint"])
    return {f"{kind}_{side}": True} if kind else {}


def _turned(flags: Mapping[str, Any], rows: int, columns: int) -> tuple[int, int]:
    return (columns, rows) if flags else (rows, columns)


# Made from and into other things

_TYPES = "complex128|complex64|float32|float64"


def parts(matrix: Tensor, dtype: DType) -> tuple[Tensor, ...]:
    """Indices, values and dense shape of a sparse matrix."""
    return raw.CSRSparseMatrixToSparseTensor.outputs(matrix, type=dtype)


def entries(matrix: Tensor, indices: Tensor, dtype: DType) -> Tensor:
    """The values of a sparse matrix at these places, 0 where it has no entry."""
    there, values, _ = parts(matrix, dtype)
    return looked_up(values, indices, there)


def _from_sparse_gradient(
    dy: Tensor, y: Tensor, indices: Tensor, values: Tensor, shape: Tensor
) -> tuple[Any, ...]:  # fmt: skip
    return None, entries(dy, indices, values.dtype), None


def _values_examples(draw: Any) -> list[Example]:
    """Entries in any order."""
    sizes = (2, draw.size(), draw.size())[draw.size(0, 1) :]
    at = draw.coordinates(*sizes)
    at = at[draw.permutation(len(at))]

    def there_and_back(x: Tensor) -> list[Tensor]:
        matrix = raw.SparseTensorToCSRSparseMatrix(at, x, np.array(sizes, np.int64))
        return [raw.CSRSparseMatrixToSparseTensor.outputs(matrix, type=x.dtype.base)[1]]

    return [within(there_and_back, draw.complex(len(at)))]


define(
    f"SparseTensorToCSRSparseMatrix(indices: int64, values: T, dense_shape: int64; T: {_TYPES})"
    " -> (sparse_matrix: variant)",
    shape=lambda indices, values, shape: (),
    gradient=_from_sparse_gradient,
    kernel=lambda xp, indices, values, shape: made(sizes_of(shape), indices, values),
    dynamic=True,
    examples=_values_examples,
)


def _to_sparse(xp: Any, matrix: SparseMatrix, *, node: Node) -> tuple[Array, Array, Array]:
    return matrix.indices, _typed(matrix, node).values, np.array(matrix.sizes, np.int64)


def _typed(matrix: SparseMatrix, node: Node) -> SparseMatrix:
    wanted = node.attrs["type"]
    if matrix.values.dtype != wanted.numpy:
        raise InvalidType(
            f"{node.name} ({node.type}) wants a sparse matrix of {wanted}, but has one of {matrix.values.dtype}.",
            node=node.name, op=node.type,
        )  # fmt: skip
    return matrix


define(
    f"CSRSparseMatrixToSparseTensor(sparse_matrix: variant; type: {_TYPES})"
    " -> (indices: int64, values: type, dense_shape: int64)",
    shape=lambda matrix: [(None, None), (None,), (None,)],
    gradient=lambda _, dvalues, __, indices, values, shape, matrix: raw.SparseTensorToCSRSparseMatrix(
        indices, dvalues, shape
    ),
    kernel=_to_sparse,
    dynamic=True,
    examples=_values_examples,
)


def _from_dense_gradient(dy: Tensor, y: Tensor, dense: Tensor, indices: Tensor) -> tuple[Any, ...]:
    known = np.array(dense.shape, np.int64) if is_static(dense.shape) else raw.Shape(dense, out_type=dtypes.int64)
    return raw.ScatterNd(indices, entries(dy, indices, dense.dtype), known), None


def _from_dense(xp: Any, dense: Any, indices: Any) -> SparseMatrix:
    places = flat(np, indices, dense.shape)
    return made(dense.shape, indices, dense.reshape(-1)[places])


define(
    f"DenseToCSRSparseMatrix(dense_input: T, indices: int64; T: {_TYPES}) -> (sparse_output: variant)",
    shape=lambda dense, indices: (),
    gradient=_from_dense_gradient,
    kernel=_from_dense,
    dynamic=True,
    examples=_one(lambda matrix: matrix, is_complex=True),
)


def _to_dense(xp: Any, matrix: SparseMatrix, *, node: Node) -> Array:
    zeros = np.zeros(matrix.sizes, node.attrs["type"].numpy)
    return combine(np, "add", zeros, tuple(matrix.indices.T), _typed(matrix, node).values)


def _to_dense_gradient(dy: Tensor, y: Tensor, matrix: Tensor) -> Tensor:
    indices, _, shape = parts(matrix, y.dtype)
    return raw.SparseTensorToCSRSparseMatrix(indices, raw.GatherNd(dy, indices), shape)


define(
    f"CSRSparseMatrixToDense(sparse_input: variant; type: {_TYPES}) -> (dense_output: type)",
    gradient=_to_dense_gradient,
    kernel=_to_dense,
    dynamic=True,
    examples=_one(lambda matrix: matrix),
)


def _components(xp: Any, matrix: SparseMatrix, place: Any, *, node: Node) -> tuple[Array, Array, Array]:
    count = matrix.sizes[0] if len(matrix.sizes) == 3 else 1
    if not 0 <= place < count:
        raise InvalidArgument(f"There is no matrix {place} among {count}.")
    pointers = matrix.row_pointers(int(place))
    chosen = slice(pointers[0], pointers[-1])
    columns = matrix.indices[chosen, -1].astype(np.int32)
    return (pointers - pointers[0]).astype(np.int32), columns, _typed(matrix, node).values[chosen]


def _components_gradient(
    _: Any, __: Any, dvalues: Tensor, pointers: Tensor, columns: Tensor, values: Tensor, matrix: Tensor, place: Tensor
) -> tuple[Any, ...]:
    indices, whole, shape = parts(matrix, values.dtype)
    is_batch = raw.Cast(raw.Equal(raw.Size(shape), np.int32(3)), DstT=dtypes.int64)
    mine = raw.Where(raw.Equal(indices[:, 0] * is_batch, raw.Cast(place, DstT=dtypes.int64)))
    spread = raw.ScatterNd(mine, dvalues, raw.Shape(whole, out_type=dtypes.int64))
    return raw.SparseTensorToCSRSparseMatrix(indices, spread, shape), None


def _components_examples(draw: Any) -> list[Example]:
    dense = _matrices(draw, draw.size(), draw.size())
    at, place = draw.coordinates(*dense.shape), np.int32(draw.size(0, 1) if dense.ndim == 3 else 0)

    def function(x: Tensor) -> list[Tensor]:
        matrix = raw.DenseToCSRSparseMatrix(x, at)
        return [raw.CSRSparseMatrixComponents.outputs(matrix, place, type=x.dtype.base)[2]]

    return [within(function, dense)]


define(
    f"CSRSparseMatrixComponents(csr_sparse_matrix: variant, index: int32; type: {_TYPES})"
    " -> (row_ptrs: int32, col_inds: int32, values: type)",
    shape=lambda matrix, place: [(None,), (None,), (None,)],
    gradient=_components_gradient,
    kernel=_components,
    dynamic=True,
    examples=_components_examples,
)
define(
    "SparseMatrixNNZ(sparse_matrix: variant) -> (nnz: int32)",
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp, matrix: _counts(matrix),
    dynamic=True,
)


def _counts(matrix: SparseMatrix) -> Any:
    """The number of entries, of each matrix where there is a batch."""
    if len(matrix.sizes) == 2:
        return np.int32(len(matrix.values))
    return np.bincount(matrix.indices[:, 0], minlength=matrix.sizes[0]).astype(np.int32)


define(
    f"SparseMatrixZeros(dense_shape: int64; type: {_TYPES}) -> (sparse_matrix: variant)",
    shape=lambda shape: (),
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp, shape, *, node: made(
        sizes_of(shape), np.zeros((0, len(shape)), np.int64), np.zeros(0, node.attrs["type"].numpy)
    ),
    dynamic=True,
)

# Linear maps


def _transposed(xp: Any, matrix: SparseMatrix, *, conjugate: bool) -> SparseMatrix:
    return matrix.transposed(conjugate)


def _transposed_examples(draw: Any) -> list[Example]:
    attrs: dict[str, Any] = {"conjugate": draw.pick([True, False]), "type": "complex128"}
    return _one(lambda matrix: raw.SparseMatrixTranspose(matrix, **attrs), is_complex=True)(draw)


define(
    f"SparseMatrixTranspose(input: variant; conjugate: bool = false, type: {_TYPES}) -> (output: variant)",
    shape=lambda matrix: (),
    gradient=lambda dy, y, matrix, *, node: raw.SparseMatrixTranspose(
        dy, conjugate=node.attrs["conjugate"], type=node.attrs["type"]
    ),
    kernel=_transposed,
    dynamic=True,
    examples=_transposed_examples,
)


def _add_gradient(
    dy: Tensor, y: Tensor, a: Tensor, b: Tensor, alpha: Tensor, beta: Tensor
) -> tuple[Any, ...]:  # fmt: skip
    das = [raw.SparseMatrixMul(dy, conjugate(scale)) for scale in (alpha, beta)]
    return (*das, _inner(a, dy, alpha), _inner(b, dy, beta))


def _inner(matrix: Tensor, dy: Tensor, scale: Tensor) -> Tensor:
    indices, values, _ = parts(matrix, scale.dtype)
    return raw.Sum(entries(dy, indices, scale.dtype) * conjugate(values), np.array([0], np.int32))


def _add_examples(draw: Any) -> list[Example]:
    dense = _matrices(draw, draw.size(), draw.size(), is_complex=True)
    at, other_at = draw.coordinates(*dense.shape), draw.coordinates(*dense.shape)

    def added(matrix: Tensor, x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        return raw.SparseMatrixAdd(matrix, raw.DenseToCSRSparseMatrix(x, other_at), alpha, beta)

    return [_within(added, dense, at, dense + 1j, draw.complex(), draw.complex())]


define(
    f"SparseMatrixAdd(a: variant, b: variant, alpha: T, beta: T; T: {_TYPES}) -> (c: variant)",
    shape=lambda a, b, alpha, beta: (),
    gradient=_add_gradient,
    kernel=lambda xp, a, b, alpha, beta: a.with_values(alpha * a.values) + b.with_values(beta * b.values),
    dynamic=True,
    examples=_add_examples,
)


def _scaled(xp: Any, matrix: SparseMatrix, scale: Any) -> SparseMatrix:
    """Each entry times the one of a dense array that broadcasts to the matrix."""
    try:
        whole = np.broadcast_to(scale, matrix.sizes)
    except ValueError:
        raise InvalidArgument(
            f"A dense tensor of shape {scale.shape} doesn't broadcast to the sparse matrix {list(matrix.sizes)}."
        ) from None
    return matrix.with_values(matrix.values * whole[tuple(matrix.indices.T)])


def _scaled_gradient(dy: Tensor, y: Tensor, matrix: Tensor, scale: Tensor) -> tuple[Any, ...]:
    indices, values, shape = parts(matrix, scale.dtype)
    terms = entries(dy, indices, scale.dtype) * conjugate(values)
    known = raw.Shape(scale, out_type=dtypes.int64)
    ones = raw.Fill(raw.ExpandDims(raw.Size(shape) - raw.Rank(scale), FIRST), np.int64(1))
    kept = raw.ConcatV2([ones, known], FIRST)
    at = indices * raw.Cast(raw.NotEqual(kept, np.int64(1)), DstT=dtypes.int64)
    return raw.SparseMatrixMul(dy, conjugate(scale)), raw.Reshape(raw.ScatterNd(at, terms, kept), known)


def _scaled_examples(draw: Any) -> list[Example]:
    dense = _matrices(draw, rows := draw.size(), columns := draw.size(), is_complex=True)
    scale = draw.complex(*draw.pick([(), (columns,), (rows, 1), (*dense.shape[:-2], 1, columns)]))
    return [_within(raw.SparseMatrixMul, dense, draw.coordinates(*dense.shape), scale)]


define(
    "SparseMatrixMul(a: variant, b: T; T: type) -> (output: variant)",
    shape=lambda matrix, scale: (),
    gradient=_scaled_gradient,
    kernel=_scaled,
    dynamic=True,
    examples=_scaled_examples,
)

# Products


def _operand(matrix: SparseMatrix, transpose: bool, adjoint: bool) -> SparseMatrix:
    if transpose and adjoint:
        raise InvalidArgument("An operand can be transposed or adjoint, not both.")
    return matrix.transposed(adjoint) if transpose or adjoint else matrix


def _flipped(x: Any, conjugated: bool) -> Any:
    flipped = np.swapaxes(x, -1, -2)
    return np.conj(flipped) if conjugated else flipped


def _matmul(
    xp: Any, a: SparseMatrix, b: Any, *, transpose_a: bool, transpose_b: bool, adjoint_a: bool, adjoint_b: bool,
    transpose_output: bool, conjugate_output: bool,
) -> Any:  # fmt: skip
    left = _operand(a, transpose_a, adjoint_a)
    if transpose_b and adjoint_b:
        raise InvalidArgument("An operand can be transposed or adjoint, not both.")
    right = _flipped(b, adjoint_b) if transpose_b or adjoint_b else b
    if right.ndim != len(left.sizes) or (*right.shape[:-2], right.shape[-2]) != (*left.sizes[:-2], left.sizes[-1]):
        raise InvalidArgument(f"Matrices of shapes {left.sizes} and {right.shape} can't be multiplied.")
    columns = left.indices[:, [*range(len(left.sizes) - 2), -1]]
    terms = left.values[:, None] * right[tuple(columns.T)]
    zeros = np.zeros((*left.sizes[:-1], right.shape[-1]), terms.dtype)
    product = combine(np, "add", zeros, tuple(left.indices[:, :-1].T), terms)
    product = np.swapaxes(product, -1, -2) if transpose_output else product
    return np.conj(product) if conjugate_output else product


def _rows(x: Tensor, indices: Tensor, by_column: bool) -> Tensor:
    """For each entry of a sparse matrix the row of x, of the same batch, with the number of its row or column."""
    if x.shape is not None and len(x.shape) == 2:
        return raw.GatherV2(x, indices[:, int(by_column)], FIRST)
    if by_column:
        return raw.GatherNd(x, raw.ConcatV2([indices[:, :-2], indices[:, -1:]], np.int32(1)))
    return raw.GatherNd(x, indices[:, :-1])


def _matmul_gradient(
    dy: Tensor, y: Tensor, a: Tensor, b: Tensor, *, transpose_a: bool, transpose_b: bool, adjoint_a: bool,
    adjoint_b: bool, transpose_output: bool, conjugate_output: bool,
) -> tuple[Any, ...]:  # fmt: skip
    """Of M = op(a) op(b): d op(a) = dM op(b)^H at the entries of a, d op(b) = op(a)^H dM."""
    dm = conjugate(dy) if conjugate_output else dy
    dm = conjugate(adjoint_of(dm)) if transpose_output else dm
    right = conjugate(adjoint_of(b)) if transpose_b else adjoint_of(b) if adjoint_b else b
    indices, _, shape = parts(a, b.dtype)
    left, met = _rows(dm, indices, transpose_a or adjoint_a), _rows(right, indices, not (transpose_a or adjoint_a))
    da = raw.Sum(left * conjugate(met), np.array([1], np.int32))
    da = conjugate(da) if adjoint_a else da
    if transpose_a:
        db = conjugate(raw.SparseMatrixMatMul(a, conjugate(dm)))
    else:
        db = raw.SparseMatrixMatMul(a, dm, adjoint_a=not adjoint_a)
    db = conjugate(adjoint_of(db)) if transpose_b else adjoint_of(db) if adjoint_b else db
    return raw.SparseTensorToCSRSparseMatrix(indices, da, shape), db


def _matmul_shape(a: Tensor, b: Tensor, *, transpose_b: bool, adjoint_b: bool, transpose_output: bool) -> Shape:
    if b.shape is None:
        return None
    columns = b.shape[-2 if transpose_b or adjoint_b else -1]
    return (*b.shape[:-2], columns, None) if transpose_output else (*b.shape[:-2], None, columns)


def _matmul_examples(draw: Any) -> list[Example]:
    flags = _flag(draw, "a"), _flag(draw, "b")
    attrs: dict[str, Any] = {"transpose_output": draw.pick([True, False]), "conjugate_output": draw.pick([True, False])}
    rows, inner, columns = draw.size(), draw.size(), draw.size()
    dense = _matrices(draw, *_turned(flags[0], rows, inner), is_complex=True)
    at, other = draw.coordinates(*dense.shape), draw.complex(*dense.shape[:-2], *_turned(flags[1], inner, columns))

    def product(x: Tensor, y: Tensor) -> list[Tensor]:
        return [raw.SparseMatrixMatMul(raw.DenseToCSRSparseMatrix(x, at), y, **flags[0], **flags[1], **attrs)]

    return [within(product, dense, other)]


_FLAGS = "transpose_a: bool = false, transpose_b: bool = false, adjoint_a: bool = false, adjoint_b: bool = false"
define(
    f"SparseMatrixMatMul(a: variant, b: T; T: type, {_FLAGS}, transpose_output: bool = false,"
    " conjugate_output: bool = false) -> (output: T)",
    shape=_matmul_shape,
    gradient=_matmul_gradient,
    kernel=_matmul,
    dynamic=True,
    examples=_matmul_examples,
)


def _sparse_matmul(
    xp: Any, a: SparseMatrix, b: SparseMatrix, *, transpose_a: bool, transpose_b: bool, adjoint_a: bool,
    adjoint_b: bool, node: Node,
) -> SparseMatrix:  # fmt: skip
    """Each entry (i, k) of the left matrix meets row k of the right one."""
    left = _operand(_typed(a, node), transpose_a, adjoint_a)
    right = _operand(_typed(b, node), transpose_b, adjoint_b)
    if (*left.sizes[:-2], left.sizes[-1]) != right.sizes[:-1]:
        raise InvalidArgument(f"Matrices of shapes {left.sizes} and {right.sizes} can't be multiplied.")
    met = flat(np, left.indices[:, [*range(len(left.sizes) - 2), -1]], right.sizes[:-1])
    starts, stops = (np.searchsorted(right.rows, met, side) for side in ("left", "right"))
    counts = stops - starts
    mine = np.repeat(np.arange(len(met)), counts)
    other = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + starts[mine]
    table = np.concatenate([left.indices[mine, :-1], right.indices[other, -1:]], 1)
    return summed((*left.sizes[:-1], right.sizes[-1]), table, left.values[mine] * right.values[other])


def _sparse_matmul_gradient(
    dy: Tensor, y: Tensor, a: Tensor, b: Tensor, *, transpose_a: bool, transpose_b: bool, adjoint_a: bool,
    adjoint_b: bool, node: Node,
) -> tuple[Any, ...]:  # fmt: skip
    kind = node.attrs["type"]

    def turned(matrix: Tensor, transpose: bool, adjoint: bool) -> Tensor:
        return raw.SparseMatrixTranspose(matrix, conjugate=adjoint, type=kind) if transpose or adjoint else matrix

    def pruned(matrix: Tensor, like: Tensor) -> Tensor:
        indices, _, shape = parts(like, kind)
        return raw.SparseTensorToCSRSparseMatrix(indices, entries(matrix, indices, kind), shape)

    left, right = turned(a, transpose_a, adjoint_a), turned(b, transpose_b, adjoint_b)
    da = raw.SparseMatrixSparseMatMul(dy, right, adjoint_b=True, type=kind)
    db = raw.SparseMatrixSparseMatMul(left, dy, adjoint_a=True, type=kind)
    return pruned(turned(da, transpose_a, adjoint_a), a), pruned(turned(db, transpose_b, adjoint_b), b)


def _sparse_matmul_examples(draw: Any) -> list[Example]:
    flags = _flag(draw, "a"), _flag(draw, "b")
    rows, inner, columns = draw.size(), draw.size(), draw.size()
    dense = _matrices(draw, *_turned(flags[0], rows, inner), is_complex=True)
    other = draw.complex(*dense.shape[:-2], *_turned(flags[1], inner, columns))
    other_at = draw.coordinates(*other.shape)

    def product(matrix: Tensor, y: Tensor) -> Tensor:
        right = raw.DenseToCSRSparseMatrix(y, other_at)
        return raw.SparseMatrixSparseMatMul(matrix, right, type=y.dtype.base, **flags[0], **flags[1])

    return [_within(product, dense, draw.coordinates(*dense.shape), other)]


define(
    f"SparseMatrixSparseMatMul(a: variant, b: variant; type: {_TYPES}, {_FLAGS}) -> (c: variant)",
    shape=lambda a, b: (),
    gradient=_sparse_matmul_gradient,
    kernel=_sparse_matmul,
    dynamic=True,
    examples=_sparse_matmul_examples,
)

# Softmax


def _over_rows(matrix: SparseMatrix, values: Array) -> Array:
    """For each entry the sum of the values in its row."""
    rows = matrix.rows
    return combine(np, "add", np.zeros(int(np.prod(matrix.sizes[:-1])), values.dtype), rows, values)[rows]


def _softmax(xp: Any, matrix: SparseMatrix, *, node: Node) -> SparseMatrix:
    """Over the entries of each row; what is not there counts as minus infinity."""
    rows, values = matrix.rows, _typed(matrix, node).values
    largest = np.full(int(np.prod(matrix.sizes[:-1])), -np.inf, values.dtype)
    shares = np.exp(values - combine(np, "maximum", largest, rows, values)[rows])
    return matrix.with_values(shares / _over_rows(matrix, shares))


def _softmax_grad(xp: Any, softmax: SparseMatrix, dy: SparseMatrix, *, node: Node) -> SparseMatrix:
    slope = pick(dy.values, softmax.indices, dy.indices)
    shares = _typed(softmax, node).values
    return softmax.with_values(shares * (slope - _over_rows(softmax, shares * slope)))


def _softmax_grad_gradient(dz: Tensor, z: Tensor, softmax: Tensor, dy: Tensor, *, node: Node) -> tuple[Any, ...]:
    """z = s (g - sum s g) over rows: linear and symmetric in g; ds = dz (g - sum s g) - g sum dz s."""
    kind = node.attrs["type"]
    indices, shares, shape = parts(softmax, kind)
    slope, incoming = entries(dy, indices, kind), entries(dz, indices, kind)
    axis = indices.graph.constant(np.array([-1], np.int32))

    def over_rows(values: Tensor) -> Tensor:
        return each_entry(raw.SparseReduceSum(indices, values, shape, axis, keep_dims=True), indices, shape, axis)

    ds = incoming * (slope - over_rows(shares * slope)) - slope * over_rows(incoming * shares)
    return raw.SparseTensorToCSRSparseMatrix(indices, ds, shape), raw.SparseMatrixSoftmaxGrad(softmax, dz, type=kind)


def _softmax_grad_examples(draw: Any) -> list[Example]:
    """Of matrices with entries in other places."""
    dense = _matrices(draw, draw.size(), draw.size())
    other_at = draw.coordinates(*dense.shape)

    def slope(matrix: Tensor, y: Tensor) -> Tensor:
        return raw.SparseMatrixSoftmaxGrad(matrix, raw.DenseToCSRSparseMatrix(y, other_at), type=y.dtype.base)

    return [_within(slope, dense, draw.coordinates(*dense.shape), dense + 1)]


define(
    "SparseMatrixSoftmax(logits: variant; type: float32|float64) -> (softmax: variant)",
    shape=lambda matrix: (),
    gradient=lambda dy, y, matrix, *, node: raw.SparseMatrixSoftmaxGrad(y, dy, type=node.attrs["type"]),
    kernel=_softmax,
    dynamic=True,
    examples=_one(lambda matrix: raw.SparseMatrixSoftmax(matrix, type="float64"), order=3),
)
define(
    "SparseMatrixSoftmaxGrad(softmax: variant, grad_softmax: variant; type: float32|float64) -> (gradient: variant)",
    shape=lambda softmax, dy: (),
    gradient=_softmax_grad_gradient,
    kernel=_softmax_grad,
    dynamic=True,
    examples=_softmax_grad_examples,
)
