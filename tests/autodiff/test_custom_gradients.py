"""Gradients that a graph brings along: GradientDef for a function, RegisteredGradient for a _gradient_op_type."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.autodiff import gradients
from gradserve.errors import NoGradient
from gradserve.graph import codec, dtypes
from gradserve.graph.functions import add_function, argument, new_body, spec_of
from gradserve.graph.graph import FunctionName, Graph, Tensor
from gradserve.graph.inline import inline
from gradserve.graph.op import raw
from gradserve.v1 import graph_pb2
from tests.ops.differences import run

X = np.array([0.3, -0.7, 1.1])


def _function(graph: Graph, hint: str, count: int, body: Any) -> FunctionName:
    """A function of so many float64 vectors; the body returns a list."""
    like = graph.constant(X)
    with new_body(graph).as_default():
        arguments = [argument(spec_of(like), f"a{k}") for k in range(count)]
        return add_function(graph, hint, arguments, body(*arguments))


def _call(f: FunctionName, *xs: Tensor, **attrs: Any) -> Tensor:
    return raw.PartitionedCall.outputs(list(xs), Tout=[dtypes.float64], f=f, **attrs)[0]


def _placeholder() -> Tensor:
    return raw.Placeholder(dtype=dtypes.float64, shape=(3,), name="x")


def _slope(y: Tensor, x: Tensor) -> Tensor:
    (dx,) = gradients([y], [x])
    assert isinstance(dx, Tensor)
    return dx


def _squares(nested: bool) -> tuple[Graph, Tensor, Tensor]:
    """y = x x, whose GradientDef says 5 dy x; called by another function where `nested`."""
    graph = Graph()
    with graph.as_default():
        square = _function(graph, "square", 1, lambda x: [x * x])
        graph.library.gradients["square"] = _function(graph, "slope", 2, lambda x, dy: [5 * (dy * x)]).name
        if nested:
            square = _function(graph, "outer", 1, lambda x: [raw.Identity(_call(square, x))])
        x = _placeholder()
        return graph, x, _call(square, x)


@pytest.mark.parametrize("nested", [False, True])
def test_a_function_may_name_its_gradient(nested: bool) -> None:
    _, x, y = _squares(nested)
    dx = _slope(y, x)
    values = run([y, dx, _slope(dx, x)], [x], [X])
    for value, expected in zip(values, [X * X, 5 * X, np.full(3, 5.0)], strict=True):
        np.testing.assert_allclose(value, expected)


def test_a_plan_sees_through_a_call_with_a_gradient_of_its_own() -> None:
    graph, _, y = _squares(nested=True)
    inlined = inline(graph, [y.node])
    assert inlined is not None
    assert not [node for node in inlined.graph.nodes if node.type == "PartitionedCall"]


def test_a_gradient_def_is_read_from_the_message() -> None:
    graph, x, y = _squares(nested=False)
    message = codec.graph_to_message(graph)
    message.library.gradient.add(function_name="square", gradient_func="slope")
    message.library.function.extend(graph.library.needed(["slope"]))
    copy = codec.graph_from_message(graph_pb2.GraphDef.FromString(message.SerializeToString()))
    x, y = copy.tensor(x.name), copy.tensor(y.name)
    np.testing.assert_allclose(run([_slope(y, x)], [x], [X])[0], 5 * X)


def _identities(graph: Graph, x: Tensor, *captured: Tensor, **attrs: Any) -> Tensor:
    """tf.custom_gradient's IdentityN over y = x x and x."""
    return raw.IdentityN.outputs([x * x, x, *captured], _gradient_op_type="CustomGradient-7", **attrs)[0]


def test_a_registered_gradient_takes_the_cotangents() -> None:
    graph = Graph()
    with graph.as_default():
        name = _function(graph, "grad_fn", 2, lambda dy, unused: [3 * dy]).name
        graph.library.registered_gradients["CustomGradient-7"] = name
        x = _placeholder()
        y = _identities(graph, x)
    np.testing.assert_allclose(run([_slope(raw.Sin(y), x)], [x], [X])[0], 3 * np.cos(X * X))


def test_what_a_registered_gradient_captures_comes_with_the_node() -> None:
    graph = Graph()
    with graph.as_default():
        name = _function(graph, "grad_fn", 3, lambda dy, unused, held: [dy * held]).name
        graph.library.registered_gradients["CustomGradient-7"] = name
        x = _placeholder()
        y = _identities(graph, x, raw.Exp(x), _gradserve_captures=1, _gradserve_given=[1])
    dx = _slope(y, x)
    first, second = run([dx, _slope(dx, x)], [x], [X])
    np.testing.assert_allclose(first, np.exp(X))
    np.testing.assert_allclose(second, np.exp(X))


def test_captures_that_the_graph_does_not_name_are_an_error_that_says_where_they_are() -> None:
    graph = Graph()
    with graph.as_default():
        name = _function(graph, "grad_fn", 3, lambda dy, unused, held: [dy * held]).name
        graph.library.registered_gradients["CustomGradient-7"] = name
        x = _placeholder()
        y = _identities(graph, x)
    with pytest.raises(NoGradient, match=r"takes 3 arguments and would get 2.*load that \(Graph.from_saved_model\)"):
        gradients([y], [x])


def test_a_custom_gradient_that_stayed_in_python_is_an_error_that_says_what_to_do() -> None:
    graph = Graph()
    with graph.as_default():
        x = _placeholder()
        y = _identities(graph, x)
    with pytest.raises(
        LookupError, match=r"'CustomGradient-7' was a Python function.*remove the attr _gradient_op_type"
    ):
        gradients([y], [x])
