"""Cholesky factors of sparse matrices in an order that keeps them sparse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.errors import InvalidArgument
from gradserve.graph.graph import Graph
from gradserve.graph.op import raw
from tests.ops.differences import run


def _arrow(size: int) -> Any:
    """Diagonal, first row and first column: its factor is full in the given order, and sparse in the reverse one."""
    matrix = np.eye(size) * size
    matrix[0] = matrix[:, 0] = 1.0
    matrix[0, 0] = size
    return matrix


def _factor(dense: Any, order: Any = None) -> tuple[Any, Any]:
    """The order, and the factor as a dense array."""
    with Graph().as_default():
        matrix = raw.DenseToCSRSparseMatrix(dense, np.argwhere(np.ones_like(dense)))
        chosen = raw.SparseMatrixOrderingAMD(matrix) if order is None else np.asarray(order, np.int32)
        factor = raw.SparseMatrixSparseCholesky(matrix, chosen, type="float64")
        dense_factor = raw.CSRSparseMatrixToDense(factor, type="float64")
        fetches = [dense_factor] if order is not None else [chosen, dense_factor]
        found = run(fetches, [], [])
        return (np.asarray(order) if order is not None else found[0]), found[-1]


@pytest.mark.parametrize("order", [[1, 2, 3, 4, 0], [4, 3, 2, 1, 0]])
def test_the_factor_is_that_of_the_reordered_matrix(order: list[int]) -> None:
    dense = _arrow(5)
    _, factor = _factor(dense, order)
    assert np.allclose(factor @ factor.T, dense[np.ix_(order, order)])
    assert not np.triu(factor, 1).any()


def test_the_order_puts_the_row_with_most_neighbours_late() -> None:
    with Graph().as_default():
        dense = _arrow(6)
        matrix = raw.DenseToCSRSparseMatrix(dense, np.argwhere(dense != 0))
        order = run([raw.SparseMatrixOrderingAMD(matrix)], [], [])[0].tolist()
    assert sorted(order) == list(range(6))
    assert order.index(0) >= 4  # when one neighbour is left, either goes first


def test_each_matrix_of_a_batch_has_an_order_and_a_factor() -> None:
    dense = np.stack([_arrow(3), np.eye(3) * 4])
    order, factor = _factor(dense)
    assert order.shape == (2, 3)
    for place in range(2):
        chosen = np.ix_(order[place], order[place])
        assert np.allclose(factor[place] @ factor[place].T, dense[place][chosen])


def test_what_has_no_factor_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="not positive definite"):
        _factor(-np.eye(2), [0, 1])
    with pytest.raises(InvalidArgument, match="each of 2 rows once"):
        _factor(np.eye(2), [0, 0])
