"""For, whose body gets the number of the round: values, and gradients of two orders."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.errors import InvalidArgument
from gradserve.graph.dtypes import float64, int32
from gradserve.graph.functions import Spec, add_function, argument, new_body
from gradserve.graph.graph import FunctionName, Graph, Tensor
from gradserve.graph.op import raw
from tests.ops.differences import check, run


def _body(graph: Graph) -> FunctionName:
    """(i, x, y) to (x cos(i y), y)."""
    with new_body(graph).as_default():
        arguments = [
            argument(Spec(int32, ()), "i"),
            argument(Spec(float64, (2,)), "x"),
            argument(Spec(float64, (2,)), "y"),
        ]
        number, x, y = arguments
        turned = x * raw.Cos(raw.Cast(number, DstT="float64") * y)
        return add_function(graph, "turn", arguments, [turned, raw.Identity(y)])


def _loop(start: int, limit: int, delta: int) -> tuple[Sequence[Tensor], Tensor, Tensor]:
    graph = Graph()
    with graph.as_default():
        x, y = (raw.Placeholder(dtype="float64", shape=(2,)) for _ in range(2))
        outputs = raw.For.outputs(np.int32(start), np.int32(limit), np.int32(delta), [x, y], body=_body(graph))
    return outputs, x, y


X, Y = np.array([1.5, -0.5]), np.array([0.3, 0.7])


@pytest.mark.parametrize(("start", "limit", "delta"), [(0, 3, 1), (5, 0, -2), (2, 2, 1), (3, 1, 1)])
def test_rounds_are_counted_from_start_to_limit(start: int, limit: int, delta: int) -> None:
    outputs, x, y = _loop(start, limit, delta)
    expected = X
    for number in range(start, limit, delta):
        expected = expected * np.cos(number * Y)
    found = run(outputs, [x, y], [X, Y])
    np.testing.assert_allclose(found[0], expected)
    np.testing.assert_array_equal(found[1], Y)
    assert [tensor.shape for tensor in outputs] == [(2,), (2,)]


@pytest.mark.parametrize(("start", "limit", "delta"), [(0, 3, 1), (5, 0, -2), (2, 2, 1)])
def test_gradients_of_two_orders_agree_with_central_differences(start: int, limit: int, delta: int) -> None:
    outputs, x, y = _loop(start, limit, delta)
    check(outputs, [x, y], [X, Y], order=2)


def test_a_step_of_nothing_is_refused() -> None:
    outputs, x, y = _loop(0, 3, 0)
    with pytest.raises(InvalidArgument, match="delta is 0"):
        run(outputs, [x, y], [X, Y])
