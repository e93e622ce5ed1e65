"""Sparse gradients stay sparse through what only hands them on, as in TensorFlow, and say the same as dense ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.autodiff import gradients
from gradserve.graph.graph import Graph, IndexedSlices, Tensor
from gradserve.graph.op import raw
from gradserve.ops.slices import densify
from tests.ops.differences import check, run

_ROWS = np.array([0, 2, 2, 3], np.int32)
_ZERO, _ONE = np.int32(0), np.int32(1)


def _found(
    function: Callable[..., Tensor], *xs_shapes: Any, rows: Any = _ROWS
) -> tuple[list[bool], list[Any], list[Any]]:
    """Which gradients of rows of a function are sparse, their values, and those behind an op that makes them dense."""
    with Graph().as_default():
        xs = [raw.Placeholder(dtype=np.float64, shape=shape) for shape in xs_shapes]
        values = [np.arange(1.0, 1 + np.prod([n or 3 for n in s])).reshape([n or 3 for n in s]) for s in xs_shapes]
        y = function(*xs)
        sparse = gradients([raw.Square(raw.GatherV2(y, rows, _ZERO))], xs)
        dense = gradients([raw.Square(raw.GatherV2(raw.Abs(y), rows, _ZERO))], xs)
        kinds = [isinstance(dx, IndexedSlices) for dx in sparse]
        wholes = [densify(dx) for found in (sparse, dense) for dx in found if dx is not None]
        results = run(wholes, xs, values)
    return kinds, results[: len(xs)], results[len(xs) :]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: -x,
        lambda x: x + 1.0,
        lambda x: x + np.ones((4, 2)),
        lambda x: 1.0 - x,
        lambda x: raw.Cast(raw.Cast(x, DstT="float32"), DstT="float64"),
        lambda x: raw.EnsureShape(x, shape=(4, 2)),
        lambda x: raw.Print(x, []),
        lambda x: raw.PlaceholderWithDefault(x, shape=(4, 2)),
        lambda x: raw.AddN([x]),
        lambda x: raw.ConcatV2([x], _ZERO),
    ],
)
def test_what_hands_a_gradient_on_keeps_it_sparse(function: Callable[[Tensor], Tensor]) -> None:
    kinds, sparse, dense = _found(function, (4, 2))
    assert kinds == [True]
    np.testing.assert_allclose(sparse[0], dense[0])


@pytest.mark.parametrize("function", [lambda x: x * 2.0, raw.Relu, lambda x: raw.Reshape(x, np.array([4, 2, 1]))])
def test_what_computes_with_it_makes_it_dense(function: Callable[[Tensor], Tensor]) -> None:
    kinds, sparse, dense = _found(function, (4, 2))
    assert kinds == [False]
    np.testing.assert_allclose(sparse[0], dense[0])


@pytest.mark.parametrize("axis", [0, 1, -1, -2])
@pytest.mark.parametrize("known", [True, False])
def test_a_concatenation_gives_each_value_its_slices(axis: int, known: bool) -> None:
    along = axis in (0, -2)
    shapes: list[Any] = [(3, 2), (2, 2), (3, 2)] if along else [(4, 2), (4, 1), (4, 2)]
    if not known and along:
        shapes[0] = (None, 2)
    kinds, sparse, dense = _found(lambda *xs: raw.ConcatV2(list(xs), np.int32(axis)), *shapes)
    assert kinds == [True] * 3
    for one, other in zip(sparse, dense, strict=True):
        np.testing.assert_allclose(one, other)


def test_a_value_whose_rows_nobody_read_has_empty_slices() -> None:
    kinds, sparse, _ = _found(lambda *xs: raw.ConcatV2(list(xs), _ZERO), (4, 2), (2, 2), rows=np.array([0, 1]))
    assert kinds == [True, True]
    np.testing.assert_array_equal(sparse[1], np.zeros((2, 2)))


def test_where_an_operand_was_broadcast_it_gets_a_dense_sum() -> None:
    kinds, sparse, dense = _found(lambda x, y: x + y, (4, 2), (2,))
    assert kinds == [True, False]
    for one, other in zip(sparse, dense, strict=True):
        np.testing.assert_allclose(one, other)


def test_where_broadcasting_is_not_known_both_are_dense() -> None:
    kinds, *_ = _found(lambda x, y: x - y, (None, 2), (None, 2), rows=np.array([0, 2]))
    assert kinds == [False, False]


def test_a_concatenation_along_an_unknown_axis_is_cut_densely() -> None:
    with Graph().as_default():
        x = raw.Placeholder(dtype=np.float64, shape=(3, 3))
        axis = raw.Placeholder(dtype=np.int32, shape=())
        y = raw.GatherV2(raw.ConcatV2([x, x * 2.0], axis), np.array([1, 2], np.int32), _ZERO)
        (dx,) = gradients([y], [x])
        assert isinstance(dx, Tensor)
        (found,) = run([dx], [x, axis], [np.ones((3, 3)), _ONE])
    np.testing.assert_array_equal(found, [[0, 0, 0], [3, 3, 3], [3, 3, 3]])


_HANDED_ON: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": raw.Identity,
    "negated": lambda x: -x,
    "in a sum": lambda x: x + np.ones((4, 2)),
    "in a sum of several": lambda x: raw.AddN([x, x]),
    "in a concatenation": lambda x: raw.ConcatV2([x, x * x], _ZERO),
    "rows of rows": lambda x: raw.GatherV2(x, np.array([3, 0, 0, 1, 2], np.int32), _ZERO),
    "rows by index vectors": lambda x: raw.GatherNd(x, _ROWS[:, None]),
}


@pytest.mark.parametrize("known_shapes", [True, False])
@pytest.mark.parametrize("name", _HANDED_ON)
def test_three_orders_through_slices_agree_with_differences(name: str, known_shapes: bool) -> None:
    value = np.sin(np.arange(8.0)).reshape(4, 2)
    with Graph().as_default():
        x = raw.Placeholder(dtype=np.float64, shape=(4, 2) if known_shapes else None)
        y = raw.GatherV2(_HANDED_ON[name](x), _ROWS, _ZERO)
        (dx,) = gradients([y], [x])
        assert isinstance(dx, IndexedSlices) or not known_shapes or name == "in a concatenation"
        check([y * raw.Sin(y)], [x], [value], order=3)


@pytest.mark.parametrize("seed", ["ones", "dense", "slices"])
def test_slices_have_the_derivatives_of_what_they_stand_for(seed: str) -> None:
    value, weights = np.sin(np.arange(8.0)).reshape(4, 2), np.cos(np.arange(8.0)).reshape(4, 2)
    with Graph().as_default():
        x = raw.Placeholder(dtype=np.float64, shape=(4, 2))
        rows = raw.GatherV2(x, _ROWS, _ZERO)
        (sparse,) = gradients([rows * rows * raw.Sin(rows)], [x])
        assert isinstance(sparse, IndexedSlices)
        seeds: dict[str, Any] = {
            "ones": None,
            "dense": raw.Identity(weights),
            "slices": IndexedSlices(raw.Identity(weights[:3]), raw.Identity(_ROWS[1:]), raw.Identity(np.array([4, 2]))),
        }
        given = seeds[seed]
        whole = densify(given) if isinstance(given, IndexedSlices) else given
        found: list[Tensor] = []
        for y, cotangent in ((sparse, given), (densify(sparse), whole)):
            (second,) = gradients([y], [x], [cotangent])
            assert second is not None
            (third,) = gradients([second], [x], [cotangent])
            assert third is not None
            found += [densify(second), densify(third)]
        values = run(found, [x], [value])
    for one, other in zip(values[:2], values[2:], strict=True):
        assert np.abs(other[[2, 3]]).min() > 1e-6
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)
