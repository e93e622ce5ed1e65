"""Matrix factors where their gradients are hard: vectors with free phases, wide and tall matrices, singular ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.errors import InvalidArgument
from gradserve.graph.graph import Graph, Tensor
from gradserve.graph.op import raw
from tests.ops.differences import check, run

Array = np.ndarray[Any, Any]
_GENERATOR = np.random.default_rng(3)


def _matrix(rows: int, columns: int, *, turned: bool = False) -> Array:
    x = _GENERATOR.uniform(-0.3, 0.3, (rows, columns)) + np.eye(rows, columns) * np.arange(1, columns + 1)
    return x + 0.2j * _GENERATOR.uniform(-1, 1, (rows, columns)) if turned else x


def _agrees(function: Callable[[Tensor], Tensor], x: Array, *, known: bool = True) -> None:
    """Asserts that first and second derivatives of the function agree with differences."""
    with Graph().as_default():
        source = raw.Placeholder(dtype=x.dtype, shape=x.shape if known else None)
        check([function(source)], [source], [x], order=2)


def _weighted_size(x: Tensor, weight: Array) -> Tensor:
    """|X|² with a weight for each element: the same whatever the phases of the columns are."""
    size = raw.Real(x * raw.Conj(x), Tout=x.dtype.real) if x.dtype.is_complex else raw.Square(x)
    return size * weight


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize(("rows", "columns"), [(3, 3), (4, 2), (2, 4)])
def test_singular_vectors_up_to_their_phase(rows: int, columns: int, factor: int, turned: bool, known: bool) -> None:
    x = _matrix(rows, columns, turned=turned)
    weight = np.arange(1.0, 1 + (rows, columns)[factor - 1])[:, None]
    _agrees(lambda a: _weighted_size(raw.Svd.outputs(a)[factor], weight), x, known=known)


@pytest.mark.parametrize(("rows", "columns"), [(4, 2), (2, 4)])
def test_singular_vectors_that_complete_a_base(rows: int, columns: int) -> None:
    # Σ over the completing columns: the space that they span is unique, they themselves are not.
    def completing(a: Tensor) -> Tensor:
        _, u, v = raw.Svd.outputs(a, full_matrices=True)
        columns_left = raw.StridedSlice(u if rows > columns else v, [0, 2], [4, 4], [1, 1])
        return raw.Sum(raw.Square(columns_left), np.array([1], np.int32)) * np.arange(1.0, 5)

    _agrees(completing, _matrix(rows, columns))


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("rows", "columns"), [(4, 2), (3, 3), (2, 4)])
def test_orthogonal_columns_that_complete_a_base(rows: int, columns: int, turned: bool, known: bool) -> None:
    # Columns from number 2 on: the space that they span is unique, they themselves are not.
    def completing(a: Tensor) -> Tensor:
        q, r = raw.Qr.outputs(a, full_matrices=True)
        size = _weighted_size(raw.StridedSlice(q, [0, 2], [4, 4], [1, 1]), np.arange(1.0, 1 + rows)[:, None])
        return raw.Sum(size, np.array([1], np.int32)) + raw.Sum(
            _weighted_size(r, np.ones(1)), np.array([0, 1], np.int32)
        )

    _agrees(completing, _matrix(rows, columns, turned=turned), known=known)


@pytest.mark.parametrize("turned", [False, True])
def test_eigenvectors_up_to_their_phase(turned: bool) -> None:
    weight = np.arange(1.0, 4)[:, None]
    _agrees(lambda a: _weighted_size(raw.Eig.outputs(a, Tout="complex128")[1], weight), _matrix(3, 3, turned=turned))


@pytest.mark.parametrize("compute_v", [True, False])
def test_eigenvalues_of_a_complex_matrix_come_by_magnitude(compute_v: bool) -> None:
    x = np.array([np.diag([3.0, -2.0, 1.0j]), np.diag([-1.0, 4.0j, 0.5])])
    x[:, 0, 2] = 0.3  # triangular: what is on the diagonal stays
    with Graph().as_default() as graph:
        e, v = raw.Eig.outputs(graph.constant(x), compute_v=compute_v, Tout="complex128")
        e, v = run([e, v], [], [])
    np.testing.assert_allclose(e, [[1j, -2.0, 3.0], [0.5, -1.0, 4j]])
    if compute_v:
        np.testing.assert_allclose(x @ v, v * e[:, None, :], atol=1e-12)


def test_least_squares_of_a_matrix_without_full_rank() -> None:
    x = np.array([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]])
    with Graph().as_default() as graph:
        a, b = graph.constant(x), graph.constant(np.ones((3, 1)))
        found = run([raw.MatrixSolveLs(a, b, np.float64(0), fast=False)], [], [])[0]
    np.testing.assert_allclose(found, np.linalg.pinv(x) @ np.ones((3, 1)), atol=1e-12)


def _values(function: Callable[..., Tensor], *inputs: Array) -> Sequence[Array]:
    with Graph().as_default() as graph:
        return run([function(*(graph.constant(value) for value in inputs))], [], [])


def test_a_matrix_that_can_not_be_inverted_has_no_factors() -> None:
    with pytest.raises(InvalidArgument, match="can't be inverted"):
        _values(lambda a: raw.Lu.outputs(a)[0], np.array([[1.0, 2.0], [2.0, 4.0]]))


def test_what_has_no_real_square_root_is_nan() -> None:
    assert np.isnan(_values(raw.MatrixSquareRoot, -np.eye(2))[0]).all()
    (root,) = _values(raw.MatrixSquareRoot, -np.eye(2, dtype=complex))
    np.testing.assert_allclose(root @ root, -np.eye(2), atol=1e-12)


def test_singular_bands_give_nan_for_their_matrix_alone() -> None:
    fine, singular = np.array([[0.0, 0], [1, 2], [0, 0]]), np.zeros((3, 2))
    (found,) = _values(raw.TridiagonalSolve, np.stack([fine, singular]), np.ones((2, 2, 1)))
    assert found[0].tolist() == [[1.0], [0.5]]
    assert np.isnan(found[1]).all()


def test_a_matrix_that_is_not_positive_definite_has_a_factor_of_nan() -> None:
    (found,) = _values(raw.Cholesky, np.stack([np.eye(2), np.array([[1.0, 2.0], [2.0, 1.0]])]))
    assert found[0].tolist() == [[1, 0], [0, 1]]
    assert np.isnan(found[1][np.tril_indices(2)]).all()


def test_a_zero_on_the_diagonal_of_a_triangle_is_divided_by() -> None:
    triangle, rhs = np.array([[0.0, 0.0], [1.0, 2.0]]), np.array([[1.0, 0.0], [3.0, -4.0]])
    np.testing.assert_array_equal(
        _values(raw.MatrixTriangularSolve, triangle, rhs)[0], [[np.inf, np.nan], [-np.inf, np.nan]]
    )
    (found,) = _values(lambda a, b: raw.MatrixTriangularSolve(a, b, adjoint=True), triangle, rhs)
    np.testing.assert_array_equal(found, [[-np.inf, np.inf], [1.5, -2.0]])


@pytest.mark.parametrize("kind", [np.float64, np.complex128])
@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_infinities_have_no_singular_values(kind: Any, bad: float) -> None:
    x = np.array([[[3.0, bad, 2.0], [1e-7, 1.0, -1e30]], [[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]], kind)
    values, *_ = _values(lambda a: raw.Svd.outputs(a)[0], x)
    assert np.isnan(values[0]).all()
    np.testing.assert_allclose(values[1], [2, 1])
    (solved,) = _values(lambda a: raw.MatrixSolveLs(a, raw.OnesLike(a), np.float64(0), fast=False), x[:1])
    assert np.isnan(solved).all()


@pytest.mark.parametrize("factor", [raw.MatrixInverse, lambda a: raw.Qr.outputs(a)[1]])
def test_half_precision(factor: Any) -> None:
    (found,) = _values(factor, 2 * np.eye(2, dtype=np.float16))
    assert found.dtype == np.float16
    np.testing.assert_allclose(np.abs(np.diag(found)), np.full(2, 0.5 if factor is raw.MatrixInverse else 2))


def test_a_wide_matrix_has_no_more_columns_of_q_to_ask_for() -> None:
    x = _matrix(2, 3)
    _agrees(lambda a: _weighted_size(raw.Qr.outputs(a, full_matrices=True)[1], np.arange(1.0, 4)), x)
