"""Calls in graphs of TensorFlow 1: by op type, by RemoteCall, and their gradients by SymbolicGradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.autodiff import gradients
from gradserve.errors import InvalidGraph
from gradserve.graph import codec, dtypes
from gradserve.graph.graph import FunctionName, Graph, Tensor
from gradserve.v1 import graph_pb2
from tests.ops.differences import run

X = np.array([0.3, -0.7, 1.1])
W = np.array([0.5, 2.0, -1.5])
DOUBLE = dtypes.float64


def _add(into: Any, op: str, name: str, *inputs: str, **attrs: Any) -> None:
    node = into.add(name=name, op=op, input=inputs)
    for key, value in attrs.items():
        kind = "type" if isinstance(value, dtypes.DType) else codec.kind_of(value)
        node.attr[key].CopyFrom(codec.attr_to_message(kind, value))


def _function(message: graph_pb2.GraphDef, name: str, takes: str, gives: dict[str, str]) -> Any:
    definition = message.library.function.add()
    definition.signature.name = name
    for letter in takes:
        definition.signature.input_arg.add(name=letter).type = DOUBLE.number  # pyright: ignore[reportAttributeAccessIssue]
    for key, source in gives.items():
        definition.signature.output_arg.add(name=key).type = DOUBLE.number  # pyright: ignore[reportAttributeAccessIssue]
        definition.ret[key] = source
    return definition.node_def


def _pair() -> graph_pb2.GraphDef:
    """Pair(a, b) = (sin(a) b, a + b); Product(a, b) = sin(a) b (a + b) calls it; the graph calls both."""
    message = graph_pb2.GraphDef()
    nodes = _function(message, "Pair", "ab", {"p": "p:z:0", "q": "q:z:0"})
    _add(nodes, "Sin", "s", "a", T=DOUBLE)
    _add(nodes, "Mul", "p", "s:y:0", "b", T=DOUBLE)
    _add(nodes, "AddV2", "q", "a", "b", T=DOUBLE)
    nodes = _function(message, "Product", "ab", {"y": "y:z:0"})
    _add(nodes, "Pair", "pair", "a", "b")
    _add(nodes, "Mul", "y", "pair:p:0", "pair:q:0", T=DOUBLE)
    for name in "xw":
        _add(message.node, "Placeholder", name, dtype=DOUBLE, shape=(3,))
    _add(message.node, "Pair", "pair", "x", "w")
    _add(message.node, "Mul", "y", "pair", "pair:1", T=DOUBLE)
    _add(message.node, "Product", "z", "x", "w")
    return message


def _slope(y: Tensor, x: Tensor) -> Tensor:
    (dx,) = gradients([y], [x])
    assert isinstance(dx, Tensor)
    return dx


def _values(graph: Graph, *fetches: Tensor) -> list[Any]:
    return run(fetches, [graph.tensor("x"), graph.tensor("w")], [X, W])


@pytest.mark.parametrize("name", ["y", "z"])
def test_a_node_whose_type_is_a_function_is_a_call_of_it(name: str) -> None:
    graph = codec.graph_from_message(_pair())
    x, y = graph.tensor("x"), graph.tensor(name)
    dx = _slope(y, x)
    value, first, second = _values(graph, y, dx, _slope(dx, x))
    np.testing.assert_allclose(value, np.sin(X) * W * (X + W))
    np.testing.assert_allclose(first, np.cos(X) * W * (X + W) + np.sin(X) * W)
    np.testing.assert_allclose(second, -np.sin(X) * W * (X + W) + 2 * np.cos(X) * W)


def test_calls_go_out_as_they_came_and_come_back_with_gradients() -> None:
    message = _pair()
    graph = codec.graph_from_message(message)
    assert codec.graph_to_message(graph) == message
    dx = _slope(graph.tensor("y"), graph.tensor("x"))
    sent = codec.graph_to_message(graph)
    assert list(sent.node)[: len(message.node)] == list(message.node)
    copy = codec.graph_from_message(graph_pb2.GraphDef.FromString(sent.SerializeToString()))
    np.testing.assert_array_equal(_values(copy, copy.tensor(dx.name))[0], _values(graph, dx)[0])


def test_a_remote_call_runs_on_the_device_that_it_names() -> None:
    message = _pair()
    target = np.array(b"/job:worker/task:1", object)
    _add(message.node, "Const", "target", value=target, dtype=dtypes.string)
    called = {"Tin": [DOUBLE, DOUBLE], "Tout": [DOUBLE], "f": FunctionName("Product", {})}
    _add(message.node, "RemoteCall", "remote", "target", "x", "w", **called)
    graph = codec.graph_from_message(message)
    assert graph.node("remote").device == "/job:worker/task:1"
    y = graph.tensor("remote")
    value, slope = _values(graph, y, _slope(y, graph.tensor("w")))
    np.testing.assert_allclose(value, np.sin(X) * W * (X + W))
    np.testing.assert_allclose(slope, np.sin(X) * (X + 2 * W))


def _with_symbolic(function: str, *cotangents: str) -> graph_pb2.GraphDef:
    message = _pair()
    attrs = {"Tin": [DOUBLE] * (2 + len(cotangents)), "Tout": [DOUBLE, DOUBLE], "f": FunctionName(function, {})}
    _add(message.node, "SymbolicGradient", "slopes", "x", "w", *cotangents, **attrs)
    return message


def test_a_symbolic_gradient_runs_and_differentiates() -> None:
    graph = codec.graph_from_message(_with_symbolic("Pair", "w", "x"))
    dx, dw = graph.node("slopes").outputs
    assert dx.shape == (3,)
    values = _values(graph, dx, dw, _slope(dx, graph.tensor("x")))
    expected = [np.cos(X) * W * W + X, np.sin(X) * W + X, -np.sin(X) * W * W + 1]
    for value, right in zip(values, expected, strict=True):
        np.testing.assert_allclose(value, right)


def test_a_symbolic_gradient_runs_the_gradient_that_the_function_names() -> None:
    message = _with_symbolic("Product", "w")
    nodes = _function(message, "Slopes", "abd", {"da": "da:z:0", "db": "db:z:0"})
    _add(nodes, "Mul", "da", "a", "d", T=DOUBLE)
    _add(nodes, "AddV2", "db", "b", "d", T=DOUBLE)
    message.library.gradient.add(function_name="Product", gradient_func="Slopes")
    graph = codec.graph_from_message(message)
    dx, dw = _values(graph, *graph.node("slopes").outputs)
    np.testing.assert_allclose(dx, X * W)
    np.testing.assert_allclose(dw, W + W)
    np.testing.assert_allclose(_values(graph, _slope(graph.tensor("z"), graph.tensor("x")))[0], X)


def test_a_symbolic_gradient_without_all_cotangents_is_refused() -> None:
    with pytest.raises(InvalidGraph, match=r"slopes \(SymbolicGradient\) must have the 2 inputs of Pair"):
        codec.graph_from_message(_with_symbolic("Pair", "w"))


def _batched() -> graph_pb2.GraphDef:
    """The graph calls Pair by a BatchFunction, whose second argument is captured."""
    message = _pair()
    del message.node[2:]
    _add(
        message.node, "BatchFunction", "pair", "x", "w", f=FunctionName("Pair", {}), Tin=[DOUBLE], Tcaptured=[DOUBLE],
        Tout=[DOUBLE, DOUBLE], num_batch_threads=1, max_batch_size=4, batch_timeout_micros=0, allowed_batch_sizes=[4],
    )  # fmt: skip
    _add(message.node, "Mul", "y", "pair", "pair:1", T=DOUBLE)
    return message


def test_a_batch_function_is_a_call_for_this_request_alone() -> None:
    message = _batched()
    graph = codec.graph_from_message(message)
    dx = _slope(graph.tensor("y"), graph.tensor("x"))
    value, slope = _values(graph, graph.tensor("y"), dx)
    np.testing.assert_allclose(value, np.sin(X) * W * (X + W))
    np.testing.assert_allclose(slope, np.cos(X) * W * (X + W) + np.sin(X) * W)
    assert list(codec.graph_to_message(graph).node)[: len(message.node)] == list(message.node)
