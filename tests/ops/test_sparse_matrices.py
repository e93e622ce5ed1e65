"""Sparse matrices: what the ops give, and their gradients against central differences, through dense ends."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.errors import InvalidArgument, InvalidType
from gradserve.graph.graph import Graph, Tensor
from gradserve.graph.op import raw
from gradserve.ops.sparse_matrix import SparseMatrix
from tests.ops.differences import check, run
from tests.ops.draw import Draw

_draw = Draw(lambda low, high: high, seed=3)
FLAGS = list(itertools.product(("", "transpose", "adjoint"), repeat=2))


def _numbers(*shape: int, dtype: str = "float64") -> Any:
    return _draw.complex(*shape) if dtype == "complex128" else _draw.normal(*shape)


def _check(function: Callable[..., list[Tensor]], values: list[Any], known_shapes: bool = True) -> list[Any]:
    """Checks both orders of the gradient of a function of dense arrays; returns its values."""
    with Graph().as_default():
        xs = [raw.Placeholder(dtype=x.dtype, shape=x.shape if known_shapes else None) for x in values]
        ys = function(*xs)
        check(ys, xs, values, order=2)
        return run(ys, xs, values)


def _sparse(values: Tensor, at: Any, sizes: Any) -> Tensor:
    return raw.SparseTensorToCSRSparseMatrix(at, values, np.array(sizes, np.int64))


def _dense(matrix: Tensor, dtype: str = "float64") -> Tensor:
    return raw.CSRSparseMatrixToDense(matrix, type=dtype)


def _spread(values: Any, at: Any, sizes: Any) -> Any:
    whole = np.zeros(sizes, values.dtype)
    whole[tuple(at.T)] = values
    return whole


def _op(x: Any, kind: str) -> Any:
    flipped = np.swapaxes(x, -1, -2)
    return x if not kind else flipped if kind == "transpose" else np.conj(flipped)


def _flags(left: str, right: str) -> dict[str, Any]:
    return {f"{kind}_{side}": True for kind, side in ((left, "a"), (right, "b")) if kind}


@pytest.mark.parametrize("known_shapes", [True, False])
@pytest.mark.parametrize("sizes", [(3, 4), (2, 3, 4), (0, 2), (2, 0, 3)])
def test_a_matrix_goes_to_dense_and_back(sizes: tuple[int, ...], known_shapes: bool) -> None:
    at = _draw.coordinates(*sizes)
    order = _draw.permutation(len(at))
    values = _numbers(len(at), dtype="complex128")

    def function(x: Tensor) -> list[Tensor]:
        dense = _dense(_sparse(x, at[order], sizes), "complex128")
        kept = raw.DenseToCSRSparseMatrix(dense * dense, at[::2])
        return [dense, raw.CSRSparseMatrixToSparseTensor.outputs(kept, type="complex128")[1]]

    dense, kept = _check(function, [values], known_shapes)
    assert np.array_equal(dense, _spread(values, at[order], sizes))
    assert np.array_equal(kept, dense[tuple(at[::2].T)] ** 2)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize(("left", "right"), FLAGS)
@pytest.mark.parametrize("output", ["", "transpose", "conjugate", "both"])
def test_a_sparse_matrix_times_a_dense_one(left: str, right: str, output: str, dtype: str) -> None:
    batch = (2,) if output in ("", "both") else ()
    sizes = (*batch, 3, 2) if left else (*batch, 2, 3)
    at = _draw.coordinates(*sizes)
    values, b = _numbers(len(at), dtype=dtype), _numbers(*batch, *((4, 3) if right else (3, 4)), dtype=dtype)
    attrs: dict[str, Any] = {
        **_flags(left, right),
        "transpose_output": output in ("transpose", "both"),
        "conjugate_output": output in ("conjugate", "both"),
    }
    (found,) = _check(lambda x, y: [raw.SparseMatrixMatMul(_sparse(x, at, sizes), y, **attrs)], [values, b])
    wanted = _op(_spread(values, at, sizes), left) @ _op(b, right)
    wanted = _op(wanted, "transpose" if attrs["transpose_output"] else "")
    assert np.allclose(found, np.conj(wanted) if attrs["conjugate_output"] else wanted)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize(("left", "right"), FLAGS)
def test_a_sparse_matrix_times_a_sparse_one(left: str, right: str, dtype: str) -> None:
    a_sizes, b_sizes = (2, 3, 2) if left else (2, 2, 3), (2, 4, 3) if right else (2, 3, 4)
    a_at, b_at = _draw.coordinates(*a_sizes), _draw.coordinates(*b_sizes)
    a, b = _numbers(len(a_at), dtype=dtype), _numbers(len(b_at), dtype=dtype)

    def function(x: Tensor, y: Tensor) -> list[Tensor]:
        matrices = _sparse(x, a_at, a_sizes), _sparse(y, b_at, b_sizes)
        return [_dense(raw.SparseMatrixSparseMatMul(*matrices, type=dtype, **_flags(left, right)), dtype)]

    (found,) = _check(function, [a, b])
    assert np.allclose(found, _op(_spread(a, a_at, a_sizes), left) @ _op(_spread(b, b_at, b_sizes), right))


@pytest.mark.parametrize("scale", [(), (2, 1, 1), (4,)])
def test_sums_multiples_and_transposes(scale: tuple[int, ...]) -> None:
    sizes = (2, 3, 4)
    a_at, b_at = _draw.coordinates(*sizes), _draw.coordinates(*sizes)
    values = [_numbers(*shape, dtype="complex128") for shape in ((len(a_at),), (len(b_at),), (), (), scale)]

    def function(a: Tensor, b: Tensor, alpha: Tensor, beta: Tensor, factor: Tensor) -> list[Tensor]:
        total = raw.SparseMatrixAdd(_sparse(a, a_at, sizes), _sparse(b, b_at, sizes), alpha, beta)
        scaled = raw.SparseMatrixMul(total, factor)
        return [_dense(raw.SparseMatrixTranspose(scaled, conjugate=True, type="complex128"), "complex128")]

    (found,) = _check(function, values)
    a, b, alpha, beta, factor = values
    total = (alpha * _spread(a, a_at, sizes) + beta * _spread(b, b_at, sizes)) * factor
    assert np.allclose(found, _op(total, "adjoint"))


def test_a_softmax_is_over_the_entries_of_a_row() -> None:
    at = np.array([[0, 0, 0], [0, 0, 2], [1, 1, 1]])

    def function(x: Tensor) -> list[Tensor]:
        return [_dense(raw.SparseMatrixSoftmax(_sparse(x, at, (2, 2, 3)), type="float64"))]

    (found,) = _check(function, [np.array([0.0, np.log(3.0), 7.0])])
    assert np.allclose(found[0, 0], [0.25, 0.0, 0.75])
    assert np.allclose(found[1, 1], [0.0, 1.0, 0.0])


@pytest.mark.parametrize(("sizes", "place"), [((3, 3), 0), ((2, 3, 3), 1)])
def test_the_components_are_row_pointers_columns_and_values(sizes: tuple[int, ...], place: int) -> None:
    matrix_at = np.array([[0, 0], [0, 2], [2, 1]])
    at = matrix_at if len(sizes) == 2 else np.array([[k, *row] for k in range(2) for row in matrix_at.tolist()])
    values = _numbers(len(at))
    pointers, columns, found = _check(
        lambda x: list(raw.CSRSparseMatrixComponents.outputs(_sparse(x, at, sizes), np.int32(place), type="float64")),
        [values],
    )
    assert pointers.tolist() == [0, 2, 2, 3]
    assert columns.tolist() == [0, 2, 1]
    assert found.tolist() == values[place * 3 : place * 3 + 3].tolist()


def test_a_matrix_of_zeros_has_no_entries() -> None:
    with Graph().as_default():
        zeros = raw.SparseMatrixZeros(np.array([2, 2, 3], np.int64), type="float32")
        dense, counts = run([_dense(zeros, "float32"), raw.SparseMatrixNNZ(zeros)], [], [])
    assert dense.shape == (2, 2, 3)
    assert not dense.any()
    assert counts.tolist() == [0, 0]


def test_a_matrix_of_another_dtype_is_refused() -> None:
    with Graph().as_default():
        matrix = _sparse(raw.Const(value=np.ones(1), dtype="float64"), np.array([[0, 0]]), (1, 1))
        with pytest.raises(InvalidType, match="float32"):
            run([_dense(matrix, "float32")], [], [])


def test_matrices_of_different_shapes_are_not_added() -> None:
    empty = np.zeros((0, 2), np.int64)
    with pytest.raises(InvalidArgument, match="can't be added"):
        _ = SparseMatrix((1, 2), empty, np.zeros(0)) + SparseMatrix((2, 1), empty, np.zeros(0))


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_conj_takes_a_sparse_matrix(dtype: str) -> None:
    at, values = np.array([[0, 1], [1, 0]]), _numbers(2, dtype=dtype)
    (found,) = _check(lambda v: [_dense(raw.Conj(_sparse(v, at, (2, 2))), dtype)], [values])
    np.testing.assert_array_equal(found, np.conj(_spread(values, at, (2, 2))))
