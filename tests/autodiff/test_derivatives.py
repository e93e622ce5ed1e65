"""Derivatives along directions and matrices of derivatives, against differences and against each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.autodiff import gradients, hessian, hvp, jacobian, jvp
from gradserve.errors import InvalidArgument, InvalidShape, InvalidType
from gradserve.graph.graph import Graph, Tensor
from gradserve.graph.op import raw
from gradserve.ops.slices import densify
from tests.ops.differences import run

A = np.random.default_rng(1).normal(size=(3, 2))
X = np.random.default_rng(2).normal(size=(2, 3))
V = np.random.default_rng(3).normal(size=(2, 3))
STEP = 1e-6


def model(x: Tensor) -> Tensor:
    return raw.Tanh(raw.MatMul(x, A)) * raw.Sum(raw.Square(x), [0, 1])


def value(x: np.ndarray) -> np.ndarray:
    return np.tanh(x @ A) * np.square(x).sum()


@pytest.fixture(params=[(2, 3), None])
def x(request: Any) -> Any:
    with Graph().as_default():
        yield raw.Placeholder(dtype="float64", shape=request.param)


def present(*found: Any) -> list[Tensor]:
    """The results, each of which must be a tensor."""
    assert all(isinstance(tensor, Tensor) for tensor in found), found
    return list(found)


def columns(function: Any, x: np.ndarray) -> np.ndarray:
    """The Jacobian by central differences, [*y's shape, *x's shape]."""
    units = np.eye(x.size).reshape(-1, *x.shape)
    found = [(function(x + STEP * unit) - function(x - STEP * unit)) / (2 * STEP) for unit in units]
    return np.moveaxis(np.array(found), 0, -1).reshape(*np.shape(found[0]), *x.shape)


def test_a_derivative_along_a_direction(x: Tensor) -> None:
    y = model(x)
    along, squared = jvp([y, raw.Square(y)], x, [V])
    expected = (value(X + STEP * V) - value(X - STEP * V)) / (2 * STEP)
    got = run(present(along, squared), [x], [X])
    np.testing.assert_allclose(got[0], expected, rtol=1e-7)
    np.testing.assert_allclose(got[1], 2 * value(X) * expected, rtol=1e-7)


def test_a_hessian_times_a_vector_is_that_of_the_whole_hessian() -> None:
    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=(2, 3))
        y = model(x)
        (slope,) = present(*gradients(y, x))
        matrix, vector = run(present(hessian(y, x), *hvp(y, x, V)), [x], [X])
    np.testing.assert_allclose(np.tensordot(matrix, V, 2), vector, rtol=1e-10)
    expected = columns(lambda value: run([slope], [x], [value])[0], X)
    np.testing.assert_allclose(matrix, expected, rtol=1e-6, atol=1e-7)


def test_a_jacobian_and_gradients_by_example() -> None:
    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=(2, 3))
        (whole,) = present(jacobian(model(x), x))
        assert whole.shape == (2, 2, 2, 3)
        np.testing.assert_allclose(run([whole], [x], [X])[0], columns(value, X), rtol=1e-6, atol=1e-8)
        w = raw.Placeholder(dtype="float64", shape=(3,))
        losses = raw.Sum(raw.Square(X * w), [1])
        (by_example,) = present(jacobian(losses, w))
        np.testing.assert_allclose(run([by_example], [w], [A[:, 0]])[0], 2 * X**2 * A[:, 0])


def test_complex_derivatives_along_a_direction() -> None:
    z, v = X + 1j * V, V - 2j * X
    with Graph().as_default():
        x = raw.Placeholder(dtype="complex128", shape=(2, 3))
        found = jvp([raw.Exp(x) * x, raw.ComplexAbs(x, Tout="float64")], x, v)
        got = run(present(*found), [x], [z])
    np.testing.assert_allclose(got[0], np.exp(z) * (1 + z) * v, rtol=1e-12)
    np.testing.assert_allclose(got[1], (np.conj(z) * v).real / np.abs(z), rtol=1e-12)


def test_rows_of_a_table_along_a_direction() -> None:
    rows = np.array([1, 0, 1], np.int32)
    with Graph().as_default():
        table = raw.Placeholder(dtype="float64", shape=(2, 3))
        (along,) = jvp(raw.Square(raw.GatherV2(table, rows, np.int32(0))), table, V)
        (product,) = hvp(raw.Square(raw.GatherV2(table, rows, np.int32(0))), table, V)
        assert product is not None
        got = run(present(along, densify(product)), [table], [X])
    np.testing.assert_allclose(got[0], 2 * X[rows] * V[rows])
    np.testing.assert_allclose(got[1], 2 * V * np.array([[1], [2]]))


def test_what_is_not_connected_is_none_and_leaves_no_nodes() -> None:
    with Graph().as_default() as graph:
        x = raw.Placeholder(dtype="float64", shape=(2,))
        y = raw.Placeholder(dtype="float64", shape=(2,))
        linear = x * 2.0
        count = len(graph.nodes)
        assert jvp(y, x, [np.ones(2)]) == [None]
        assert hvp(linear, x, [np.ones(2)]) == [None]
        assert jacobian(y, x) is None
        assert hessian(linear, x) is None
        assert len(graph.nodes) == count


def test_an_empty_jacobian_has_its_shape() -> None:
    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=(0, 3))
        (whole,) = present(jacobian(raw.Square(x), x))
        assert run([whole], [x], [np.zeros((0, 3))])[0].shape == (0, 3, 0, 3)


def test_bad_arguments_say_what_is_wrong(x: Tensor) -> None:
    y = model(x)
    with pytest.raises(InvalidArgument, match="2 tangents for 1 xs"):
        jvp(y, x, [V, V])
    with pytest.raises(InvalidType, match=r"xs\[0\] is NoneType"):
        hvp(y, [None], [V])
    with pytest.raises(InvalidShape, match=r"static shape|at most 4096 rows"):
        jacobian(raw.Reshape(y, [-1]) if x.shape is None else raw.Tile(y, [1025, 1]), x)
