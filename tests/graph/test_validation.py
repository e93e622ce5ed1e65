"""A broken graph is refused with an error of its own that names the node."""

from __future__ import annotations

from typing import Any

import pytest

import gradserve.ops  # noqa: F401
from gradserve.errors import InvalidGraph
from gradserve.graph import codec
from gradserve.v1 import graph_pb2, tensor_pb2

_FLOAT = graph_pb2.AttrValue(type=tensor_pb2.DT_FLOAT)
_DOUBLE = graph_pb2.AttrValue(type=tensor_pb2.DT_DOUBLE)


def _node(name: str, op: str, *inputs: str, **attrs: graph_pb2.AttrValue) -> graph_pb2.NodeDef:
    return graph_pb2.NodeDef(name=name, op=op, input=inputs, attr=attrs)


_X = _node("x", "Placeholder", dtype=_FLOAT)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([_X, _X], "Two nodes are called 'x'"),
        ([_node("y", "Neg", "gone", T=_FLOAT)], "y .Neg. reads 'gone'"),
        ([_node("a", "Neg", "b", T=_FLOAT), _node("b", "Neg", "a", T=_FLOAT)], "cycle outside of a loop"),
        ([_X, _node("y", "Neg", "x", T=graph_pb2.AttrValue(i=1))], "'T' must be of kind type, not i"),
        ([_X, _node("y", "Neg", "x")], "lacks the attr 'T'"),
        ([_X, _node("y", "Mul", "x", T=_FLOAT)], "y .Mul.: needs 2 inputs and has 1"),
        ([_X, _node("y", "Neg", "x", T=_DOUBLE)], "must be float64, but x:0 is float32"),
        ([_X, _node("y", "Neg", "x:3", T=_FLOAT)], "there is no x:3"),
        ([_X, _node("y", "Neg", "x", T=graph_pb2.AttrValue(type=tensor_pb2.DT_STRING))], "can't be string"),
    ],
)
def test_each_fault_has_its_own_message(nodes: list[Any], message: str) -> None:
    with pytest.raises(InvalidGraph, match=message):
        codec.graph_from_message(graph_pb2.GraphDef(node=nodes))


def test_an_unknown_op_is_carried_along() -> None:
    graph = codec.graph_from_message(graph_pb2.GraphDef(node=[_X, _node("y", "Unheard", "x", T=_FLOAT)]))
    assert graph.node("y").op is None
    assert graph.tensor("y:2").dtype.name == "float32"
