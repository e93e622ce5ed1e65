"""Cholesky factors of sparse matrices, and the order of rows in which they stay sparse."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph.graph import Node
from gradserve.graph.op import NOT_DIFFERENTIABLE, define
from gradserve.ops.sparse_matrix import SparseMatrix, made

Array = np.ndarray[Any, Any]


def _square(matrix: SparseMatrix, node: Node) -> int:
    if matrix.sizes[-1] != matrix.sizes[-2]:
        raise InvalidArgument(f"{node.name}: the matrix must be square, but is {matrix.sizes}.", node=node.name)
    return matrix.sizes[-1]


def _of_batch(matrix: SparseMatrix, place: int) -> tuple[Array, Array]:
    """Coordinates [n, 2] and values of one matrix of a batch."""
    if len(matrix.sizes) == 2:
        return matrix.indices, matrix.values
    kept = matrix.indices[:, 0] == place
    return matrix.indices[kept, 1:], matrix.values[kept]


def _order(indices: Array, size: int) -> list[int]:
    """Minimum degree: the row with the fewest neighbours goes next, and those become neighbours of each other.

    Rose 1972, "A graph-theoretic study of the numerical solution of sparse positive definite systems of linear
    equations"; of rows with equally many neighbours the first goes.
    """
    neighbours: list[set[int]] = [set() for _ in range(size)]
    for row, column in indices.tolist():
        if row != column:
            neighbours[row].add(column)
            neighbours[column].add(row)
    left = set(range(size))
    order: list[int] = []
    while left:
        row = min(left, key=lambda candidate: (len(neighbours[candidate]), candidate))
        left.discard(row)
        order.append(row)
        for other in neighbours[row]:
            neighbours[other] |= neighbours[row]
            neighbours[other] -= {row, other}
    return order


def _ordering(xp: Any, matrix: SparseMatrix, *, node: Node) -> Array:
    """[n], or [batch, n]."""
    size = _square(matrix, node)
    batch = matrix.sizes[:-2]
    orders = [_order(_of_batch(matrix, place)[0], size) for place in range(batch[0] if batch else 1)]
    return np.array(orders, np.int32).reshape(*batch, size)


define(
    "SparseMatrixOrderingAMD(input: variant) -> (output: int32)",
    gradient=NOT_DIFFERENTIABLE,
    kernel=_ordering,
    dynamic=True,
)


def _factor(indices: Array, values: Array, order: Array, node: Node) -> tuple[Array, Array]:
    """L [n, n] with L Lᴴ = A[order, order], of which only the lower triangle is read: its entries that are not 0."""
    size = len(order)
    if sorted(order.tolist()) != list(range(size)):
        raise InvalidArgument(f"{node.name}: the permutation must name each of {size} rows once.", node=node.name)
    dense = np.zeros((size, size), values.dtype)
    dense[tuple(indices.T)] = values
    lower = np.tril(dense)
    whole = lower + np.conj(np.tril(dense, -1)).T
    try:
        factor = np.linalg.cholesky(whole[np.ix_(order, order)])
    except np.linalg.LinAlgError:
        raise InvalidArgument(f"{node.name}: the matrix is not positive definite.", node=node.name) from None
    found = np.argwhere(factor != 0)
    return found, factor[tuple(found.T)]


def _cholesky(xp: Any, matrix: SparseMatrix, order: Any, *, node: Node) -> SparseMatrix:
    size = _square(matrix, node)
    if order.shape != (*matrix.sizes[:-2], size):
        raise InvalidArgument(
            f"{node.name}: a permutation of shape {order.shape} doesn't fit a matrix {matrix.sizes}.", node=node.name
        )
    if len(matrix.sizes) == 2:
        return made(matrix.sizes, *_factor(matrix.indices, matrix.values, order, node))
    factors = [_factor(*_of_batch(matrix, place), order[place], node) for place in range(matrix.sizes[0])]
    indices = [np.insert(found, 0, place, axis=1) for place, (found, _) in enumerate(factors)]
    empty = np.zeros((0, 3), np.int64), matrix.values[:0]
    return made(
        matrix.sizes,
        np.concatenate([empty[0], *indices]),
        np.concatenate([empty[1], *(values for _, values in factors)]),
    )


define(
    "SparseMatrixSparseCholesky(input: variant, permutation: int32; type: complex128|complex64|float32|float64)"
    " -> (output: variant)",
    shape=lambda matrix, order: (),
    gradient=NOT_DIFFERENTIABLE,
    kernel=_cholesky,
    dynamic=True,
)
